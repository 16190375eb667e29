"""Data sets of the user's own: a ``.npz`` file of images, or of event frames, and labels.

The file holds ``x``, uint8 ``[N, C, H, W]`` or, for one channel, ``[N, H, W]``, and ``y``,
integers ``[N]`` from 0 to K - 1; optionally ``x_test`` and ``y_test`` of the same kind, and
``class_names``, K texts. Without ``class_names`` every class from 0 to the largest must occur.

Samples that change over time, such as event counts in T bins, are ``x`` ``[N, T, C, H, W]``, one
frame a time step, of any number type. They reach the network as they are stored: no mean is taken
away, so that a pixel without an event is 0 and costs nothing. What is not whole numbers of 0..255
is held as float32.

The split is fixed: with the samples of ``x`` in the order of SHA-256("tser-npz:i"), i being the
position in the file, the test split takes a stratified 20 % and the validation split a stratified
10 %; the training split keeps the rest. With ``x_test`` that is the test split, the validation
split takes a stratified 10 % of ``x``, and the training split the rest. Samples that belong
together, such as frames of one recording, are not kept together: then bring ``x_test``.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tser.data.arrays_in_zip import read_arrays
from tser.data.images import ArraySplit, ImageData, make_image_data
from tser.data.stratify import hashed_order, stratified_take
from tser.errors import InputFileError
from tser.plain_files import check_plain
from tser.printable import one_line

SUFFIX = ".npz"
TEST_SHARE, VAL_SHARE = 5, 10  # one sample in so many
_Images = NDArray[np.uint8] | NDArray[np.float32]
_FEWEST = 10  # samples: one of them for validation
_KEYS = ("x", "y", "x_test", "y_test", "class_names")
_UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def load_array_file(name: str, path: Path) -> ImageData:
    """The images ``[C, H, W]`` of values 0..255, or the frames ``[T, C, H, W]``, in a file.

    Args:
        name: what the user called it.
        path: where it is.

    Raises:
        InputFileError: the file is missing, damaged or not of the kind described above.
    """
    arrays = _read(path)
    train = _images(path, arrays, "x"), _labels(path, arrays, "y", len(arrays["x"]))
    test = None
    if "x_test" in arrays:
        test = (
            _images(path, arrays, "x_test"),
            _labels(path, arrays, "y_test", len(arrays["x_test"])),
        )
        if test[0].shape[1:] != train[0].shape[1:]:
            raise InputFileError(
                f"{path}: images of x_test are {test[0].shape[1:]} but those of x "
                f"{train[0].shape[1:]}; store both in one shape"
            )
    class_names = _class_names(path, arrays, train[1], test)
    parts = _split(path, train, test)
    return make_image_data(
        name, class_names, train=parts[0], val=parts[1], test=parts[2], max_value=255
    )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of the file, with none that is needed missing."""
    check_plain(path)
    try:
        with path.open("rb") as file:
            # The module zipfile would find an archive behind anything.
            if file.read(2) != b"PK":
                raise ValueError("it is not a zip file of arrays")
        arrays = read_arrays(path, _KEYS)
    except FileNotFoundError as error:
        raise InputFileError(f"there is no data file {path}; check its name and folder") from error
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputFileError(f"{path} cannot be read: {error.strerror}") from error
        reason = one_line(str(error).strip() or type(error).__name__)[:160]
        raise InputFileError(
            f"{path} is damaged or not a .npz file of plain arrays ({reason}); write it again "
            "with numpy.savez"
        ) from error
    missing = [key for key in ("x", "y") if key not in arrays]
    missing += [
        a
        for a, b in (("x_test", "y_test"), ("y_test", "x_test"))
        if a not in arrays and b in arrays
    ]
    if missing:
        raise InputFileError(f"{path} lacks the array {missing[0]!r}; add it with numpy.savez")
    return arrays


def _images(path: Path, arrays: dict[str, NDArray[Any]], key: str) -> _Images:
    """The samples under ``key``: uint8 ``[N, C, H, W]``, or frames ``[N, T, C, H, W]``."""
    x = arrays[key]
    if x.ndim not in (3, 4, 5) or 0 in x.shape:
        raise InputFileError(
            f"{path}: {key} is of shape {x.shape}; store images as [N, C, H, W] or [N, H, W], "
            "frames as [N, T, C, H, W]"
        )
    if x.ndim == 5:
        return _frames(path, x, key)
    if x.dtype.kind == "f" and bool(np.isnan(x).any()):
        raise InputFileError(
            f"{path}: {key} holds NaN{_at(np.isnan(x))}; store finite images as uint8, 0..255"
        )
    if x.dtype != np.uint8:
        in_unit = x.dtype.kind == "f" and float(x.min()) >= 0 and float(x.max()) <= 1
        how = f"({key} * 255).round()" if in_unit else f"values of 0..255 in {key}"
        values = " of 0..1" if in_unit else ""
        raise InputFileError(f"{path}: {key} is {x.dtype}{values}, not uint8; store {how} as uint8")
    if x.ndim == 3:
        return x[:, None]
    channels, height, width = x.shape[1:]
    if (width == 3 and channels > 4) or (width == 1 and channels == height > 4):
        raise InputFileError(
            f"{path}: {key} is of shape {x.shape}, which looks like [N, H, W, C]; "
            f"store {key}.transpose(0, 3, 1, 2)"
        )
    return x


