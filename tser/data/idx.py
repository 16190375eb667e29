"""Checking and reading idx files, the format of MNIST and its relatives.

A file is a big-endian header (four bytes 0, 0, 8 for uint8 and the number of dimensions, then
four bytes per dimension) followed by the bytes of the array. torchvision's readers trust the
header; here it is first held against the bytes that are there.
"""

import hashlib
import importlib
import math
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tser.data.packed import REMEDY, chunks, unpack
from tser.errors import InputFileError
from tser.torchvision_ops import ensure_torchvision

_LARGEST = 1 << 30  # bytes: twenty times Fashion-MNIST's largest file


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


def content_md5(array: Tensor) -> str:
    """MD5 of the idx file, not packed, that holds ``array`` (values 0..255, any shape)."""
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    digest = hashlib.md5(head, usedforsecurity=False)
    digest.update(array.to(torch.uint8).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _reader() -> Any:
    ensure_torchvision()
    return importlib.import_module("torchvision.datasets.mnist")


def _checked(path: Path, dimensions: int, scratch: Path) -> Path:
    """A plain file with the content of ``path``, whose size agrees with its header."""
    head = _header(path, dimensions)
    expected = 4 * (dimensions + 1) + math.prod(head)
    if math.prod(head) == 0 or expected > _LARGEST:
        shape = " x ".join(f"{size:,}" for size in head)
        raise InputFileError(f"{path} announces {shape} values, which cannot be; {REMEDY}")
    if path.suffix == ".gz":
        plain = scratch / path.stem
        found = unpack(path, plain, limit=expected)
    else:
        plain, found = path, path.stat().st_size
    if found != expected:
        fault = "is cut short" if found < expected else "is too long"
        holds = f"{found:,}" if found < expected else "more"
        raise InputFileError(
            f"{path} {fault}: its header announces {expected:,} bytes but it holds {holds}; "
            f"{REMEDY}"
        )
    return plain


def _header(path: Path, dimensions: int) -> tuple[int, ...]:
    """The size of each dimension, after a check of the magic number."""
    length = 4 * (dimensions + 1)
    head = next(chunks(path, length), b"")
    magic = bytes((0, 0, 8, dimensions))
    if head[:4] != magic:
        kind = "images" if dimensions == 3 else "labels"
        raise InputFileError(
            f"{path} is not an idx file of {kind}: it begins with {head[:4].hex() or 'nothing'}, "
            f"not {magic.hex()}; {REMEDY}"
        )
    if len(head) < length:
        raise InputFileError(f"{path} is cut short inside its header; {REMEDY}")
    return struct.unpack(f">{dimensions}I", head[4:])
