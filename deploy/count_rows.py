"""The rows of an operation count, from what was seen of each node; definitions: `counting`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.footprint import Widths, biased_outputs, parameter_bits
from tser.deploy.synapses import Counts, Synapse, fan_out
from tser.export.graph import SPIKING, Node
from tser.export.shapes import window


@dataclass(frozen=True)
class LayerCount:
    """Totals of one row over all samples and steps, in operations unless stated.

    Attributes:
        name: synapse or neuron layer.
        kind: "conv", "linear", "identity", "neuron" or "delay".
        source: node whose events are counted; what a delay is fed by.
        operation: "AC", "MAC", or "" for neurons and delays.
        events: non-zero inputs (for neurons: spikes put out), per step ``[T]``.
        sop_structural: per step ``[T]``.
        sop_effective: per step ``[T]``.
        dense: over all steps.
        dense_padded: over all steps; as ``dense`` behind a folded pool.
        macs: over all steps; 0 for accumulate-only layers.
        macs_once: of one step.
        neuron_updates: clocked.
        neuron_updates_driven: with at least one incoming event.
        ann_macs: of one inference of the same layer in a conventional network, once, on its own
            input (behind the pool, if one is folded); 0 where there is no weighted layer.
        neurons: in the layer; 0 for synapses.
        firing_rate: spikes a neuron and step, 0..1; of the source for synapses.
        bias_adds: over all steps; with several sources of one weighted layer in the first row.
        parameter_bits: stored by the layer, once; likewise in the first row.
        state_bits: carried from step to step by the neurons of one network, or held by a delay.
        driven_per_step: ``neuron_updates_driven`` per step ``[T]``.
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
    bias_adds: int = 0
    parameter_bits: int = 0
    state_bits: int = 0
    driven_per_step: Counts = field(default_factory=lambda: np.zeros(0, np.int64))


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


class Observed:
    """Running counts of one node's output."""

    def __init__(self, node: Node, steps: int) -> None:
        self.active: Counts = np.zeros((steps, *node.output_shape), np.int64)
        self._late: Counts | None = None
        self.low, self.high = np.inf, 0.0

    @property
    def late(self) -> Counts:
        """What arrives a step late: the activity of the step before."""
        if self._late is not None:
            return self._late
        return np.concatenate([np.zeros_like(self.active[:1]), self.active[:-1]])

    def add(
        self, value: NDArray[Any], active: NDArray[np.bool_], keep: NDArray[np.bool_] | None
    ) -> None:
        """Add one batch ``[T or 1, B, ...]``, where it is not 0, and the steps taken ``[T, B]``."""
        if keep is not None:
            taken = keep.reshape(*keep.shape, *[1] * (active.ndim - 2))
            if self._late is None:
                self._late = np.zeros_like(self.active)
            whole = np.broadcast_to(active, (len(keep), *active.shape[1:]))
            self._late[1:] += (whole[:-1] & taken[1:]).sum(1)
            counted = active & taken
        else:
            counted = active
        ones = counted.view(np.uint8)
        for start in range(0, ones.shape[1], 255):  # few enough for a byte, which is quick to sum
            self.active += np.add.reduce(ones[:, start : start + 255], axis=1, dtype=np.uint8)
        if value.dtype == bool:
            if active.any():
                self.low, self.high = min(self.low, 1.0), max(self.high, 1.0)
        else:
            height = np.abs(value)
            self.low = min(self.low, float(height.min(initial=np.inf, where=active)))
            self.high = max(self.high, float(height.max(initial=0, where=active)))

    @property
    def analog(self) -> bool:
        """More than one distinct magnitude beside 0 was seen."""
        return self.low < self.high


@dataclass(frozen=True)
class Size:
    """How much was counted over.

    Attributes:
        samples: inputs.
        steps: T.
        taken: steps of all samples together.
    """

    samples: int
    steps: int
    taken: int


def idle_row(name: str, kind: str, source: str, steps: int) -> LayerCount:
    """A row without operations."""
    zeros: Counts = np.zeros(steps, np.int64)
    return LayerCount(name, kind, source, "", zeros, zeros, zeros, driven_per_step=zeros)


def stored(synapse: Synapse, first: bool, size: Size, widths: Widths) -> dict[str, Any]:
    """What a row says of its layer beside operations; a layer with several rows in the first."""
    if synapse.kind == "identity":
        return {"parameter_bits": sum(parameter_bits(node, widths) for node in synapse.path)}
    if not first:
        return {"ann_macs": 0}
    return {
        "bias_adds": biased_outputs(synapse.sink) * size.taken,
        "parameter_bits": parameter_bits(synapse.sink, widths),
    }


def synapse_row(synapse: Synapse, seen: Observed, size: Size) -> LayerCount:
    """Operations of a synapse, given what its source put out.

    Raises:
        Uncounted: its targets cannot be counted.
    """
    structural = fan_out(synapse, effective=False)
    effective = fan_out(synapse, effective=True)
    active = seen.late if synapse.delayed else seen.active
    flat = active.reshape(size.steps, -1)
    once = int(structural.sum())
    analog = seen.analog
    return LayerCount(
        name=synapse.name,
        kind=synapse.kind,
        source=synapse.source.name,
        operation="MAC" if analog else "AC",
        events=flat.sum(1),
        sop_structural=flat @ structural.reshape(-1),
        sop_effective=flat @ effective.reshape(-1),
        dense=once * size.taken,
        dense_padded=_padded(synapse, once) * size.taken,
        macs=once * size.taken if analog else 0,
        macs_once=once * size.samples if analog else 0,
        ann_macs=0 if synapse.kind == "identity" else _unfolded(synapse, structural),
        firing_rate=float(flat.sum() / max(1, size.taken * flat.shape[1])),
        driven_per_step=np.zeros(size.steps, np.int64),
    )


def _unfolded(synapse: Synapse, structural: Counts) -> int:
    """In-bounds connections of the weighted layer itself."""
    if synapse.path:
        structural = fan_out(replace(synapse, path=()), effective=False)
    return int(structural.sum())


def _padded(synapse: Synapse, once: int) -> int:
    """Dense operations of one sample and step with padded taps, given those without."""
    node = synapse.sink
    if synapse.kind != "conv" or synapse.path:
        return once
    geometry = window(node.op)
    kernel = geometry.kernel[0] * geometry.kernel[1]
    return math.prod(node.output_shape) * int(node.op.weight.shape[1]) * kernel


def neuron_row(node: Node, seen: Observed | None, size: Size, driven: Counts) -> LayerCount:
    """Updates of neurons, and their spikes if they fire."""
    neurons = math.prod(node.output_shape)
    updates = neurons * size.taken
    row = idle_row(node.name, "neuron", node.name, size.steps)
    row = replace(
        row,
        neuron_updates=updates,
        neuron_updates_driven=int(driven.sum()),
        neurons=neurons,
        driven_per_step=driven,
    )
    if seen is None or not isinstance(node.op, (*SPIKING, nir.Threshold)):
        return row
    events = seen.active.reshape(size.steps, -1).sum(1)
    return replace(row, events=events, firing_rate=float(events.sum() / max(1, updates)))
