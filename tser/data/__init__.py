"""Image data sets by name, each with a fixed train / validation / test split."""

import difflib
from collections.abc import Callable
from pathlib import Path

import torch

from tser.data.array_file import SUFFIX, load_array_file
from tser.data.cifar import load_cifar10, load_cifar100
from tser.data.digits import load_digits
from tser.data.fashion_mnist import load_fashion_mnist
from tser.data.images import ImageData, Split, make_image_data
from tser.data.mnist import load_mnist
from tser.data.stratify import stratified_take
from tser.errors import UsageError

__all__ = ["DATASETS", "ImageData", "Split", "load_data"]

DATASETS: dict[str, Callable[[Path | None], ImageData]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}


def load_data(name: str, root: Path | None = None, *, limit_train: int | None = None) -> ImageData:
    """The data set called ``name``, in memory.

    Args:
        name: a key of `DATASETS`, or the path of a ``.npz`` file (`tser.data.array_file`).
        root: the only folder to look for its files; None for the usual places, and for a path
            the working directory. A set that is part of the package has no files to look for
            and ignores it.
        limit_train: keep this many training images, the first of each class in its share; the
            mean and the standard deviation are then those of what is kept. None for all.

    Raises:
        UsageError: no such name, no such data, or ``limit_train`` out of its range.
        InputFileError: a file of the set is damaged.
    """
    if name.endswith(SUFFIX):
        data = load_array_file(name, root)
    elif name in DATASETS:
        data = DATASETS[name](root)
    else:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), DATASETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"unknown data set {name!r}; {hint}known are {', '.join(DATASETS)} and the path of "
            "a .npz file"
        )
    if limit_train is None:
        return data
    if not 1 <= limit_train <= len(data.train):
        raise UsageError(
            f"limit_train must be from 1 to {len(data.train)} for {name}, got {limit_train}"
        )
    kept = stratified_take(data.train.labels.numpy(), limit_train)
    return make_image_data(
        data.name,
        data.class_names,
        train=data.train.select(torch.from_numpy(kept)),
        val=data.val,
        test=data.test,
        max_value=data.max_value,
    )
