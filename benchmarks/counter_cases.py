"""The layers on which counters.py compares counters, and what they are fed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

EVENTS = "03440010 00040404 00444400 03000100 40444000 04044040 40010443 00440440"
"""How many of the 108 events are at each place of 8 x 8, in 2 samples of 4 channels."""


@dataclass(frozen=True)
class Case:
    """A layer and what it is fed.

    Attributes:
        title: for the table.
        why: why counters differ, for the table.
        layers: a convolution, perhaps behind an average pool.
        batches: of ``[B, C, H, W]``.
        trains: spike trains whose sum these are.
    """

    title: str
    why: str
    layers: tuple[nn.Module, ...]
    batches: tuple[Tensor, ...]
    trains: int = 1


def events() -> Tensor:
    """The 108 spikes, ``[2, 4, 8, 8]``."""
    rng = np.random.default_rng(0)
    x = np.zeros((8, 8, 8), np.float32)
    for place, count in enumerate(EVENTS.replace(" ", "")):
        x[rng.permutation(8)[: int(count)], place // 8, place % 8] = 1
    return torch.from_numpy(x.reshape(2, 4, 8, 8))


def convolution(kernel: int = 3, pruned: float = 0.0, **options: Any) -> nn.Conv2d:
    """4 -> 8 channels, without bias unless asked for; ``pruned`` of its weights are 0."""
    layer = nn.Conv2d(4, 8, kernel, **{"bias": False, **options})
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.5, 1, tuple(layer.weight.shape)).astype(np.float32)
    weight.reshape(-1)[rng.permutation(weight.size)[: int(pruned * weight.size)]] = 0
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if layer.bias is not None:
            layer.bias.fill_(0.5)
    return layer


def cases() -> list[Case]:
    """All of them, in the order of the table."""
    spikes = events()
    signs = torch.from_numpy(np.random.default_rng(1).choice([-1.0, 1.0], spikes.shape)).float()
    image = torch.from_numpy(np.random.default_rng(2).normal(size=spikes.shape)).float()
    border = "syops: rate x all taps, those on the padding too"
    padded = "syops and SpikingJelly: taps on the padding too"
    dense = "syops and SpikingJelly: dense MACs"
    rates = "events fan out through the pool; the others: its rates are analog"
    plain = convolution(padding=1)

    def case(title: str, why: str, *batches: Tensor, **options: Any) -> Case:
        return Case(title, why, (convolution(**options),), batches or (spikes,))

    return [
        case("3x3, pad 1", border, padding=1),
        case("3x3, no pad", "syops: the rate of all inputs, though those at borders reach less"),
        case("3x3, stride 2, pad 1", border, stride=2, padding=1),
        case("1x1, stride 2", "syops: the rate of inputs under no tap, too", kernel=1, stride=2),
        case("depthwise 3x3", border, padding=1, groups=4),
        case("3x3, dilation 2, pad 2", border, padding=2, dilation=2),
        case(
            "half of the weights 0",
            f"NeuroBench: effective alone; SpikingJelly: structural alone; {border}",
            padding=1,
            pruned=0.5,
        ),
        case("3x3, no pad, with bias", "syops: bias adds x rate among the operations", bias=True),
        case(
            "spikes of height 0.5",
            "NeuroBench and SpikingJelly: not 0 or 1, so MACs; syops: the sum of heights as a rate",
            spikes * 0.5,
            padding=1,
        ),
        case(
            "signed spikes, -1 and 1",
            f"{dense}; a sign is a subtraction",
            spikes * signs,
            padding=1,
        ),
        Case(
            "sums of two spike trains",
            f"{dense}; NeuroBench: MACs, one for both; each train is events of its own",
            (plain,),
            (spikes + spikes * (signs > 0),),
            trains=2,
        ),
        case("analog image", padded, image, padding=1),
        case(
            "analog, but one batch binary",
            f"the others decide for each batch; {padded}",
            image,
            spikes,
            padding=1,
        ),
        Case("average pool 2x2, then 3x3", rates, (nn.AvgPool2d(2), plain), (spikes,)),
        Case(
            "average pool 3x3, stride 2, then 3x3",
            f"{rates}; a target behind two windows is one target",
            (nn.AvgPool2d(3, 2), plain),
            (spikes,),
        ),
    ]
