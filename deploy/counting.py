"""Synaptic operations, counted exactly on an exported graph.

Definitions, per synaptic layer with input x[t]:

* events: non-zero inputs.
* SOP, structural: over all events, the in-bounds targets each one reaches; biases excluded.
* SOP, effective: the same over connections whose weight is not zero.
* dense: every in-bounds connection, at every step; ``dense_padded`` counts padded taps too.
* MACs: the dense operations of a layer whose input holds more than one distinct non-zero value
  (an analog image); ``macs_once`` for a target that holds a constant current over all steps.
  Other layers only accumulate: their cost is their SOPs.
* neuron updates: neurons x steps (clocked); driven are those that receive at least one event.

Average pools fold into the synapse after them and cost nothing of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.interpreter import run
from tser.deploy.synapses import (
    Counts,
    Synapse,
    Uncounted,
    arrivals,
    carries_current,
    fan_out,
    find_synapses,
    reached,
)
from tser.export.graph import NEURONS, Graph, Node
from tser.export.shapes import window


@dataclass(frozen=True)
class LayerCount:
    """Totals of one row over all samples and steps, in operations unless stated.

    Attributes:
        name: synapse or neuron layer.
        kind: "conv", "linear", "identity" or "neuron".
        source: node whose events are counted.
        operation: "AC", "MAC", or "" for neurons.
        events: non-zero inputs (for neurons: spikes put out), per step ``[T]``.
        sop_structural: per step ``[T]``.
        sop_effective: per step ``[T]``.
        dense: over all steps.
        dense_padded: over all steps.
        macs: over all steps; 0 for accumulate-only layers.
        macs_once: of one step.
        neuron_updates: clocked.
        neuron_updates_driven: with at least one incoming event.
        ann_macs: of one inference of the same layer in a conventional network, once, on its own
            input (behind the pool, if one is folded); 0 where there is no weighted layer.
        neurons: in the layer; 0 for synapses.
        firing_rate: spikes a neuron and step, 0..1; of the source for synapses.
    """

    name: str
    kind: str
    source: str
    operation: str
    events: Counts
    sop_structural: Counts
    sop_effective: Counts
    dense: int = 0
    dense_padded: int = 0
    macs: int = 0
    macs_once: int = 0
    neuron_updates: int = 0
    neuron_updates_driven: int = 0
    ann_macs: int = 0
    neurons: int = 0
    firing_rate: float = 0.0


@dataclass(frozen=True)
class OperationCount:
    """All rows of a graph.

    Attributes:
        layers: in execution order.
        samples: inputs counted over.
        timesteps: T.
        gaps: nodes whose operations are not in the rows, with the reason.
    """

    layers: list[LayerCount]
    samples: int
    timesteps: int
    gaps: list[dict[str, str]] = field(default_factory=list)

    def total(self, name: str) -> int:
        """Sum of one column over all layers, steps and samples [operations]."""
        return sum(int(np.sum(getattr(layer, name))) for layer in self.layers)


class _Observed:
    """Running counts of one node's output."""

    def __init__(self, node: Node, steps: int) -> None:
        self.active: Counts = np.zeros((steps, *node.output_shape), np.int64)
        self.low, self.high = np.inf, -np.inf

    def add(self, value: NDArray[Any]) -> None:
        """Add one batch ``[T, B, ...]``."""
        used = value != 0
        self.active += used.sum(1)
        values = value[used]
        if values.size:
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))

    @property
    def analog(self) -> bool:
        """More than one distinct non-zero value was seen."""
        return self.low < self.high


def count_operations(
    graph: Graph, batches: Iterable[NDArray[Any]], timesteps: int | None = None
) -> OperationCount:
    """Run ``graph`` on inputs and count.

    Args:
        graph: the resolved view.
        batches: ``[B, *input_shape]`` (constant over time) or ``[T, B, *input_shape]``.
        timesteps: T; default what the graph states.

    Returns:
        Exact integer counts; memory does not grow with the number of samples.
    """
    synapses = find_synapses(graph)
    neurons = [node for node in graph.nodes.values() if isinstance(node.op, NEURONS)]
    wanted = {s.source.name for s in synapses} | {node.name for node in neurons}
    observed: dict[str, _Observed] = {}
    driven = dict.fromkeys((node.name for node in neurons), 0)
    samples = steps = 0
    for x in batches:
        out, values = run(graph, x, timesteps, record=wanted)
        steps, batch = out.shape[:2]
        for name in wanted:
            observed.setdefault(name, _Observed(graph.nodes[name], steps)).add(values[name])
        for node in neurons:
            driven[node.name] += _driven(graph, node, synapses, values)
        samples += batch
    rows: list[LayerCount] = []
    gaps = _gaps(graph)
    for node in graph.nodes.values():
        for number, synapse in enumerate(s for s in synapses if s.sink.name == node.name):
            try:
                seen = observed[synapse.source.name]
                row = _synapse_row(synapse, seen, samples, steps)
                rows.append(row if number == 0 else replace(row, ann_macs=0))
            except Uncounted as error:
                gaps.append({"name": synapse.name, "kind": node.kind, "reason": str(error)})
        if isinstance(node.op, NEURONS):
            rows.append(_neuron_row(node, observed[node.name], samples, steps, driven[node.name]))
    return OperationCount(rows, samples, steps, gaps)


