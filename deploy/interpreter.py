"""The reference interpreter of NIR graphs, in float32 or float64.

It shares no code with the students: neurons are NumPy (``stateful``), weighted sums are NumPy in
float64 and PyTorch's kernels in float32 (``numeric``). Feed-forward graphs run layer by layer over
whole sequences, recurrent ones step by step; the arithmetic of a neuron is the same. Euler steps
in the order of Norse's cells:

* LI, LIF: ``v += (dt/tau) ((r i + v_leak) - v)``
* I, IF: ``v += dt r i``
* CubaLI, CubaLIF: ``I += (dt/tau_syn) w_in s``, then ``v += (dt/tau_mem) ((v_leak - v) + r I)``,
  then ``I -= (dt/tau_syn) I``: a spike reaches the membrane in its own step
* a spike where ``v > v_threshold`` (strict), then ``v = v_reset``

from ``v = v_leak`` (0 for I and IF) and ``I = 0``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.numeric import STATELESS
from tser.deploy.stateful import NEURON_STEPS, Stateful
from tser.errors import InputFileError, UsageError
from tser.export.graph import SPIKING, Graph, Node

__all__ = ["NEURON_STEPS", "prepare", "replay", "run", "sum_inputs"]

Array = NDArray[Any]


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
        The output ``[T, B, *output_shape]``, and ``{name: [T, B, ...]}`` of the recorded nodes:
        bool of spiking layers, else numbers in ``dtype``.

    Raises:
        InputFileError: an input of another shape, or T is not known.
        UsageError: T < 1.
    """
    values, steps = prepare(graph, x, timesteps, dtype)
    outputs = _execute(graph, values, steps, {*record, graph.output.name})
    kept = {name: _over_time(outputs[name], steps) for name in record}
    return _over_time(outputs[graph.output.name], steps), kept


