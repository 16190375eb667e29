"""How each NIR node with a state is written in ONNX operators, one time step at a time.

The arithmetic is that of the interpreter, term by term. An operand that is zero for every neuron
costs nothing: it stands as None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from tser.export.graph import SPIKING, Graph, Node, decay
from tser.export.onnx_emitter import Emitter, uniform
from tser.export.shapes import Shape

Array = NDArray[Any]
State = dict[str, str | None]
"""Tensors of a node that the next step needs; None is all zero, what is not there is at rest."""


@dataclass(frozen=True)
class Fired:
    """What one node does in one step.

    Attributes:
        output: ``[B, ...]``: spikes, or the membrane of neurons without a threshold.
        membrane: ``[B, ...]``, as it was compared with the threshold; None for a Delay.
        state: after the step.
    """

    output: str
    membrane: str | None
    state: State


@dataclass(frozen=True)
class Carried:
    """One tensor that goes from step to step.

    Attributes:
        node: the NIR node that it belongs to.
        key: "v" membrane after the reset, "i" synaptic current, "x" the inputs that a delay
            holds, oldest first, "last" the output that a cycle reads a step later.
        shape: without the batch, which comes first.
        initial: before the first step, one number or an array of ``shape``.
    """

    node: str
    key: str
    shape: Shape
    initial: Array

    @property
    def name(self) -> str:
        """``<node>.<key>``."""
        return f"{self.node}.{self.key}"


def carried(graph: Graph) -> list[Carried]:
    """Everything that goes from one step of ``graph`` to the next, in execution order."""
    found = []
    delayed = {edge.source for node in graph.nodes.values() for edge in node.inputs if edge.delayed}
    zero = np.zeros((), np.float32)
    for node in graph.nodes.values():
        shape = node.output_shape
        if isinstance(node.op, nir.Delay):
            if longest := int(whole_delays(node, graph.dt).max(initial=0)):
                found.append(Carried(node.name, "x", (longest, *shape), zero))
        elif type(node.op) in NEURON_EMITTERS:
            rest = uniform(getattr(node.op, "v_leak", 0.0))
            found.append(
                Carried(node.name, "v", shape, rest.reshape(()) if rest.size == 1 else rest)
            )
            if isinstance(node.op, nir.CubaLI | nir.CubaLIF):
                found.append(Carried(node.name, "i", shape, zero))
        if node.name in delayed:
            found.append(Carried(node.name, "last", shape, zero))
    return found


def whole_delays(node: Node, dt: float) -> NDArray[np.int64]:
    """The steps by which a Delay is late, for each element."""
    return np.asarray(np.rint(np.asarray(node.op.delay, np.float64) / dt), np.int64)


class _Steps:
    """Arithmetic of one layer; None stands for an all-zero operand, which costs nothing."""

    def __init__(self, emitter: Emitter, node: Node) -> None:
        self._emitter, self._node = emitter, node

    def __call__(self, kind: str, a: str | None, b: str | None, name: str) -> str | None:
        if kind == "Mul":
            if a is None or b is None:
                return None
            if a in self._emitter.ones:
                return b
        if kind == "Sub" and a == b:
            return None
        if b is None:
            return a
        if a is None:
            if kind == "Add":
                return b
            return self._emitter.emit("Neg", [b], f"{self._node.name}.{name}")
        return self._emitter.emit(kind, [a, b], f"{self._node.name}.{name}")

    def value(self, name: str | None, like: str) -> str:
        """``name`` in the shape of ``like``: zeros for None, a constant for every neuron."""
        if name is not None and name not in self._emitter.initialisers:
            return name
        shape = self._emitter.emit("Shape", [like], f"{self._node.name}.zero_shape")
        if name is None:
            return self._emitter.emit("ConstantOfShape", [shape], f"{self._node.name}.zeros")
        return self._emitter.emit("Expand", [name, shape], f"{self._node.name}.rest")


def _leaky(emitter: Emitter, node: Node, state: State, current: str, name: str) -> Fired:
    op, math = node.op, _Steps(emitter, node)
    rate = emitter.parameter(node, "rate", decay(emitter.graph.dt, op.tau))
    r, v_leak = (emitter.parameter(node, key, getattr(op, key)) for key in ("r", "v_leak"))
    v = state.get("v", v_leak)
    driven = math("Add", math("Mul", r, current, "ri"), v_leak, "driven")
    change = math("Mul", rate, math("Sub", driven, v, "pull"), "dv")
    v = math.value(math("Add", v, change, "v"), current)
    output, after = _fire(emitter, node, v, name)
    return Fired(output, v, {"v": after})


def _integrating(emitter: Emitter, node: Node, state: State, current: str, name: str) -> Fired:
    op, math = node.op, _Steps(emitter, node)
    gain = emitter.parameter(node, "gain", emitter.graph.dt * np.asarray(op.r, np.float64))
    v = math("Add", state.get("v"), math("Mul", gain, current, "dv"), "v")
    v = math.value(v, current)
    output, after = _fire(emitter, node, v, name)
    return Fired(output, v, {"v": after})


def _current_based(emitter: Emitter, node: Node, state: State, current: str, name: str) -> Fired:
    op, dt, math = node.op, emitter.graph.dt, _Steps(emitter, node)
    membrane = emitter.parameter(node, "membrane", decay(dt, op.tau_mem))
    synapse = emitter.parameter(node, "synapse", decay(dt, op.tau_syn))
    gain = emitter.parameter(node, "gain", decay(dt, op.tau_syn) * op.w_in)
    r, v_leak = (emitter.parameter(node, key, getattr(op, key)) for key in ("r", "v_leak"))
    v = state.get("v", v_leak)
    i = math("Add", state.get("i"), math("Mul", gain, current, "jump"), "i")
    pull = math("Add", math("Sub", v_leak, v, "leak"), math("Mul", r, i, "ri"), "pull")
    v = math.value(math("Add", v, math("Mul", membrane, pull, "dv"), "v"), current)
    kept = math("Sub", i, math("Mul", synapse, i, "di"), "kept")
    output, after = _fire(emitter, node, v, name)
    return Fired(output, v, {"v": after, "i": kept})


def _fire(emitter: Emitter, node: Node, v: str, name: str) -> tuple[str, str]:
    """(output, membrane after it); neurons without threshold put out v."""
    if not isinstance(node.op, SPIKING):
        return emitter.emit("Identity", [v], name), v
    limit, rest = uniform(node.op.v_threshold), uniform(node.op.v_reset)
    threshold = emitter.constant(f"{node.name}.v_threshold", limit)
    above = emitter.emit("Greater", [v, threshold], f"{node.name}.above")
    spikes = emitter.emit("Cast", [above], name, to=TensorProto.FLOAT)
    if rest.any() or limit.shape != (1,):
        reset = emitter.constant(f"{node.name}.v_reset", rest)
        return spikes, emitter.emit("Where", [above, reset, v], f"{node.name}.after")
    # v where v > threshold, else 0: taken off v, it leaves exactly 0 or v. ONNX Runtime takes
    # longer for one Where than for these two.
    gone = emitter.emit("ThresholdedRelu", [v], f"{node.name}.gone", alpha=float(limit[0]))
    return spikes, emitter.emit("Sub", [v, gone], f"{node.name}.after")


def _delay(emitter: Emitter, node: Node, state: State, current: str, name: str) -> Fired:
    delays = whole_delays(node, emitter.graph.dt)
    held = state.get("x")
    if held is not None:
        return _delay_line(emitter, node, delays, held, current, name)
    # Unrolled: the state is every input so far, under "t0", "t1", ...
    past = [*(value for value in state.values() if value is not None), current]
    state = {f"t{t}": value for t, value in enumerate(past)}

    def late(steps: int) -> str:
        zeros = None if steps >= len(past) else past[-1 - steps]
        return _Steps(emitter, node).value(zeros, current)

    times = np.unique(delays)
    result = late(int(times[-1]))
    for steps in reversed([int(d) for d in times[:-1] if d < len(past)]):
        mask = emitter.constant(f"{node.name}.late{steps}", delays == steps)
        result = emitter.emit("Where", [mask, late(steps), result], f"{node.name}.part")
    return Fired(emitter.emit("Identity", [result], name), None, state)


def _delay_line(
    emitter: Emitter, node: Node, delays: NDArray[np.int64], held: str, current: str, name: str
) -> Fired:
    """The inputs of the last steps in one tensor ``[B, steps, ...]``, oldest first."""
    longest = int(delays.max())
    axis = emitter.constant(f"{node.name}.axis", np.array([1], np.int64))
    newest = emitter.emit("Unsqueeze", [current, axis], f"{node.name}.newest")
    line = emitter.emit("Concat", [held, newest], f"{node.name}.line", axis=1)
    ends = [np.array([value], np.int64) for value in (1, longest + 1)]
    bounds = [
        emitter.constant(f"{node.name}.{key}", value)
        for key, value in zip(("first", "end"), ends, strict=True)
    ]
    kept = emitter.emit("Slice", [line, *bounds, axis], f"{node.name}.kept")
    if len(np.unique(delays)) == 1:
        first = emitter.constant(f"{node.name}.oldest", np.array(0, np.int64))
        return Fired(emitter.emit("Gather", [line, first], name, axis=1), None, {"x": kept})
    places = np.broadcast_to(longest - delays, node.output_shape)[None, None]
    index = emitter.constant(f"{node.name}.places", places)
    shape = emitter.emit("Shape", [newest], f"{node.name}.newest_shape")
    index = emitter.emit("Expand", [index, shape], f"{node.name}.index")
    picked = emitter.emit("GatherElements", [line, index], f"{node.name}.picked", axis=1)
    return Fired(emitter.emit("Squeeze", [picked, axis], name), None, {"x": kept})


NeuronEmitter = Callable[[Emitter, Node, State, str, str], Fired]

NEURON_EMITTERS: dict[type, NeuronEmitter] = {
    nir.LI: _leaky,
    nir.LIF: _leaky,
    nir.I: _integrating,
    nir.IF: _integrating,
    nir.CubaLI: _current_based,
    nir.CubaLIF: _current_based,
    nir.Delay: _delay,
}
"""(emitter, node, state before, input of the step, name of the output) -> what it does."""
