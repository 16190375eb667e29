"""Labelled images in three splits, and the normalisation that goes with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tser.augment import Draws, augment
from tser.config import DataConfig


class Split(ABC):
    """Images and their classes, in memory or decoded when they are asked for."""

    labels: Tensor
    """int64 ``[N]``, each from 0 to K - 1."""
    lazy: bool
    """Whether images are read and decoded at every visit."""

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: ``(C, H, W)``, or ``(T, C, H, W)`` for frames."""

    @abstractmethod
    def images_at(self, positions: Tensor) -> Tensor:
        """The samples at ``positions`` (int64 ``[B]``) as a model is judged on them.

        Returns:
            ``[B, *shape]``, uint8 or, for frames, uint8 or float32.

        Raises:
            InputFileError: a file of a lazy split is damaged.
        """

    @abstractmethod
    def augmented_at(self, positions: Tensor, draws: Draws, config: DataConfig) -> Tensor:
        """The samples at ``positions`` (int64 ``[B]``), changed for training.

        Args:
            positions: which.
            draws: of these B samples.
            config: what was drawn for.

        Returns:
            As `images_at`, and the same errors.
        """

    @abstractmethod
    def select(self, positions: Tensor) -> Split:
        """The samples at ``positions`` (int64 ``[M]``), in that order."""


@dataclass(frozen=True, eq=False)
class ArraySplit(Split):
    """A split held in memory."""

    images: Tensor
    """uint8 ``[N, C, H, W]``, or frames, uint8 or float32 ``[N, T, C, H, W]``, on any device;
    batches are made there."""
    labels: Tensor
    """int64 ``[N]``, each from 0 to K - 1, on the CPU."""
    lazy = False

    def __post_init__(self) -> None:
        """Refuse what is not images with int64 labels ``[N]``."""
        kinds = {4: (torch.uint8,), 5: (torch.uint8, torch.float32)}
        if self.images.dtype not in kinds.get(self.images.ndim, ()):
            found = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise ValueError(
                "images must be uint8 [N, C, H, W], or uint8 or float32 [N, T, C, H, W], "
                f"got {found}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise ValueError(f"labels must be int64 [{len(self.images)}], got {found}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.images.shape[1:])

    def images_at(self, positions: Tensor) -> Tensor:
        """The samples at ``positions``, copied."""
        return self.images[positions]

    def augmented_at(self, positions: Tensor, draws: Draws, config: DataConfig) -> Tensor:
        """The samples at ``positions`` after `tser.augment.augment`."""
        return augment(self.images[positions], draws, config)

    def select(self, positions: Tensor) -> ArraySplit:
        """The samples at ``positions``, copied, in that order."""
        return ArraySplit(self.images[positions], self.labels[positions])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set of K classes: three splits and the statistics of the training split."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    max_value: int
    """The pixel value of full scale: 16 for the digits, 255 for bytes, 1 for frames."""
    mean: tuple[float, ...]
    """Per channel, of the training images scaled to 0..1; 0 for frames."""
    std: tuple[float, ...]
    """Per channel, as the mean; 1 for a channel that never varies, so that it can divide, and
    for frames."""
    workers: int = 0
    """Processes that prepare images beside this one."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image (of one frame), ``(C, H, W)``."""
        channels, height, width = self.train.shape[-3:]
        return channels, height, width

    @property
    def frames(self) -> int | None:
        """T, the number of frames of a sample that changes over time; None for still images."""
        return self.train.shape[0] if len(self.train.shape) == 4 else None

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    def normalise(self, images: Tensor) -> Tensor:
        """(x / max_value - mean) / std per channel, in float32 and in this order of operations.

        Frames are as they are stored, so that 0 remains 0: a pixel without an event must not
        become an input.

        Args:
            images: uint8 ``[B, C, H, W]``, or uint8 or float32 ``[B, T, C, H, W]``, on any
                device.

        Returns:
            float32 of the same shape, a copy, on the same device.

        Raises:
            ValueError: the images are not of the data set's dtype or shape.
        """
        kinds = (torch.uint8, torch.float32) if self.frames else (torch.uint8,)
        if images.dtype not in kinds or images.shape[1:] != self.train.shape:
            found = f"{images.dtype} {tuple(images.shape)}"
            wanted = ", ".join(map(str, self.train.shape))
            names = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
            raise ValueError(f"images must be {names} [B, {wanted}], got {found}")
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=images.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        scaled = images.to(torch.float32, copy=True)
        # A tensor: by a number, a GPU would multiply with its rounded reciprocal.
        full = torch.tensor(self.max_value, dtype=torch.float32, device=images.device)
        return scaled.div_(full).sub_(mean).div_(std)

    def with_train(self, train: Split) -> ImageData:
        """The same data with another training split, and its statistics where they are taken."""
        if isinstance(train, ArraySplit) and self.frames is None:
            mean, std = channel_statistics(train.images, self.max_value)
            return replace(self, train=train, mean=mean, std=std)
        return replace(self, train=train)


def make_image_data(
    name: str,
    class_names: tuple[str, ...],
    *,
    train: ArraySplit,
    val: ArraySplit,
    test: ArraySplit,
    max_value: int,
) -> ImageData:
    """An `ImageData` whose mean and standard deviation are those of ``train``, 0 and 1 for frames.

    Args:
        name: of the set.
        class_names: K of them.
        train: training split.
        val: validation split.
        test: test split.
        max_value: the pixel value of full scale; frames are not scaled.
    """
    if train.images.ndim == 5:
        channels = train.images.shape[2]
        mean, std = (0.0,) * channels, (1.0,) * channels
        return ImageData(name, class_names, train, val, test, 1, mean, std)
    mean, std = channel_statistics(train.images, max_value)
    return ImageData(name, class_names, train, val, test, max_value, mean, std)


def time_first(images: Tensor) -> Tensor:
    """Frames ``[B, T, C, H, W]`` as models take them, ``[T, B, C, H, W]``; still images as is."""
    return images.transpose(0, 1).contiguous() if images.ndim == 5 else images


def static(images: Tensor) -> Tensor:
    """What a network without time sees: the mean over T of frames ``[T, B, C, H, W]``.

    Still images ``[B, C, H, W]`` are returned as they are.
    """
    return images.mean(0) if images.ndim == 5 else images


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
