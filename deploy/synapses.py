"""The synapses of a NIR graph: who sends spikes to whom, and how many targets each input has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.errors import InputFileError
from tser.export.graph import NEURONS, WEIGHTED, Graph, Node
from tser.export.shapes import window

Counts = NDArray[np.int64]
PASSING = (nir.AvgPool2d, nir.SumPool2d, nir.Flatten, nir.Scale)
"""Linear nodes that fold into the synapse after them."""

MOST_ROUTES, MOST_PASSING = 1000, 500
"""Ways into a node, and the length of one, through nodes that fold into a synapse."""


class Uncounted(ValueError):
    """A connection whose operations cannot be counted, with the reason."""


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

    Raises:
        InputFileError: more ways through pools and flattenings than any network has.
    """
    _check_routes(graph)
    found: list[Synapse] = []
    for node in graph.nodes.values():
        weighted = isinstance(node.op, WEIGHTED)
        if not weighted and not isinstance(node.op, (*NEURONS, nir.Threshold)):
            continue
        routes = [route for route in _routes(graph, node) if weighted or not _ends_weighted(route)]
        for source, path, delayed in routes:
            if not weighted:
                name, kind = f"{source.name}->{node.name}", "identity"
            else:
                name = node.name if len(routes) == 1 else f"{source.name}->{node.name}"
                kind = "conv" if isinstance(node.op, nir.Conv1d | nir.Conv2d) else "linear"
            found.append(Synapse(name, kind, source, node, path, delayed))
    return found


def _ends_weighted(route: tuple[Node, tuple[Node, ...], bool]) -> bool:
    return isinstance(route[0].op, WEIGHTED)


def carries_current(graph: Graph, node: Node) -> bool:
    """Whether ``node`` is given the result of a weighted layer, folded nodes between or not."""
    return any(_ends_weighted(route) for route in _routes(graph, node))


def _check_routes(graph: Graph) -> None:
    """Refuse graphs whose routes nobody could list: each fork of passing nodes doubles them."""
    ways = dict.fromkeys(graph.nodes, 1)
    depth = dict.fromkeys(graph.nodes, 0)
    for node in (*graph.nodes.values(), *graph.nodes.values()):  # delayed edges: the second time
        if isinstance(node.op, PASSING):
            ways[node.name] = sum(ways[edge.source] for edge in node.inputs)
            depth[node.name] = 1 + max(depth[edge.source] for edge in node.inputs)
            if ways[node.name] > MOST_ROUTES or depth[node.name] > MOST_PASSING:
                raise InputFileError(
                    f"node {node.name!r} stands behind more pools, flattenings and scales than "
                    "can be followed; leave out those that do nothing"
                )


def _routes(graph: Graph, node: Node) -> list[tuple[Node, tuple[Node, ...], bool]]:
    """(source, folded nodes, delayed) for every way into ``node``."""
    routes = []
    for edge in node.inputs:
        before = graph.nodes[edge.source]
        if isinstance(before.op, PASSING):
            for source, path, delayed in _routes(graph, before):
                routes.append((source, (*path, before), delayed or edge.delayed))
        else:
            routes.append((before, (), edge.delayed))
    return routes


