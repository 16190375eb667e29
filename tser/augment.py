"""Random shifts and flips of a batch of images."""

import torch
from torch import Tensor
from torch.nn import functional


def random_shift_flip(
    images: Tensor, *, pad: int, flip: bool, generator: torch.Generator
) -> Tensor:
    """Shift each image by up to ``pad`` pixels each way, then mirror half of them.

    Each image draws its own row shift and column shift, uniform over the whole numbers
    ``-pad..pad``; what enters from outside is 0. With ``flip`` each image is then mirrored left
    to right with probability 1/2. All channels of one image move together.

    Args:
        images: the batch, ``[B, C, H, W]``, any dtype (uint8 in training).
        pad: largest shift [pixel], 0 for none, smaller than H and W.
        flip: whether to mirror.
        generator: source of the draws, on the CPU or on the images' device.

    Returns:
        The moved images, ``[B, C, H, W]``, same dtype and device; ``images`` itself, with nothing
        drawn, when ``pad`` is 0 and ``flip`` is false.

    Raises:
        ValueError: the batch is not four-dimensional, or ``pad`` is out of its range.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be [B, C, H, W], got shape {tuple(images.shape)}")
    batch, channels, height, width = images.shape
    if not 0 <= pad < min(height, width):
        raise ValueError(f"pad must be from 0 to {min(height, width) - 1}, got {pad}")
    if pad == 0 and not flip:
        return images

    def draw(outcomes: int) -> Tensor:
        drawn = torch.randint(outcomes, (batch, 1), generator=generator, device=generator.device)
        return drawn.to(images.device)

    row = draw(2 * pad + 1) + torch.arange(height, device=images.device)  # [B, H]
    column = torch.arange(width, device=images.device).expand(batch, width)
    if flip:
        column = torch.where(draw(2) == 1, column.flip(1), column)
    column = draw(2 * pad + 1) + column  # [B, W]

    padded = functional.pad(images, (pad, pad, pad, pad)).flatten(2)  # [B, C, (H+2p)(W+2p)]
    source = (row[:, :, None] * (width + 2 * pad) + column[:, None, :]).flatten(1)[:, None]
    return padded.gather(2, source.expand(-1, channels, -1)).view(images.shape)
