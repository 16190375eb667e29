"""Reading and writing ``.nir`` files.

A ``.nir`` file is HDF5, whose reader was seen to hang, crash and silently change data on damaged
bytes. So files are parsed in a child process with limits on time and memory, and our own exports
carry a digest of every parameter that is checked on reading.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import h5py
import nir
import numpy as np

from tser.child import run_child
from tser.errors import InputFileError
from tser.files import atomic_path, scratch
from tser.room import place_error

PARSER = Path(__file__).with_name("parse_child.py")
COMPRESSION = 4
"""Level of gzip that files are written with; parameters of neurons compress well at any."""
TIME_LIMIT = 8.0
"""Seconds the child may compute, plus one for every 20 MB of file."""
MEMORY_LIMIT = 2 * 1024**3
"""Bytes of address space the child may use beyond four times the file."""
DATA_LIMIT = 512 * 1024**2
"""Bytes that all values may have together beyond eight times the file."""
_NOT_WRITTEN = 3
"""Exit status of the child where it could not write; it then says the number of the error."""
_NEURONS = ("LIF", "IF", "CubaLIF", "LI", "CubaLI")
Manifest = Literal["ok", "absent", "wrong"]


def digest(graph: nir.NIRGraph) -> str:
    """sha256 over the names, classes and parameters of all nodes, the edges and the metadata.

    The order in which nodes and edges are stored does not matter; every bit of a parameter does.
    """
    flat = flatten(graph.to_dict())
    flat.pop("metadata/sha256", None)
    flat["edges"] = np.array(sorted(f"{a}\0{b}" for a, b in graph.edges))
    total = hashlib.sha256()
    for key in sorted(flat):
        value = np.asarray(flat[key])
        if value.dtype.kind in "SO":
            value = np.array([_text(item) for item in value.reshape(-1)])
        if value.dtype.kind in "iub":
            value = value.astype(np.int64)
        total.update(f"{key}|{value.dtype.kind}|{value.shape}|".encode())
        total.update(
            "\0".join(value.reshape(-1).tolist()).encode()
            if value.dtype.kind == "U"
            else np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        )
    return total.hexdigest()


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary as one level of ``a/b/c`` keys; ``None`` values are dropped."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        elif value is not None:
            flat[prefix + key] = value
    return flat


def write_nir(
    graph: nir.NIRGraph,
    path: Path,
    *,
    compression: int = COMPRESSION,
    without_reset: Collection[str] = (),
    verify: Callable[[Path], None] | None = None,
) -> str:
    """Write ``graph`` to ``path``, whole or not at all, with its digest in the metadata.

    The graph's metadata gain the key ``sha256``.

    Args:
        graph: what to write.
        path: where to.
        compression: of gzip, 0 to 9.
        without_reset: nodes whose ``v_reset``, all zero, is left out; readers of ``nir`` up to
            1.0.5 fail where they find one.
        verify: is given the file before it gets its name; what it raises, leaves no file.

    Returns:
        The digest.
    """
    graph.metadata["sha256"] = digest(graph)
    with atomic_path(path) as temporary:
        # In memory first: on a full disk the library of HDF5 ends the process with a crash.
        image = io.BytesIO()
        nir.write(image, graph, compression=compression)
        if without_reset:
            with h5py.File(image, "r+") as file:
                for name in without_reset:
                    del file[f"node/nodes/{name}/v_reset"]
        temporary.write_bytes(image.getbuffer())
        if verify is not None:
            verify(temporary)
    return str(graph.metadata["sha256"])


def read_nir(path: Path) -> nir.NIRGraph:
    """Read a ``.nir`` file from anywhere, trusting nothing in it.

    Raises:
        InputFileError: missing, damaged, not NIR, over the limits of time or memory, or not what
            its own digest says.
    """
    graph, state = read_unverified(path)
    if state == "wrong":
        raise InputFileError(damage(path, graph))
    return graph


def damage(path: Path, graph: nir.NIRGraph) -> str:
    """What to say of a file whose `Manifest` is wrong."""
    if "sha256" not in graph.metadata:
        return (
            f"{path} is damaged or was edited: it has lost its digest; export it again, or take "
            "'producer' out of the metadata of an edited copy too"
        )
    return (
        f"{path} is damaged or was edited: its contents do not match the digest it carries; export "
        "it again, or take 'sha256' and 'producer' out of the metadata of an edited copy"
    )


def read_unverified(path: Path) -> tuple[nir.NIRGraph, Manifest]:
    """Read a ``.nir`` file whose digest may be wrong, which the caller then has to say.

    Returns:
        The graph, and whether it is what its digest says: "absent" where the file has none, as
        those of other tools.

    Raises:
        InputFileError: missing, damaged, not NIR, or over the limits of time or memory.
    """
    if not path.is_file():
        raise InputFileError(f"there is no file {path}")
    flat = _parse_in_child(path)
    try:
        tree = _unflatten(flat)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of divisions by what is checked later
            graph = nir.dict2NIRNode(_tolerant(tree))
    except Exception as error:  # nir raises anything from AssertionError to IndexError
        raise InputFileError(f"{path} is not a valid NIR graph: {_one_line(error)}") from error
    if not isinstance(graph, nir.NIRGraph):
        raise InputFileError(f"{path} holds a single {type(graph).__name__}, not a graph")
    stated = graph.metadata.get("sha256")
    if stated is None:
        ours = _text(graph.metadata.get("producer", "")).startswith("tser ")
        return graph, "wrong" if ours else "absent"
    return graph, "ok" if _text(stated) == digest(graph) else "wrong"


def _parse_in_child(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with scratch() as folder:
        target = folder / "parsed.npz"
        arguments = [
            str(path.resolve()),
            str(target),
            str(MEMORY_LIMIT + 4 * size),
            str(DATA_LIMIT + 8 * size),
        ]
        try:
            child = run_child(PARSER, arguments, TIME_LIMIT + size / 20e6)
        except subprocess.TimeoutExpired as error:
            raise InputFileError(
                f"{path} is damaged: reading it did not end in {error.timeout:.0f} s"
            ) from error
        if child.returncode == _NOT_WRITTEN:
            target.unlink(missing_ok=True)  # first: what is free is told as it is without it
            number = int(child.stdout)
            raise place_error(target, OSError(number, os.strerror(number)))
        if child.returncode != 0 or not target.exists():
            reason = child.stdout.strip().splitlines()
            text = reason[-1] if reason else f"its reader ended with status {child.returncode}"
            raise InputFileError(f"{path} is not a readable NIR file: {text}")
        with np.load(target, allow_pickle=False) as arrays:
            keys = json.loads(str(arrays["keys"]))
            return {key: arrays[f"a{number}"][()] for number, key in enumerate(keys)}


def _unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *folders, last = key.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[last] = value.item() if isinstance(value, np.str_) else value
    return tree


def _tolerant(tree: dict[str, Any]) -> dict[str, Any]:
    """What nir's own reader refuses in valid files, written as it takes it.

    Its type check is switched off, ours runs on the view. A "/" in the name of a node, which HDF5
    takes for a folder, is one again. Neurons with some parameters for all of a layer and some for
    each have all of them for each.
    """
    if tree.get("type") == "NIRGraph":
        tree["type_check"] = False
        tree["edges"] = [tuple(edge) for edge in np.asarray(tree["edges"]).reshape(-1, 2).tolist()]
        tree["nodes"] = dict(_named(tree["nodes"]))
        for node in tree["nodes"].values():
            _tolerant(node)
    elif tree.get("type") in _NEURONS:
        _broadcast(tree)
    return tree


def _named(nodes: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, node in nodes.items():
        if isinstance(node, dict) and node and "type" not in node:
            yield from _named(node, f"{prefix}{name}/")
        else:
            yield prefix + name, node


def _broadcast(neuron: dict[str, Any]) -> None:
    values = {key: value for key, value in neuron.items() if hasattr(value, "shape")}
    shape = max((value.shape for value in values.values()), key=len, default=())
    for key, value in values.items():
        if value.shape != shape and value.shape in ((), (1,)):
            neuron[key] = np.broadcast_to(value, shape).copy()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
