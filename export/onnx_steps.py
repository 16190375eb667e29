"""One time step of a whole graph in ONNX operators: what all forms are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import nir

from tser.export.graph import Node
from tser.export.lower import ExportError
from tser.export.onnx_emitter import Emitter
from tser.export.onnx_neurons import NEURON_EMITTERS, Carried, State
from tser.export.onnx_ops import STATELESS_EMITTERS

Extra = Literal["spikes", "membranes"]


def step_names(name: str, timesteps: int) -> list[str]:
    """The tensors ``[B, ...]`` that hold the output of a NIR node over time, t from 0.

    >>> step_names("lif", 2)
    ['lif.t0', 'lif.t1']
    """
    return [f"{name}.t{t}" for t in range(timesteps)]


def step_name(name: str) -> str:
    """The tensor ``[B, ...]`` with the output of a NIR node in the step and scan forms."""
    return f"{name}.t"


@dataclass
class Moment:
    """The tensors of one time step, by NIR node.

    Attributes:
        values: outputs.
        membranes: as they were compared with the threshold.
        states: of neurons and delays, after the step.
    """

    values: dict[str, str]
    membranes: dict[str, str] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)

    def recorded(self, node: Node, extra: Extra) -> str:
        """What an output of a layer shows."""
        return self.values[node.name] if extra == "spikes" else self.membranes[node.name]

    def state(self, carry: Carried) -> str | None:
        """The tensor after the step; None is all zero."""
        if carry.key == "last":
            return self.values[carry.node]
        return self.states[carry.node][carry.key]


def emit_fixed(emitter: Emitter, fixed: set[str]) -> dict[str, str]:
    """The tensors of nodes that no time step changes."""
    values: dict[str, str] = {}
    for node in emitter.graph.nodes.values():
        if node.name in fixed:
            values[node.name] = _stateless(emitter, node, values, {}, "input", node.name)
    return values


def emit_step(
    emitter: Emitter,
    base: dict[str, str],
    names: dict[str, str],
    given: str | None,
    states: dict[str, State],
    last: dict[str, str],
) -> Moment:
    """All nodes that change with time, for one step.

    Args:
        emitter: to write to.
        base: tensors of the other nodes.
        names: what to call the output of each node.
        given: the input of the step, where it has one.
        states: of neurons, before the step.
        last: outputs of the step before, where there was one; of nodes that alone feed another,
            always.
    """
    moment = Moment(dict(base))
    for node in emitter.graph.nodes.values():
        if node.name in base:
            continue
        name = emitter.release(names[node.name])
        if type(node.op) in NEURON_EMITTERS:
            current = _sum(emitter, node, moment.values, last)
            state = states.get(node.name, {})
            fired = NEURON_EMITTERS[type(node.op)](emitter, node, state, current, name)
            moment.values[node.name], moment.states[node.name] = fired.output, fired.state
            if fired.membrane is not None:
                moment.membranes[node.name] = fired.membrane
        else:
            value = _stateless(emitter, node, moment.values, last, given or "", name)
            moment.values[node.name] = value
    return moment


def _stateless(
    emitter: Emitter,
    node: Node,
    values: dict[str, str],
    last: dict[str, str],
    given: str,
    name: str,
) -> str:
    if isinstance(node.op, nir.Input):
        return given
    if type(node.op) not in STATELESS_EMITTERS:
        raise ExportError(f"node {node.name!r} ({node.kind}) has no ONNX form yet")
    total = _sum(emitter, node, values, last)
    return STATELESS_EMITTERS[type(node.op)](emitter, node, total, name)


def _sum(emitter: Emitter, node: Node, values: dict[str, str], last: dict[str, str]) -> str:
    """The inputs of ``node`` from the first edge to the last; before the first step, 0."""
    sources = [
        last.get(edge.source) if edge.delayed else values[edge.source] for edge in node.inputs
    ]
    total, *others = [source for source in sources if source is not None]
    for other in others:
        total = emitter.emit("Add", [total, other], f"{node.name}.sum")
    return total
