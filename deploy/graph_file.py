"""Open an exported or third-party graph by its path."""

from __future__ import annotations

from pathlib import Path

import onnx

from tser.errors import InputFileError
from tser.export.graph import Graph, resolve
from tser.export.nir_file import read_nir
from tser.export.onnx_file import model_metadata


def open_nir(path: Path, dt: float | None = None) -> Graph:
    """The resolved view of a ``.nir`` file.

    Raises:
        InputFileError: missing, damaged or contradictory.
        UsageError: the file states no dt and none is given.
    """
    return resolve(read_nir(path), dt, str(path))


def is_compiled_from(model: onnx.ModelProto, graph: Graph) -> bool:
    """Whether ``model`` states the digest of ``graph``."""
    stated = model_metadata(model).get("nir_sha256", "")
    return bool(stated) and stated == graph.metadata.get("sha256")


def check_suffix(path: Path, *suffixes: str) -> None:
    """Refuse a file whose name says it is something else.

    Raises:
        InputFileError: another suffix than ``suffixes``, no such file, or a folder.
    """
    wanted = " or ".join(suffixes)
    if path.is_dir():
        raise InputFileError(f"{path} is a folder; name a {wanted} file in it")
    if not path.exists():
        raise InputFileError(f"there is no file {path}")
    if not path.is_file():
        raise InputFileError(f"{path} is no plain file; name a {wanted} file")
    if path.suffix not in suffixes:
        raise InputFileError(f"{path} is not a {wanted} file")
