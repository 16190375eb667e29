"""The files of CIFAR-10 and CIFAR-100: their names, and reading one of them.

The "python" version is pickles, read by `tser.data.plain_pickle`. The "binary" version is, for
each image, one label byte (CIFAR-100: two, the coarse and the fine class) and 3,072 pixel bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tser.data.images import ArraySplit
from tser.data.packed import REMEDY
from tser.data.plain_pickle import as_uint8, read_dictionary
from tser.errors import InputFileError

SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_COARSE = 20  # coarse classes of CIFAR-100


@dataclass(frozen=True)
class Version:
    """The files of one version of one set: the training batches, the test batch, the names."""

    folder: str
    archive: str
    batches: tuple[str, ...]
    test: str
    meta: str

    @property
    def files(self) -> tuple[str, ...]:
        """All of them: the training batches, the test batch, the names."""
        return (*self.batches, self.test, self.meta)


@dataclass(frozen=True)
class Cifar:
    """One of the two sets."""

    name: str
    title: str
    torchvision_class: str
    classes: int
    labels_key: str
    names_key: str
    label_bytes: int
    """Bytes before the pixels in the "binary" version, of which the last is the class."""
    python: Version
    binary: Version


_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10 = Cifar(
    "cifar10",
    "CIFAR-10",
    "CIFAR10",
    classes=10,
    labels_key="labels",
    names_key="label_names",
    label_bytes=1,
    python=Version(
        "cifar-10-batches-py", "cifar-10-python.tar.gz", _FIVE, "test_batch", "batches.meta"
    ),
    binary=Version(
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        tuple(f"{name}.bin" for name in _FIVE),
        "test_batch.bin",
        "batches.meta.txt",
    ),
)
CIFAR100 = Cifar(
    "cifar100",
    "CIFAR-100",
    "CIFAR100",
    classes=100,
    labels_key="fine_labels",
    names_key="fine_label_names",
    label_bytes=2,
    python=Version("cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", "meta"),
    binary=Version(
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
    ),
)


def read_batch(where: str, content: bytes, cifar: Cifar, *, binary: bool) -> ArraySplit:
    """The images ``[N, 3, 32, 32]`` and classes ``[N]`` of one file.

    Args:
        where: the file, in words.
        content: all of it.
        cifar: the set it belongs to.
        binary: whether it is of the "binary" version.

    Raises:
        InputFileError: they cannot be read, or a label is beyond the classes.
    """
    read = _read_binary if binary else _read_python
    pixels, labels = read(where, content, cifar)
    beyond = [label for label in labels if not 0 <= label < cifar.classes]
    if beyond:
        raise InputFileError(
            f"{where} holds the label {beyond[0]}, beyond 0..{cifar.classes - 1}; {REMEDY}"
        )
    images = np.ascontiguousarray(pixels).reshape(-1, *SHAPE)
    return ArraySplit(torch.tensor(images), torch.tensor(labels, dtype=torch.int64))


def _read_binary(where: str, content: bytes, cifar: Cifar) -> tuple[NDArray[np.uint8], list[int]]:
    width = cifar.label_bytes + _PIXELS
    if not content or len(content) % width:
        raise InputFileError(
            f"{where} is cut short or too long: {len(content):,} bytes are not a whole number "
            f"of images of {width:,} bytes; {REMEDY}"
        )
    table = np.frombuffer(content, dtype=np.uint8).reshape(-1, width)
    if cifar.label_bytes > 1 and int(table[:, 0].max()) >= _COARSE:
        raise InputFileError(
            f"{where} holds the coarse label {int(table[:, 0].max())}, beyond 0..{_COARSE - 1}; "
            f"{REMEDY}"
        )
    return table[:, cifar.label_bytes :], table[:, cifar.label_bytes - 1].tolist()


def _read_python(where: str, content: bytes, cifar: Cifar) -> tuple[NDArray[np.uint8], list[int]]:
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
    return pixels, labels


def read_names(where: str, content: bytes, cifar: Cifar, *, binary: bool) -> tuple[str, ...]:
    """The names of the classes, in the order of the labels."""
    names: Any
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
