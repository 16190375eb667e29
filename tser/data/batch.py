"""One batch of training images with what belongs to each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tser.data.images import static


@dataclass(frozen=True, eq=False)
class Batch:
    """Images as a model sees them, and their labels.

    Attributes:
        images: normalised, float32 ``[B, C, H, W]`` or, for frames, ``[T, B, C, H, W]``.
        labels: int64 ``[B]``.
        views: int64 ``[B]``, on the CPU: which image under which augmentation each one is, as
            `tser.augment.view_numbers` counts them. None where there are endlessly many.
    """

    images: Tensor
    labels: Tensor
    views: Tensor | None = None

    def __len__(self) -> int:
        """Number of samples, B."""
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        """This batch with images and labels on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def still(self) -> Batch:
        """This batch with the mean of the frames in their place."""
        return replace(self, images=static(self.images))

    def channels_last(self) -> Batch:
        """This batch with the channels of still images innermost in memory."""
        if self.images.ndim != 4:
            return self
        return replace(self, images=self.images.contiguous(memory_format=torch.channels_last))

    def split(self, parts: int) -> list[Batch]:
        """Cut into ``parts`` pieces of nearly equal size, in order."""
        images = self.images.tensor_split(parts, 1 if self.images.ndim == 5 else 0)
        labels = self.labels.tensor_split(parts)
        views = [None] * parts if self.views is None else self.views.tensor_split(parts)
        return [Batch(*piece) for piece in zip(images, labels, views, strict=True)]
