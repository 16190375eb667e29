"""Parse a NIR file in a process of its own: ``python -P parse_child.py IN OUT MEMORY DATA``.

MEMORY is the address space it may use, DATA what all values may have together, in bytes. Writes
every dataset of the graph as a plain array to an ``.npz``; a reason for failure goes to stdout as
one line. Where the ``.npz`` cannot be written the exit status is 3, and the line is the number of
the error. HDF5 links that leave the file are refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows; the time limit still holds
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]  # may be lowered only
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Budget:
    """Bytes that may still be read: a few bytes of a file can stand for any number of zeros."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def take(self, item: Any) -> None:
        self.left -= item.size * item.dtype.itemsize if item.size else 0
        if self.left < 0:
            raise MemoryError


def _collect(
    group: Any, prefix: str, found: dict[str, Any], open_: tuple[Any, ...], budget: _Budget
) -> None:
    for key in group:
        link = group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{prefix}{key} is a link out of its place")
        item = group[key]
        if isinstance(item, h5py.Group):
            if item.id in open_ or len(open_) > 50:
                raise ValueError(f"{prefix}{key} contains itself")
            _collect(item, f"{prefix}{key}/", found, (*open_, item.id), budget)
        else:
            if item.is_virtual or item.external:
                raise ValueError(f"{prefix}{key} keeps its data outside the file")
            budget.take(item)
            found[prefix + key] = value = _value(item[()])
            if (
                value.nbytes > (item.size or 0) * item.dtype.itemsize
            ):  # text of any length, in letters
                budget.take(value)


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return np.array(value.decode("utf-8"))
    array = np.asarray(value)
    if array.dtype.kind in "OS":
        return np.array(
            [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in array.reshape(-1)]
        ).reshape(array.shape)
    return array


def main(source: str, target: str, memory: str, data: str) -> int:
    """Parse ``source`` into ``target``; returns the exit status."""
    _limit_memory(int(memory))
    try:
        with h5py.File(source, "r") as file:
            if "node" not in file or not isinstance(file["node"], h5py.Group):
                raise ValueError("it is HDF5 but holds no NIR graph")
            found: dict[str, Any] = {}
            _collect(file["node"], "", found, (file["node"].id,), _Budget(int(data)))
        arrays = {f"a{number}": value for number, value in enumerate(found.values())}
        try:
            with Path(target).open("wb") as file:
                np.savez(file, keys=np.array(json.dumps(list(found))), **arrays)
        except OSError as error:  # this is no fault of the file that was read
            sys.stdout.write(f"{error.errno}\n")
            return 3
    except MemoryError:
        sys.stdout.write("it asks for more memory than a graph of its size needs\n")
        return 1
    except Exception as error:  # noqa: BLE001 - h5py raises any type; the parent gets the reason
        sys.stdout.write(" ".join(str(error).split())[:200] + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
