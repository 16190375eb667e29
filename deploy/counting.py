"""Synaptic operations, counted exactly on an exported graph.

Definitions, per synaptic layer with input x[t]:

* events: non-zero inputs.
* SOP, structural: over all events, the in-bounds targets each one reaches; biases excluded.
* SOP, effective: the same over connections whose weight is not zero.
* dense: every in-bounds connection, at every step; ``dense_padded`` counts padded taps too.
* MACs: the dense operations of a layer whose input holds more than one distinct magnitude beside 0
  (an analog image); ``macs_once`` for a target that holds a constant current over all steps.
  Other layers, of spikes of one height and either sign, only add or subtract: their cost is their
  SOPs. Spikes that several nodes send to one layer are events at a synapse each.
* bias adds: outputs whose bias is not zero x steps.
* neuron updates: neurons x steps (clocked); driven are those that receive at least one event.

Average pools fold into the synapse after them and cost nothing of their own. A threshold is a
neuron without a state, a delay a memory without operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.count_rows import (
    LayerCount,
    Observed,
    OperationCount,
    Size,
    idle_row,
    neuron_row,
    stored,
    synapse_row,
)
from tser.deploy.driven import Arrival, driven_per_step
from tser.deploy.footprint import Widths, delay_bits, parameter_bits, state_bits
from tser.deploy.interpreter import run
from tser.deploy.outputs import check_finite
from tser.deploy.synapses import (
    COMPUTING,
    PASSING,
    RECEIVING,
    Counts,
    Synapse,
    Uncounted,
    arrivals,
    carried_currents,
    find_synapses,
)
from tser.errors import UsageError
from tser.export.graph import SPIKING, WEIGHTED, Graph

__all__ = ["Counter", "LayerCount", "OperationCount", "count_operations"]

KNOWN = (*WEIGHTED, *PASSING, *RECEIVING, nir.Delay, nir.Input, nir.Output)
"""Classes whose operations are in the rows, or that have none."""


@dataclass(frozen=True)
class _Plan:
    """What of a graph is counted.

    Attributes:
        synapses: by name of the sink.
        driving: what arrives at each node with neurons.
        wanted: nodes whose output is looked at.
    """

    synapses: dict[str, list[Synapse]]
    driving: dict[str, list[Arrival]]
    wanted: set[str]


def count_operations(
    graph: Graph,
    batches: Iterable[NDArray[Any]],
    timesteps: int | None = None,
    *,
    widths: Widths | None = None,
    origin: str = "the graph",
) -> OperationCount:
    """Run ``graph`` on inputs and count.

    Args:
        graph: the resolved view.
        batches: ``[B, *input_shape]`` (constant over time) or ``[T, B, *input_shape]``.
        timesteps: T; default what the graph states.
        widths: of what is stored; default: float32.
        origin: what to call the graph in messages.

    Returns:
        Exact integer counts; memory does not grow with the number of samples.

    Raises:
        UsageError: no inputs, or batches of different T.
        InputFileError: outputs that are not finite.
    """
    counter = Counter(graph)
    for x in batches:
        _count(counter, graph, x, timesteps, origin)
    return counter.result(widths)


def _count(
    counter: Counter, graph: Graph, x: NDArray[Any], timesteps: int | None, origin: str
) -> None:
    """One batch; what it recorded is let go before the next."""
    out, values = run(graph, x, timesteps, record=counter.wanted)
    check_finite(out, counter.samples, origin)
    counter.add(values, len(out))


def _plan(graph: Graph) -> _Plan:
    synapses = find_synapses(graph)
    nodes = list(graph.nodes.values())
    neurons = [node for node in nodes if isinstance(node.op, RECEIVING)]
    firing = {node.name for node in neurons if isinstance(node.op, (*SPIKING, nir.Threshold))}
    delays = {node.name for node in nodes if isinstance(node.op, nir.Delay)}
    wanted = {s.source.name for s in synapses} | firing | delays
    return _Plan(
        {node.name: [s for s in synapses if s.sink.name == node.name] for node in nodes},
        {node.name: arrivals(graph, node, synapses) for node in neurons},
        wanted or {graph.output.name},  # something has to say how many samples there are
    )


def _once(value: NDArray[Any]) -> NDArray[Any]:
    """A recorded output ``[T, B, ...]`` that repeats one step in memory, as that step."""
    return value[:1] if value.strides[0] == 0 else value


class Counter:
    """Running counts of a graph, for those who run it themselves.

    Args:
        graph: the resolved view.

    Attributes:
        wanted: nodes whose recorded output is to be added.
        samples: inputs so far.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph, self._plan = graph, _plan(graph)
        self.wanted = self._plan.wanted
        self._observed: dict[str, Observed] = {}
        self._driven: dict[str, Counts] = {}
        self.samples = self._steps = self._taken = 0

    def add(
        self, values: dict[str, NDArray[Any]], steps: int, keep: NDArray[np.bool_] | None = None
    ) -> None:
        """Count one batch; nothing of it is kept.

        Args:
            values: output of each of ``wanted``, ``[T, B, ...]``.
            steps: T.
            keep: which steps each sample takes, bool ``[T, B]``, none after the first that it
                does not; None: all.

        Raises:
            UsageError: another T than before.
        """
        if self.samples and steps != self._steps:
            raise UsageError(
                f"inputs of {self._steps} and of {steps} time steps cannot be counted together; "
                "count them apart"
            )
        batch = next(iter(values.values())).shape[1]
        self._steps = steps
        self.samples += batch
        self._taken += steps * batch if keep is None else int(keep.sum())
        graph, active = self._graph, {}
        for name in self.wanted:
            value = _once(values[name])
            active[name] = value if value.dtype == bool else value != 0
            if name not in self._observed:
                self._observed[name] = Observed(graph.nodes[name], steps)
            self._observed[name].add(value, active[name], keep)
        for name, arriving in self._plan.driving.items():
            found = driven_per_step(graph.nodes[name], arriving, active, steps, graph.dt, keep)
            self._driven[name] = self._driven.get(name, 0) + found

    def result(self, widths: Widths | None = None) -> OperationCount:
        """The rows so far.

        Args:
            widths: of what is stored; default: float32.

        Raises:
            UsageError: nothing was added.
        """
        if not self.samples:
            raise UsageError("there are no inputs to count operations on")
        widths = widths or Widths()
        size = Size(self.samples, self._steps, self._taken)
        rows: list[LayerCount] = []
        gaps = _gaps(self._graph)
        for node in self._graph.nodes.values():
            first = True
            for synapse in self._plan.synapses[node.name]:
                try:
                    row = synapse_row(synapse, self._observed[synapse.source.name], size)
                except Uncounted as error:
                    gaps.append({"name": synapse.name, "kind": node.kind, "reason": str(error)})
                    continue
                rows.append(replace(row, **stored(synapse, first, size, widths)))
                first = False
            if isinstance(node.op, RECEIVING):
                seen = self._observed.get(node.name)
                row = neuron_row(node, seen, size, self._driven[node.name])
                bits = state_bits(node, widths)
            elif isinstance(node.op, nir.Delay):
                width = widths.state if self._observed[node.name].analog else 1
                row = idle_row(node.name, "delay", node.inputs[0].source, size.steps)
                bits = delay_bits(node, self._graph.dt, width)
            else:
                continue
            rows.append(replace(row, parameter_bits=parameter_bits(node, widths), state_bits=bits))
        return OperationCount(rows, size.samples, size.steps, gaps)


def _gaps(graph: Graph) -> list[dict[str, str]]:
    """Nodes with operations outside any synapse, which the rows leave out."""
    every, some = carried_currents(graph)
    gaps = []
    for node in graph.nodes.values():
        reason = ""
        if not isinstance(node.op, KNOWN):
            reason = "the counter does not know this class"
        elif isinstance(node.op, COMPUTING) and node.name in some:
            reason = "it works on the result of a weighted layer, not on spikes"
        elif isinstance(node.op, nir.Delay) and node.name in some - every:
            reason = "it delays the sum of spikes and the result of a weighted layer"
        if reason:
            gaps.append({"name": node.name, "kind": node.kind, "reason": reason})
    return gaps
