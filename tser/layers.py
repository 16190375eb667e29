"""Containers that run layers over time, and the student that they make up.

Every tensor is time-first; its leading dimension is 1 for as long as nothing depends on time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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

    With ``recompute`` training keeps nothing for the backward pass but what enters the layers
    after each layer of neurons, and runs the rest once more there.
    """

    def __init__(self, layers: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.norm_per_step = False
        self.recompute = False
        for name, layer in layers:
            self.add_module(name, layer)

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """Run ``x`` ``[T or 1, B, ...]`` through the layers; returns ``[T or 1, B, ...]``."""
        layers = [layer for _, layer in sublayers(self)]
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return self._run(layers, x, timesteps)
        for part in _up_to_neurons(layers):
            x = checkpoint(
                self._run,
                part,
                x,
                timesteps,
                use_reentrant=False,
                context_fn=partial(_second_pass, part),
            )
        return x

    def _run(self, layers: list[nn.Module], x: Tensor, timesteps: int) -> Tensor:
        for layer in layers:
            if isinstance(layer, LIF | Spiking | Residual):
                x = layer(x, timesteps)
            elif self.norm_per_step and isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                x = torch.stack([layer(step) for step in x])
            else:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x


def _up_to_neurons(layers: list[nn.Module]) -> list[list[nn.Module]]:
    """Cut ``layers`` behind every one that fires."""
    parts: list[list[nn.Module]] = [[]]
    for layer in layers:
        parts[-1].append(layer)
        if isinstance(layer, LIF | Residual):
            parts.append([])
    return [part for part in parts if part]


def _second_pass(
    layers: list[nn.Module],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the first pass through ``layers`` and of its repetition."""
    return nullcontext(), _running_statistics_kept(layers)


@contextmanager
def _running_statistics_kept(layers: list[nn.Module]) -> Iterator[None]:
    """Batch norm has counted this batch already."""
    norms = [
        (module, module.momentum)
        for layer in layers
        for module in layer.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1


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
