"""Fashion-MNIST: read and split as MNIST is, and looked for in Debian's package as well."""

from pathlib import Path
from typing import Any

from tser.data.images import ImageData
from tser.data.mnist import FILES, VAL_SHARE, four_files, read_four_files
from tser.data.places import Files, Source, in_root, in_usual_places, torchvision_class

__all__ = ["DEBIAN", "FILES", "VAL_SHARE", "load_fashion_mnist"]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def load_fashion_mnist(root: Path | None = None) -> ImageData:
    """Fashion-MNIST: 55,000 / 5,000 / 10,000 images ``[1, 28, 28]`` of values 0..255.

    Args:
        root: the only folder to look in; None to look in the usual places.

    Raises:
        UsageError: the set is not there, or cannot be downloaded or unpacked.
        InputFileError: one of its files is damaged or does not fit the others.
    """
    found = in_root(_source(), root) if root is not None else _in_usual_places()
    class_names = tuple(_torchvision_class().classes)
    return read_four_files(found, "fashion-mnist", "Fashion-MNIST", class_names)


def _in_usual_places() -> Files:
    return in_usual_places(_source())


def _source() -> Source:
    get = "run `apt install dataset-fashion-mnist`"
    return four_files("Fashion-MNIST", "FashionMNIST", "fashion-mnist", get, (DEBIAN,))


def _torchvision_class() -> Any:
    return torchvision_class("FashionMNIST")
