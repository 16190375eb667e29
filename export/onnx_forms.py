"""The three forms of an ONNX graph: the whole sequence unrolled, one step, and a Scan over it.

All spell the arithmetic of a step in the same operators, so they give the same spikes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tser.export.graph import NEURONS, SPIKING, Graph, Node
from tser.export.lower import ExportError
from tser.export.onnx_emitter import Emitter, needed_for
from tser.export.onnx_neurons import NEURON_EMITTERS, Carried, State, carried
from tser.export.onnx_steps import (
    Extra,
    Moment,
    emit_fixed,
    emit_step,
    step_name,
    step_names,
)
from tser.export.shapes import Shape

Encoding = Literal["direct", "sequence"]
Form = Literal["sequence", "step", "scan"]


@dataclass(frozen=True)
class Job:
    """What to compile.

    Attributes:
        graph: the NIR view.
        timesteps: T; None where the form does not need it and nothing states it.
        encoding: one image for all steps, or one input a step.
        extras: kinds of outputs for each layer beside the logits.
        half: weights of synapses in float16.
    """

    graph: Graph
    timesteps: int | None
    encoding: Encoding
    extras: tuple[Extra, ...] = ()
    half: bool = False

    def recorded(self) -> list[tuple[str, Node, Extra]]:
        """Name, node and kind of every output of a layer."""
        kinds: dict[Extra, Any] = {"spikes": SPIKING, "membranes": NEURONS}
        return [
            (f"{node.name}.{extra}", node, extra)
            for extra in self.extras
            for node in self.graph.nodes.values()
            if isinstance(node.op, kinds[extra])
        ]


@dataclass(frozen=True)
class Compiled:
    """A finished graph.

    Attributes:
        graph: of ONNX.
        contents: of its large initialisers, which are empty yet.
        states: what a caller of the step form carries from call to call.
    """

    graph: onnx.GraphProto
    contents: dict[str, NDArray[Any]]
    states: list[Carried] = field(default_factory=list)


def sequence_form(job: Job) -> Compiled:
    """The whole sequence, unrolled; T is fixed.

    Raises:
        ExportError: a node without ONNX form, or T is not known.
    """
    steps, graph = job.timesteps, job.graph
    if steps is None:
        raise ExportError(
            "the graph does not say how many time steps to unroll; pass --timesteps, or "
            "--form scan, which takes any number"
        )
    emitter, fixed = _start(job, apart=False)
    shape = graph.input.output_shape
    names = {name: step_names(name, steps) for name in graph.nodes.keys() - fixed}
    emitter.keep(name for each in names.values() for name in each)
    base = emit_fixed(emitter, fixed)
    frames = []
    if job.encoding == "sequence":
        frames = _frames(emitter, shape, names[graph.input.name])
    moments: list[Moment] = []
    silence = _silence(emitter, 1 if frames else 0)
    for t in range(steps):
        now = {name: each[t] for name, each in names.items()}
        given = frames[t] if frames else None
        before = moments[-1] if moments else None
        last = before.values if before else silence
        moments.append(emit_step(emitter, base, now, given, before.states if before else {}, last))
    end = graph.output
    _stack(emitter, [m.values[end.name] for m in moments], end.output_shape, "logits")
    outputs = [_value("logits", [steps, "B", *end.output_shape])]
    for name, node, extra in job.recorded():
        _stack(emitter, [m.recorded(node, extra) for m in moments], node.output_shape, name)
        outputs.append(_value(name, [steps, "B", *node.output_shape]))
    leading = [steps, "B"] if job.encoding == "sequence" else ["B"]
    # All spikes, also those that reach the output too late to matter: they are compared. A runtime
    # drops what no output needs.
    fired = [moment.values[node.name] for moment in moments for node in graph.spiking]
    nodes, initialisers = emitter.live(*(value.name for value in outputs), *fired)
    given_ = [_value("input", [*leading, *shape])]
    made = helper.make_graph(nodes, "tser", given_, outputs, initialisers)
    return Compiled(made, emitter.contents)


def step_form(job: Job) -> Compiled:
    """One time step; states go in under their names and come out with ``.next`` behind them.

    Raises:
        ExportError: a node without ONNX form.
    """
    graph = job.graph
    emitter = Emitter(graph, half=job.half)
    body = _Body(job, emitter, set(), "input", "")
    inputs = [_value("input", ["B", *graph.input.output_shape])]
    inputs += [_value(carry.name, ["B", *carry.shape]) for carry in body.states]
    outputs = [_value(name, ["B", *shape]) for name, shape in body.outputs]
    following = [_value(f"{carry.name}.next", ["B", *carry.shape]) for carry in body.states]
    ends = (value.name for value in (*outputs, *following))
    nodes, initialisers = emitter.live(*ends, *body.fired)
    made = helper.make_graph(nodes, "tser", inputs, [*outputs, *following], initialisers)
    return Compiled(made, emitter.contents, body.states)


def scan_form(job: Job) -> Compiled:
    """The step in an ONNX Scan: T and B are dynamic.

    Raises:
        ExportError: a node without ONNX form.
    """
    graph, direct = job.graph, job.encoding == "direct"
    emitter, fixed = _start(job, apart=True)
    if direct:
        emitter.claim("timesteps")
    shape = graph.input.output_shape
    body = _Body(job, emitter, fixed, None if direct else emitter.claim("input.each"), ".each")
    tick = emitter.unique("tick")
    body_inputs = [_value(carry.name, ["B", *carry.shape]) for carry in body.states]
    body_inputs.append(_value(tick, []) if direct else _value(body.given, ["B", *shape]))
    body_outputs = [_value(f"{carry.name}.next", ["B", *carry.shape]) for carry in body.states]
    body_outputs += [_value(f"{name}.each", ["B", *size]) for name, size in body.outputs]
    _, nodes = needed_for(emitter.nodes, [*(value.name for value in body_outputs), *body.fired])
    # Weights stand in the body: ONNX Runtime takes its fast convolutions only where the weights
    # are of the same graph, and those round in another order than its slow ones.
    read = {name for node in nodes for name in node.input}
    casts = [n for n in emitter.once if n.op_type == "Cast" and n.input[0] in emitter.initialisers]
    nodes = [node for node in casts if node.output[0] in read] + nodes
    captured = {name for node in nodes for name in node.input}

    emitter.nodes = emitter.once  # from here on, all stands around the loop
    axis = 0 if direct else 1
    batch = emitter.emit("Shape", ["input"], "batch", start=axis, end=axis + 1)
    starts = [_start_of(emitter, carry, batch) for carry in body.states]
    over = "input"
    if direct:
        over = emitter.emit("ConstantOfShape", ["timesteps"], "ticks")
    ends = [emitter.unique(f"{carry.name}.end") for carry in body.states]
    made = [*ends, *(name for name, _ in body.outputs)]
    within = {output for node in nodes for output in node.output}
    around, initialisers = emitter.live(*starts, over, *(captured - within))
    shared = {name for node in around for name in node.input} | {*starts}
    local = [value for value in initialisers if value.name not in shared]
    initialisers = [value for value in initialisers if value.name in shared]
    inner = helper.make_graph(nodes, "step", body_inputs, body_outputs, local)
    name = emitter.unique("scan")
    around.append(
        helper.make_node("Scan", [*starts, over], made, name=name, body=inner, num_scan_inputs=1)
    )
    inputs = [_value("input", ["B", *shape] if direct else ["T", "B", *shape])]
    if direct:
        inputs.append(_value("timesteps", [1], TensorProto.INT64))
    outputs = [_value(name, ["T", "B", *size]) for name, size in body.outputs]
    whole = helper.make_graph(around, "tser", inputs, outputs, initialisers)
    return Compiled(whole, emitter.contents)


class _Body:
    """One step whose states are inputs, in the step form or inside a Scan.

    Attributes:
        given: name of the step's input; "" where the input is the same at every step.
        states: those that an output depends on.
        outputs: name and shape of each, without batch and time.
        fired: the spikes of all layers, compared whether an output depends on them or not.
    """

    def __init__(
        self, job: Job, emitter: Emitter, fixed: set[str], given: str | None, suffix: str
    ) -> None:
        graph, end = job.graph, job.graph.output
        self.given = given or ""
        self.outputs: list[tuple[str, Shape]] = [("logits", end.output_shape)]
        self.outputs += [(name, node.output_shape) for name, node, _ in job.recorded()]
        if not suffix:
            _claim_ports(job, emitter)
        names = {name: step_name(name) for name in graph.nodes.keys() - fixed}
        carries = carried(graph)
        for carry in carries:
            emitter.claim(carry.name)
            emitter.claim(f"{carry.name}.next")
        if suffix:
            # In a Scan the names of the outputs are those of the loop; the body's have a suffix.
            for name, _ in self.outputs:
                emitter.claim(f"{name}{suffix}")
        emitter.keep(names.values())
        base = emit_fixed(emitter, fixed)
        states: dict[str, State] = {}
        for carry in carries:
            states.setdefault(carry.node, {})[carry.key] = carry.name
        last = {carry.node: carry.name for carry in carries if carry.key == "last"}
        moment = emit_step(emitter, base, names, given, states, last)
        emitter.port(moment.values[end.name], f"logits{suffix}")
        for name, node, extra in job.recorded():
            emitter.port(moment.recorded(node, extra), f"{name}{suffix}")
        after = {c.name: moment.state(c) or _zeros_like(emitter, c.name) for c in carries}
        self.fired = [moment.values[node.name] for node in graph.spiking]
        wanted = [*(f"{n}{suffix}" for n, _ in self.outputs), *self.fired]
        self.states = _needed(emitter, carries, after, wanted)
        for carry in self.states:
            emitter.port(after[carry.name], f"{carry.name}.next")


def _zeros_like(emitter: Emitter, name: str) -> str:
    shape = emitter.emit("Shape", [name], f"{name}.shape")
    return emitter.emit("ConstantOfShape", [shape], f"{name}.zeros")


def _needed(
    emitter: Emitter, carries: list[Carried], after: dict[str, str], outputs: Sequence[str]
) -> list[Carried]:
    """The states that ``outputs`` of any later step depend on."""
    wanted = list(outputs)
    found: list[Carried] = []
    while True:
        needed, _ = needed_for(emitter.nodes, wanted)
        more = [carry for carry in carries if carry.name in needed and carry not in found]
        if not more:
            return [carry for carry in carries if carry in found]
        found += more
        wanted += [after[carry.name] for carry in more]


def _start(job: Job, apart: bool) -> tuple[Emitter, set[str]]:
    """An emitter that knows the names of the ends, and the nodes that no time step changes."""
    emitter = Emitter(job.graph, half=job.half, apart=apart)
    _claim_ports(job, emitter)
    if job.encoding == "sequence":
        return emitter, set()
    emitter.steady.add("input")
    fixed: set[str] = set()
    for node in job.graph.nodes.values():
        sources = [edge.source for edge in node.inputs if not edge.delayed]
        if (
            type(node.op) not in NEURON_EMITTERS
            and len(sources) == len(node.inputs)
            and fixed.issuperset(sources)
        ):
            fixed.add(node.name)
    return emitter, fixed


def _claim_ports(job: Job, emitter: Emitter) -> None:
    for name in ("input", "logits", *(name for name, _, _ in job.recorded())):
        emitter.claim(name)


def _frames(emitter: Emitter, shape: Shape, names: list[str]) -> list[str]:
    """The input of each step."""
    target = emitter.constant("input.shape", np.array([-1, *shape], np.int64))
    folded = emitter.emit("Reshape", ["input", target], "input.folded")
    if len(names) == 1:
        return [folded]
    outputs = [emitter.release(name) for name in names]
    return emitter.emit_many("Split", [folded], outputs, axis=0, num_outputs=len(names))


def _stack(emitter: Emitter, values: list[str], shape: Shape, name: str) -> None:
    """One ``[B, ...]`` a step as the output ``name`` ``[T, B, ...]``, which was claimed."""
    joined = values[0]
    if len(values) > 1:
        joined = emitter.emit("Concat", values, f"{name}.joined", axis=0)
    sizes = np.array([len(values), -1, *shape], np.int64)
    target = emitter.constant(f"{name}.shape", sizes)
    emitter.nodes.append(helper.make_node("Reshape", [joined, target], [name], name=name))


def _silence(emitter: Emitter, axis: int) -> dict[str, str]:
    """Zeros ``[B, ...]`` for what came before the first step, where a node has no other input."""
    late = {
        edge.source
        for node in emitter.graph.nodes.values()
        if all(edge.delayed for edge in node.inputs)
        for edge in node.inputs
    }
    if not late:
        return {}
    batch = emitter.emit("Shape", ["input"], "batch", start=axis, end=axis + 1)
    carries = [one for one in carried(emitter.graph) if one.key == "last" and one.node in late]
    return {carry.node: _start_of(emitter, carry, batch) for carry in carries}


def _start_of(emitter: Emitter, carry: Carried, batch: str) -> str:
    """The state before the first step, ``[B, ...]``."""
    sizes = emitter.constant(f"{carry.name}.sizes", np.array(carry.shape, np.int64))
    target = emitter.emit("Concat", [batch, sizes], f"{carry.name}.shape", axis=0)
    if not carry.initial.any():
        return emitter.emit("ConstantOfShape", [target], f"{carry.name}.start")
    initial = emitter.constant(f"{carry.name}.initial", carry.initial)
    return emitter.emit("Expand", [initial, target], f"{carry.name}.start")


def _value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))


FORMS: dict[Form, Callable[[Job], Compiled]] = {
    "sequence": sequence_form,
    "step": step_form,
    "scan": scan_form,
}
"""How to compile each form."""
