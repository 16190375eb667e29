"""The synapses of a NIR graph: who sends spikes to whom, and how many targets each input has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.composition import Uncounted, composed_fan_out, merges
from tser.errors import InputFileError
from tser.export.graph import NEURONS, WEIGHTED, Graph, Node
from tser.export.shapes import window

__all__ = ["Synapse", "Uncounted", "arrivals", "fan_out", "find_synapses"]

Counts = NDArray[np.int64]
COMPUTING = (nir.AvgPool2d, nir.SumPool2d, nir.Scale)
"""Linear nodes with operations of their own, unless they fold into the synapse after them."""
PASSING = (*COMPUTING, nir.Flatten)
"""Linear nodes that fold into the synapse after them."""
RECEIVING = (*NEURONS, nir.Threshold)
"""Nodes without weights that take what arrives: an edge from spikes to one is a synapse."""

MOST_ROUTES, MOST_PASSING = 1000, 500
"""Ways into a node, and the length of one, through nodes that fold into a synapse."""

Route = tuple[Node, tuple[Node, ...], bool]


@dataclass(frozen=True)
class Synapse:
    """All connections from one source to one synaptic layer (or straight to a neuron).

    Attributes:
        name: of the weighted node; ``source->sink`` for one without weights; several sources of
            one weighted node are told apart by ``source->node``.
        kind: "conv", "linear" or "identity".
        source: node whose output crosses the synapse.
        sink: node that receives the products: the weighted node, or the neuron.
        path: folded nodes between source and sink, in order.
        delayed: whether the connection carries the previous step's values.
    """

    name: str
    kind: str
    source: Node
    sink: Node
    path: tuple[Node, ...]
    delayed: bool


def find_synapses(graph: Graph) -> list[Synapse]:
    """Every synapse of ``graph``, in execution order of the sinks.

    A pool or scale of spikes that leads to a delay or out of the graph, and so into no synapse
    after it, is one of its own, called after that node.

    Raises:
        InputFileError: more ways through pools and flattenings than any network has.
    """
    currents, _ = carried_currents(graph)
    _check_routes(graph, currents)
    found: list[Synapse] = []
    for node in graph.nodes.values():
        routes = _routes(graph, node)
        if isinstance(node.op, WEIGHTED):
            kind = "conv" if isinstance(node.op, nir.Conv1d | nir.Conv2d) else "linear"
            for source, path, delayed in routes:
                name = node.name if len(routes) == 1 else f"{source.name}->{node.name}"
                found.append(Synapse(name, kind, source, node, path, delayed))
        elif isinstance(node.op, (*RECEIVING, nir.Delay, nir.Output)):
            for source, path, delayed in routes:
                computes = any(isinstance(part.op, COMPUTING) for part in path)
                if source.name in currents or not (computes or isinstance(node.op, RECEIVING)):
                    continue
                name = f"{source.name}->{node.name}"
                found.append(Synapse(name, "identity", source, node, path, delayed))
    return found


def carried_currents(graph: Graph) -> tuple[set[str], set[str]]:
    """Nodes that hand on results of weighted layers: nothing else, and among other things.

    Returns:
        Names of weighted nodes and of delays and folded nodes behind them alone; the same with
        those that results and spikes are summed in.
    """
    every: set[str] = set()
    some: set[str] = set()
    for _ in range(2):  # what comes the way back: the second time
        for node in graph.nodes.values():
            sources = [edge.source for edge in node.inputs]
            weighted = isinstance(node.op, WEIGHTED)
            hands_on = isinstance(node.op, (*PASSING, nir.Delay))
            if weighted or (hands_on and any(name in some for name in sources)):
                some.add(node.name)
            if weighted or (hands_on and all(name in every for name in sources)):
                every.add(node.name)
    return every, some


def carries_current(graph: Graph, node: Node) -> bool:
    """Whether ``node`` is given the result of a weighted layer, folded nodes between or not."""
    _, some = carried_currents(graph)
    return any(edge.source in some for edge in node.inputs)


def _check_routes(graph: Graph, currents: Collection[str]) -> None:
    """Refuse graphs whose routes nobody could list: each fork of passing nodes doubles them."""
    ways = dict.fromkeys(graph.nodes, 1)
    depth = dict.fromkeys(graph.nodes, 0)
    for node in (*graph.nodes.values(), *graph.nodes.values()):  # delayed edges: the second time
        if _passes(node, currents):
            ways[node.name] = sum(ways[edge.source] for edge in node.inputs)
            depth[node.name] = 1 + max(depth[edge.source] for edge in node.inputs)
            if ways[node.name] > MOST_ROUTES or depth[node.name] > MOST_PASSING:
                raise InputFileError(
                    f"node {node.name!r} stands behind more pools, flattenings and scales than "
                    "can be followed; leave out those that do nothing"
                )


def _passes(node: Node, currents: Collection[str]) -> bool:
    """Whether routes go through ``node``: it folds, or it delays nothing but ``currents``."""
    return isinstance(node.op, PASSING) or (
        isinstance(node.op, nir.Delay) and node.name in currents
    )


def _routes(graph: Graph, node: Node, currents: Collection[str] = ()) -> list[Route]:
    """(source, folded nodes, delayed) for every way into ``node``."""
    routes: list[Route] = []
    for edge in node.inputs:
        before = graph.nodes[edge.source]
        if _passes(before, currents):
            for source, path, delayed in _routes(graph, before, currents):
                routes.append((source, (*path, before), delayed or edge.delayed))
        else:
            routes.append((before, (), edge.delayed))
    return routes


def arrivals(
    graph: Graph, node: Node, synapses: list[Synapse]
) -> list[tuple[Synapse, tuple[Node, ...], int]]:
    """What drives ``node``: (synapse, nodes after its sink, steps of delay).

    Delays among the nodes after the sink come on top of the steps.
    """
    found: list[tuple[Synapse, tuple[Node, ...], int]] = [
        (s, (), int(s.delayed)) for s in synapses if s.sink.name == node.name
    ]
    currents, _ = carried_currents(graph)
    for source, path, delayed in _routes(graph, node, currents):
        if isinstance(source.op, WEIGHTED):
            behind = [s for s in synapses if s.sink.name == source.name]
            found += [(s, path, int(s.delayed) + int(delayed)) for s in behind]
    return found


def fan_out(synapse: Synapse, *, effective: bool) -> Counts:
    """How many targets each element of the source's output reaches.

    Args:
        synapse: which connections.
        effective: count only connections with a non-zero weight; otherwise every in-bounds tap.

    Returns:
        int64 array of the source's output shape.

    Raises:
        Uncounted: folded pools with overlapping windows, in an arrangement or of a size for which
            the distinct targets cannot be worked out.
    """
    sink = synapse.sink
    effective = effective and _has_zeros(synapse)  # without one, the quick way is the same
    if merges(synapse.path, sink):
        return composed_fan_out(synapse.path, sink, effective=effective)
    if synapse.kind == "identity":
        targets: Counts = np.ones(sink.input_shape, np.int64)
    elif isinstance(sink.op, nir.Affine | nir.Linear):
        outputs = len(sink.op.weight)
        used = _used(sink.op.weight[None])[0] if effective else outputs
        targets = np.broadcast_to(np.asarray(used, np.int64), sink.input_shape)
    else:
        targets = _conv_fan_out(sink, effective)
    for node in reversed(synapse.path):
        targets = _pull_back(node, targets, effective)
    return targets


def _has_zeros(synapse: Synapse) -> bool:
    weights = [getattr(synapse.sink.op, "weight", 1.0)]
    weights += [node.op.scale for node in synapse.path if isinstance(node.op, nir.Scale)]
    return not all(np.all(weight) for weight in weights)


def _used(weight: NDArray[Any]) -> Counts:
    """How many of the weights ``[G, N, ...]`` are not 0, summed over N."""
    used = weight != 0
    total = np.zeros((len(used), *used.shape[2:]), np.int64)
    for start in range(0, used.shape[1], 255):  # few enough for a byte, which is quick to sum
        part = used[:, start : start + 255].view(np.uint8)
        total += np.add.reduce(part, axis=1, dtype=np.uint8)
    return total


def _conv_fan_out(node: Node, effective: bool) -> Counts:
    weight = node.op.weight if node.op.weight.ndim == 4 else node.op.weight[:, :, None]
    geometry = window(node.op)
    (outputs, per_group), groups = weight.shape[:2], geometry.groups
    # Targets per input channel and tap, [C, KH, KW].
    if effective:
        taps = _used(weight.reshape(groups, outputs // groups, *weight.shape[1:]))
        taps = taps.reshape(groups * per_group, *weight.shape[2:])
    else:
        taps = np.full((1, *weight.shape[2:]), outputs // groups, np.int64)
    height, width = (1, *node.input_shape[1:])[-2:]
    spread = _spread(taps, geometry, height, width)
    if not effective:
        spread = np.broadcast_to(spread, (groups * per_group, height, width))
    return spread.reshape(node.input_shape)


def _spread(taps: Counts, geometry: Any, height: int, width: int) -> Counts:
    """Add ``taps`` ``[C, KH, KW]`` at every window position; ``[C, H, W]`` without the padding."""
    (top, bottom), (left, right) = geometry.pads
    rows, columns = geometry.output(height, width)
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    total = np.zeros((len(taps), height + top + bottom, width + left + right), np.int64)
    for i in range(taps.shape[1]):
        for j in range(taps.shape[2]):
            y, x = i * dh, j * dw
            total[:, y : y + sh * (rows - 1) + 1 : sh, x : x + sw * (columns - 1) + 1 : sw] += taps[
                :, i, j, None, None
            ]
    return total[:, top : top + height, left : left + width]


def _pull_back(node: Node, targets: Counts, effective: bool) -> Counts:
    """Targets of the inputs of a folded node, from the targets of its outputs."""
    if isinstance(node.op, nir.Flatten):
        return targets.reshape(node.input_shape)
    if isinstance(node.op, nir.Scale):
        used = np.broadcast_to(np.asarray(node.op.scale) != 0, node.input_shape)
        return targets * used if effective else targets
    geometry = window(node.op)
    channels, height, width = node.input_shape
    rows, columns = node.output_shape[1:]
    (top, bottom), (left, right) = geometry.pads
    total = np.zeros((channels, height + top + bottom, width + left + right), np.int64)
    (sh, sw), (kh, kw) = geometry.stride, geometry.kernel
    for i in range(kh):
        for j in range(kw):
            total[:, i : i + sh * (rows - 1) + 1 : sh, j : j + sw * (columns - 1) + 1 : sw] += (
                targets
            )
    return total[:, top : top + height, left : left + width]
