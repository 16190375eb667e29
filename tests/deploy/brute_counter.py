"""A counter that follows every event along every connection, one by one.

It shares nothing with `tser.deploy.counting` but the graph view and the interpreter's values.
"""

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from tests.graphs import Array, inside, taps
from tser.deploy.interpreter import run
from tser.export.graph import Graph, Node

Place = tuple[int, ...]
SPIKING = (nir.LIF, nir.IF, nir.CubaLIF, nir.Threshold)
RECEIVING = (*SPIKING, nir.LI, nir.I, nir.CubaLI)
WEIGHTED = (nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d)
COMPUTING = (nir.AvgPool2d, nir.SumPool2d, nir.Scale)
FOLDED = (*COMPUTING, nir.Flatten)
PER_NEURON = {nir.CubaLIF: 2, nir.CubaLI: 2, nir.Threshold: 0}


@dataclass
class Row:
    """What one route from a source to a sink did; all over samples, some per step."""

    name: str
    events: list[int]
    structural: list[int]
    effective: list[int]
    dense: int = 0
    values: set[float] = field(default_factory=set)


class BruteCounter:
    """Counts of ``graph`` on ``[T, B, ...]``.

    Attributes:
        rows: of the synapses, in no order.
        driven: per node with neurons, per step.
        values: what every node put out.
    """

    def __init__(self, graph: Graph, x: Array) -> None:
        self.graph = graph
        _, self.values = run(graph, x, record=list(graph.nodes))
        self.steps, self.samples = x.shape[:2]
        self.after: dict[str, list[tuple[str, bool]]] = defaultdict(list)
        for node in graph.nodes.values():
            for edge in node.inputs:
                self.after[edge.source].append((node.name, edge.delayed))
        self.wires = {name: connections(node) for name, node in graph.nodes.items()}
        self.hit = {
            node.name: np.zeros((self.steps, self.samples, *node.output_shape), bool)
            for node in graph.nodes.values()
            if isinstance(node.op, RECEIVING)
        }
        self.rows: list[Row] = []
        for node in graph.nodes.values():
            if not isinstance(node.op, FOLDED):
                for route, late in self.routes(node.name):
                    self.follow(node, route, late)
        self.driven = {name: hit.reshape(self.steps, -1).sum(1) for name, hit in self.hit.items()}

    def routes(self, name: str) -> list[tuple[tuple[str, ...], bool]]:
        """Ways on from a node, over folded nodes, each to where it ends."""
        found = []
        for following, late in self.after[name]:
            if isinstance(self.graph.nodes[following].op, FOLDED):
                for rest, later in self.routes(following):
                    found.append(((following, *rest), late or later))
            else:
                found.append(((following,), late))
        return found

    def follow(self, source: Node, route: tuple[str, ...], late: bool) -> None:
        *path, end = route
        sink = self.graph.nodes[end]
        weighted = isinstance(sink.op, WEIGHTED)
        computes = any(isinstance(self.graph.nodes[name].op, COMPUTING) for name in path)
        if not weighted:
            passive = isinstance(sink.op, nir.Delay | nir.Output)
            if self.is_current(source.name) or (passive and not computes):
                return
        ways = sum(len(self.back(edge.source)) for edge in sink.inputs)
        name = end if weighted and ways == 1 else f"{source.name}->{end}"
        row = Row(name, *([0] * self.steps for _ in range(3)))
        value = self.values[source.name]
        places = list(np.ndindex(*source.output_shape))
        followed = [*path, end] if weighted else path
        for place in places:
            targets = {place: True}
            for part in followed:
                through: dict[Place, bool] = {}
                for at, used in targets.items():
                    for target, weight in self.wires[part][at]:
                        through[target] = through.get(target, False) or (used and weight != 0)
                targets = through
            row.dense += len(targets) * self.steps * self.samples
            for t, b in itertools.product(range(self.steps), range(self.samples)):
                number = float(value[(t, b, *place)])
                if number:
                    row.values.add(abs(number))
                if number and t + late < self.steps:
                    row.events[t + late] += 1
                    row.structural[t + late] += len(targets)
                    row.effective[t + late] += sum(targets.values())
                    for target in targets:
                        self.arrive(end, target, t + late, b)
        self.rows.append(row)

    def back(self, name: str) -> list[str]:
        """Sources of all ways that lead over the folded node ``name``, or itself."""
        node = self.graph.nodes[name]
        if not isinstance(node.op, FOLDED):
            return [name]
        return [source for edge in node.inputs for source in self.back(edge.source)]

    def arrive(self, name: str, place: Place, t: int, b: int) -> None:
        """An event, or the product of one with a weight, is at an element that ``name`` gives."""
        if name in self.hit:
            self.hit[name][(t, b, *place)] = True
        elif self.is_current(name):
            for following, late in self.after[name]:
                self.hand_on(following, place, t + late, b)

    def hand_on(self, name: str, place: Place, t: int, b: int) -> None:
        op = self.graph.nodes[name].op
        if t >= self.steps:
            return
        if name in self.hit:
            self.hit[name][(t, b, *place)] = True
        elif isinstance(op, FOLDED):
            for (following, late), (target, _) in itertools.product(
                self.after[name], self.wires[name][place]
            ):
                self.hand_on(following, target, t + late, b)
        elif isinstance(op, nir.Delay) and self.is_current(name):
            wait = round(
                float(np.broadcast_to(op.delay, (*self.shape(name),))[place]) / self.graph.dt
            )
            for following, late in self.after[name]:
                self.hand_on(following, place, t + wait + late, b)

    def shape(self, name: str) -> Place:
        return self.graph.nodes[name].output_shape

    def is_current(self, name: str, seen: tuple[str, ...] = ()) -> bool:
        """Whether nothing but results of weighted layers comes out of a node."""
        node = self.graph.nodes[name]
        if isinstance(node.op, WEIGHTED):
            return True
        if name in seen or not isinstance(node.op, (*FOLDED, nir.Delay)):
            return False
        return all(self.is_current(edge.source, (*seen, name)) for edge in node.inputs)


