"""A graph as a chip sees it: groups of neurons, and what connects them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np

from tser.deploy.fit_axis import ONE, Axis
from tser.deploy.synapses import PASSING, Synapse, arrivals, carries_current, find_synapses
from tser.export.graph import NEURONS, WEIGHTED, Graph, Node, decay
from tser.export.shapes import Shape, window

Size = tuple[int, int, int]
READOUT = "readout"
_MOST_BITS = 16
_SYNAPSES = (nir.CubaLIF, nir.CubaLI)


@dataclass(frozen=True)
class Grid:
    """What the weights of a layer need.

    Attributes:
        bits: of a signed integer with one scale for the layer; None for more than 16, as floats.
        values: different non-zero weights of one neuron, at most.
        peak: the largest absolute weight.
    """

    bits: int | None
    values: int
    peak: float


@dataclass(frozen=True)
class Connection:
    """What leads into one group of neurons from one source, pools folded in.

    Attributes:
        name: of the synapse.
        kind: "conv", "linear" or "identity".
        source: the group, or the input, that it comes from.
        outside: whether the source is the input of the network.
        delayed: it carries values of the step before.
        size: channels, height and width of the source.
        groups: channel groups.
        y: along the height; for "linear" it is not used.
        x: along the width.
        layer: what the layer itself states, for limits on kernels; None without a window.
        arriving: channels, height and width behind the pools, which the layer itself takes.
        pools: kernels, strides and paddings of the folded pools.
        weights: what they need.
        biased: whether some bias is not zero.
    """

    name: str
    kind: str
    source: str
    outside: bool
    delayed: bool
    size: Size
    groups: int
    y: Axis
    x: Axis
    layer: Any
    arriving: Size
    pools: tuple[Any, ...]
    weights: Grid
    biased: bool

    @property
    def inputs(self) -> int:
        """Neurons of the source."""
        return math.prod(self.size)

    def channels_in(self, outputs: int, total: int) -> int:
        """Channels of the source that ``outputs`` channels of ``total`` depend on."""
        used = math.ceil(outputs * self.groups / total)
        return min(self.groups, used) * (self.size[0] // self.groups)

    def fan_in(self, total: int) -> int:
        """Connections of one neuron at most, zero weights included."""
        if self.kind == "linear":
            return self.inputs
        return self.channels_in(1, total) * self.y.most_taps * self.x.most_taps

    def fan_out(self, size: Size) -> int:
        """Neurons of ``size`` that one of the source reaches at most."""
        if self.kind == "linear":
            return math.prod(size)
        return size[0] // self.groups * self.y.most_targets * self.x.most_targets

    def synapses(self, size: Size) -> int:
        """All connections, zero weights included."""
        if self.kind == "linear":
            return self.inputs * math.prod(size)
        return size[0] * (self.size[0] // self.groups) * self.y.all_taps * self.x.all_taps


@dataclass(frozen=True)
class Population:
    """A group of neurons with the same parameters' kind, or the sums that the network ends in.

    Attributes:
        name: of the node; of the layer before the output for a readout.
        kind: the NIR class, or "readout" where nothing has a membrane.
        size: channels, height, width.
        incoming: connections.
        reset: "zero", "value" or "" where nothing is reset.
        rates: distinct dt / tau of its decays, in order; empty where nothing decays; NaN where
            dt is not known.
        threshold: largest threshold above rest, in units of one incoming weight; NaN if unknown.
    """

    name: str
    kind: str
    size: Size
    incoming: tuple[Connection, ...]
    reset: str
    rates: tuple[float, ...]
    threshold: float

    @property
    def neurons(self) -> int:
        """How many."""
        return math.prod(self.size)

    @property
    def fan_in(self) -> int:
        """Connections of one neuron at most."""
        return sum(c.fan_in(self.size[0]) for c in self.incoming)

    @property
    def synapses(self) -> int:
        """All connections into it."""
        return sum(c.synapses(self.size) for c in self.incoming)


@dataclass(frozen=True)
class Network:
    """All groups of a graph.

    Attributes:
        populations: in execution order.
        inputs: channels, height, width of the network's input.
        encoding: what the file states, "" if nothing.
        dt: time step [s], NaN if not known.
        unmodelled: (node, why) for what no rule here looks at.
        ends: names of the groups that the output takes.
    """

    populations: tuple[Population, ...]
    inputs: Size
    encoding: str
    dt: float
    unmodelled: tuple[tuple[str, str], ...]
    ends: frozenset[str]

    def targets(self, name: str) -> list[tuple[Population, Connection]]:
        """Where the output of ``name`` goes."""
        return [(p, c) for p in self.populations for c in p.incoming if c.source == name]

    @property
    def outputs(self) -> list[Population]:
        """The groups that the output takes."""
        return [p for p in self.populations if p.name in self.ends]

    @property
    def connections(self) -> list[tuple[Population, Connection]]:
        """All, with the group that each leads into."""
        return [(p, c) for p in self.populations for c in p.incoming]


def network_of(graph: Graph) -> Network:
    """The groups of neurons of a resolved graph; its dt may be NaN.

    Raises:
        InputFileError: more ways through pools and flattenings than any network has.
    """
    synapses = find_synapses(graph)
    odd: dict[str, str] = {}
    for node in graph.nodes.values():
        if isinstance(node.op, nir.Delay | nir.Scale):
            odd[node.name] = f"a {node.kind} node"
        elif isinstance(node.op, nir.AvgPool2d | nir.SumPool2d) and carries_current(graph, node):
            odd[node.name] = "it pools the result of a weighted layer, not spikes"
    for synapse in synapses:
        if isinstance(synapse.source.op, WEIGHTED):
            odd[synapse.name] = "no neurons stand between it and the weighted layer before"
    populations = []
    for node in graph.nodes.values():
        if not isinstance(node.op, (*NEURONS, nir.Threshold, nir.Output)):
            continue
        found = arrivals(graph, node, synapses)
        incoming = tuple(_connection(graph, synapse, late) for synapse, _, late in found)
        if incoming and not isinstance(node.op, nir.Output):
            populations.append(_population(graph, node, incoming))
        elif incoming:
            name = found[0][0].sink.name
            size = _size(found[0][0].sink.output_shape)
            populations.append(Population(name, READOUT, size, incoming, "", (), math.nan))
    encoding = str(graph.metadata.get("encoding", ""))
    inputs = _size(graph.input.output_shape)
    ends = frozenset(_ends(graph, graph.output) & {p.name for p in populations})
    return Network(tuple(populations), inputs, encoding, graph.dt, tuple(odd.items()), ends)


def _ends(graph: Graph, node: Node) -> set[str]:
    """Names of the neurons or weighted layers that a node takes, folded nodes left out."""
    found: set[str] = set()
    for edge in node.inputs:
        before = graph.nodes[edge.source]
        found |= _ends(graph, before) if isinstance(before.op, PASSING) else {before.name}
    return found


def narrowed(network: Network, factor: float) -> Network | None:
    """The same network with ``factor`` times the channels between its input and its output.

    Returns:
        None where that leaves channels that cannot be divided into the groups.
    """
    widths = {p.name: p.size[0] for p in network.populations}
    new = {n: w if n in network.ends else max(1, round(w * factor)) for n, w in widths.items()}
    populations = []
    for population in network.populations:
        incoming = []
        for c in population.incoming:
            channels = new.get(c.source, c.size[0])
            groups = channels if c.groups == c.size[0] and c.groups > 1 else c.groups
            if channels % groups or new[population.name] % groups:
                return None
            size = (channels, *c.size[1:])
            arriving = (channels, *c.arriving[1:])
            incoming.append(replace(c, size=size, arriving=arriving, groups=groups))
        size = (new[population.name], *population.size[1:])
        populations.append(replace(population, size=size, incoming=tuple(incoming)))
    return replace(network, populations=tuple(populations))


def without(network: Network, *, first: bool, readout: bool) -> Network:
    """What is left for the chip where a host computes the first layers or the readout."""
    kept = []
    hosted = {p.name for p in network.populations if first and all(c.outside for c in p.incoming)}
    for p in network.populations:
        if p.name in hosted or (readout and p.kind == READOUT):
            continue
        incoming = tuple(replace(c, outside=c.outside or c.source in hosted) for c in p.incoming)
        kept.append(replace(p, incoming=incoming))
    sizes = {p.name: p.size for p in network.populations}
    ends = {p.name for p in kept if p.name in network.ends}
    if readout:
        sums = [p for p in network.populations if p.kind == READOUT]
        ends |= {c.source for p in sums for c in p.incoming}
    network = replace(network, populations=tuple(kept), ends=frozenset(ends))
    entries = [c.source for p in kept for c in p.incoming if c.outside and c.source in hosted]
    if not entries:
        return network
    return replace(network, inputs=sizes[entries[0]], encoding="spikes")


def _size(shape: Shape) -> Size:
    """Any shape as channels, height and width."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 2:
        return shape[0], 1, shape[1]
    return math.prod(shape), 1, 1


