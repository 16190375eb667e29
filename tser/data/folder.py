"""Folders of images in the manner of ImageNet: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``.

The splits are fixed. ``test/`` is the test split where there is one, and ``val/`` the validation
split. Where there is none, ``val/`` is the test split, because it is the one that papers report,
and the validation split is held out of ``train/``: so that no choice is ever made on the images
that are reported. It is a stratified 5 % of them, 10,000 at most, with the images in the order of
SHA-256("tser-folder:CLASS/FILE"); the training split keeps the rest.

Images are read and decoded at every visit, as RGB. For training, a random part of 8 to 100 % of
the area is scaled to ``size`` x ``size`` pixels (Szegedy et al., CVPR 2015; torchvision's
``RandomResizedCrop``); otherwise the shorter side is scaled to 256/224 of ``size`` and the middle
is taken. They are normalised with the mean and deviation of ImageNet, whatever the images are,
which saves a pass over all of them.

Such folders state no checksums. A file that Pillow cannot decode to its end is found when it is
reached, and named; changed pixels are not.
"""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tser.augment import Draws, auto_augment, seeded
from tser.config import DataConfig
from tser.data.images import ImageData, Split
from tser.data.places import visible
from tser.data.stratify import stratified_take
from tser.errors import InputFileError
from tser.limits import MOST_ASPECT, MOST_PIXELS
from tser.plain_files import check_plain
from tser.torchvision_ops import ensure_torchvision

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's RGB values scaled to 0..1; the ones torchvision's networks were trained with."""
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
"""What a file may hold, whatever its name is. Pillow knows more: for one, it starts Ghostscript."""
VAL_SHARE, VAL_MOST = 20, 10_000  # one training image in so many, and at most so many


@dataclass(frozen=True, eq=False)
class FolderSplit(Split):
    """Image files of one split."""

    files: NDArray[Any]
    """Their paths, bytes ``[N]``; one block of memory, which processes share."""
    labels: Tensor
    """int64 ``[N]``, each from 0 to K - 1."""
    size: int
    """Side of an image as it is shown [pixels]."""
    lazy = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, ``(3, size, size)``."""
        return 3, self.size, self.size

    def images_at(self, positions: Tensor) -> Tensor:
        """The middle of the images at ``positions``, uint8 ``[B, 3, size, size]``."""
        middle = _middle(self.size)
        return self._stack([_decoded(self._path(at), middle) for at in positions.tolist()])

    def augmented_at(self, positions: Tensor, draws: Draws, config: DataConfig) -> Tensor:
        """Random parts of the images at ``positions``, mirrored and changed by AutoAugment."""
        part, images = _random_part(self.size), []
        for at, flip, seed in zip(
            positions.tolist(), draws.flip.tolist(), draws.seed.tolist(), strict=True
        ):
            # AutoAugment draws from the seed itself: one stream must not decide both.
            change = functools.partial(seeded, part, seed=seed ^ 1)
            image = _decoded(self._path(at), change)
            images.append(image.flip(2) if flip else image)
        return auto_augment(self._stack(images), draws.seed, config.auto_augment)

    def select(self, positions: Tensor) -> FolderSplit:
        """The files at ``positions``, in that order."""
        return FolderSplit(self.files[positions.numpy()], self.labels[positions], self.size)

    def _path(self, position: int) -> str:
        return os.fsdecode(bytes(self.files[position]))

    def _stack(self, images: list[Tensor]) -> Tensor:
        return torch.stack(images) if images else torch.empty(0, *self.shape, dtype=torch.uint8)


def load_folder(name: str, path: Path, size: int) -> ImageData:
    """The images ``[3, size, size]`` of values 0..255 below ``path``.

    Args:
        name: what the user called it.
        path: the folder that holds train/ and val/.
        size: side of an image as it is shown [pixels].

    Raises:
        InputFileError: there is no such folder, or it is not of the kind described above.
    """
    if not visible(path.is_dir):
        raise InputFileError(
            f"there is no data folder {path}; give its path with --set data.name=…, or with "
            "--data-root the folder that holds it"
        )
    for part in ("train", "val"):
        if not visible((path / part).is_dir):
            raise InputFileError(
                f"{path} has no folder {part}/; it must hold train/CLASS/*.jpg and val/CLASS/*.jpg"
            )
    classes = _classes(path / "train")
    if len(classes) < 2:
        raise InputFileError(
            f"{path / 'train'} has {len(classes)} class folders; sort its images into a folder for "
            "each class, two or more"
        )
    train, val = _listed(path / "train", classes, size), _listed(path / "val", classes, size)
    if visible((path / "test").is_dir):
        test = _listed(path / "test", classes, size)
    else:
        test = val
        train, val = _held_out(train, path / "train")
    return ImageData(name, classes, train, val, test, max_value=255, mean=MEAN, std=STD)


