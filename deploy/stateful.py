"""NIR nodes with a state, in NumPy: what `tser.deploy.interpreter` says of their arithmetic.

A layer goes through all steps of a few samples before it comes to the next ones, in place: their
membranes stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import nir
import numpy as np
from numpy.typing import NDArray

from tser.errors import InputFileError
from tser.export.graph import Node, decay

Array = NDArray[Any]
State = dict[str, Array]
Advance = Callable[[State, Array, Array], None]
"""One step of some samples: (state, input ``[b, ...]``, room for one array of that shape)."""
Rule = Callable[[Any, float, np.dtype[Any]], tuple[Advance, dict[str, Array | float]]]
"""(NIR node, dt [s], dtype) -> the step, and where every value of the state starts."""

PIECE = 2**15
"""Neurons to go through time with at once."""


@runtime_checkable
class Stateful(Protocol):
    """A node that goes through time block by block.

    Attributes:
        state: what it carries from one block to the next, by name, ``[B, ...]`` of a layer of
            neurons, whose membrane potential is "v"; empty before the first.
    """

    state: State

    def run(self, x: Array, steps: int) -> Array:
        """Take the next ``steps`` steps.

        Args:
            x: input ``[steps or 1, B, ...]``; a leading 1 means constant over time.
            steps: how many.

        Returns:
            ``[steps, B, ...]``: spikes, bool, of neurons that fire, else numbers as in ``x``.
        """
        ...


class Neurons:
    """One layer of neurons.

    Args:
        node: a node of `RULES`.
        dt: time step [s].
        dtype: of membranes and inputs.
    """

    def __init__(self, node: Node, dt: float, dtype: np.dtype[Any]) -> None:
        self.state: State = {}
        self._advance, self._start = RULES[type(node.op)](node.op, dt, dtype)
        self._threshold: Array | None = None
        if hasattr(node.op, "v_threshold"):
            self._threshold = constant(node.op.v_threshold, dtype)
            self._reset = constant(node.op.v_reset, dtype)

    def run(self, x: Array, steps: int) -> Array:
        """As of `Stateful`."""
        shape = x.shape[1:]
        for name, value in self._start.items():
            if name not in self.state:
                self.state[name] = np.array(np.broadcast_to(value, shape), x.dtype)
        out = np.empty((steps, *shape), x.dtype if self._threshold is None else bool)
        for piece in _pieces(shape):
            state = {name: value[piece] for name, value in self.state.items()}
            room = np.empty(state["v"].shape, x.dtype)
            for t in range(steps):
                self._advance(state, x[t if len(x) > 1 else 0, piece], room)
                if self._threshold is None:
                    out[t, piece] = state["v"]
                else:
                    fired = np.greater(state["v"], self._threshold, out=out[t, piece])
                    np.copyto(state["v"], self._reset, where=fired)
        return out


def _pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """Samples in groups of about `PIECE` neurons, for a layer ``[B, ...]``."""
    each = max(1, PIECE // max(1, int(np.prod(shape[1:]))))
    return (slice(start, start + each) for start in range(0, shape[0], each))


def constant(value: Any, dtype: np.dtype[Any]) -> Array:
    """A parameter in ``dtype``; one number if all neurons share it, which saves reading memory."""
    array = np.asarray(value, dtype)
    first = array.reshape(-1)[:1]
    return first.reshape(()) if first.size and (array == first).all() else array


def _leaky(op: Any, dt: float, dtype: np.dtype[Any]) -> tuple[Advance, dict[str, Array | float]]:
    rate = constant(decay(dt, op.tau), dtype)
    r, v_leak = constant(op.r, dtype), constant(op.v_leak, dtype)
    plain = not v_leak.any() and bool((r == 1).all())

    def advance(state: State, x: Array, room: Array) -> None:
        v = state["v"]
        if not plain:
            np.multiply(r, x, out=room)
            x = np.add(room, v_leak, out=room)
        np.subtract(x, v, out=room)
        np.multiply(rate, room, out=room)
        np.add(v, room, out=v)

    return advance, {"v": v_leak}


def _integrating(
    op: Any, dt: float, dtype: np.dtype[Any]
) -> tuple[Advance, dict[str, Array | float]]:
    gain = constant(dt * np.asarray(op.r, np.float64), dtype)

    def advance(state: State, x: Array, room: Array) -> None:
        np.multiply(gain, x, out=room)
        np.add(state["v"], room, out=state["v"])

    return advance, {"v": 0.0}


def _current_based(
    op: Any, dt: float, dtype: np.dtype[Any]
) -> tuple[Advance, dict[str, Array | float]]:
    membrane, synapse = constant(decay(dt, op.tau_mem), dtype), decay(dt, op.tau_syn)
    gain = constant(synapse * op.w_in, dtype)
    synapse = constant(synapse, dtype)
    r, v_leak = constant(op.r, dtype), constant(op.v_leak, dtype)

    def advance(state: State, x: Array, room: Array) -> None:
        v, current = state["v"], state["i"]
        np.multiply(gain, x, out=room)
        np.add(current, room, out=current)
        np.subtract(v_leak, v, out=room)
        np.add(room, r * current, out=room)
        np.multiply(membrane, room, out=room)
        np.add(v, room, out=v)
        np.multiply(synapse, current, out=room)
        np.subtract(current, room, out=current)

    return advance, {"v": v_leak, "i": 0.0}


RULES: dict[type, Rule] = {
    nir.LI: _leaky,
    nir.LIF: _leaky,
    nir.I: _integrating,
    nir.IF: _integrating,
    nir.CubaLI: _current_based,
    nir.CubaLIF: _current_based,
}
"""Neurons, spiking or not: they differ in what follows the step."""


class DelayLine:
    """``y[t] = x[t - d]`` with d = delay / dt rounded to whole steps, 0 before the start.

    Args:
        node: a Delay.
        dt: time step [s].
        dtype: of the inputs.

    Raises:
        InputFileError: a delay is negative.
    """

    def __init__(self, node: Node, dt: float, dtype: np.dtype[Any]) -> None:
        wanted = np.rint(np.asarray(node.op.delay, np.float64) / dt).astype(int)
        if wanted.min(initial=0) < 0:
            raise InputFileError(f"node {node.name!r} has a negative delay")
        self.state: State = {}
        self._delays = np.broadcast_to(wanted, node.output_shape)

    def run(self, x: Array, steps: int) -> Array:
        """As of `Stateful`; the state is the last inputs, ``[longest delay, B, ...]``."""
        longest = int(self._delays.max(initial=0))
        x = np.broadcast_to(x, (steps, *x.shape[1:]))
        before = self.state.get("x", np.zeros((longest, *x.shape[1:]), x.dtype))
        history = np.concatenate([before, x])
        out = np.empty(x.shape, x.dtype)
        for d in np.unique(self._delays):
            part = self._delays == d
            out[:, :, part] = history[longest - d : longest - d + steps][:, :, part]
        self.state["x"] = history[len(history) - longest :]
        return out


NEURON_STEPS: dict[type, Callable[[Node, float, np.dtype[Any]], Stateful]] = {
    **dict.fromkeys(RULES, Neurons),
    nir.Delay: DelayLine,
}
"""(node, dt [s], dtype) -> the layer before its first step."""
