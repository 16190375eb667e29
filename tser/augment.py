"""Random changes of training images, drawn for a whole epoch before they are made.

The draws of a sample belong to its place in the data set, so they are the same whatever the
batch, the process or the order in which it is reached.

The order is that of the SNN papers' code: shift (a random crop of the zero-padded image), flip,
AutoAugment, normalisation, Cutout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from tser.config import DataConfig
from tser.torchvision_ops import ensure_torchvision


@dataclass(frozen=True)
class Draws:
    """What happens to each of N samples.

    Attributes:
        row: rows to shift by, int64 ``[N]``, from 0 (down by the whole shift) to 2 * shift.
        column: the same for columns.
        flip: whether to mirror, bool ``[N]``.
        centre: of the square that Cutout erases, as shares of height and width, float64
            ``[N, 2]`` from 0 up to but not including 1.
        seed: of all that torchvision draws for the sample, int64 ``[N]``.
    """

    row: Tensor
    column: Tensor
    flip: Tensor
    centre: Tensor
    seed: Tensor

    def select(self, positions: Tensor) -> Draws:
        """The draws of the samples at ``positions`` (int64 ``[M]``)."""
        return Draws(*(getattr(self, field.name)[positions] for field in fields(self)))


def draw(count: int, config: DataConfig, generator: torch.Generator) -> Draws:
    """Draw for ``count`` samples, uniformly and independently.

    Everything is drawn, used or not: switching one change on leaves the others as they were.

    Args:
        count: N.
        config: which changes.
        generator: source of the draws, on the CPU.
    """

    def numbers(outcomes: int) -> Tensor:
        return torch.randint(outcomes, (count,), generator=generator)

    row, column = numbers(2 * config.shift + 1), numbers(2 * config.shift + 1)
    flip = (numbers(2) == 1) & config.flip
    centre = torch.rand(count, 2, dtype=torch.float64, generator=generator)
    return Draws(row, column, flip, centre, numbers(1 << 62))


def count_views(config: DataConfig) -> int | None:
    """How many different images the changes make of one in memory; None: endlessly many."""
    if config.auto_augment != "none" or config.cutout:
        return None
    return (2 * config.shift + 1) ** 2 * (1 + config.flip)


def view_numbers(positions: Tensor, draws: Draws, config: DataConfig) -> Tensor | None:
    """Which image under which change each of B samples is, counted from 0.

    Args:
        positions: of the samples in their split, int64 ``[B]``.
        draws: of these samples.
        config: what was drawn for.

    Returns:
        int64 ``[B]``: position * views + ((row * (2 * shift + 1) + column) * 2 + flip), without
        the last factor where nothing is flipped; None where there are endlessly many.
    """
    views = count_views(config)
    if views is None:
        return None
    view = draws.row * (2 * config.shift + 1) + draws.column
    if config.flip:
        view = 2 * view + draws.flip
    return positions * views + view


def augment(images: Tensor, draws: Draws, config: DataConfig) -> Tensor:
    """Shift, flip and AutoAugment: all that comes before the normalisation.

    Args:
        images: the batch, ``[B, C, H, W]``, or frames ``[B, T, C, H, W]``; any dtype, but uint8
            of 0..255 for AutoAugment. All channels and frames of one sample change together.
        draws: of the same B samples.
        config: what was drawn for.

    Returns:
        The changed images, same shape, dtype and device.

    Raises:
        ValueError: another number of dimensions, or the shift is not smaller than H and W.
    """
    if images.ndim not in (4, 5):
        raise ValueError(
            f"images must be [B, C, H, W] or [B, T, C, H, W], got shape {tuple(images.shape)}"
        )
    moved = _shift_and_flip(images.flatten(1, -3), draws, config.shift, config.flip)
    moved = moved.view(images.shape) if moved is not images else images
    return auto_augment(moved, draws.seed, config.auto_augment)


def _shift_and_flip(images: Tensor, draws: Draws, pad: int, flip: bool) -> Tensor:
    """Move images ``[B, C, H, W]`` by up to ``pad`` pixels each way, then mirror some of them.

    What enters from outside is 0.
    """
    batch, channels, height, width = images.shape
    if pad >= min(height, width):
        raise ValueError(f"the shift must be from 0 to {min(height, width) - 1}, got {pad}")
    if pad == 0 and not flip:
        return images
    rows = draws.row.to(images.device)[:, None] + torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device).expand(batch, width)
    column = torch.where(draws.flip.to(images.device)[:, None], column.flip(1), column)
    columns = draws.column.to(images.device)[:, None] + column
    padded = functional.pad(images, (pad, pad, pad, pad)).flatten(2)  # [B, C, (H+2p)(W+2p)]
    source = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).flatten(1)[:, None]
    return padded.gather(2, source.expand(-1, channels, -1)).view(images.shape)


def auto_augment(images: Tensor, seeds: Tensor, policy: str) -> Tensor:
    """AutoAugment of torchvision (Cubuk et al., CVPR 2019), image by image.

    Args:
        images: uint8 ``[B, C, H, W]`` of values 0..255, C = 1 or 3, on the CPU.
        seeds: int64 ``[B]``; each alone decides what happens to its image.
        policy: "cifar10", "imagenet", "svhn", or "none" to return the images as they are.
    """
    if policy == "none" or not len(images):
        return images
    change = _policy(policy)
    return torch.stack(
        [seeded(change, image, int(seed)) for image, seed in zip(images, seeds, strict=True)]
    )


def seeded(change: Callable[..., Tensor], value: object, seed: int) -> Tensor:
    """``change(value)`` with torch's CPU generator seeded for it, and put back afterwards."""
    # Not torch.manual_seed: that would seed a GPU as well, which nothing here puts back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return change(value)


@functools.cache
def _policy(name: str) -> Callable[..., Tensor]:
    ensure_torchvision()
    from torchvision.transforms import v2

    change: Callable[..., Tensor] = v2.AutoAugment(v2.AutoAugmentPolicy(name))
    return change


def cutout(images: Tensor, draws: Draws, side: int) -> Tensor:
    """Erase a square of every image (DeVries & Taylor 2017, arXiv 1708.04552).

    Its centre is uniform over the pixels, so the border may cut it. It is filled with 0 *after*
    the normalisation, which is the mean of each channel, as in the authors' code; for event
    frames 0 is no event.

    Args:
        images: normalised, float32 ``[B, C, H, W]``, or frames ``[B, T, C, H, W]``, whose
            channels and frames all lose the same square.
        draws: of the same B samples.
        side: of the square [pixels]; 0 erases nothing.

    Returns:
        The images, same shape and device.
    """
    if not side:
        return images
    inside = []
    centre = draws.centre.to(images.device)
    for axis, length in enumerate(images.shape[-2:]):
        start = (centre[:, axis] * length).long() - side // 2
        pixel = torch.arange(length, device=images.device)
        inside.append((pixel >= start[:, None]) & (pixel < start[:, None] + side))
    erased = inside[0][:, :, None] & inside[1][:, None, :]  # [B, H, W]
    ones = [1] * (images.ndim - 3)
    return images.masked_fill(erased.view(len(images), *ones, *erased.shape[1:]), 0.0)
