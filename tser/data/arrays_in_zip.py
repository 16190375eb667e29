"""Arrays of a ``.npz`` file, with every size checked before memory is taken for it."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tser.limits import memory_limit

_KINDS = "biufcUS"
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_END = struct.Struct("<4s6xH10x")
"""The end of a zip file without a comment, which numpy does not write: mark, entries."""
_IN_ZIP64 = 0xFFFF
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those of the arrays ``names`` that the file has; others are not looked at.

    Every byte is held against the checksum of the archive.

    Raises:
        ValueError: not plain arrays, sizes that contradict each other, or more than
            `tser.limits.memory_limit`.
        zipfile.BadZipFile, zlib.error, OSError and others: damaged, as the module zipfile says it.
    """
    limit = memory_limit()
    with zipfile.ZipFile(path) as archive:
        _check_count(path, len(archive.infolist()))
        known = {info.filename: info for info in archive.infolist()}
        for info in known.values():
            # A name that was damaged in the directory is not the one before the bytes.
            archive.open(info).close()
        wanted = {name: known[f"{name}.npy"] for name in names if f"{name}.npy" in known}
        total = sum(info.file_size for info in wanted.values())
        if total > limit:
            raise ValueError(
                f"its arrays take {total / 1e9:,.1f} GB, more than the {limit / 1e9:,.1f} GB that "
                "may be used on this machine"
            )
        found = {}
        for name, info in wanted.items():
            if info.compress_type not in _METHODS:
                raise ValueError(f"{name} is packed in another way than numpy packs")
            with archive.open(info) as file:
                found[name] = _array(cast(zipfile.ZipExtFile, file), name, info.file_size)
    return found


def _check_count(path: Path, found: int) -> None:
    """Refuse a directory that ends early, as a damaged length in it makes zipfile believe."""
    with path.open("rb") as file:
        file.seek(-min(_END.size, path.stat().st_size), os.SEEK_END)
        end = file.read()
    mark, stated = _END.unpack(end) if len(end) == _END.size else (b"", 0)
    if mark != b"PK\x05\x06" or (stated != found and stated != _IN_ZIP64):
        raise ValueError(f"its directory has {found} entries where {stated} are stated")


def _header(file: zipfile.ZipExtFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of the array that begins here."""
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"{name} is of version {version} of the format, not 1.0 or 2.0")
    try:
        return _READERS[version](file)
    except (ValueError, OSError):
        raise
    except Exception as error:  # what Python's tokenizer and parser raise is not documented
        raise ValueError(f"the header of {name} is damaged") from error


def _array(file: zipfile.ZipExtFile, name: str, size: int) -> NDArray[Any]:
    """The array in a member of ``size`` bytes."""
    shape, by_columns, dtype = _header(file, name)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    if dtype.kind not in _KINDS:
        raise ValueError(f"{name} is {str(dtype)[:40]}, not plain numbers or text")
    if min(shape, default=0) < 0:
        raise ValueError(f"{name} announces the shape {shape}")
    announced, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if announced != held:
        raise ValueError(f"{name} announces {announced:,} bytes and holds {held:,}")
    content = np.empty(held, np.uint8)
    view, read = memoryview(content.data), 0
    while read < held:
        part = file.readinto(view[read : read + (1 << 24)])
        if not part:
            raise ValueError(f"{name} is cut short")
        read += part
    if file.read(1):  # the checksum is looked at where the end is reached
        raise ValueError(f"{name} is too long")
    if dtype.kind == "U":
        _check_letters(content.view(dtype.byteorder + "u4"), name)
    values = content.view(dtype) if dtype.itemsize else np.empty(math.prod(shape), dtype)
    return values.reshape(shape, order="F" if by_columns else "C")


def _check_letters(letters: NDArray[Any], name: str) -> None:
    """Refuse numbers that stand for no letter, of which Python and terminals make no text."""
    if ((letters > 0x10FFFF) | ((letters >= 0xD800) & (letters <= 0xDFFF))).any():
        raise ValueError(f"{name} holds text that is none")
