"""CIFAR-10 and CIFAR-100, in the "python" or the "binary" version, as a folder or a .tar.gz.

They are looked for as `tser.data.places` says; of a folder that has several versions, the
"python" folder is read, else the "binary" one, else an archive. Nothing is unpickled
(`tser.data.plain_pickle`), and an archive is unpacked to a temporary folder only.

The test split is the official one. The validation split is a tenth of the official training
images, the first of each class in the order of the files (5,000 of 50,000: 500 of each class of
CIFAR-10, 50 of CIFAR-100), and the training split is the rest (45,000).
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from tser.data.cifar_files import CIFAR10, CIFAR100, Cifar, Version, read_batch, read_names
from tser.data.images import ArraySplit, ImageData, make_image_data
from tser.data.mnist import split_first
from tser.data.packed import REMEDY, read_tar, read_whole
from tser.data.places import Files, Source, locate, torchvision_class, visible
from tser.errors import InputFileError
from tser.files import scratch

VAL_SHARE = 10  # one training image in 10 goes to the validation split


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


def _load(cifar: Cifar, root: Path | None) -> ImageData:
    found = locate(_source(cifar), root)
    batches, test, class_names = _read(found, cifar)
    official = ArraySplit(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
    )
    if len(official) < 2:
        raise InputFileError(f"{found[0]} holds a single image, too few to split; use the full set")
    train, val = split_first(official, max(1, len(official) // VAL_SHARE))
    return make_image_data(cifar.name, class_names, train=train, val=val, test=test, max_value=255)


def _read(found: Files, cifar: Cifar) -> tuple[list[ArraySplit], ArraySplit, tuple[str, ...]]:
    """The training batches, the test batch and the class names."""
    binary = found[0].name in (cifar.binary.archive, *cifar.binary.batches)
    version = cifar.binary if binary else cifar.python
    splits, shown, digests = [], [], []
    class_names: tuple[str, ...] = ()
    with scratch() as folder:
        for name, (where, content) in zip(
            version.files, _contents(found, version, folder), strict=True
        ):
            shown.append(where)
            digests.append(hashlib.md5(content, usedforsecurity=False).hexdigest())
            if name == version.meta:
                class_names = read_names(where, content, cifar, binary=binary)
            else:
                splits.append(read_batch(where, content, cifar, binary=binary))
    if not binary:
        _check_origin(shown, digests, cifar)
    *batches, test = splits
    for where, batch in zip(shown, batches, strict=False):
        if len(batch) != len(batches[0]):
            raise InputFileError(
                f"{where} holds {len(batch):,} images but {shown[0]} {len(batches[0]):,}; "
                "replace the one that is cut short with a fresh copy"
            )
    return batches, test, class_names


def _contents(found: Files, version: Version, scratch: Path) -> Iterator[tuple[str, bytes]]:
    """Each file of the version, in order: words for where it is, and what it holds."""
    if found[0].name == version.archive:
        wanted = [f"{version.folder}/{name}" for name in version.files]
        return read_tar(found[0], wanted, scratch)
    return ((str(path), read_whole(path)) for path in found)


def _check_origin(shown: list[str], digests: list[str], cifar: Cifar) -> None:
    """Refuse a file that is not the official one though others beside it are."""
    official = torchvision_class(cifar.torchvision_class)
    ours = [md5 for _, md5 in (*official.train_list, *official.test_list)] + [official.meta["md5"]]
    right = [digest == our for digest, our in zip(digests, ours, strict=True)]
    if any(right) and not all(right):
        raise InputFileError(
            f"{shown[right.index(False)]} is not the official file of {cifar.title}, though others "
            f"beside it are: its checksum differs; {REMEDY}"
        )


def _source(cifar: Cifar) -> Source:
    python = cifar.python
    return Source(
        title=cifar.title,
        find=partial(_find, cifar=cifar),
        expected=f"{python.archive}, or the folder {python.folder} with all of "
        f"{', '.join(python.files)}, or the binary version of the same",
        torchvision_class=cifar.torchvision_class,
        downloaded=tuple(f"{python.folder}/{name}" for name in python.files),
    )


def _find(place: Path, cifar: Cifar) -> Files | None:
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
