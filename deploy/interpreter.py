"""The reference interpreter of NIR graphs: NumPy, float32 or float64, independent of torch.

Feed-forward graphs run layer by layer over whole sequences, recurrent ones step by step; the
arithmetic of a neuron is the same. Euler steps in the order of Norse's cells:

* LI, LIF: ``v += (dt/tau) ((r i + v_leak) - v)``
* I, IF: ``v += dt r i``
* CubaLI, CubaLIF: ``I += (dt/tau_syn) w_in s``, then ``v += (dt/tau_mem) ((v_leak - v) + r I)``,
  then ``I -= (dt/tau_syn) I``: a spike reaches the membrane in its own step
* a spike where ``v > v_threshold`` (strict), then ``v = v_reset``

from ``v = v_leak`` (0 for I and IF) and ``I = 0``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.numeric import STATELESS
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph, Node, decay

Array = NDArray[Any]
State = dict[str, Array]
Neuron = Callable[[Node, float, Array, int, State], Array]


def run(
    graph: Graph,
    x: Array,
    timesteps: int | None = None,
    *,
    dtype: type[np.floating[Any]] = np.float32,
    record: Collection[str] = (),
) -> tuple[Array, dict[str, Array]]:
    """Execute ``graph``.

    Args:
        graph: the resolved view.
        x: ``[B, *input_shape]`` for an input that is constant over time, or
            ``[T, B, *input_shape]``.
        timesteps: T; needed for a constant input unless the graph states it.
        dtype: ``np.float32`` or ``np.float64``.
        record: names of nodes whose output is wanted.

    Returns:
        The output ``[T, B, *output_shape]``, and ``{name: [T, B, ...]}`` of the recorded nodes.

    Raises:
        InputFileError: an input of another shape, or T is not known.
        UsageError: T < 1.
    """
    values, steps = prepare(graph, x, timesteps, dtype)
    states: dict[str, State] = {}
    if not graph.recurrent:
        outputs = _run_block(graph, values, steps, states, {})
    else:
        outputs = _run_stepwise(graph, values, steps, states, {*record, graph.output.name})
    kept = {name: _over_time(outputs[name], steps) for name in record}
    return _over_time(outputs[graph.output.name], steps), kept


def prepare(
    graph: Graph, x: Array, timesteps: int | None, dtype: type[np.floating[Any]]
) -> tuple[Array, int]:
    """The input as ``[T or 1, B, ...]`` in ``dtype``, and T.

    Raises:
        InputFileError: an input of another shape, or T is not known.
        UsageError: T < 1.
    """
    shape = graph.input.output_shape
    x = np.asarray(x)
    if x.shape[2:] == shape and x.ndim == len(shape) + 2:
        if timesteps not in (None, len(x)):
            raise InputFileError(f"the input has {len(x)} steps, {timesteps} were asked for")
        return x.astype(dtype), len(x)
    if x.shape[1:] != shape or x.ndim != len(shape) + 1:
        raise InputFileError(
            f"the input has shape {x.shape}; the graph takes [B, *{shape}] or [T, B, *{shape}]"
        )
    steps = graph.timesteps if timesteps is None else timesteps
    if steps is None:
        raise InputFileError("the graph does not say how many time steps to run; state T")
    if steps < 1:
        raise UsageError(f"the number of time steps must be at least 1, got {steps}")
    return x.astype(dtype)[None], steps


def _over_time(value: Array, steps: int) -> Array:
    return np.broadcast_to(value, (steps, *value.shape[1:]))


def _run_block(
    graph: Graph,
    x: Array,
    steps: int,
    states: dict[str, State],
    delayed: dict[str, Array],
) -> dict[str, Array]:
    """Run all nodes over a block of ``steps`` steps; a leading 1 means constant over time."""
    outputs: dict[str, Array] = {}
    for node in graph.nodes.values():
        if isinstance(node.op, nir.Input):
            value = x
        else:
            sources = [
                delayed.get(e.source) if e.delayed else outputs[e.source] for e in node.inputs
            ]
            value = sum_inputs([source for source in sources if source is not None])
        if type(node.op) in NEURON_STEPS:
            state = states.setdefault(node.name, {})
            outputs[node.name] = NEURON_STEPS[type(node.op)](node, graph.dt, value, steps, state)
        else:
            flat = value.reshape(-1, *node.input_shape)
            result = STATELESS[type(node.op)](node, flat)
            outputs[node.name] = result.reshape(*value.shape[:2], *node.output_shape)
    return outputs


def sum_inputs(values: list[Array]) -> Array:
    """Fan-in: the sum from the first edge to the last."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _run_stepwise(
    graph: Graph, x: Array, steps: int, states: dict[str, State], wanted: set[str]
) -> dict[str, Array]:
    sources = {e.source for node in graph.nodes.values() for e in node.inputs if e.delayed}
    delayed = {
        name: np.zeros((1, x.shape[1], *graph.nodes[name].output_shape), x.dtype)
        for name in sources
    }
    history: dict[str, list[Array]] = {name: [] for name in wanted}
    for t in range(steps):
        outputs = _run_block(graph, x[t : t + 1] if len(x) > 1 else x, 1, states, delayed)
        delayed = {name: outputs[name] for name in sources}
        for name in wanted:
            history[name].append(outputs[name])
    return {name: np.concatenate(parts) for name, parts in history.items()}


