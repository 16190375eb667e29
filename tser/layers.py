"""Containers that run layers over time, and the student that they make up.

Every tensor is time-first; its leading dimension is 1 for as long as nothing depends on time.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from tser.neurons import LIF


class Spiking(nn.Module):
    """Layers in order over ``[T, B, ...]``; neurons see time, other layers ``[T*B, ...]``.

    The leading dimension is 1 for as long as nothing depends on time: with a static image the
    part before the first neuron is computed once, not T times.
    """

    def __init__(self, layers: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        for name, layer in layers:
            self.add_module(name, layer)

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """Run ``x`` ``[T or 1, B, ...]`` through the layers; returns ``[T or 1, B, ...]``."""
        for layer in self.children():
            if isinstance(layer, LIF | Spiking | Residual):
                x = layer(x, timesteps)
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
            x: normalised images, ``[B, C, H, W]`` (the same at every step, "direct coding").

        Returns:
            ``[T, B, K]``.
        """
        logits: Tensor = self.layers(x.unsqueeze(0), self.timesteps)
        return logits.expand(self.timesteps, *logits.shape[1:])
