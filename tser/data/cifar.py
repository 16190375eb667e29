"""CIFAR-10 and CIFAR-100, in the "python" or the "binary" version, as a folder or a .tar.gz.

They are looked for as `tser.data.places` says; of a folder that has several versions, the
"python" folder is read, else the "binary" one, else an archive. Nothing is unpickled
(`tser.data.plain_pickle`), and an archive is unpacked to a temporary folder only.

The test split is the official one. The validation split is a tenth of the official training
images, the first of each class in the order of the files (5,000 of 50,000: 500 of each class of
CIFAR-10, 50 of CIFAR-100), and the training split is the rest (45,000).
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tser.data.images import ImageData, Split, make_image_data
from tser.data.mnist import split_first
from tser.data.packed import REMEDY, read_tar, read_whole
from tser.data.places import Files, Source, locate, scratch_folder, torchvision_class, visible
from tser.data.plain_pickle import as_uint8, read_dictionary
from tser.errors import InputFileError

VAL_SHARE = 10  # one training image in 10 goes to the validation split
SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Version:
    """The files of one version of one set: the training batches, the test batch, the names."""

    folder: str
    archive: str
    batches: tuple[str, ...]
    test: str
    meta: str

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.batches, self.test, self.meta)


@dataclass(frozen=True)
class _Cifar:
    """One of the two sets."""

    name: str
    title: str
    torchvision_class: str
    classes: int
    labels_key: str
    names_key: str
    label_bytes: int
    """Bytes before the pixels in the "binary" version, of which the last is the class."""
    python: _Version
    binary: _Version


_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10 = _Cifar(
    "cifar10",
    "CIFAR-10",
    "CIFAR10",
    classes=10,
    labels_key="labels",
    names_key="label_names",
    label_bytes=1,
    python=_Version(
        "cifar-10-batches-py", "cifar-10-python.tar.gz", _FIVE, "test_batch", "batches.meta"
    ),
    binary=_Version(
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        tuple(f"{name}.bin" for name in _FIVE),
        "test_batch.bin",
        "batches.meta.txt",
    ),
)
CIFAR100 = _Cifar(
    "cifar100",
    "CIFAR-100",
    "CIFAR100",
    classes=100,
    labels_key="fine_labels",
    names_key="fine_label_names",
    label_bytes=2,
    python=_Version("cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", "meta"),
    binary=_Version(
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
    ),
)


def load_cifar10(root: Path | None = None) -> ImageData:
    """CIFAR-10: 45,000 / 5,000 / 10,000 images ``[3, 32, 32]`` of values 0..255.

    Args:
        root: the only folder to look in; None to look in the usual places.

    Raises:
        UsageError: the set is not there, or cannot be downloaded or unpacked.
        InputFileError: one of its files is damaged or does not fit the others.
    """
    return _load(CIFAR10, root)


def load_cifar100(root: Path | None = None) -> ImageData:
    """CIFAR-100 with its 100 fine classes; sizes, arguments and errors as for `load_cifar10`."""
    return _load(CIFAR100, root)


def _load(cifar: _Cifar, root: Path | None) -> ImageData:
    python = cifar.python
    source = Source(
        title=cifar.title,
        find=partial(_find, cifar=cifar),
        expected=f"{python.archive}, or the folder {python.folder} with all of "
        f"{', '.join(python.files)}, or the binary version of the same",
        torchvision_class=cifar.torchvision_class,
        downloaded=tuple(f"{python.folder}/{name}" for name in python.files),
    )
    found = locate(source, root)
    packed = found[0].suffix == ".gz"
    binary = found[0].name in (cifar.binary.archive, *cifar.binary.batches)
    version = cifar.binary if binary else cifar.python
    splits, digests = [], []
    with scratch_folder(cifar.title) as scratch:
        if packed:
            wanted = [f"{version.folder}/{name}" for name in version.files]
            contents = read_tar(found[0], wanted, scratch)
        else:
            contents = ((str(path), read_whole(path)) for path in found)
        names = list(version.files)
        shown = []
        for name, (where, content) in zip(names, contents, strict=True):
            shown.append(where)
            digests.append(hashlib.md5(content, usedforsecurity=False).hexdigest())
            if name == version.meta:
                class_names = _read_names(where, content, cifar, binary=binary)
            else:
                splits.append(_read_batch(where, content, cifar, binary=binary))
    if not binary:
        _check_origin(shown, digests, cifar)
    *batches, test = splits
    _check_sizes(shown, batches)
    official = Split(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
    )
    train, val = split_first(official, max(1, len(official) // VAL_SHARE))
    return make_image_data(cifar.name, class_names, train=train, val=val, test=test, max_value=255)


def _read_batch(where: str, content: bytes, cifar: _Cifar, *, binary: bool) -> Split:
    """The images and classes of one file.

    Raises:
        InputFileError: they cannot be read, or a label is beyond the classes.
    """
    pixels: NDArray[np.uint8]
    if binary:
        width = cifar.label_bytes + _PIXELS
        if not content or len(content) % width:
            raise InputFileError(
                f"{where} is cut short or too long: {len(content):,} bytes are not a whole number "
                f"of images of {width:,} bytes; {REMEDY}"
            )
        table = np.frombuffer(content, dtype=np.uint8).reshape(-1, width)
        pixels, labels = table[:, cifar.label_bytes :], table[:, cifar.label_bytes - 1].tolist()
    else:
        try:
            batch = read_dictionary(content)
            pixels, labels = as_uint8(batch.get("data"), _PIXELS), batch.get(cifar.labels_key)
        except ValueError as error:
            raise InputFileError(
                f"{where} is damaged or not a file of {cifar.title}: {error}; {REMEDY}"
            ) from error
        if not isinstance(labels, list) or any(type(label) is not int for label in labels):
            raise InputFileError(
                f"{where} is not a file of {cifar.title}: it has no list of whole numbers "
                f"{cifar.labels_key!r}; {REMEDY}"
            )
        if len(labels) != len(pixels):
            raise InputFileError(
                f"{where} holds {len(pixels):,} images but {len(labels):,} labels; {REMEDY}"
            )
    beyond = [label for label in labels if not 0 <= label < cifar.classes]
    if beyond:
        raise InputFileError(
            f"{where} holds the label {beyond[0]}, beyond 0..{cifar.classes - 1}; {REMEDY}"
        )
    images = np.ascontiguousarray(pixels).reshape(-1, *SHAPE)
    return Split(torch.tensor(images), torch.tensor(labels, dtype=torch.int64))


def _read_names(where: str, content: bytes, cifar: _Cifar, *, binary: bool) -> tuple[str, ...]:
    """The names of the classes, in the order of the labels."""
    try:
        if binary:
            names = [line.strip() for line in content.decode().splitlines() if line.strip()]
        else:
            names = read_dictionary(content).get(cifar.names_key, [])
    except ValueError as error:
        reason = "it is not text" if isinstance(error, UnicodeError) else error
        raise InputFileError(
            f"{where} is damaged or not a file of {cifar.title}: {reason}; {REMEDY}"
        ) from error
    if (
        not isinstance(names, list)
        or len(names) != cifar.classes
        or not all(isinstance(name, str) for name in names)
    ):
        raise InputFileError(
            f"{where} does not hold the {cifar.classes} class names of {cifar.title}; {REMEDY}"
        )
    return tuple(names)


def _check_origin(shown: list[str], digests: list[str], cifar: _Cifar) -> None:
    """Refuse a file that is not the official one though others beside it are."""
    official = torchvision_class(cifar.torchvision_class)
    ours = [md5 for _, md5 in (*official.train_list, *official.test_list)] + [official.meta["md5"]]
    right = [digest == our for digest, our in zip(digests, ours, strict=True)]
    if any(right) and not all(right):
        raise InputFileError(
            f"{shown[right.index(False)]} is not the official file of {cifar.title}, though others "
            f"beside it are: its checksum differs; {REMEDY}"
        )


def _check_sizes(shown: list[str], batches: list[Split]) -> None:
    """Refuse training batches of different sizes, or too few images to split."""
    for where, batch in zip(shown, batches, strict=False):
        if len(batch) != len(batches[0]):
            raise InputFileError(
                f"{where} holds {len(batch):,} images but {shown[0]} {len(batches[0]):,}; "
                "replace the one that is cut short with a fresh copy"
            )
    if sum(map(len, batches)) < 2:
        raise InputFileError(f"{shown[0]} holds a single image, too few to split; use the full set")


def _find(place: Path, cifar: _Cifar) -> Files | None:
    """The files of the first version that ``place`` has whole, or its archive."""
    for version in (cifar.python, cifar.binary):
        for folder in (place / version.folder, place):
            files = tuple(folder / name for name in version.files)
            if all(visible(path.is_file) for path in files):
                return files
    for version in (cifar.python, cifar.binary):
        if visible((place / version.archive).is_file):
            return (place / version.archive,)
    return None
