r"""Rounding bounds that tell a tie from a mistake.

A spike compares a float32 membrane with a threshold. Two correct programs may sum in another
order and so disagree where the exact value is within rounding of the threshold, and nowhere else.
This module recomputes a *recorded* run in float64: every layer gets the spikes that the run itself
recorded for its inputs and for its resets, so errors do not travel from layer to layer, and each
recorded spike is held against the exact membrane with a bound on what float32 could have done.

With unit roundoff :math:`u = 2^{-24}` and :math:`\gamma_n = nu / (1 - nu)`, a sum of n products
in any order has error at most :math:`\gamma_n \sum |w_i||x_i|` (Higham, Accuracy and Stability
of Numerical Algorithms, 2nd ed., section 3.1). Adding zero is exact, so n counts the non-zero
inputs only. One membrane step adds

.. math::
    e_t \le |1 - a| e_{t-1} + |a| e_i + 8u \,(|a| (|i| + |v_{leak}| + |v_{t-1}|) + |v_t|)

where a = dt / tau and :math:`e_i` is the bound on the current; the factor 8 covers the rounding of
a itself and of the four operations. A reset starts again from an exact value. A synaptic current
``I += g x``, ``I -= b I`` is bounded in the same way, and its bound is then that of the current.

Where every term is a multiple of one power of two g and their absolute sum is at most
:math:`2^{24} g`, float32 adds them exactly in any order: the bound is 0, and even a spike at
``v = v_threshold`` is then a mistake, not a tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.backends import Trace
from tser.deploy.interpreter import sum_inputs
from tser.deploy.numeric import STATELESS, convolve
from tser.export.graph import NEURONS, SPIKING, Edge, Graph, Node, decay
from tser.export.shapes import window

Array = NDArray[np.float64]
UNIT = 2.0**-24
EXTRA = 8
"""Roundings allowed beside the sum: folded weights, batch norm, bias."""


class NotCertifiable(ValueError):
    """A node for which no bound is derived here."""


@dataclass(frozen=True)
class Bounded:
    """Exact values with a bound on the error of any float32 program, elementwise."""

    value: Array
    error: Array


def gamma(terms: Any) -> Any:
    """Higham's bound for ``terms`` roundings in float32; a number or an array of numbers."""
    return terms * UNIT / (1 - terms * UNIT)


def grid(values: Any) -> float:
    """The largest power of two that divides all of ``values``; infinity when they are zero."""
    array = np.abs(np.asarray(values, np.float64))
    mantissa, exponent = np.frexp(array[array != 0])
    digits = (mantissa * 2.0**53).astype(np.int64)
    lowest = np.ldexp((digits & -digits).astype(np.float64), exponent - 53)
    return float(lowest.min(initial=np.inf))


def exact(quantum: float, size: Any) -> bool:
    """Whether float32 adds multiples of ``quantum`` exactly when they sum to at most ``size``."""
    return float(np.max(size, initial=0.0)) * UNIT <= quantum


