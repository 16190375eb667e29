"""Containers that run layers over time, and the student that they make up.

Every tensor is time-first; its leading dimension is 1 for as long as nothing depends on time.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tser.neurons import LIF


def sublayers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that ``module`` holds, by name; ``children`` leaves out the second use of one."""
    return [(name, layer) for name, layer in module._modules.items() if layer is not None]


class Spiking(nn.Module):
    """Layers in order over ``[T, B, ...]``; neurons see time, other layers ``[T*B, ...]``.

    The leading dimension is 1 for as long as nothing depends on time: with a static image the
    part before the first neuron is computed once, not T times.

    Batch norm in training takes its statistics over all T * B maps, or, with ``norm_per_step``,
    over the B maps of each step in turn (as a network that is called step by step does). The two
    train differently; in evaluation they are the same.
    """

    def __init__(self, layers: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.norm_per_step = False
        for name, layer in layers:
            self.add_module(name, layer)

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """Run ``x`` ``[T or 1, B, ...]`` through the layers; returns ``[T or 1, B, ...]``."""
        for _, layer in sublayers(self):
            if isinstance(layer, LIF | Spiking | Residual):
                x = layer(x, timesteps)
            elif self.norm_per_step and isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                x = torch.stack([layer(step) for step in x])
            else:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x


class Residual(nn.Module):
    """Two branches whose *currents* are summed into one layer of neurons.

    Args:
        main: layers from the block's input to a current.
        shortcut: the same for the second branch; empty passes the input spikes as current.
        neuron: fires on the sum of both.
    """

    def __init__(self, main: Spiking, shortcut: Spiking, neuron: LIF) -> None:
        super().__init__()
        self.main, self.shortcut, self.neuron = main, shortcut, neuron

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """Spikes ``[T, B, ...]`` for input ``x`` ``[T or 1, B, ...]``."""
        spikes: Tensor = self.neuron(
            self.main(x, timesteps) + self.shortcut(x, timesteps), timesteps
        )
        return spikes


class Student(nn.Module):
    """A spiking network from images to logits at every step.

    Args:
        layers: from the image to one logit a class.
        timesteps: T.
        input_shape: (C, H, W) of one image.
    """

    def __init__(self, layers: Spiking, timesteps: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layers, self.timesteps, self.input_shape = layers, timesteps, input_shape

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every step.

        Args:
            x: normalised images, ``[B, C, H, W]`` (the same at every step, "direct coding"), or
                one frame a step, ``[T, B, C, H, W]``.

        Returns:
            ``[T, B, K]``.

        Raises:
            ValueError: another number of frames than T.
        """
        if x.ndim == 5 and len(x) != self.timesteps:
            raise ValueError(f"x has {len(x)} frames, the student takes T = {self.timesteps}")
        frames = x if x.ndim == 5 else x.unsqueeze(0)
        logits: Tensor = self.layers(frames, self.timesteps)
        return logits.expand(self.timesteps, *logits.shape[1:])
