"""Labelled images in three splits, and the normalisation that goes with them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their classes."""

    images: Tensor
    """uint8 ``[N, C, H, W]``."""
    labels: Tensor
    """int64 ``[N]``, each from 0 to K - 1."""

    def __post_init__(self) -> None:
        """Refuse what is not uint8 images ``[N, C, H, W]`` with int64 labels ``[N]``."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise ValueError(f"images must be uint8 [N, C, H, W], got {found}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise ValueError(f"labels must be int64 [{len(self.images)}], got {found}")

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    def select(self, positions: Tensor) -> "Split":
        """The samples at ``positions`` (int64 ``[M]``), copied, in that order."""
        return Split(self.images[positions], self.labels[positions])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set of K classes: three splits and the statistics of the training split."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    max_value: int
    """The pixel value of full scale: 16 for the digits, 255 for bytes."""
    mean: tuple[float, ...]
    """Per channel, of the training images scaled to 0..1."""
    std: tuple[float, ...]
    """Per channel, as the mean; 1 for a channel that never varies, so that it can divide."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, ``(C, H, W)``."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    def normalise(self, images: Tensor) -> Tensor:
        """(x / max_value - mean) / std per channel, in float32 and in this order of operations.

        Args:
            images: uint8 ``[B, C, H, W]`` on any device.

        Returns:
            float32 ``[B, C, H, W]`` on the same device.

        Raises:
            ValueError: the images are not of the data set's dtype or shape ``(C, H, W)``.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != self.image_shape:
            found = f"{images.dtype} {tuple(images.shape)}"
            wanted = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images must be uint8 [B, {wanted}], got {found}")
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        return images.to(torch.float32).div_(self.max_value).sub_(mean).div_(std)


def make_image_data(
    name: str,
    class_names: tuple[str, ...],
    *,
    train: Split,
    val: Split,
    test: Split,
    max_value: int,
) -> ImageData:
    """An `ImageData` whose mean and standard deviation are those of ``train``."""
    mean, std = channel_statistics(train.images, max_value)
    return ImageData(name, class_names, train, val, test, max_value, mean, std)


def channel_statistics(
    images: Tensor, max_value: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel of ``images / max_value``.

    Computed from counts of the pixel values, in integers and float64: exact to rounding.

    Args:
        images: uint8 ``[N, C, H, W]``.
        max_value: the pixel value of full scale.

    Returns:
        Means and standard deviations, C of each; a standard deviation of 0 is given as 1.
    """
    value = torch.arange(256, dtype=torch.float64) / max_value
    means, stds = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).to(torch.float64)
        share /= share.sum()
        mean = float((share * value).sum())
        means.append(mean)
        stds.append(float((share * (value - mean) ** 2).sum().sqrt()) or 1.0)
    return tuple(means), tuple(stds)