class Audit:
    """Float64 recomputation of one recorded batch.

    Args:
        graph: the graph that the run claims to execute.
        x: the batch ``[B, ...]``, or ``[T, B, ...]`` where it changes over time.
        trace: what was recorded.
        bias_magnitude: per node, a bound on the terms behind its folded bias, ``[C]``.
    """

    def __init__(
        self,
        graph: Graph,
        x: NDArray[Any],
        trace: Trace,
        bias_magnitude: dict[str, NDArray[np.float64]],
    ) -> None:
        self.graph, self._trace, self._bias = graph, trace, bias_magnitude
        self._steps = len(trace.logits)
        image = x.astype(np.float64)
        if x.ndim == len(graph.input.output_shape) + 1:
            image = image[None]
        self._known = {graph.input.name: Bounded(image, np.zeros_like(image))}
        self._open: set[str] = set()

    def current(self, node: Node) -> Bounded:
        """The summed input of ``node``, ``[T or 1, B, ...]``."""
        parts = [self._arriving(edge) for edge in node.inputs]
        if len(parts) == 1:
            return parts[0]
        value = sum_inputs([part.value for part in parts])
        terms = sum_inputs([np.abs(part.value) + part.error for part in parts])
        error = sum_inputs([part.error for part in parts])
        if error.any() or not exact(min(grid(part.value) for part in parts), terms):
            error = error + gamma(len(parts)) * terms
        return Bounded(value, error)

    def _arriving(self, edge: Edge) -> Bounded:
        """What an edge carries; one that closes a cycle, the value of the step before."""
        source = self._output(self.graph.nodes[edge.source])
        if not edge.delayed:
            return source
        value, error = (
            np.broadcast_to(part, (self._steps, *part.shape[1:]))
            for part in (source.value, source.error)
        )
        return Bounded(_late(value), _late(error))

    def membrane(self, node: Node) -> Bounded:
        """The potential before the reset, given the recorded inputs and resets, ``[T, B, ...]``.

        Args:
            node: a layer that fires.
        """
        return self._membrane(node, self._trace.spikes[node.name])

    def margins(self, node: Node) -> Bounded:
        """``v - v_threshold`` before the reset, ``[T, B, ...]``.

        Args:
            node: a layer that fires.
        """
        return over_threshold(node, self.membrane(node))

    def states(self, node: Node, membrane: Bounded) -> Array:
        """The potential before each step, after the reset of the step before, ``[T, B, ...]``.

        Args:
            node: a layer that fires.
            membrane: its own.
        """
        reset = np.asarray(node.op.v_reset, np.float64)
        after = np.where(self._trace.spikes[node.name], reset, membrane.value)
        rest = np.broadcast_to(np.asarray(getattr(node.op, "v_leak", 0.0)), after.shape[1:])
        return np.concatenate([rest[None].astype(np.float64), after[:-1]])

    def _membrane(self, node: Node, spikes: NDArray[np.bool_] | None) -> Bounded:
        """The membrane potential before the reset, ``[T, B, ...]``.

        Args:
            node: a neuron layer.
            spikes: recorded, after which the membrane starts again from ``v_reset``; None for a
                layer that does not fire.
        """
        op, dt = node.op, self.graph.dt
        current = self.current(node)
        if isinstance(op, nir.CubaLIF | nir.CubaLI):
            current = self._synapse(op, current)
        if isinstance(op, nir.IF | nir.I):
            gain = dt * np.asarray(op.r, np.float64)
            leak, rest = np.zeros_like(gain), np.zeros_like(gain)
        else:
            tau = op.tau_mem if isinstance(op, nir.CubaLIF | nir.CubaLI) else op.tau
            leak, rest = decay(dt, tau), np.asarray(op.v_leak, np.float64)
            gain = leak * np.asarray(op.r, np.float64)
        reset = np.asarray(op.v_reset if spikes is not None else rest, np.float64)
        constants = (gain, leak, rest, getattr(op, "v_threshold", 0.0), reset)
        no_rounding = not current.error.any() and all(
            (value == np.asarray(value, np.float32)).all() for value in map(np.asarray, constants)
        )
        driving, leaking, quantum = grid(gain) * grid(current.value), grid(leak), grid(rest)
        shape = (self._steps, *current.value.shape[1:])
        v = np.broadcast_to(rest, shape[1:]).astype(np.float64)
        error = np.zeros_like(v)
        potential, bound = np.empty(shape), np.empty(shape)
        for t in range(self._steps):
            source = t if len(current.value) > 1 else 0
            i, e = current.value[source], current.error[source]
            size = np.abs(gain) * np.abs(i) + np.abs(leak) * (np.abs(rest) + np.abs(v) + error)
            before, v = v, v + gain * i + leak * (rest - v)
            error = np.abs(1 - leak) * error + np.abs(gain) * e
            # Multiples of `quantum` before and after: v itself, what drives it and what leaks.
            quantum = min(quantum, driving, leaking * min(grid(rest), quantum))
            no_rounding = no_rounding and exact(quantum, size + np.abs(before))
            if not no_rounding:
                error = error + EXTRA * UNIT * (size + np.abs(v) + error)
            potential[t], bound[t] = v, error
            if spikes is not None:
                v = np.where(spikes[t], reset, v)
                error = np.where(spikes[t], 0.0, error)
                quantum = min(quantum, grid(reset))
        return Bounded(potential, bound)

    def _synapse(self, op: Any, x: Bounded) -> Bounded:
        """The synaptic current that drives the membrane, ``[T, B, ...]``; a reset leaves it."""
        rate = decay(self.graph.dt, op.tau_syn)
        gain = rate * np.asarray(op.w_in, np.float64)
        shape = (self._steps, *x.value.shape[1:])
        current, error = np.zeros(shape[1:]), np.zeros(shape[1:])
        values, bounds = np.empty(shape), np.empty(shape)
        for t in range(self._steps):
            source = t if len(x.value) > 1 else 0
            driven = gain * x.value[source]
            size = np.abs(current) + np.abs(driven)
            current = current + driven
            error = error + np.abs(gain) * x.error[source]
            error = error + EXTRA * UNIT * (size + error)
            values[t], bounds[t] = current, error
            rounding = EXTRA * UNIT * (1 + np.abs(rate)) * (np.abs(current) + error)
            error = np.abs(1 - rate) * error + rounding
            current = current - rate * current
        return Bounded(values, bounds)

    def _output(self, node: Node) -> Bounded:
        if node.name not in self._known:
            if node.name in self._open:
                raise NotCertifiable(f"the cycle through {node.name!r} has no layer that fires")
            self._open.add(node.name)
            try:
                self._known[node.name] = self._computed(node)
            finally:
                self._open.discard(node.name)
        return self._known[node.name]

    def _computed(self, node: Node) -> Bounded:
        if isinstance(node.op, SPIKING):
            value = self._trace.spikes[node.name].astype(np.float64)
            return Bounded(value, np.zeros_like(value))
        if isinstance(node.op, NEURONS):
            return self._membrane(node, None)
        return self._linear(node, self.current(node))

    def _linear(self, node: Node, x: Bounded) -> Bounded:
        op = node.op
        if isinstance(op, nir.Output | nir.Flatten):
            return Bounded(self._apply(node, x.value), self._apply(node, x.error))
        if isinstance(op, nir.Threshold):
            distance = np.abs(x.value - np.asarray(op.threshold, np.float64))
            undecided = (distance <= x.error) & (x.error > 0)
            return Bounded(self._apply(node, x.value), undecided.astype(np.float64))
        size = np.abs(x.value) + x.error
        if isinstance(op, nir.Conv1d | nir.Conv2d | nir.Affine | nir.Linear):
            weight = np.abs(op.weight.astype(np.float64))
            active = (size > 0).astype(np.float64)
            terms: Any = self._apply_absolute(node, np.ones_like(weight), active) + 1
            bias = self._bias.get(node.name, np.abs(np.asarray(getattr(op, "bias", 0.0))))
            carried = self._apply_absolute(node, weight, x.error)
            spread = self._apply_absolute(node, weight, size)
            quantum = min(grid(weight) * grid(x.value), grid(bias))
            maps = isinstance(op, nir.Conv1d | nir.Conv2d)
            shape = (-1, *[1] * (spread.ndim - 3)) if maps else (-1,)
            spread = spread + np.asarray(bias, np.float64).reshape(shape)
        elif isinstance(op, nir.AvgPool2d | nir.SumPool2d):
            geometry = window(op)
            terms = geometry.kernel[0] * geometry.kernel[1]
            quantum = grid(x.value) * (grid(1 / terms) if isinstance(op, nir.AvgPool2d) else 1)
            carried, spread = self._apply(node, x.error), self._apply(node, size)
        elif isinstance(op, nir.Scale):
            terms = 1
            quantum = grid(x.value) * grid(op.scale)
            carried = x.error * np.abs(np.asarray(op.scale, np.float64))
            spread = size * np.abs(np.asarray(op.scale, np.float64))
        else:
            raise NotCertifiable(f"no rounding bound is derived for {node.kind} ({node.name!r})")
        error = carried
        if carried.any() or node.name in self._bias or not exact(quantum, spread):
            error = carried + gamma(terms + EXTRA) * spread
        return Bounded(self._apply(node, x.value), error)

    def _apply(self, node: Node, x: Array) -> Array:
        flat = STATELESS[type(node.op)](node, x.reshape(-1, *node.input_shape))
        return flat.reshape(*x.shape[:2], *node.output_shape)

    def _apply_absolute(self, node: Node, weight: Array, x: Array) -> Array:
        """The node without its bias and with ``weight`` in place of its own."""
        flat = x.reshape(-1, *node.input_shape)
        if isinstance(node.op, nir.Conv2d):
            result = convolve(flat, weight, None, window(node.op))
        elif isinstance(node.op, nir.Conv1d):
            padded = convolve(flat[:, :, None], weight[:, :, None], None, window(node.op))
            result = padded[:, :, 0]
        else:
            result = flat @ weight.T
        return result.reshape(*x.shape[:2], *node.output_shape)

    def logits(self) -> Bounded:
        """The output ``[T or 1, B, K]`` that follows from the recorded spikes."""
        return self._output(self.graph.output)


def over_threshold(node: Node, membrane: Bounded) -> Bounded:
    """``v - v_threshold`` of a layer that fires."""
    return Bounded(membrane.value - np.asarray(node.op.v_threshold, np.float64), membrane.error)


def _late(values: Array) -> Array:
    return np.concatenate([np.zeros_like(values[:1]), values[:-1]])


def violations(margins: Bounded, spikes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a recorded spike (or silence) cannot come from rounding, ``[T, B, ...]``."""
    wrong = np.where(spikes, margins.value <= -margins.error, margins.value > margins.error)
    return np.asarray(wrong, bool)