def _classes(folder: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted; hidden ones are passed over."""
    try:
        found = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError as error:
        raise InputFileError(f"{folder} cannot be read: {error.strerror}") from error
    return tuple(sorted(name for name in found if not name.startswith(".")))


def _listed(folder: Path, classes: tuple[str, ...], size: int) -> FolderSplit:
    """The image files of one split, class by class, each in the order of their names."""
    found = _classes(folder)
    if not found:
        raise InputFileError(
            f"{folder} has no class folders; sort its images into the same class folders as "
            "those of train/"
        )
    for extra in sorted(set(found) ^ set(classes)):
        has, lacks = ("train", folder.name) if extra in classes else (folder.name, "train")
        raise InputFileError(
            f"{folder.parent}: the class {extra!r} is in {has}/ but not in {lacks}/; "
            "give every split the same class folders"
        )
    ensure_torchvision()
    from torchvision.datasets.folder import has_file_allowed_extension, make_dataset

    endings = _endings()

    def is_image(path: str) -> bool:
        # Hidden files: macOS leaves a "._NAME.jpg" beside every NAME.jpg it copies.
        name = os.path.basename(path)  # noqa: PTH119 - called a million times
        return not name.startswith(".") and has_file_allowed_extension(path, endings)

    numbers = {name: number for number, name in enumerate(classes)}
    samples = make_dataset(folder, numbers, is_valid_file=is_image, allow_empty=True)
    labels = np.array([label for _, label in samples], dtype=np.int64)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        raise InputFileError(
            f"{folder / classes[empty[0]]} holds no images ({', '.join(endings)}); add some, or "
            "remove the class from every split"
        )
    files = np.array([os.fsencode(path) for path, _ in samples])
    return FolderSplit(files, torch.from_numpy(labels), size)


def _endings() -> tuple[str, ...]:
    ensure_torchvision()
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return tuple(IMG_EXTENSIONS)


def _held_out(train: FolderSplit, folder: Path) -> tuple[FolderSplit, FolderSplit]:
    """The training images without those for validation, and these."""
    start = len(os.fsencode(folder)) + 1
    digests = [
        hashlib.sha256(
            b"tser-folder:" + bytes(file)[start:].replace(os.sep.encode(), b"/")
        ).digest()
        for file in train.files
    ]
    order = np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)
    count = min(max(1, len(train) // VAL_SHARE), VAL_MOST)
    taken = order[stratified_take(train.labels.numpy()[order], count)]
    rest = np.setdiff1d(np.arange(len(train)), taken)
    return train.select(torch.from_numpy(rest)), train.select(torch.from_numpy(np.sort(taken)))


def _decoded(path: str, change: Callable[[Any], Tensor]) -> Tensor:
    """``change`` of the RGB image in the file ``path``."""
    from PIL import Image

    check_plain(Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is refused here
            with Image.open(path, formats=_FORMATS) as image:
                _check_size(image.size)
                pixels = image.convert("RGB")
    except Exception as error:  # Pillow's readers raise many types on damaged bytes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise InputFileError(
            f"{path} is damaged or not an image ({reason}); replace it with a fresh copy or "
            "remove it"
        ) from error
    return change(pixels)


def _check_size(size: tuple[int, int]) -> None:
    """Refuse, before it is decoded or scaled, what a file of kilobytes can blow up to."""
    least, most = min(size), max(size)
    if least * most > MOST_PIXELS or most > MOST_ASPECT * least:
        raise ValueError(
            f"it has {size[0]:,} x {size[1]:,} pixels; at most {MOST_PIXELS:,} are read, and one "
            f"side at most {MOST_ASPECT} times the other"
        )


@functools.cache
def _middle(size: int) -> Callable[[Any], Tensor]:
    """Scale the shorter side to 256/224 of ``size`` and crop, as torchvision's networks expect."""
    ensure_torchvision()
    from torchvision.transforms import v2

    change: Callable[[Any], Tensor] = v2.Compose(
        [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), v2.PILToTensor()]
    )
    return change


@functools.cache
def _random_part(size: int) -> Callable[[Any], Tensor]:
    ensure_torchvision()
    from torchvision.transforms import v2

    change: Callable[[Any], Tensor] = v2.Compose([v2.RandomResizedCrop(size), v2.PILToTensor()])
    return change
