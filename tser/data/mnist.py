"""MNIST and the sets that come in its four files, such as Fashion-MNIST.

The four files, plain or ``.gz``, are looked for as `tser.data.places` says. MNIST's and
Fashion-MNIST's have the same names and sizes, so their content is compared with the MD5 of the
official files: the official files of the other set are refused by name, and where some of the
four are official, one that is not is a damaged one. Four files of which none is official are
taken as a set of the user's own.

The test split is the official one. The validation split is a twelfth of the official training
images, the first of each class in the order of the file (5,000 of 60,000; Fashion-MNIST: 500 of
each class), and the training split is the rest (55,000).
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from tser.data.idx import content_md5, read_images, read_labels
from tser.data.images import ArraySplit, ImageData, make_image_data
from tser.data.places import Files, Source, locate, visible
from tser.data.stratify import stratified_take
from tser.errors import InputFileError
from tser.files import scratch

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# MD5 of the four files unpacked: torchvision's are of the .gz, which others packed differently.
OFFICIAL = {
    "MNIST": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "Fashion-MNIST": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
VAL_SHARE = 12  # one training image in 12 goes to the validation split
SIDE = 28  # pixels


def load_mnist(root: Path | None = None) -> ImageData:
    """MNIST: 55,000 / 5,000 / 10,000 images ``[1, 28, 28]`` of values 0..255.

    Args:
        root: the only folder to look in; None to look in the usual places.

    Raises:
        UsageError: the set is not there, or cannot be downloaded or unpacked.
        InputFileError: one of its files is damaged or does not fit the others.
    """
    found = locate(four_files("MNIST", "MNIST", "mnist"), root)
    return read_four_files(found, "mnist", "MNIST", tuple("0123456789"))


def four_files(
    title: str, torchvision_class: str, folder: str, get: str = "", places: Files = ()
) -> Source:
    """Where to look for the four files of the set called ``title``, and how to get them.

    Args:
        title: the name people know it by.
        torchvision_class: its class, which keeps it in a folder of the same name.
        folder: another name its folder may have.
        get: how to get it without a download.
        places: where else it may be installed.
    """
    raw = f"{torchvision_class}/raw"
    return Source(
        title=title,
        find=partial(_find, layouts=(raw, folder, "raw", "")),
        expected=f"all of {', '.join(FILES)}, plain or .gz, in it or in its {raw}",
        torchvision_class=torchvision_class,
        downloaded=tuple(f"{raw}/{name}" for name in FILES),
        get=get,
        places=places,
    )


def read_four_files(found: Files, name: str, title: str, class_names: tuple[str, ...]) -> ImageData:
    """The set in the four files ``found``, split; errors as for `load_mnist`.

    Args:
        found: the files in the order of `FILES`.
        name: the name of the set in this program.
        title: its key in `OFFICIAL`.
        class_names: K of them.
    """
    with scratch() as folder:
        official = _read_pair(found[0], found[1], folder, title)
        test = _read_pair(found[2], found[3], folder, title)
    arrays = official.images[:, 0], official.labels, test.images[:, 0], test.labels
    _check_origin(found, tuple(map(content_md5, arrays)), title)
    if len(official) < 2:
        raise InputFileError(f"{found[0]} holds a single image, too few to split; use the full set")
    train, val = split_first(official, max(1, len(official) // VAL_SHARE))
    return make_image_data(name, class_names, train=train, val=val, test=test, max_value=255)


def split_first(samples: ArraySplit, count: int) -> tuple[ArraySplit, ArraySplit]:
    """All but a stratified ``count`` of ``samples``, and these: the first of each class."""
    labels = samples.labels.numpy()
    taken = stratified_take(labels, count)
    rest = np.setdiff1d(np.arange(len(labels)), taken)
    return samples.select(torch.from_numpy(rest)), samples.select(torch.from_numpy(taken))


def _read_pair(image_file: Path, label_file: Path, scratch: Path, title: str) -> ArraySplit:
    images, labels = read_images(image_file, scratch), read_labels(label_file, scratch)
    if tuple(images.shape[1:]) != (SIDE, SIDE):
        size = " x ".join(map(str, images.shape[1:]))
        raise InputFileError(
            f"{image_file} holds images of {size} pixels, not {SIDE} x {SIDE}; "
            f"use the files of {title}"
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
    return ArraySplit(images[:, None], labels)


def _check_origin(found: Files, digests: tuple[str, ...], title: str) -> None:
    """Refuse official files of another set, and a file that alone is not official."""
    for other, theirs in OFFICIAL.items():
        for path, digest, their in zip(found, digests, theirs, strict=True):
            if digest == their and other != title:
                raise InputFileError(
                    f"{path} is the file of {other}, not of {title}; "
                    f"use the files of {title} or name the other set"
                )
    right = [digest == ours for digest, ours in zip(digests, OFFICIAL[title], strict=True)]
    if any(right) and not all(right):
        raise InputFileError(
            f"{found[right.index(False)]} is not the official file of {title}, though others "
            "beside it are: its checksum differs; replace it with a fresh copy"
        )


def _find(place: Path, layouts: tuple[str, ...]) -> Files | None:
    """The four files in the first layout of ``place`` that has them all."""
    for layout in layouts:
        found = []
        for name in FILES:
            pair = (place / layout / name, place / layout / f"{name}.gz")
            found += [path for path in pair if visible(path.is_file)][:1]
        if len(found) == len(FILES):
            return tuple(found)
    return None
