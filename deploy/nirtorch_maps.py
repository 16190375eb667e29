"""PyTorch modules for the nodes that nirtorch has none for, to run our files with nirtorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from tser.export.graph import decay

NodeMap = dict[type, Callable[[Any], nn.Module]]


def node_maps(dt: float) -> NodeMap:
    """The maps with which ``nirtorch.nir_to_torch(graph, maps)`` runs a file of ours.

    The module that this makes is called once a step, ``y, state = module(x, state)``, with x
    ``[B, *input_shape]`` and no state at first. Neurons are LIF and LI; Affine is here because
    that of nirtorch 2.6 leaves the bias at random.

    Args:
        dt: time step [s] that the file states.
    """
    return {
        nir.LIF: lambda op: LeakyNode(op, dt),
        nir.LI: lambda op: LeakyNode(op, dt),
        nir.Affine: _affine,
        nir.Flatten: lambda op: nn.Flatten(op.start_dim, op.end_dim),
        nir.Scale: _Scale,
    }


class LeakyNode(nn.Module):
    """``v += (dt/tau) ((r i + v_leak) - v)``; a LIF fires where ``v > v_threshold``.

    Args:
        op: a ``nir.LIF`` or ``nir.LI``.
        dt: time step [s].
    """

    r: Tensor
    rate: Tensor
    v_leak: Tensor
    v_threshold: Tensor
    v_reset: Tensor

    def __init__(self, op: nir.LIF | nir.LI, dt: float) -> None:
        super().__init__()
        self.fires = isinstance(op, nir.LIF)
        names = ("r", "v_leak", "v_threshold", "v_reset") if self.fires else ("r", "v_leak")
        for name in names:
            self.register_buffer(name, _tensor(getattr(op, name)))
        self.register_buffer("rate", _tensor(decay(dt, op.tau)))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step: spikes, or the membrane of an LI, ``[B, ...]``, and the membrane after it."""
        v = self.v_leak.expand_as(x) if state is None else state
        v = v + self.rate * ((self.r * x + self.v_leak) - v)
        if not self.fires:
            return v, v
        fired = v > self.v_threshold
        return fired.to(x.dtype), torch.where(fired, self.v_reset, v)


class _Scale(nn.Module):
    scale: Tensor

    def __init__(self, op: nir.Scale) -> None:
        super().__init__()
        self.register_buffer("scale", _tensor(op.scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def _affine(op: nir.Affine) -> nn.Linear:
    outputs, inputs = op.weight.shape
    layer = nn.Linear(inputs, outputs)
    layer.weight.data, layer.bias.data = _tensor(op.weight), _tensor(op.bias)
    return layer


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32))
