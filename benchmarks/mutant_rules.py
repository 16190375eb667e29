"""Wrong rules of neurons and layers, made in the operators of an unrolled ONNX model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Edit = Callable[["Program"], None]
_node = helper.make_node


@dataclass(frozen=True)
class Moment:
    """Names of the tensors of one layer in one step.

    Attributes:
        current: what arrives.
        before: the membrane after the step before; "" in the first, where it is 0.
        rate: dt / tau.
        v: the membrane that is compared.
        above: whether it lies above.
        threshold: the constant.
        spikes: as numbers.
        after: the membrane after the reset; "" after the last step.
        reset: the constant; "" likewise.
    """

    current: str
    before: str
    rate: str
    v: str
    above: str
    threshold: str
    spikes: str
    after: str
    reset: str


class Program:
    """A copy of an unrolled model, to be changed operator by operator."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes = [copy.deepcopy(node) for node in model.graph.node]

    def maker(self, tensor: str) -> onnx.NodeProto:
        """The operator that makes a tensor."""
        return next(node for node in self.nodes if tensor in node.output)

    def put(self, node: onnx.NodeProto, *others: onnx.NodeProto) -> None:
        """``others`` in the place of ``node``."""
        place = next(number for number, known in enumerate(self.nodes) if known is node)
        self.nodes[place : place + 1] = others

    def done(self) -> onnx.ModelProto:
        """The model with its operators as they are now."""
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def constant(self, name: str, values: Any) -> str:
        """A new constant."""
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def moments(self, layer: str) -> list[Moment]:
        """The steps of a LIF layer whose membrane starts at 0."""
        found: list[Moment] = []
        outputs = {output for node in self.nodes for output in node.output}
        while (spikes := f"{layer}.t{len(found)}") in outputs:
            above = self.maker(spikes).input[0]
            v, threshold = self.maker(above).input
            before = found[-1].after if found else ""
            rate, pull = self.maker(self.maker(v).input[1] if before else v).input
            current = self.maker(pull).input[0] if before else pull
            resets = [n for n in self.nodes if n.op_type == "Where" and n.input[0] == above]
            reset, after = (resets[0].input[1], resets[0].output[0]) if resets else ("", "")
            found.append(Moment(current, before, rate, v, above, threshold, spikes, after, reset))
        return found


def inclusive(program: Program, m: Moment) -> None:
    """A spike at the threshold too; the reset follows the spike."""
    program.maker(m.above).op_type = "GreaterOrEqual"


def subtractive(program: Program, m: Moment) -> None:
    """A spike takes the threshold off the membrane."""
    if m.after:
        taken = _node("Mul", [m.spikes, m.threshold], [f"{m.after}.taken"])
        after = _node("Sub", [m.v, taken.output[0]], [m.after])
        program.put(program.maker(m.after), taken, after)


def never(program: Program, m: Moment) -> None:
    """A spike leaves the membrane as it is."""
    if m.after:
        program.put(program.maker(m.after), _node("Identity", [m.v], [m.after]))


def no_gain(program: Program, m: Moment) -> None:
    """The input is added as it is, only the membrane leaks: v += i - rate v."""
    maker = program.maker(m.v)
    if not m.before:
        program.put(maker, _node("Identity", [m.current], [m.v]))
        return
    leak = _node("Mul", [m.rate, m.before], [f"{m.v}.leak"])
    kept = _node("Sub", [m.before, leak.output[0]], [f"{m.v}.kept"])
    program.put(maker, leak, kept, _node("Add", [kept.output[0], m.current], [m.v]))


def exponential(program: Program, m: Moment) -> None:
    """exp(-dt / tau) of the membrane stays, the input is weighted as before."""
    if m.before:
        nodes = [
            _node("Neg", [m.rate], [f"{m.v}.exponent"]),
            _node("Exp", [f"{m.v}.exponent"], [f"{m.v}.keep"]),
            _node("Mul", [f"{m.v}.keep", m.before], [f"{m.v}.kept"]),
            _node("Mul", [m.rate, m.current], [f"{m.v}.driven"]),
            _node("Add", [f"{m.v}.kept", f"{m.v}.driven"], [m.v]),
        ]
        program.put(program.maker(m.v), *nodes)


def late_input(layer: str) -> Edit:
    """The layer sees in every step what arrived in the step before, nothing in the first."""

    def edit(program: Program) -> None:
        moments = program.moments(layer)
        for m, earlier in reversed(list(zip(moments[1:], moments, strict=False))):
            pull = program.maker(program.maker(program.maker(m.v).input[1]).input[1])
            pull.input[0] = earlier.current
        first = program.maker(moments[0].v)
        nothing = _node("Sub", [moments[0].current] * 2, [f"{layer}.nothing"])
        first.input[1] = nothing.output[0]
        program.put(first, nothing, first)

    return edit


def late_spikes(source: str, target: str) -> Edit:
    """One synapse carries the spikes of the step before; its bias is there at once."""

    def edit(program: Program) -> None:
        moments = program.moments(source)
        for t in reversed(range(len(moments))):
            reader = program.maker(f"{target}.t{t}")
            if t:
                reader.input[0] = moments[t - 1].spikes
            else:
                silent = _node("Sub", [moments[0].spikes] * 2, [f"{source}.silent"])
                reader.input[0] = silent.output[0]
                program.put(reader, silent, reader)

    return edit


def late_reset(layer: str) -> Edit:
    """The reset comes a step later, before the comparison."""

    def edit(program: Program) -> None:
        moments = program.moments(layer)
        for m, earlier in zip(moments, [None, *moments], strict=False):
            if earlier is not None:
                free = f"{m.v}.free"
                maker = program.maker(m.v)
                maker.output[0] = free
                reset = _node("Where", [earlier.above, earlier.reset, free], [m.v])
                program.put(maker, maker, reset)
        for m in moments:
            never(program, m)

    return edit


def _convolutions(program: Program, name: str) -> Iterator[onnx.NodeProto]:
    return (
        n for n in list(program.nodes) if n.op_type == "Conv" and n.input[1] == f"{name}.weight"
    )


def _attribute(node: onnx.NodeProto, name: str, values: list[int]) -> None:
    attribute = next(a for a in node.attribute if a.name == name)
    attribute.ints[:] = values


def padding_at_the_end(name: str) -> Edit:
    """What "same" means to TensorFlow at stride 2: below and right."""

    def edit(program: Program) -> None:
        for node in _convolutions(program, name):
            _attribute(node, "pads", [0, 0, 1, 1])

    return edit


def stride_lost(name: str, size: int) -> Edit:
    """Stride 1, and as much of the map as the next layer takes."""

    def edit(program: Program) -> None:
        start, end = (program.constant(f"{name}.{at}", [value, value])
                      for at, value in (("start", 0), ("end", size)))  # fmt: skip
        axes = program.constant(f"{name}.axes", [2, 3])
        for node in _convolutions(program, name):
            _attribute(node, "strides", [1, 1])
            whole, part = f"{node.output[0]}.whole", node.output[0]
            node.output[0] = whole
            program.put(node, node, _node("Slice", [whole, start, end, axes], [part]))

    return edit


def max_pool(name: str) -> Edit:
    """The largest value of a window in place of their average."""

    def edit(program: Program) -> None:
        for node in list(program.nodes):
            if node.op_type == "AveragePool" and node.output[0].startswith(f"{name}.t"):
                kept = [a for a in node.attribute if a.name != "count_include_pad"]
                del node.attribute[:]
                node.attribute.extend(kept)
                node.op_type = "MaxPool"

    return edit
