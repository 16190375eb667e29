"""The one view of a NIR graph that everything below the export uses.

Nested graphs are opened, nodes stand in a stable topological order with cycles cut at one-step
delays, every node has its shapes, and dt, reset and T are resolved.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.errors import InputFileError, UsageError
from tser.export.cycles import delayed_edges, depth_first, stateless_cycle, targets_of
from tser.export.graph_checks import brief, check_delays, check_metadata, check_numbers
from tser.export.shapes import MOST_VALUES, SHAPE_RULES, Repairable, Shape

SPIKING = (nir.LIF, nir.IF, nir.CubaLIF)
"""Neurons that emit binary spikes."""
NEURONS = (*SPIKING, nir.LI, nir.I, nir.CubaLI)
"""Nodes with a membrane."""
STATEFUL = (*NEURONS, nir.Delay)
"""Nodes whose output depends on earlier steps."""
WEIGHTED = (nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d)
"""Synaptic layers."""
LEAST_DT, MOST_DT = 1e-30, 1e30
"""Of a time step [s]; beyond, its quotients are 0 or infinite in float32."""
MISSING = "missing"
"""`Graph.dt_origin` of a graph that states no dt, opened without one."""


class ContradictionError(InputFileError):
    """Declared shapes contradict each other in a way that a repair can settle.

    Attributes:
        node: name of the node.
        op: the node itself, whose attributes ``changes`` would fit.
        changes: attributes with the values that fit.
    """

    def __init__(self, message: str, node: str, op: Any, changes: dict[str, Any]) -> None:
        super().__init__(message)
        self.node, self.op, self.changes = node, op, changes


@dataclass(frozen=True)
class Edge:
    """One incoming connection.

    Attributes:
        source: name of the node it comes from.
        delayed: it leads into a cycle and so carries the previous step's output (0 at t = 0).
    """

    source: str
    delayed: bool = False


@dataclass(frozen=True)
class Node:
    """One node of the view.

    Attributes:
        name: as in the file; nodes of nested graphs are ``outer.inner``.
        op: the NIR node with its parameters.
        inputs: incoming edges; several are summed.
        input_shape: without batch and time.
        output_shape: without batch and time.
    """

    name: str
    op: Any
    inputs: tuple[Edge, ...]
    input_shape: Shape
    output_shape: Shape

    @property
    def kind(self) -> str:
        """Name of the NIR class."""
        return type(self.op).__name__


@dataclass(frozen=True)
class Graph:
    """A resolved NIR graph.

    Attributes:
        nodes: in execution order.
        dt: time step [s]; NaN when the graph was opened without one.
        dt_origin: where dt comes from, for people.
        metadata: of the top graph, as read.
    """

    nodes: dict[str, Node]
    dt: float
    dt_origin: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def input(self) -> Node:
        """The single input."""
        return next(n for n in self.nodes.values() if isinstance(n.op, nir.Input))

    @property
    def output(self) -> Node:
        """The single output."""
        return next(n for n in self.nodes.values() if isinstance(n.op, nir.Output))

    @property
    def spiking(self) -> list[Node]:
        """Layers of spiking neurons, in execution order."""
        return [node for node in self.nodes.values() if isinstance(node.op, SPIKING)]

    @property
    def recurrent(self) -> bool:
        """Whether some edge carries the previous step's output."""
        return any(edge.delayed for node in self.nodes.values() for edge in node.inputs)

    @property
    def timesteps(self) -> int | None:
        """T the network was trained for, when the file says so."""
        value = self.metadata.get("timesteps")
        return None if value is None else int(value)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the outputs, when the file says so."""
        text = self.metadata.get("class_names")
        return None if text is None else [str(name) for name in json.loads(text)]


def resolve(
    graph: nir.NIRGraph,
    dt: float | None = None,
    origin: str = "the graph",
    *,
    timeless: bool = False,
) -> Graph:
    """Build the view.

    Args:
        graph: as built or read, type check not needed.
        dt: time step [s] of a graph whose metadata state none.
        origin: what to call the graph in messages.
        timeless: accept a graph of unknown dt, which can be looked at but not run.

    Raises:
        ContradictionError: declared shapes contradict each other, and a repair can settle it.
        InputFileError: the structure or the shapes contradict themselves, or a node class is
            not one of NIR's.
        UsageError: no dt is stated and none is given, or another one than is stated.
    """
    ops, edges = _open(graph, "", origin)
    for source, target in edges:
        if source not in ops or target not in ops:
            missing = source if source not in ops else target
            raise InputFileError(
                f"{origin}: an edge names the node {missing!r}, which is not there"
            )
    if len(set(edges)) != len(edges):
        raise InputFileError(f"{origin}: an edge is stated twice, which NIR does not allow")
    for kind in (nir.Input, nir.Output):
        count = sum(isinstance(op, kind) for op in ops.values())
        if count != 1:
            raise InputFileError(
                f"{origin} has {count} {kind.__name__} nodes, as nir reads it, which gives one to "
                "each node that nothing leads to or from; graphs with exactly one are supported"
            )
    check_numbers(ops, origin)
    incoming, forward = _order(ops, edges, origin)
    shaped = _with_shapes(ops, {name: incoming[name] for name in forward}, origin)
    nodes = {name: shaped[name] for name in incoming}
    metadata = {key: _plain(value) for key, value in graph.metadata.items()}
    check_metadata(metadata, origin)
    step, dt_origin = _time_step(nodes, metadata, dt, origin, timeless)
    check_delays(ops, step, origin)
    return Graph(nodes, step, dt_origin, metadata)


def decay(dt: float, tau: Any) -> NDArray[np.float64]:
    """``dt / tau``, the factor of an Euler step, with dt as the float32 number that tau is.

    For dt = 1 ms and tau = 2 ms, neither of them a float32, the quotient is then exactly 0.5.
    """
    return np.asarray(np.float64(np.float32(dt)) / np.asarray(tau, np.float64))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value


def _open(
    graph: nir.NIRGraph, prefix: str, origin: str
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Nodes and edges with nested graphs replaced by their contents."""
    ops: dict[str, Any] = {}
    entry: dict[str, str] = {}
    exit_: dict[str, str] = {}
    edges: list[tuple[str, str]] = []
    for name, op in graph.nodes.items():
        full = prefix + name
        if not isinstance(op, nir.NIRGraph):
            if type(op) not in SHAPE_RULES:
                raise InputFileError(
                    f"{origin}: node {full!r} is a {type(op).__name__}, which tser does not know"
                )
            _join(ops, {full: op}, origin)
            continue
        inner_ops, inner_edges = _open(op, f"{full}.", origin)
        inputs = [k for k, v in inner_ops.items() if isinstance(v, nir.Input)]
        outputs = [k for k, v in inner_ops.items() if isinstance(v, nir.Output)]
        if len(inputs) != 1 or len(outputs) != 1:
            raise InputFileError(
                f"{origin}: the nested graph {full!r} has {len(inputs)} inputs and {len(outputs)} "
                "outputs; exactly one of each is supported"
            )
        # The inner ports only pass values on: as a flattening of no dimension they stay nodes
        # that every table knows, and their names stay visible.
        for port in (*inputs, *outputs):
            inner_ops[port] = _pass_through(inner_ops[port])
        entry[name], exit_[name] = inputs[0], outputs[0]
        _join(ops, inner_ops, origin)
        edges += inner_edges
    for source, target in graph.edges:
        edges.append((exit_.get(source, prefix + source), entry.get(target, prefix + target)))
    return ops, edges


