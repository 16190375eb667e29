"""Image data sets by name, each with a fixed train / validation / test split."""

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path

import torch

from tser.config import DataConfig
from tser.data.array_file import SUFFIX, load_array_file
from tser.data.cifar import load_cifar10, load_cifar100
from tser.data.digits import load_digits
from tser.data.fashion_mnist import load_fashion_mnist
from tser.data.folder import load_folder
from tser.data.images import ArraySplit, ImageData, Split
from tser.data.mnist import load_mnist
from tser.data.places import expanded, visible
from tser.data.resident import default_workers
from tser.data.stratify import stratified_take
from tser.errors import UsageError

__all__ = ["DATASETS", "ArraySplit", "ImageData", "Split", "load_configured", "load_data"]

DATASETS: dict[str, Callable[[Path | None], ImageData]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}
_IMAGENET = "imagenet"  # no set of its own: the name that the preset gives to a folder


def load_configured(config: DataConfig, root: Path | None = None) -> ImageData:
    """The data set that a configuration describes, with its number of workers.

    Args:
        config: section [data].
        root: where to look; None: where the configuration says.

    Raises:
        UsageError: as for `load_data`.
        InputFileError: as for `load_data`.
    """
    folder = root or (Path(config.root) if config.root else None)
    limit = config.limit_train or None
    data = load_data(config.name, folder, limit_train=limit, size=config.size)
    if config.workers >= 0:
        return dataclasses.replace(data, workers=config.workers)
    if config.auto_augment != "none":
        return dataclasses.replace(data, workers=default_workers())
    return data


def load_data(
    name: str, root: Path | None = None, *, limit_train: int | None = None, size: int = 224
) -> ImageData:
    """The data set called ``name``: in memory, or a list of files where it is a folder.

    Args:
        name: a key of `DATASETS`, the path of a ``.npz`` file (`tser.data.array_file`), or that
            of a folder of images (`tser.data.folder`).
        root: the only folder to look for its files; None for the usual places, and for a path
            the working directory. A set that is part of the package has no files to look for
            and ignores it.
        limit_train: keep this many training images, the first of each class in its share; the
            mean and the standard deviation are then those of what is kept. None for all.
        size: side to which the images of a folder are brought [pixels].

    Raises:
        UsageError: no such name, no such data, or ``limit_train`` out of its range.
        InputFileError: a file of the set is damaged.
    """
    path = expanded(Path(name)) if root is None else expanded(root) / expanded(Path(name))
    if name in DATASETS:
        data = DATASETS[name](root)
    elif name.endswith(SUFFIX):
        data = load_array_file(name, path)
    elif name and (name == _IMAGENET or Path(name).name != name or visible(path.is_dir)):
        data = dataclasses.replace(load_folder(name, path, size), workers=default_workers())
    else:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), DATASETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"unknown data set {name!r}; {hint}known are {', '.join(DATASETS)}, and the path of "
            "a .npz file or of a folder with train/ and val/"
        )
    if limit_train is None:
        return data
    if not 1 <= limit_train <= len(data.train):
        raise UsageError(
            f"limit_train must be from 1 to {len(data.train)} for {name}, got {limit_train}"
        )
    kept = stratified_take(data.train.labels.numpy(), limit_train)
    return data.with_train(data.train.select(torch.from_numpy(kept)))
