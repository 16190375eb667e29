"""Checking and reading idx files, the format of MNIST and its relatives.

A file is a big-endian header (four bytes 0, 0, 8 for uint8 and the number of dimensions, then
four bytes per dimension) followed by the bytes of the array. torchvision's readers trust the
header; here it is first held against the bytes that are there.
"""

import gzip
import importlib
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from tser.errors import InputFileError, UsageError
from tser.torchvision_ops import ensure_torchvision

_CHUNK = 1 << 20
_LARGEST = 1 << 30  # bytes: twenty times Fashion-MNIST's largest file
_REMEDY = "replace it with a fresh copy"


def read_images(path: Path, scratch: Path) -> Tensor:
    """Images of an idx file, uint8 ``[N, H, W]``.

    Args:
        path: the file, plain or ending in ``.gz``.
        scratch: an existing folder a ``.gz`` file may be unpacked to.

    Raises:
        InputFileError: the file cannot be read or does not hold what its header says.
        UsageError: ``scratch`` cannot be written.
    """
    images: Tensor = _reader().read_image_file(str(_checked(path, 3, scratch)))
    return images


def read_labels(path: Path, scratch: Path) -> Tensor:
    """Labels of an idx file, int64 ``[N]``; arguments and errors as for `read_images`."""
    labels: Tensor = _reader().read_label_file(str(_checked(path, 1, scratch)))
    return labels


def _reader() -> Any:
    ensure_torchvision()
    return importlib.import_module("torchvision.datasets.mnist")


def _checked(path: Path, dimensions: int, scratch: Path) -> Path:
    """A plain file with the content of ``path``, whose size agrees with its header."""
    head = _header(path, dimensions)
    expected = 4 * (dimensions + 1) + math.prod(head)
    if math.prod(head) == 0 or expected > _LARGEST:
        shape = " x ".join(f"{size:,}" for size in head)
        raise InputFileError(f"{path} announces {shape} values, which cannot be; {_REMEDY}")
    if path.suffix == ".gz":
        plain = scratch / path.stem
        found = _unpack(path, plain, limit=expected)
    else:
        plain, found = path, path.stat().st_size
    if found != expected:
        fault = "is cut short" if found < expected else "is too long"
        holds = f"{found:,}" if found < expected else "more"
        raise InputFileError(
            f"{path} {fault}: its header announces {expected:,} bytes but it holds {holds}; "
            f"{_REMEDY}"
        )
    return plain


def _header(path: Path, dimensions: int) -> tuple[int, ...]:
    """The size of each dimension, after a check of the magic number."""
    length = 4 * (dimensions + 1)
    head = next(_chunks(path, length), b"")
    magic = bytes((0, 0, 8, dimensions))
    if head[:4] != magic:
        kind = "images" if dimensions == 3 else "labels"
        raise InputFileError(
            f"{path} is not an idx file of {kind}: it begins with {head[:4].hex() or 'nothing'}, "
            f"not {magic.hex()}; {_REMEDY}"
        )
    if len(head) < length:
        raise InputFileError(f"{path} is cut short inside its header; {_REMEDY}")
    return struct.unpack(f">{dimensions}I", head[4:])


def _unpack(path: Path, target: Path, limit: int) -> int:
    """Unpack ``path`` into ``target``; stop after ``limit`` bytes, return how many there were."""
    written = 0
    try:
        with target.open("wb") as file:
            for chunk in _chunks(path, _CHUNK):
                written += file.write(chunk)
                if written > limit:
                    break
    except OSError as error:
        raise UsageError(
            f"cannot unpack {path} into {target.parent}: {error.strerror}; "
            "make room there or set TMPDIR to a folder with 60 MB free"
        ) from error
    return written


def _chunks(path: Path, size: int) -> Iterator[bytes]:
    """The content of ``path``, unpacked if it ends in ``.gz``, ``size`` bytes at a time."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while chunk := file.read(size):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputFileError(f"{path} is damaged or cut short ({error}); {_REMEDY}") from error
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from error