def _join(ops: dict[str, Any], more: dict[str, Any], origin: str) -> None:
    if clash := ops.keys() & more.keys():
        raise InputFileError(f"{origin}: two nodes would be called {min(clash)!r}")
    ops |= more


def _pass_through(port: Any) -> nir.Flatten:
    """A flattening of nothing that declares what ``port`` declares, and knows it."""
    op = nir.Flatten(input_type={"input": None}, start_dim=-1, end_dim=-1)
    declared = port.input_type if isinstance(port, nir.Input) else port.output_type
    op.input_type = {"input": next(iter(declared.values()), None)}
    op.metadata = {"port": port}
    return op


def _order(
    ops: dict[str, Any], edges: list[tuple[str, str]], origin: str
) -> tuple[dict[str, tuple[Edge, ...]], list[str]]:
    """The inputs of every node in the order of execution, and an order to find shapes in.

    The second follows all edges from the input, delayed ones too: some nodes have no others.
    """
    starts = sorted(ops, key=lambda name: (not isinstance(ops[name], nir.Input), name))
    stateful = {name for name, op in ops.items() if isinstance(op, STATEFUL)}
    if cycle := stateless_cycle(edges, starts, stateful):
        raise InputFileError(
            f"{origin}: the cycle {' -> '.join([*cycle, cycle[0]])} has no neuron and no delay, "
            "so it has no order of execution"
        )
    forward, closing = depth_first(targets_of(ops, edges), starts)
    spiking = {name for name in stateful if isinstance(ops[name], SPIKING)}
    late = delayed_edges(edges, closing, spiking, stateful)
    present = [edge for edge in edges if edge not in late]
    # What begins with the step before stands right before those who read it, not before the input.
    fed = {target for _, target in present}
    roots = [name for name in starts if name not in fed and not isinstance(ops[name], nir.Input)]
    order, _ = depth_first(targets_of(ops, present), [*roots, *starts])
    incoming: dict[str, list[Edge]] = {name: [] for name in order}
    for source, target in edges:
        incoming[target].append(Edge(source, (source, target) in late))
    return {name: tuple(sources) for name, sources in incoming.items()}, forward