def arrivals(
    graph: Graph, node: Node, synapses: list[Synapse]
) -> list[tuple[Synapse, tuple[Node, ...], int]]:
    """What drives the neurons ``node``: (synapse, nodes after its sink, steps of delay)."""
    found: list[tuple[Synapse, tuple[Node, ...], int]] = [
        (s, (), int(s.delayed)) for s in synapses if s.sink.name == node.name
    ]
    for source, path, delayed in _routes(graph, node):
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
        Uncounted: a folded pool with overlapping windows before a weighted node, whose distinct
            targets this rule would count twice.
    """
    sink = synapse.sink
    if synapse.kind == "identity":
        targets = np.ones(sink.input_shape, np.int64)
    elif isinstance(sink.op, nir.Affine | nir.Linear):
        used = (sink.op.weight != 0) if effective else np.ones_like(sink.op.weight, bool)
        targets = np.broadcast_to(used.sum(0, dtype=np.int64), sink.input_shape)
    else:
        targets = _conv_fan_out(sink, effective)
    for node in reversed(synapse.path):
        targets = _pull_back(node, targets, effective, synapse.kind == "identity")
    return targets


def _conv_fan_out(node: Node, effective: bool) -> Counts:
    weight = node.op.weight if node.op.weight.ndim == 4 else node.op.weight[:, :, None]
    geometry = window(node.op)
    outputs, per_group = weight.shape[:2]
    groups = geometry.groups
    used = (weight != 0) if effective else np.ones_like(weight, bool)
    # [groups, outputs per group, inputs per group, KH, KW] -> targets per input channel and tap
    taps = used.reshape(groups, outputs // groups, per_group, *weight.shape[2:]).sum(1)
    taps = taps.reshape(groups * per_group, *weight.shape[2:]).astype(np.int64)
    height, width = (1, *node.input_shape[1:])[-2:]
    return _spread(taps, geometry, height, width).reshape(node.input_shape)


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


def _pull_back(node: Node, targets: Counts, effective: bool, identity: bool) -> Counts:
    """Targets of the inputs of a folded node, from the targets of its outputs."""
    if isinstance(node.op, nir.Flatten):
        return targets.reshape(node.input_shape)
    if isinstance(node.op, nir.Scale):
        used = np.broadcast_to(np.asarray(node.op.scale) != 0, node.input_shape)
        return targets * used if effective else targets
    geometry = window(node.op)
    overlapping = any(s < k for s, k in zip(geometry.stride, geometry.kernel, strict=True))
    if overlapping and not identity:
        raise Uncounted(f"the windows of the pool {node.name!r} overlap before a weighted layer")
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


def reached(
    synapse: Synapse, active: NDArray[np.bool_], rest: tuple[Node, ...] = ()
) -> NDArray[np.bool_]:
    """Which elements of the sink, or of the last node after it, receive at least one event.

    Args:
        synapse: which connections; zero weights count as connections.
        active: where the source is non-zero, ``[N, *source shape]``.
        rest: nodes after the sink to follow the events through.

    Returns:
        ``[N, *output shape]`` of the last node.
    """
    for node in (*synapse.path, synapse.sink, *rest):
        if isinstance(node.op, nir.Affine | nir.Linear):
            hit = active.any(-1, keepdims=True)
            active = np.broadcast_to(hit, (*hit.shape[:-1], node.output_shape[-1]))
        elif isinstance(node.op, nir.Conv1d | nir.Conv2d):
            active = _reached_conv(node, active)
        elif isinstance(node.op, nir.AvgPool2d | nir.SumPool2d):
            active = _any_window(active, node)
        elif isinstance(node.op, nir.Flatten):
            active = active.reshape(len(active), *node.output_shape)
    return active


def _reached_conv(node: Node, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
    groups, outputs = window(node.op).groups, node.output_shape[0]
    plane = active if active.ndim == 4 else active[:, :, None]
    count, channels, height, width = plane.shape
    grouped: NDArray[np.bool_] = np.any(
        plane.reshape(count, groups, channels // groups, height, width), axis=2
    )
    hit = np.repeat(_any_window(grouped, node), outputs // groups, axis=1)
    return hit.reshape(count, *node.output_shape)


def _any_window(active: NDArray[np.bool_], node: Node) -> NDArray[np.bool_]:
    """Whether any element of each window is set, ``[N, C, H, W]`` -> ``[N, C, H', W']``."""
    geometry = window(node.op)
    rows, columns = geometry.output(*active.shape[2:])
    padded = np.pad(active, ((0, 0), (0, 0), *geometry.pads))
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    hit = np.zeros((*active.shape[:2], rows, columns), bool)
    for i in range(geometry.kernel[0]):
        for j in range(geometry.kernel[1]):
            y, x = i * dh, j * dw
            hit |= padded[
                :, :, y : y + sh * (rows - 1) + 1 : sh, x : x + sw * (columns - 1) + 1 : sw
            ]
    return hit
