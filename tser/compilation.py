"""Faster neurons through torch.compile.

Run eagerly, a spiking layer makes a dozen passes over its membranes and costs as much as its
convolution; compiled it makes one. Fusing may reorder float32 arithmetic, so that a compiled
neuron can differ from the reference in the last bit of its membrane: it is for training only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tser.neurons import LIF, integrate_and_fire

_SHAPES = 256
"""Layers of different shapes that one process may compile; torch stops at 8 by default."""


def compile_neurons(model: nn.Module) -> None:
    """Compile every LIF layer of ``model`` for the shape that it first trains on at each T.

    Other shapes (a smaller last batch, evaluation) run the reference: each new shape would cost
    seconds of compilation.
    """
    torch._dynamo.config.recompile_limit = _SHAPES
    compiled = torch.compile(integrate_and_fire, dynamic=False)
    for module in model.modules():
        if isinstance(module, LIF):
            module.integrate = _ForTraining(module, compiled)


class _ForTraining:
    """The compiled neuron for the first shape seen in training at each T, else the reference."""

    def __init__(self, layer: LIF, compiled: Any) -> None:
        self._layer, self._compiled = layer, compiled
        self._shapes: dict[int, torch.Size] = {}

    def __call__(self, current: Tensor, timesteps: int, *arguments: Any) -> Tensor:
        training = self._layer.training
        fits = training and current.shape == self._shapes.setdefault(timesteps, current.shape)
        run = self._compiled if fits else integrate_and_fire
        result: Tensor = run(current, timesteps, *arguments)
        return result
