"""What a layer stores, in bits, and how many of its outputs have a bias."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import nir
import numpy as np

from tser.export.graph import NEURONS, WEIGHTED, Node

STATES: dict[type, int] = {
    nir.LI: 1,
    nir.LIF: 1,
    nir.I: 1,
    nir.IF: 1,
    nir.CubaLI: 2,
    nir.CubaLIF: 2,
    nir.Threshold: 0,
}
"""Values that a neuron carries from step to step: the membrane, and a synaptic current."""


@dataclass(frozen=True)
class Widths:
    """Bits of one stored value.

    Attributes:
        parameter: of a weight, bias or parameter of neurons.
        state: of a membrane potential, synaptic current or delayed number.
    """

    parameter: int = 32
    state: int = 32


def parameter_bits(node: Node, widths: Widths) -> int:
    """Parameters that a weighted node or neurons store [bit].

    All weights count, also those that are 0; the biases unless all of them are 0; of a parameter
    of neurons one value if all share it, else one each.
    """
    if isinstance(node.op, WEIGHTED):
        bias = getattr(node.op, "bias", None)
        biases = int(np.size(bias)) if bias is not None and np.any(bias) else 0
        return (int(np.size(node.op.weight)) + biases) * widths.parameter
    if isinstance(node.op, (*NEURONS, nir.Threshold, nir.Scale, nir.Delay)):
        kind: type = type(node.op)
        stored = [_stored(getattr(node.op, name), node) for name in _names(kind)]
        return sum(stored) * widths.parameter
    return 0


@cache
def _names(kind: type) -> tuple[str, ...]:
    names = inspect.signature(kind).parameters
    return tuple(name for name in names if name not in ("input_type", "output_type", "metadata"))


def _stored(value: Any, node: Node) -> int:
    array = np.asarray(value)
    shared = array.size == 0 or bool((array == array.reshape(-1)[0]).all())
    return 1 if shared else math.prod(node.output_shape)


def state_bits(node: Node, widths: Widths) -> int:
    """What neurons carry from step to step [bit]; spikes on a way back are not among it."""
    return STATES.get(type(node.op), 0) * math.prod(node.output_shape) * widths.state


def delay_bits(node: Node, dt: float, width: int) -> int:
    """What a delay holds [bit], in values of ``width`` bits."""
    steps = np.rint(np.asarray(node.op.delay, np.float64) / dt).astype(np.int64)
    return int(np.broadcast_to(steps, node.output_shape).sum()) * width


def biased_outputs(node: Node) -> int:
    """Outputs of a weighted node whose bias is not 0."""
    bias = getattr(node.op, "bias", None)
    if bias is None:
        return 0
    channels = int(np.count_nonzero(bias))
    return channels * (math.prod(node.output_shape) // int(np.size(bias)))