def _at(wrong: NDArray[np.bool_]) -> str:
    """Words for the first sample ``[N, ...]`` that is wrong."""
    return f", first in sample {np.argwhere(wrong)[0][0]}"


def _frames(path: Path, x: NDArray[Any], key: str) -> _Images:
    """Frames ``[N, T, C, H, W]``: uint8 where they are whole numbers of 0..255, else float32."""
    if x.dtype.kind not in "buif":
        raise InputFileError(f"{path}: {key} is {x.dtype}, not numbers; store event counts")
    if x.shape[4] <= 3 < x.shape[2]:
        raise InputFileError(
            f"{path}: {key} is of shape {x.shape}, which looks like [N, T, H, W, C]; "
            f"store {key}.transpose(0, 1, 4, 2, 3)"
        )
    if x.dtype.kind in "bui" and int(x.min()) >= 0 and int(x.max()) <= 255:
        return x.astype(np.uint8, copy=False)
    with np.errstate(over="ignore"):
        frames = x.astype(np.float32, copy=False)
    if not np.isfinite(frames).all():
        raise InputFileError(
            f"{path}: {key} holds NaN, infinite or too large values"
            f"{_at(~np.isfinite(frames))}; store finite event counts"
        )
    return frames


def _labels(path: Path, arrays: dict[str, NDArray[Any]], key: str, count: int) -> NDArray[np.int64]:
    """The ``count`` labels under ``key``, none below 0."""
    y = arrays[key]
    if y.dtype.kind == "f" and bool(np.isnan(y).any()):
        raise InputFileError(
            f"{path}: {key} holds NaN{_at(np.isnan(y))}; give every image a class, 0..K-1"
        )
    if y.dtype.kind not in "iu":
        raise InputFileError(f"{path}: {key} is {y.dtype}, not integers; store classes as 0..K-1")
    if y.shape != (count,):
        raise InputFileError(
            f"{path}: {key} is of shape {y.shape} for {count:,} images; store one label an image"
        )
    if int(y.min()) < 0:
        raise InputFileError(
            f"{path}: {key} holds the label {int(y.min())}{_at(y == y.min())}; number the "
            "classes 0..K-1"
        )
    if int(y.max()) >= 1 << 31:
        raise InputFileError(
            f"{path}: {key} holds the label {int(y.max())}{_at(y == y.max())}; number the "
            "classes 0..K-1"
        )
    return y.astype(np.int64)


def _class_names(
    path: Path,
    arrays: dict[str, NDArray[Any]],
    labels: NDArray[np.int64],
    test: tuple[_Images, NDArray[np.int64]] | None,
) -> tuple[str, ...]:
    """K names, after a check that the labels are of K classes and of two at least."""
    present = np.unique(labels)
    if len(present) < 2:
        raise InputFileError(
            f"{path}: all labels in y are {present[0]}; store images of two classes or more"
        )
    if "class_names" in arrays:
        names = arrays["class_names"]
        if names.dtype.kind != "U" or names.ndim != 1:
            raise InputFileError(
                f"{path}: class_names is {names.dtype} {names.shape}; store one text a class"
            )
        known = tuple(str(name) for name in names)
    else:
        gap = np.flatnonzero(present != np.arange(len(present)))
        if len(gap):
            raise InputFileError(
                f"{path}: y holds the label {present[-1]} but no {gap[0]}; number the classes "
                "0..K-1 or store class_names"
            )
        known = tuple(map(str, range(len(present))))
    for key, found in (("y", labels), ("y_test", test[1] if test else labels)):
        if int(found.max()) >= len(known):
            raise InputFileError(
                f"{path}: {key} holds the label {found.max()}, beyond 0..{len(known) - 1}; "
                "number the classes of x and x_test alike"
            )
    return known


def _split(
    path: Path,
    samples: tuple[_Images, NDArray[np.int64]],
    test: tuple[_Images, NDArray[np.int64]] | None,
) -> list[ArraySplit]:
    """Training, validation and test split."""
    images, labels = samples
    count = len(labels)
    if count < _FEWEST:
        raise InputFileError(
            f"{path} holds {count} images, too few to split; store {_FEWEST} or more"
        )
    rest, parts = hashed_order(count, "tser-npz"), []
    for size in (count // VAL_SHARE,) if test else (count // TEST_SHARE, count // VAL_SHARE):
        taken = stratified_take(labels[rest], size)
        parts.append(_select(images, labels, rest[taken]))
        rest = np.delete(rest, taken)
    parts.append(_select(images, labels, rest))
    if test:
        parts.insert(0, _select(*test, np.arange(len(test[1]))))
    return parts[::-1]


def _select(images: _Images, labels: NDArray[np.int64], positions: NDArray[np.int64]) -> ArraySplit:
    """The samples at ``positions``, in the order of the file."""
    at = np.sort(positions)
    return ArraySplit(torch.from_numpy(images[at]), torch.from_numpy(labels[at]))