def replay(
    graph: Graph,
    x: Array,
    spikes: Mapping[str, Array],
    timesteps: int | None = None,
    *,
    dtype: type[np.floating[Any]] = np.float32,
    states: Mapping[str, Array] | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """What every spiking layer of ``graph`` fires when all of them are fed recorded spikes.

    The arithmetic is that of `run`, operation by operation: with the spikes that `run` recorded,
    these come out again. Layers with a state that do not fire (LI, I, CubaLI, Delay) run by
    themselves on what they are fed.

    Args:
        graph: the resolved view.
        x: as for `run`.
        spikes: of every spiking layer, bool ``[T, B, ...]``: what is read downstream of it, in
            place of what it fires. Edges that close a cycle read them a step later.
        timesteps: T; that of ``spikes`` unless given.
        dtype: ``np.float32`` or ``np.float64``.
        states: per spiking layer the membrane potential before each step, that is after the
            reset of the step before, ``[T, B, ...]``. A layer that is not named runs free from
            its own past; the synaptic current of a CubaLIF does so anyway.

    Returns:
        What each layer fires, bool ``[T, B, ...]``.

    Raises:
        InputFileError: ``x``, ``spikes`` or ``states`` of another shape, or a layer without spikes.
        UsageError: T < 1.
    """
    if timesteps is None and spikes:
        timesteps = len(next(iter(spikes.values())))
    values, steps = prepare(graph, x, timesteps, dtype)
    forced = Forced(spikes, states or {})
    forced.check(graph, steps, values.shape[1])
    _execute(graph, values, steps, set(), forced)
    return {name: np.concatenate(parts) for name, parts in forced.fired.items()}


@dataclass
class Forced:
    """What a replay reads, and what the layers fire on it.

    Attributes:
        spikes: per spiking layer ``[T, B, ...]``.
        states: per spiking layer that does not run free, ``[T, B, ...]``.
        fired: per spiking layer the blocks ``[steps, B, ...]`` so far.
    """

    spikes: Mapping[str, Array]
    states: Mapping[str, Array]
    fired: dict[str, list[NDArray[np.bool_]]] = field(default_factory=dict)

    def check(self, graph: Graph, steps: int, batch: int) -> None:
        """Raise InputFileError unless all is there, in the shapes of ``graph``."""
        for node in graph.spiking:
            expected = (steps, batch, *node.output_shape)
            if node.name not in self.spikes:
                raise InputFileError(f"no spikes of the layer {node.name!r} were recorded")
            for what, known in (("spikes", self.spikes), ("membrane", self.states)):
                if node.name in known and np.shape(known[node.name]) != expected:
                    raise InputFileError(
                        f"the recorded {what} of the layer {node.name!r} has shape "
                        f"{np.shape(known[node.name])}, the graph says {expected}"
                    )

    def read(self, node: Node, layer: Stateful, x: Array, steps: range) -> Array:
        """Run a layer, note what it fires and return what is read instead."""
        fired = self.fired.setdefault(node.name, [])
        if node.name not in self.states:
            fired.append(layer.run(x, len(steps)))
        else:
            for number, t in enumerate(steps):
                layer.state["v"] = self.states[node.name][t].astype(x.dtype)
                fired.append(layer.run(x[number : number + 1] if len(x) > 1 else x, 1))
        return np.asarray(self.spikes[node.name][steps.start : steps.stop] > 0)


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


def _execute(
    graph: Graph, x: Array, steps: int, wanted: set[str], forced: Forced | None = None
) -> dict[str, Array]:
    """Outputs of the nodes ``wanted``, ``[T or 1, B, ...]``."""
    layers = {
        node.name: NEURON_STEPS[type(node.op)](node, graph.dt, x.dtype)
        for node in graph.nodes.values()
        if type(node.op) in NEURON_STEPS
    }
    if not graph.recurrent:
        return _run_block(graph, x, range(steps), layers, {}, wanted, forced)
    sources = {e.source for node in graph.nodes.values() for e in node.inputs if e.delayed}
    delayed = {
        name: np.zeros((1, x.shape[1], *graph.nodes[name].output_shape), x.dtype)
        for name in sources
    }
    history: dict[str, list[Array]] = {name: [] for name in wanted}
    for t in range(steps):
        current = x[t : t + 1] if len(x) > 1 else x
        block = range(t, t + 1)
        outputs = _run_block(graph, current, block, layers, delayed, wanted | sources, forced)
        delayed = {name: outputs[name] for name in sources}
        for name in wanted:
            history[name].append(outputs[name])
    return {name: np.concatenate(parts) for name, parts in history.items()}


def _run_block(
    graph: Graph,
    x: Array,
    steps: range,
    layers: dict[str, Stateful],
    delayed: dict[str, Array],
    wanted: set[str],
    forced: Forced | None,
) -> dict[str, Array]:
    """Run all nodes over ``steps``; a leading 1 means constant over time.

    What nobody reads any more is dropped at once, unless it is ``wanted``.
    """
    outputs: dict[str, Array] = {}
    last = {e.source: node.name for node in graph.nodes.values() for e in node.inputs}
    for node in graph.nodes.values():
        if isinstance(node.op, nir.Input):
            outputs[node.name] = x
        else:
            sources = [(delayed if e.delayed else outputs)[e.source] for e in node.inputs]
            # As numbers: the sum of two spikes is 2.
            total = sum_inputs([source.astype(x.dtype, copy=False) for source in sources])
            del sources
            for e in node.inputs:
                if not e.delayed and e.source not in wanted and last[e.source] == node.name:
                    del outputs[e.source]
            outputs[node.name] = _output(node, total, steps, layers, forced)
    return outputs


def _output(
    node: Node, x: Array, steps: range, layers: dict[str, Stateful], forced: Forced | None
) -> Array:
    if node.name not in layers:
        flat = x.reshape(-1, *node.input_shape)
        result = STATELESS[type(node.op)](node, flat)
        return result.reshape(*x.shape[:2], *node.output_shape)
    if forced and isinstance(node.op, SPIKING):
        return forced.read(node, layers[node.name], x, steps)
    return layers[node.name].run(x, len(steps))


def sum_inputs(values: list[Array]) -> Array:
    """Fan-in: the sum from the first edge to the last."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
