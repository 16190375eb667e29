"""Open an exported or third-party graph by its path."""

from __future__ import annotations

from pathlib import Path

import nir
import onnx

from tser.errors import InputFileError
from tser.export.graph import Graph, resolve
from tser.export.nir_file import digest, read_nir
from tser.export.onnx_file import model_metadata


def open_nir(path: Path, dt: float | None = None) -> Graph:
    """The resolved view of a ``.nir`` file.

    Raises:
        InputFileError: missing, damaged or contradictory.
        UsageError: the file states no dt and none is given.
    """
    return resolve(read_signed(path), dt, str(path))


def read_signed(path: Path) -> nir.NIRGraph:
    """The content of a ``.nir`` file; one that carries no digest is given its own in memory.

    What is made from it can so be told from what is made from another.

    Raises:
        InputFileError: missing or damaged.
    """
    raw = read_nir(path)
    raw.metadata.setdefault("sha256", digest(raw))
    return raw


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
