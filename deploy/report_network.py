"""The section that draws the exported graph: every node with its shape, every edge."""

from __future__ import annotations

import math
from typing import Any

import nir
import numpy as np

from tser.deploy.network_chart import Box, network_chart
from tser.deploy.report_blocks import (
    Block,
    Chart,
    Details,
    Note,
    Section,
    Table,
    Text,
    number,
)
from tser.deploy.report_results import Commands, Results, missing
from tser.export.graph import NEURONS, WEIGHTED, Node

MOST_DRAWN = 150
"""Nodes beyond which a drawing is too long to read."""
NONE = "–"


def network(results: Results) -> Section:
    """The exported graph as a drawing and as a table."""
    title, graph = "Network graph", results.graph
    if graph is None:
        note = missing("Not exported yet", Commands(results.run).export_nir)
        return Section("network", title, (note,))
    nodes = list(graph.nodes.values())
    parameters = sum(_parameters(node) for node in nodes)
    neurons = sum(math.prod(node.output_shape) for node in nodes if isinstance(node.op, NEURONS))
    edges = sum(len(node.inputs) for node in nodes)
    text = Text(
        f"model.nir: {len(nodes)} nodes and {edges} edges, {neurons:,} neurons, {parameters:,} "
        "parameters. Shapes are of one step, without batch: channels × height × width."
    )
    table = Table(
        "Nodes in the order of execution",
        ("node", "kind", "settings", "takes from", "in", "out", "parameters"),
        tuple(_row(node) for node in nodes),
        "llllrrr",
    )
    if len(nodes) > MOST_DRAWN:
        note = Note(f"Not drawn: {len(nodes)} nodes are more than can be read in one drawing.")
        return Section("network", title, (text, note, table))
    boxes = [
        Box(
            node.name,
            f"{_kind(node)} → {shape(node.output_shape)}",
            "synapse" if isinstance(node.op, WEIGHTED) else _look(node),
            tuple((edge.source, edge.delayed) for edge in node.inputs),
        )
        for node in nodes
    ]
    drawing = network_chart(
        "network-chart",
        f"The graph of {len(nodes)} nodes from the input to the output; the table of nodes below "
        "says the same",
        boxes,
    )
    dashed = " Dashed: the output of the step before." if graph.recurrent else ""
    caption = (
        "Execution runs downwards; blue: neurons, orange: weights. Several arrows into a node are "
        f"summed. After the kind of a node: the shape that it gives.{dashed}"
    )
    blocks: tuple[Block, ...] = (
        text,
        Chart(drawing, caption, wide=True),
        Details("The nodes as a table", (table,)),
    )
    return Section("network", title, blocks)


def shape(sizes: tuple[int, ...]) -> str:
    """A shape in short.

    >>> shape((32, 8, 8)), shape((10,)), shape(())
    ('32×8×8', '10', '1')
    """
    return "×".join(map(str, sizes)) or "1"


def _look(node: Node) -> Any:
    return "neuron" if isinstance(node.op, NEURONS) else "other"


def _row(node: Node) -> tuple[str, ...]:
    sources = ", ".join(
        edge.source + (" (step before)" if edge.delayed else "") for edge in node.inputs
    )
    count = _parameters(node)
    return (
        node.name,
        node.kind,
        _settings(node) or NONE,
        sources or NONE,
        shape(node.input_shape),
        shape(node.output_shape),
        number(count) if count else NONE,
    )


def _kind(node: Node) -> str:
    """The class with its kernel, for the drawing."""
    op = node.op
    if isinstance(op, nir.Conv1d | nir.Conv2d):
        kernel = "×".join(map(str, np.shape(op.weight)[2:]))
        stride = _sides(op.stride)
        return f"{node.kind} {kernel}" + (f"/{stride}" if stride != "1" else "")
    if isinstance(op, nir.SumPool2d | nir.AvgPool2d):
        return f"{node.kind} {_sides(op.kernel_size)}"
    return node.kind


def _settings(node: Node) -> str:
    op = node.op
    if isinstance(op, nir.Conv1d | nir.Conv2d):
        kernel = "×".join(map(str, np.shape(op.weight)[2:]))
        padding = op.padding if isinstance(op.padding, str) else _sides(op.padding)
        said = [f"kernel {kernel}", f"stride {_sides(op.stride)}", f"padding {padding}"]
        said += [f"dilation {_sides(op.dilation)}"] if _sides(op.dilation) != "1" else []
        said += [f"groups {op.groups}"] if op.groups != 1 else []
        return ", ".join(said)
    if isinstance(op, nir.SumPool2d | nir.AvgPool2d):
        return f"kernel {_sides(op.kernel_size)}, stride {_sides(op.stride)}"
    names = {"tau": "s", "tau_mem": "s", "tau_syn": "s", "v_threshold": "", "delay": "s"}
    found = [
        f"{name} {_range(getattr(op, name))}{f' {unit}' if unit else ''}"
        for name, unit in names.items()
        if hasattr(op, name)
    ]
    return ", ".join(found)


def _sides(value: Any) -> str:
    """One side where all are the same."""
    sides = np.atleast_1d(np.asarray(value)).tolist()
    return str(sides[0]) if len(set(sides)) == 1 else "×".join(map(str, sides))


def _range(value: Any) -> str:
    low, high = float(np.min(value)), float(np.max(value))
    return f"{low:.4g}" if low == high else f"{low:.4g} – {high:.4g}"


def _parameters(node: Node) -> int:
    """Weights and biases."""
    if not isinstance(node.op, (*WEIGHTED, nir.Scale)):
        return 0
    held = (getattr(node.op, name, None) for name in ("weight", "bias", "scale"))
    return sum(int(np.size(values)) for values in held if values is not None)