def _connection(graph: Graph, synapse: Synapse, late: int) -> Connection:
    op, sink, source = synapse.sink.op, synapse.sink, synapse.source
    pools = [n for n in synapse.path if isinstance(n.op, nir.AvgPool2d | nir.SumPool2d)]
    arriving = _size(pools[-1].output_shape if pools else source.output_shape)
    size = _size(source.output_shape)
    y, x, layer, groups = ONE, ONE, None, 1
    if synapse.kind != "linear":
        if synapse.kind == "conv":
            layer = window(op)
            groups, out = layer.groups, _size(sink.output_shape)
            y = Axis.of(layer, 0, arriving[1], out[1])
            x = Axis.of(layer, 1, arriving[2], out[2])
        else:
            groups = size[0]
            y, x = Axis.straight(arriving[1]), Axis.straight(arriving[2])
        for pool in reversed(pools):
            height, width = _size(pool.input_shape)[1:]
            y = y.behind(window(pool.op), 0, height)
            x = x.behind(window(pool.op), 1, width)
    bias = getattr(op, "bias", None)
    return Connection(
        name=synapse.name,
        kind=synapse.kind,
        source=source.name,
        outside=isinstance(source.op, nir.Input),
        delayed=late > 0,
        size=size,
        groups=groups,
        y=y,
        x=x,
        layer=layer,
        arriving=arriving,
        pools=tuple(window(pool.op) for pool in pools),
        weights=Grid(1, 1, 1.0) if synapse.kind == "identity" else _grid(op.weight),
        biased=bias is not None and bool(np.any(bias)),
    )