def _leaky(fires: bool) -> Neuron:
    def steps_of(node: Node, dt: float, x: Array, steps: int, state: State) -> Array:
        op, dtype = node.op, x.dtype
        rate = decay(dt, op.tau).astype(dtype)
        r, v_leak = np.asarray(op.r, dtype), np.asarray(op.v_leak, dtype)
        driven = r * x + v_leak
        v = state.get("v", np.broadcast_to(v_leak, x.shape[1:]))
        out = np.empty((steps, *x.shape[1:]), dtype)
        for t in range(steps):
            v = v + rate * (driven[t if len(x) > 1 else 0] - v)
            out[t], v = _fire(op, v) if fires else (v, v)
        state["v"] = v
        return out

    return steps_of


def _integrating(fires: bool) -> Neuron:
    def steps_of(node: Node, dt: float, x: Array, steps: int, state: State) -> Array:
        op, dtype = node.op, x.dtype
        gain = np.asarray(dt * np.asarray(op.r, np.float64), dtype)
        driven = gain * x
        v = state.get("v", np.zeros(x.shape[1:], dtype))
        out = np.empty((steps, *x.shape[1:]), dtype)
        for t in range(steps):
            v = v + driven[t if len(x) > 1 else 0]
            out[t], v = _fire(op, v) if fires else (v, v)
        state["v"] = v
        return out

    return steps_of


def _current_based(fires: bool) -> Neuron:
    def steps_of(node: Node, dt: float, x: Array, steps: int, state: State) -> Array:
        op, dtype = node.op, x.dtype
        membrane = decay(dt, op.tau_mem).astype(dtype)
        synapse = decay(dt, op.tau_syn).astype(dtype)
        gain = np.asarray(decay(dt, op.tau_syn) * op.w_in, dtype)
        r, v_leak = np.asarray(op.r, dtype), np.asarray(op.v_leak, dtype)
        v = state.get("v", np.broadcast_to(v_leak, x.shape[1:]))
        current = state.get("i", np.zeros(x.shape[1:], dtype))
        out = np.empty((steps, *x.shape[1:]), dtype)
        for t in range(steps):
            current = current + gain * x[t if len(x) > 1 else 0]
            v = v + membrane * ((v_leak - v) + r * current)
            current = current - synapse * current
            out[t], v = _fire(op, v) if fires else (v, v)
        state["v"], state["i"] = v, current
        return out

    return steps_of


def _fire(op: Any, v: Array) -> tuple[Array, Array]:
    z = v > np.asarray(op.v_threshold, v.dtype)
    return z.astype(v.dtype), np.where(z, np.asarray(op.v_reset, v.dtype), v)


def _delay(node: Node, dt: float, x: Array, steps: int, state: State) -> Array:
    """``y[t] = x[t - d]`` with d = delay / dt rounded to whole steps, 0 before the start."""
    wanted = np.rint(np.asarray(node.op.delay, np.float64) / dt).astype(int)
    longest = int(wanted.max(initial=0))
    if wanted.min(initial=0) < 0:
        raise InputFileError(f"node {node.name!r} has a negative delay")
    x = np.broadcast_to(x, (steps, *x.shape[1:]))
    before = state.get("x", np.zeros((longest, *x.shape[1:]), x.dtype))
    history = np.concatenate([before, x])
    out = np.empty(x.shape, x.dtype)
    delays = np.broadcast_to(wanted, x.shape[2:])
    for d in np.unique(delays):
        part = delays == d
        out[:, :, part] = history[longest - d : longest - d + steps][:, :, part]
    state["x"] = history[len(history) - longest :]
    return out


NEURON_STEPS: dict[type, Neuron] = {
    nir.LI: _leaky(fires=False),
    nir.LIF: _leaky(fires=True),
    nir.I: _integrating(fires=False),
    nir.IF: _integrating(fires=True),
    nir.CubaLI: _current_based(fires=False),
    nir.CubaLIF: _current_based(fires=True),
    nir.Delay: _delay,
}
"""(node, dt [s], current ``[T or 1, B, ...]``, T, state) -> ``[T, B, ...]``; updates the state."""
