"""What tools get wrong on the way to a layer: each mistake as a graph in which it is made.

A layer's input current under a mistake is then that of the changed graph, with its bound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np

from tser.export.graph import STATEFUL, WEIGHTED, Edge, Graph, Node

MOST = 24
"""Mistakes looked at for one layer, so that a wide fan-in does not take minutes."""


@dataclass(frozen=True)
class Mistake:
    """One change between a layer and what it reads.

    Attributes:
        name: for programs: the kind, and where there are several places, the place.
        words: for people.
        graph: with the mistake made.
    """

    name: str
    words: str
    graph: Graph


def before(graph: Graph, node: Node) -> list[Node]:
    """The stateless nodes that lead to ``node`` from neurons, delays and the input."""
    found: dict[str, Node] = {}
    waiting = [edge.source for edge in node.inputs]
    while waiting:
        source = graph.nodes[waiting.pop()]
        ends = isinstance(source.op, (*STATEFUL, nir.Input))
        if not ends and source.name not in found:
            found[source.name] = source
            waiting += [edge.source for edge in source.inputs]
    return list(found.values())


def mistakes(graph: Graph, node: Node) -> list[Mistake]:
    """The usual mistakes that can be made on the way to ``node``, likely ones first."""
    between = before(graph, node)
    found: list[Mistake] = []
    for kind in (_biases, _edges, _times, _pools, _flattened, _scales, _kernels, _half):
        found += kind(graph, node, between)
    return found[:MOST]


def _changed(graph: Graph, *nodes: Node) -> Graph:
    return replace(graph, nodes={**graph.nodes, **{node.name: node for node in nodes}})


def _with(node: Node, **values: Any) -> Node:
    op = copy.copy(node.op)
    for key, value in values.items():
        setattr(op, key, value)
    return replace(node, op=op)


def _each(
    graph: Graph, nodes: list[Node], change: Callable[[Node], Node], name: str, words: str
) -> list[Mistake]:
    """``change`` made at every node alone and, where there are several, at all of them."""
    found = [Mistake(f"{name}:{n.name}", f"{words} {n.name!r}", _changed(graph, change(n)))
             for n in nodes]  # fmt: skip
    if len(nodes) > 1:
        listed = ", ".join(repr(n.name) for n in nodes)
        everywhere = _changed(graph, *map(change, nodes))
        found.append(Mistake(name, f"{words} {listed}", everywhere))
    return found


def _biases(graph: Graph, node: Node, between: list[Node]) -> list[Mistake]:
    biased = [n for n in between if np.any(getattr(n.op, "bias", None))]

    def without(n: Node) -> Node:
        return _with(n, bias=np.zeros_like(n.op.bias))

    return _each(graph, biased, without, "no_bias", "no bias is added in")


def _edges(graph: Graph, node: Node, between: list[Node]) -> list[Mistake]:
    found = []
    for target in (node, *between):
        for edge in target.inputs if len(target.inputs) > 1 else ():
            others = tuple(other for other in target.inputs if other != edge)
            found.append(
                Mistake(
                    f"lost_edge:{edge.source}->{target.name}",
                    f"the connection from {edge.source!r} to {target.name!r} is lost",
                    _changed(graph, replace(target, inputs=others)),
                )
            )
    return found


def _times(graph: Graph, node: Node, between: list[Node]) -> list[Mistake]:
    """Edges from neurons that carry the step before, or that no longer do."""
    read: list[tuple[Node, Edge]] = []
    for target in (node, *between):
        for edge in target.inputs:
            source = graph.nodes[edge.source].op
            if edge.delayed or isinstance(source, (*STATEFUL, nir.Input)):
                read.append((target, edge))
    found = []
    for target, edge in read:
        inputs = tuple(
            replace(other, delayed=not other.delayed) if other == edge else other
            for other in target.inputs
        )
        kind, words = ("early_edge", "at once") if edge.delayed else ("late_edge", "one step late")
        found.append(
            Mistake(
                f"{kind}:{edge.source}->{target.name}",
                f"what {edge.source!r} sends reaches {target.name!r} {words}",
                _changed(graph, replace(target, inputs=inputs)),
            )
        )
    return found


def _pools(graph: Graph, node: Node, between: list[Node]) -> list[Mistake]:
    found = []
    for pool in between:
        if not isinstance(pool.op, nir.SumPool2d | nir.AvgPool2d):
            continue
        sums = isinstance(pool.op, nir.AvgPool2d)
        kind = nir.SumPool2d if sums else nir.AvgPool2d
        other = kind(pool.op.kernel_size, pool.op.stride, pool.op.padding)
        words = f"the pool {pool.name!r} {'sums' if sums else 'averages'}, it should "
        words += "average" if sums else "sum"
        changed = _changed(graph, replace(pool, op=other))
        found.append(Mistake(f"pool_kind:{pool.name}", words, changed))
    return found


_ORDERS = {"H, W, C": (1, 2, 0), "W, H, C": (2, 1, 0), "C, W, H": (0, 2, 1)}


def _flattened(graph: Graph, node: Node, between: list[Node]) -> list[Mistake]:
    """Features that a linear layer reads in another order, or whose weights are in one."""
    found = []
    for linear in between:
        flat = _flatten_before(graph, linear)
        if flat is None:
            continue
        places = np.arange(int(np.prod(flat.input_shape))).reshape(flat.input_shape)
        seen: set[bytes] = {places.tobytes()}
        for order, axes in _ORDERS.items():
            read = places.transpose(axes).reshape(-1)
            ways = (
                (np.argsort(read), f"{linear.name!r} reads the features of {flat.name!r}"),
                (read, f"the weights of {linear.name!r} stand"),
            )
            for columns, words in ways:
                if columns.tobytes() in seen:
                    continue
                seen.add(columns.tobytes())
                changed = _with(linear, weight=np.ascontiguousarray(linear.op.weight[:, columns]))
                found.append(
                    Mistake(
                        f"flatten_order:{linear.name}",
                        f"{words} in the order {order}, not C, H, W",
                        _changed(graph, changed),
                    )
                )
    return found


def _flatten_before(graph: Graph, linear: Node) -> Node | None:
    """The Flatten of maps whose features ``linear`` takes, if any."""
    node = linear
    if not isinstance(node.op, nir.Affine | nir.Linear):
        return None
    while len(node.inputs) == 1 and len(node.input_shape) == 1:
        node = graph.nodes[node.inputs[0].source]
        if isinstance(node.op, nir.Flatten) and len(node.input_shape) == 3:
            return node if len(node.output_shape) == 1 else None
        if not isinstance(node.op, nir.Flatten | nir.Scale):
            return None
    return None


def _scales(graph: Graph, node: Node, between: list[Node]) -> list[Mistake]:
    scaled = [n for n in between if isinstance(n.op, nir.Scale) and np.any(n.op.scale != 1)]

    def without(n: Node) -> Node:
        return _with(n, scale=np.ones_like(n.op.scale))

    return _each(graph, scaled, without, "no_scale", "values are not scaled in")


def _kernels(graph: Graph, node: Node, between: list[Node]) -> Iterator[Mistake]:
    for layer in between:
        if not isinstance(layer.op, nir.Conv1d | nir.Conv2d):
            continue
        weight = layer.op.weight
        spatial = tuple(range(2, weight.ndim))
        forms = {
            "flipped_kernel": ("flips the kernel of", np.flip(weight, spatial)),
            "reversed_channels": ("reads the channels in reverse in", np.flip(weight, 1)),
        }
        if weight.ndim == 4 and weight.shape[2] == weight.shape[3]:
            swapped = weight.transpose(0, 1, 3, 2)
            forms["transposed_kernel"] = ("swaps height and width in the kernel of", swapped)
        for name, (words, other) in forms.items():
            if not np.array_equal(other, weight):
                changed = _changed(graph, _with(layer, weight=np.ascontiguousarray(other)))
                yield Mistake(f"{name}:{layer.name}", f"it {words} {layer.name!r}", changed)


def _half(graph: Graph, node: Node, between: list[Node]) -> list[Mistake]:
    def rounded(n: Node) -> Node:
        values = {"weight": _to_half(n.op.weight)}
        if getattr(n.op, "bias", None) is not None:
            values["bias"] = _to_half(n.op.bias)
        return _with(n, **values)

    weighted = [n for n in between if isinstance(n.op, WEIGHTED)]
    weighted = [n for n in weighted if not np.array_equal(_to_half(n.op.weight), n.op.weight)]
    words = "weights are rounded to float16 in"
    return _each(graph, weighted, rounded, "float16_weights", words)


def _to_half(values: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float16).astype(np.float32)