_MALFORMED = (ValueError, TypeError, IndexError, AttributeError, OverflowError)
"""What the rules of shapes raise on parameters of another kind than they should be."""


def _with_shapes(
    ops: dict[str, Any], incoming: dict[str, tuple[Edge, ...]], origin: str
) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    total = 0
    for name, edges in incoming.items():
        op = ops[name]
        known = [nodes[edge.source].output_shape for edge in edges if edge.source in nodes]
        if not known and not isinstance(op, nir.Input):
            raise InputFileError(f"{origin}: nothing leads from the input to the node {name!r}")
        if isinstance(op, nir.Input) and edges:
            raise InputFileError(f"{origin}: the input {name!r} has an incoming edge")
        if len(set(known)) > 1:
            raise InputFileError(f"{origin}: node {name!r} sums inputs of different shapes {known}")
        given = known[0] if known else ()
        try:
            shape = SHAPE_RULES[type(op)](op, given)
        except Repairable as error:
            raise ContradictionError(
                f"{origin}: node {name!r} ({type(op).__name__}): {error}; "
                "'tser inspect FILE --repair OUT.nir' writes a copy in which it fits",
                name,
                op,
                error.changes,
            ) from error
        except _MALFORMED as error:
            reason = " ".join(str(error).split())[:200]
            raise InputFileError(
                f"{origin}: node {name!r} ({type(op).__name__}): {reason}"
            ) from error
        nodes[name] = Node(name, op, edges, given or shape, shape)
        total += math.prod(shape)
        if total > 4 * MOST_VALUES:
            raise InputFileError(
                f"{origin}: up to node {name!r} it has {total:,} values for each sample and step, "
                f"more than the {4 * MOST_VALUES:,} that can be run"
            )
    for node in nodes.values():
        for edge in node.inputs:
            if nodes[edge.source].output_shape != node.input_shape:
                raise InputFileError(
                    f"{origin}: node {node.name!r} takes {node.input_shape}, "
                    f"{edge.source!r} gives {nodes[edge.source].output_shape}"
                )
    return nodes


def _time_step(
    nodes: dict[str, Node],
    metadata: dict[str, Any],
    dt: float | None,
    origin: str,
    timeless: bool,
) -> tuple[float, str]:
    if dt is not None and not LEAST_DT < dt < MOST_DT:
        raise UsageError(f"{origin}: dt must be a positive number of seconds, got {dt!r}")
    if "dt" in metadata:
        try:
            value, where = float(metadata["dt"]), "stated in the file"
        except (TypeError, ValueError) as error:
            raise InputFileError(f"{origin}: dt {brief(metadata['dt'])} is not a number") from error
        if not LEAST_DT < value < MOST_DT:
            raise InputFileError(f"{origin}: its dt {value!r} is not a positive number of seconds")
        if dt not in (None, value):
            raise UsageError(f"{origin} states dt = {value:g} s, not {dt:g} s; leave out --dt")
    elif dt is not None:
        value, where = dt, "given by the caller"
    elif not any(isinstance(node.op, STATEFUL) for node in nodes.values()):
        return 1.0, "not needed: nothing depends on time"
    elif timeless:
        return math.nan, MISSING
    else:
        raise UsageError(
            f"{origin} does not state its time step; pass --dt SECONDS, or write it into a copy "
            "(tser inspect FILE --repair OUT.nir --dt SECONDS)"
        )
    return value, where
