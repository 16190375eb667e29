"""Fashion-MNIST: where it is looked for, and how it is split.

The four files, plain or ``.gz``, are looked for in ``root`` alone if one is given, and otherwise
in ``$TSER_DATA``, the user's cache (``$XDG_CACHE_HOME/tser`` or ``~/.cache/tser``) and Debian's
package, in this order; a set found nowhere is downloaded to the user's cache. Nothing is written
beside files that are found.

The test split is the official one. The validation split is a twelfth of the official training
images, the first of each class in the order of the file (5,000 of 60,000, 500 of each class),
and the training split is the rest (55,000).
"""

import contextlib
import importlib
import io
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tser.data.idx import read_images, read_labels
from tser.data.images import ImageData, Split, make_image_data
from tser.data.stratify import stratified_take
from tser.errors import InputFileError, UsageError
from tser.torchvision_ops import ensure_torchvision

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
LAYOUTS = ("FashionMNIST/raw", "fashion-mnist", "raw", "")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
VAL_SHARE = 12  # one training image in 12 goes to the validation split
SIDE = 28  # pixels
_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
_GET = "run `apt install dataset-fashion-mnist`"
_ROOT_REMEDY = f"name the folder that has it, or leave out --data-root and {_GET}"


def load_fashion_mnist(root: Path | None = None) -> ImageData:
    """Fashion-MNIST: 55,000 / 5,000 / 10,000 images ``[1, 28, 28]`` of values 0..255.

    Args:
        root: the only folder to look in; None to look in the usual places.

    Raises:
        UsageError: the set is not there, or cannot be downloaded or unpacked.
        InputFileError: one of its files is damaged or does not fit the others.
    """
    found = _in_root(root) if root is not None else _in_usual_places()
    with _scratch() as scratch:
        official = _read_pair(found[0], found[1], scratch)
        test = _read_pair(found[2], found[3], scratch)
    if len(official) < 2:
        raise InputFileError(f"{found[0]} holds a single image, too few to split; use the full set")

    labels = official.labels.numpy()
    val = stratified_take(labels, max(1, len(labels) // VAL_SHARE))
    train = np.setdiff1d(np.arange(len(labels)), val)
    return make_image_data(
        "fashion-mnist",
        tuple(_torchvision_class().classes),
        train=official.select(torch.from_numpy(train)),
        val=official.select(torch.from_numpy(val)),
        test=test,
        max_value=255,
    )


def _read_pair(image_file: Path, label_file: Path, scratch: Path) -> Split:
    images, labels = read_images(image_file, scratch), read_labels(label_file, scratch)
    if tuple(images.shape[1:]) != (SIDE, SIDE):
        size = " x ".join(map(str, images.shape[1:]))
        raise InputFileError(
            f"{image_file} holds images of {size} pixels, not {SIDE} x {SIDE}; "
            "use the files of Fashion-MNIST"
        )
    if len(images) != len(labels):
        raise InputFileError(
            f"{image_file} holds {len(images):,} images but {label_file} {len(labels):,} labels; "
            "use two files of the same set"
        )
    if int(labels.max()) > 9:
        raise InputFileError(
            f"{label_file} holds the label {int(labels.max())}, beyond 0..9; "
            "replace it with a fresh copy"
        )
    return Split(images[:, None], labels)


def _in_root(root: Path) -> tuple[Path, ...]:
    root = _expanded(root)
    if not _visible(root.is_dir):
        raise UsageError(f"the data folder {root} does not exist or cannot be read; {_ROOT_REMEDY}")
    found = _find(root)
    if found is None:
        raise UsageError(
            f"the data folder {root} does not hold Fashion-MNIST: expected all of "
            f"{', '.join(FILES)}, plain or .gz, in it or in its FashionMNIST/raw; {_ROOT_REMEDY}"
        )
    return found


def _in_usual_places() -> tuple[Path, ...]:
    named, cache = os.environ.get("TSER_DATA"), _user_cache()
    places = [_expanded(Path(named))] if named else []
    places += [cache] if cache else []
    places.append(DEBIAN)
    for place in places:
        if (found := _find(place)) is not None:
            return found
    reason = _download(cache) if cache else "there is no home folder to keep it in"
    found = _find(cache) if cache else None
    if found is None:
        raise UsageError(
            f"Fashion-MNIST was not found in {', '.join(map(str, places))} and could not be "
            f"downloaded ({reason}); {_GET} or name the folder that has it with --data-root"
        )
    return found


def _find(place: Path) -> tuple[Path, ...] | None:
    """The four files in the first layout of ``place`` that has them all."""
    for layout in LAYOUTS:
        found = []
        for name in FILES:
            pair = (place / layout / name, place / layout / f"{name}.gz")
            found += [path for path in pair if _visible(path.is_file)][:1]
        if len(found) == len(FILES):
            return tuple(found)
    return None


def _download(cache: Path) -> str:
    """Download the set to ``cache`` with torchvision; returns why not, empty if it worked.

    The files move to their final place only when all four are there and unpacked. The progress
    bar goes to the standard error, and nowhere if that is not a terminal.
    """
    timeout = socket.getdefaulttimeout()
    progress = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=cache, prefix=".fashion-mnist-") as staging,
            contextlib.redirect_stdout(progress),
            contextlib.redirect_stderr(progress),
        ):
            socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
            _torchvision_class()(staging, train=False, download=True)
            target = cache / LAYOUTS[0]
            target.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                (Path(staging) / LAYOUTS[0] / name).replace(target / name)
    except (RuntimeError, OSError, EOFError, HTTPException) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[-1]
    finally:
        socket.setdefaulttimeout(timeout)
    return ""


def _torchvision_class() -> Any:
    ensure_torchvision()
    return importlib.import_module("torchvision.datasets").FashionMNIST


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="tser-")
    except OSError as error:
        raise UsageError(
            f"no temporary folder to unpack Fashion-MNIST in: {error.strerror}; "
            "set TMPDIR to a folder you may write to"
        ) from error
    with folder as name:
        yield Path(name)


def _user_cache() -> Path | None:
    """The user's cache folder of this program, None without a home folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        home = Path() if os.environ.get("HOME") == "" else _expanded(Path("~"))
        cache = home / ".cache"
    return cache / "tser" if cache.is_absolute() else None


def _expanded(path: Path) -> Path:
    """``path`` with a leading ``~`` replaced, unchanged where there is no home folder."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _visible(test: Callable[[], bool]) -> bool:
    """The answer of ``path.is_file`` or ``path.is_dir``; no where it may not be asked."""
    try:
        return test()
    except OSError:
        return False