def _gaps(graph: Graph) -> list[dict[str, str]]:
    """Nodes that compute on currents outside any synapse, which the rows leave out."""
    gaps = []
    for node in graph.nodes.values():
        computes = isinstance(node.op, nir.AvgPool2d | nir.SumPool2d | nir.Scale | nir.Delay)
        if computes and carries_current(graph, node):
            reason = "it works on the result of a weighted layer, not on spikes"
            gaps.append({"name": node.name, "kind": node.kind, "reason": reason})
    return gaps


def _driven(
    graph: Graph, node: Node, synapses: list[Synapse], values: dict[str, NDArray[Any]]
) -> int:
    """Updates of ``node`` with at least one incoming event in this batch."""
    hit: NDArray[np.bool_] | None = None
    for synapse, rest, late in arrivals(graph, node, synapses):
        value = values[synapse.source.name]
        active = (value != 0).reshape(-1, *synapse.source.output_shape)
        arrived = reached(synapse, active, rest).reshape(*value.shape[:2], *node.input_shape)
        for _ in range(late):
            arrived = np.concatenate([np.zeros_like(arrived[:1]), arrived[:-1]])
        hit = arrived if hit is None else hit | arrived
    return 0 if hit is None else int(hit.sum())


def _synapse_row(synapse: Synapse, seen: _Observed, samples: int, steps: int) -> LayerCount:
    structural = fan_out(synapse, effective=False)
    effective = fan_out(synapse, effective=True)
    active = seen.active
    if synapse.delayed:
        active = np.concatenate([np.zeros_like(active[:1]), active[:-1]])
    flat = active.reshape(steps, -1)
    once = int(structural.sum()) * samples
    analog = seen.analog
    return LayerCount(
        name=synapse.name,
        kind=synapse.kind,
        source=synapse.source.name,
        operation="MAC" if analog else "AC",
        events=flat.sum(1),
        sop_structural=flat @ structural.reshape(-1),
        sop_effective=flat @ effective.reshape(-1),
        dense=once * steps,
        dense_padded=_padded(synapse, once, samples) * steps,
        macs=once * steps if analog else 0,
        macs_once=once if analog else 0,
        ann_macs=0 if synapse.kind == "identity" else _unfolded(synapse),
        firing_rate=float(flat.sum() / max(1, samples * flat.size)),
    )


def _unfolded(synapse: Synapse) -> int:
    """In-bounds connections of the weighted layer itself."""
    return int(fan_out(replace(synapse, path=()), effective=False).sum())


def _padded(synapse: Synapse, once: int, samples: int) -> int:
    """Dense operations of one step with padded taps, given those without."""
    node = synapse.sink
    if synapse.kind != "conv" or synapse.path:
        return once
    geometry = window(node.op)
    kernel = geometry.kernel[0] * geometry.kernel[1]
    per_sample = int(np.prod(node.output_shape)) * int(node.op.weight.shape[1]) * kernel
    return samples * per_sample


def _neuron_row(node: Node, seen: _Observed, samples: int, steps: int, driven: int) -> LayerCount:
    neurons = int(np.prod(node.output_shape))
    zeros: Counts = np.zeros(steps, np.int64)
    events = seen.active.reshape(steps, -1).sum(1)
    updates = neurons * steps * samples
    return LayerCount(
        name=node.name,
        kind="neuron",
        source=node.name,
        operation="",
        events=events,
        sop_structural=zeros,
        sop_effective=zeros,
        neuron_updates=updates,
        neuron_updates_driven=driven,
        neurons=neurons,
        firing_rate=float(events.sum() / max(1, updates)),
    )
