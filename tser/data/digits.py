"""The embedded data set: 1,797 handwritten digits of 8 x 8 pixels.

They are the test set of the UCI collection "Optical Recognition of Handwritten Digits", the file
scikit-learn carries as ``load_digits``; `assets/ATTRIBUTION.md` gives source and licence.

The split is fixed: with the samples in the order of SHA-256("tser-digits:i"), i being the
position in the file, the test split takes a stratified 500, the validation split a stratified
200 of the rest, and the training split keeps the other 1,097. Each class keeps its share in each
split to about one sample. The 13 people who wrote these digits are not named in the file, so the
same hand occurs in training and test: read the accuracy as one for known writers.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from tser.data.images import ArraySplit, ImageData, make_image_data
from tser.data.stratify import hashed_order, stratified_take

TEST_SIZE = 500
VAL_SIZE = 200


def load_digits(_root: Path | None = None) -> ImageData:
    """The embedded digits: 1,097 / 200 / 500 images ``[1, 8, 8]`` of values 0..16.

    Args:
        _root: not used, because the images are part of the package.
    """
    with (files("tser") / "assets" / "digits.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)

    rest = hashed_order(len(labels), "tser-digits")
    parts = []
    for size in (TEST_SIZE, VAL_SIZE):
        taken = stratified_take(labels[rest], size)
        parts.append(np.sort(rest[taken]))
        rest = np.delete(rest, taken)
    parts.append(np.sort(rest))
    test, val, train = (
        ArraySplit(torch.from_numpy(images[part])[:, None], torch.from_numpy(labels[part]))
        for part in parts
    )
    return make_image_data(
        "digits", tuple("0123456789"), train=train, val=val, test=test, max_value=16
    )
