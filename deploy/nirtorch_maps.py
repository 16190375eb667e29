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
State = tuple[Tensor, ...]


def node_maps(dt: float) -> NodeMap:
    """The maps with which ``nirtorch.nir_to_torch(graph, maps)`` runs a file of ours.

    The module that this makes is called once a step, ``y, state = module(x, state)``, with x
    ``[B, *input_shape]`` and no state at first. Neurons are all six of NIR; Affine is here because
    that of nirtorch 2.6 leaves the bias at random, and pools because it takes no size that is one
    number, as snnTorch and SpikingJelly write them, and ignores the padding of SumPool2d.

    Args:
        dt: time step [s] that the file states.
    """
    return {
        nir.LIF: lambda op: LeakyNode(op, dt),
        nir.LI: lambda op: LeakyNode(op, dt),
        nir.IF: lambda op: IntegratingNode(op, dt),
        nir.I: lambda op: IntegratingNode(op, dt),
        nir.CubaLIF: lambda op: CurrentBasedNode(op, dt),
        nir.CubaLI: lambda op: CurrentBasedNode(op, dt),
        nir.Affine: _affine,
        nir.AvgPool2d: lambda op: _pool(op, None),
        nir.SumPool2d: lambda op: _pool(op, 1),
        nir.Flatten: _flatten,
        nir.Scale: _Scale,
    }


class Neuron(nn.Module):
    """What neurons share: parameters as buffers, and where ``v > v_threshold`` a spike.

    Args:
        op: a node of NIR; without ``v_threshold`` its membrane is its output.
        names: of the parameters to keep.
    """

    v_threshold: Tensor
    v_reset: Tensor

    def __init__(self, op: Any, *names: str) -> None:
        super().__init__()
        self.fires = hasattr(op, "v_threshold")
        for name in (*names, "v_threshold", "v_reset") if self.fires else names:
            self.register_buffer(name, _tensor(getattr(op, name)))

    def start(self, x: Tensor) -> State:
        """The state before the first step, the membrane first, for an input ``[B, ...]``."""
        raise NotImplementedError

    def put_out(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes, or the membrane where there are none, and the membrane after the reset."""
        if not self.fires:
            return v, v
        fired = v > self.v_threshold
        return fired.to(v.dtype), torch.where(fired, self.v_reset, v)


class LeakyNode(Neuron):
    """``v += (dt/tau) ((r i + v_leak) - v)``.

    Args:
        op: a ``nir.LIF`` or ``nir.LI``.
        dt: time step [s].
    """

    r: Tensor
    rate: Tensor
    v_leak: Tensor

    def __init__(self, op: nir.LIF | nir.LI, dt: float) -> None:
        super().__init__(op, "r", "v_leak")
        self.register_buffer("rate", _tensor(decay(dt, op.tau)))

    def start(self, x: Tensor) -> State:
        """The membrane at ``v_leak``."""
        return (self.v_leak.expand_as(x),)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step: spikes or membrane ``[B, ...]``, and the state after it."""
        (v,) = state or self.start(x)
        out, v = self.put_out(v + self.rate * ((self.r * x + self.v_leak) - v))
        return out, (v,)


class IntegratingNode(Neuron):
    """``v += dt r i``.

    Args:
        op: a ``nir.IF`` or ``nir.I``.
        dt: time step [s].
    """

    gain: Tensor

    def __init__(self, op: nir.IF | nir.I, dt: float) -> None:
        super().__init__(op)
        self.register_buffer("gain", _tensor(dt * np.asarray(op.r, np.float64)))

    def start(self, x: Tensor) -> State:
        """The membrane at 0."""
        return (torch.zeros_like(x),)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step: spikes or membrane ``[B, ...]``, and the state after it."""
        (v,) = state or self.start(x)
        out, v = self.put_out(v + self.gain * x)
        return out, (v,)


class CurrentBasedNode(Neuron):
    """A synaptic current I before the membrane; an input reaches both in its own step.

    ``I += (dt/tau_syn) w_in i``, then ``v += (dt/tau_mem) ((v_leak - v) + r I)``, then
    ``I -= (dt/tau_syn) I``.

    Args:
        op: a ``nir.CubaLIF`` or ``nir.CubaLI``.
        dt: time step [s].
    """

    r: Tensor
    gain: Tensor
    membrane: Tensor
    synapse: Tensor
    v_leak: Tensor

    def __init__(self, op: nir.CubaLIF | nir.CubaLI, dt: float) -> None:
        super().__init__(op, "r", "v_leak")
        self.register_buffer("membrane", _tensor(decay(dt, op.tau_mem)))
        self.register_buffer("synapse", _tensor(decay(dt, op.tau_syn)))
        self.register_buffer("gain", _tensor(decay(dt, op.tau_syn) * op.w_in))

    def start(self, x: Tensor) -> State:
        """The membrane at ``v_leak``, the current at 0."""
        return self.v_leak.expand_as(x), torch.zeros_like(x)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step: spikes or membrane ``[B, ...]``, and the state after it."""
        v, current = state or self.start(x)
        current = current + self.gain * x
        v = v + self.membrane * ((self.v_leak - v) + self.r * current)
        out, v = self.put_out(v)
        return out, (v, current - self.synapse * current)


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


def _flatten(op: nir.Flatten) -> nn.Flatten:
    start, end = (dim + 1 if dim >= 0 else dim for dim in (op.start_dim, op.end_dim))
    return nn.Flatten(int(start), int(end))  # NIR counts without the batch


def _pool(op: nir.AvgPool2d | nir.SumPool2d, divisor: int | None) -> nn.AvgPool2d:
    kernel, stride, padding = (
        tuple(np.broadcast_to(value, 2).tolist())
        for value in (op.kernel_size, op.stride, op.padding)
    )
    return nn.AvgPool2d(kernel, stride, padding, divisor_override=divisor)


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32))