def connections(node: Node) -> dict[Place, list[tuple[Place, float]]]:
    """(output, weight) of every in-bounds connection from every input of a linear node."""
    op, shape = node.op, node.input_shape
    found: dict[Place, list[tuple[Place, float]]] = {place: [] for place in np.ndindex(*shape)}
    if isinstance(op, WEIGHTED):
        for source, target, weight in taps(op, shape):
            if inside(source, shape):
                found[source].append((target, weight))
    elif isinstance(op, nir.Flatten):
        for source, target in zip(np.ndindex(*shape), np.ndindex(*node.output_shape), strict=True):
            found[source].append((target, 1.0))
    elif isinstance(op, nir.Scale):
        scale = np.broadcast_to(op.scale, shape)
        for place in found:
            found[place].append((place, float(scale[place])))
    elif isinstance(op, nir.AvgPool2d | nir.SumPool2d):
        (kh, kw), (sh, sw) = (np.broadcast_to(v, 2).tolist() for v in (op.kernel_size, op.stride))
        top, left = np.broadcast_to(op.padding, 2).tolist()
        for c, y, x in np.ndindex(*node.output_shape):
            for i, j in itertools.product(range(kh), range(kw)):
                source = (c, y * sh + i - top, x * sw + j - left)
                if inside(source, shape):
                    found[source].append(((c, y, x), 1.0))
    return found


def stored_numbers(node: Node) -> tuple[int, int]:
    """Numbers that a node stores as parameters, and as the state of its neurons."""
    if isinstance(node.op, WEIGHTED):
        bias = getattr(node.op, "bias", None)
        biases = [] if bias is None or not any(bias.tolist()) else bias.tolist()
        return node.op.weight.size + len(biases), 0
    size = math.prod(node.output_shape)
    parameters = [v for v in vars(node.op).values() if isinstance(v, np.ndarray)]
    values = sum(1 if len(set(v.reshape(-1).tolist())) == 1 else size for v in parameters)
    return values, PER_NEURON.get(type(node.op), 1) * size


def biases(node: Node) -> int:
    """Outputs of a weighted node with a bias that is not 0, one by one."""
    bias: Any = getattr(node.op, "bias", None)
    if bias is None:
        return 0
    channel = 0 if isinstance(node.op, nir.Conv1d | nir.Conv2d) else -1
    return sum(bool(bias[place[channel]]) for place in np.ndindex(*node.output_shape))