def _grid(weight: Any) -> Grid:
    rows = np.abs(np.asarray(weight, np.float64)).reshape(len(weight), -1)
    signed = np.sort(np.asarray(weight, np.float64).reshape(len(weight), -1), axis=1)
    fresh = np.ones(signed.shape, bool)
    fresh[:, 1:] = signed[:, 1:] != signed[:, :-1]
    values = int((fresh & (signed != 0)).sum(1).max())
    peak = float(rows.max())
    used = rows[rows > 0]
    if not used.size:
        return Grid(1, 0, 0.0)
    bits = [_bits(used, step) for step in (float(used.min()), *_steps(peak))]
    return Grid(min((b for b in bits if b is not None), default=None), values, peak)


def _steps(peak: float) -> list[float]:
    """Scales with which usual quantisers fill 2 to 16 bits."""
    most = [2 ** (bits - 1) - 1 for bits in range(2, _MOST_BITS + 1)]
    return [peak / m for m in most] + [peak / (m + 1) for m in most]


def _bits(used: Any, step: float) -> int | None:
    """Bits of a signed integer in units of ``step``; None where weights lie between."""
    levels = used / step
    whole = np.rint(levels)
    if levels.max() > 2 ** (_MOST_BITS - 1) or not np.allclose(levels, whole, rtol=0, atol=1e-3):
        return None
    return int(whole.max()).bit_length() + 1


def _population(graph: Graph, node: Node, incoming: tuple[Connection, ...]) -> Population:
    op = node.op
    rest = np.asarray(getattr(op, "v_leak", 0.0), np.float64)
    reset = ""
    if hasattr(op, "v_threshold"):
        # Moving rest to 0 moves threshold and reset with it: chips rest at 0.
        reset = "zero" if np.allclose(op.v_reset, rest, rtol=1e-6, atol=1e-9) else "value"
    taus = [getattr(op, name) for name in ("tau_syn", "tau_mem", "tau") if hasattr(op, name)]
    rates = sorted({float(r) for tau in taus for r in np.unique(decay(graph.dt, tau))})
    threshold = np.asarray(getattr(op, "v_threshold", getattr(op, "threshold", math.nan)))
    gain = np.asarray(getattr(op, "r", 1.0), np.float64)
    if isinstance(op, _SYNAPSES):
        gain = gain * decay(graph.dt, op.tau_syn) * op.w_in * decay(graph.dt, op.tau_mem)
    elif hasattr(op, "tau"):
        gain = gain * decay(graph.dt, op.tau)
    elif not isinstance(op, nir.Threshold):
        gain = gain * graph.dt
    with np.errstate(divide="ignore", invalid="ignore"):
        high = np.max((threshold.astype(np.float64) - rest) / np.abs(gain))
    known = tuple(rates) if not math.isnan(graph.dt) else (math.nan,) * bool(taus)
    return Population(
        node.name, node.kind, _size(node.output_shape), incoming, reset, known, float(high)
    )
