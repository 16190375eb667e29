"""How each NIR node is written in ONNX operators.

Stateless nodes see ``[T*B, ...]`` (``[B, ...]`` for as long as nothing depends on time), neurons
are unrolled over T. Tensors are named after the NIR nodes that make them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import nir
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tser.export.graph import SPIKING, Graph, Node, decay
from tser.export.lower import ExportError
from tser.export.shapes import window

Array = NDArray[Any]


class Emitter:
    """Collects the nodes and initialisers of one ONNX graph.

    Args:
        graph: the NIR view.
        timesteps: T.
    """

    def __init__(self, graph: Graph, timesteps: int) -> None:
        self.graph, self.timesteps = graph, timesteps
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}
        self._used = {"input", "logits"}

    def emit(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add one operator with one output; returns the output's name."""
        return self.emit_many(kind, inputs, [name], **attributes)[0]

    def emit_many(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Add one operator; its outputs get ``outputs`` as names, made unique."""
        names = [self._unique(output) for output in outputs]
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names

    def constant(self, name: str, value: Array) -> str:
        """The initialiser ``name``, added on its first use; returns its name."""
        if name not in self.initialisers:
            self.initialisers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def live(self, output: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Operators and initialisers that ``output`` depends on; the last reset is not one."""
        needed, live = {output}, []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                live.append(node)
        return live[::-1], [value for key, value in self.initialisers.items() if key in needed]

    def _unique(self, name: str) -> str:
        """``name``, or the first free ``name.1``, ``name.2``, ... that is no NIR node's name."""
        chosen, number = name, 0
        while chosen in self._used or (number and chosen in self.graph.nodes):
            number += 1
            chosen = f"{name}.{number}"
        self._used.add(chosen)
        return chosen

    def parameter(self, node: Node, name: str, value: Any) -> str | None:
        """A per-neuron parameter as a constant, collapsed where uniform; None if all zero."""
        array = _uniform(value)
        return self.constant(f"{node.name}.{name}", array) if array.any() else None

    def split(self, node: Node, folded: str, constant: bool) -> list[str]:
        """The T steps ``[B, ...]`` of a folded tensor ``[T*B, ...]``."""
        if constant or self.timesteps == 1:
            return [folded] * self.timesteps
        names = [f"{node.name}.in.{t}" for t in range(self.timesteps)]
        return self.emit_many("Split", [folded], names, axis=0, num_outputs=self.timesteps)


def _conv(emitter: Emitter, node: Node, value: str) -> str:
    geometry, spatial = window(node.op), node.op.weight.ndim - 2
    first = 2 - spatial  # a 1-d convolution has no height
    inputs = [value, emitter.constant(f"{node.name}.weight", _float32(node.op.weight))]
    if np.any(node.op.bias):
        inputs.append(emitter.constant(f"{node.name}.bias", _float32(node.op.bias)))
    return emitter.emit(
        "Conv",
        inputs,
        node.name,
        kernel_shape=geometry.kernel[first:],
        strides=geometry.stride[first:],
        dilations=geometry.dilation[first:],
        group=geometry.groups,
        pads=_pads(list(geometry.pads)[first:]),
    )


def _pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """ONNX order: all beginnings, then all ends."""
    return [begin for begin, _ in pads] + [end for _, end in pads]


def _affine(emitter: Emitter, node: Node, value: str) -> str:
    bias = getattr(node.op, "bias", None)
    if len(node.input_shape) == 1:
        inputs = [value, emitter.constant(f"{node.name}.weight", _float32(node.op.weight))]
        if bias is not None:
            inputs.append(emitter.constant(f"{node.name}.bias", _float32(bias)))
        return emitter.emit("Gemm", inputs, node.name, transB=1)
    weight = emitter.constant(f"{node.name}.weight", _float32(node.op.weight.T))
    if bias is None:
        return emitter.emit("MatMul", [value, weight], node.name)
    product = emitter.emit("MatMul", [value, weight], f"{node.name}.product")
    addend = emitter.constant(f"{node.name}.bias", _float32(bias))
    return emitter.emit("Add", [product, addend], node.name)


def _average_pool(emitter: Emitter, node: Node, value: str) -> str:
    geometry = window(node.op)
    if any(max(pads) >= size for pads, size in zip(geometry.pads, geometry.kernel, strict=True)):
        raise ExportError(f"node {node.name!r} pads by its window or more; ONNX cannot express it")
    return emitter.emit(
        "AveragePool",
        [value],
        node.name,
        kernel_shape=geometry.kernel,
        strides=geometry.stride,
        pads=_pads(geometry.pads),
        count_include_pad=1,
    )


def _sum_pool(emitter: Emitter, node: Node, value: str) -> str:
    # ONNX has no sum-pool; a depthwise convolution with ones keeps sums of spikes exact, an
    # average times the area would not.
    geometry, channels = window(node.op), node.input_shape[0]
    ones = np.ones((channels, 1, *geometry.kernel), np.float32)
    return emitter.emit(
        "Conv",
        [value, emitter.constant(f"{node.name}.ones", ones)],
        node.name,
        kernel_shape=geometry.kernel,
        strides=geometry.stride,
        pads=_pads(geometry.pads),
        group=channels,
    )


def _flatten(emitter: Emitter, node: Node, value: str) -> str:
    target = np.array([-1, *node.output_shape], np.int64)
    shape = emitter.constant(f"{node.name}.shape", target)
    return emitter.emit("Reshape", [value, shape], node.name)


def _scale(emitter: Emitter, node: Node, value: str) -> str:
    scale = emitter.constant(f"{node.name}.scale", _float32(node.op.scale))
    return emitter.emit("Mul", [value, scale], node.name)


def _threshold(emitter: Emitter, node: Node, value: str) -> str:
    threshold = emitter.constant(f"{node.name}.threshold", _float32(node.op.threshold))
    above = emitter.emit("Greater", [value, threshold], f"{node.name}.above")
    return emitter.emit("Cast", [above], node.name, to=TensorProto.FLOAT)


def _output(emitter: Emitter, node: Node, value: str) -> str:
    return value


STATELESS_EMITTERS: dict[type, Callable[[Emitter, Node, str], str]] = {
    nir.Output: _output,
    nir.Affine: _affine,
    nir.Linear: _affine,
    nir.Scale: _scale,
    nir.Conv1d: _conv,
    nir.Conv2d: _conv,
    nir.SumPool2d: _sum_pool,
    nir.AvgPool2d: _average_pool,
    nir.Flatten: _flatten,
    nir.Threshold: _threshold,
}
"""(emitter, node, folded input) -> folded output."""


class _Steps:
    """Arithmetic of one neuron layer; None stands for an all-zero operand, which costs nothing."""

    def __init__(self, emitter: Emitter, node: Node) -> None:
        self._emitter, self._node = emitter, node

    def __call__(self, kind: str, a: str | None, b: str | None, name: str) -> str | None:
        if kind == "Mul" and (a is None or b is None):
            return None
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


def _leaky(emitter: Emitter, node: Node, value: str, constant: bool) -> str:
    op, math = node.op, _Steps(emitter, node)
    rate = emitter.parameter(node, "rate", decay(emitter.graph.dt, op.tau))
    unit = bool((np.asarray(op.r) == 1).all())
    r = None if unit else emitter.parameter(node, "r", op.r)
    v_leak = emitter.parameter(node, "v_leak", op.v_leak)
    v: str | None = v_leak
    outputs = []
    driven: dict[str, str | None] = {}
    for current in emitter.split(node, value, constant):
        if current not in driven:
            scaled = current if unit else math("Mul", r, current, "ri")
            driven[current] = math("Add", scaled, v_leak, "driven")
        change = math("Mul", rate, math("Sub", driven[current], v, "pull"), "dv")
        v = math("Add", v, change, "v")
        output, v = _fire(emitter, node, math.value(v, current))
        outputs.append(output)
    return _join(emitter, node, outputs)


def _integrating(emitter: Emitter, node: Node, value: str, constant: bool) -> str:
    op, math = node.op, _Steps(emitter, node)
    gain = emitter.parameter(node, "gain", emitter.graph.dt * np.asarray(op.r, np.float64))
    v: str | None = None
    outputs = []
    for current in emitter.split(node, value, constant):
        v = math("Add", v, math("Mul", gain, current, "dv"), "v")
        output, v = _fire(emitter, node, math.value(v, current))
        outputs.append(output)
    return _join(emitter, node, outputs)


def _current_based(emitter: Emitter, node: Node, value: str, constant: bool) -> str:
    op, dt, math = node.op, emitter.graph.dt, _Steps(emitter, node)
    membrane = emitter.parameter(node, "membrane", decay(dt, op.tau_mem))
    synapse = emitter.parameter(node, "synapse", decay(dt, op.tau_syn))
    gain = emitter.parameter(node, "gain", decay(dt, op.tau_syn) * op.w_in)
    r, v_leak = (emitter.parameter(node, name, getattr(op, name)) for name in ("r", "v_leak"))
    v: str | None = v_leak
    current: str | None = None
    outputs = []
    for spikes in emitter.split(node, value, constant):
        current = math("Add", current, math("Mul", gain, spikes, "jump"), "i")
        pull = math("Add", math("Sub", v_leak, v, "leak"), math("Mul", r, current, "ri"), "pull")
        v = math("Add", v, math("Mul", membrane, pull, "dv"), "v")
        current = math("Sub", current, math("Mul", synapse, current, "di"), "kept")
        output, v = _fire(emitter, node, math.value(v, spikes))
        outputs.append(output)
    return _join(emitter, node, outputs)


def _fire(emitter: Emitter, node: Node, v: str) -> tuple[str, str]:
    """(output of this step, membrane after it); neurons without threshold put out v."""
    if not isinstance(node.op, SPIKING):
        return v, v
    threshold = emitter.constant(f"{node.name}.v_threshold", _uniform(node.op.v_threshold))
    reset = emitter.constant(f"{node.name}.v_reset", _uniform(node.op.v_reset))
    above = emitter.emit("Greater", [v, threshold], f"{node.name}.above")
    spikes = emitter.emit("Cast", [above], f"{node.name}.step", to=TensorProto.FLOAT)
    return spikes, emitter.emit("Where", [above, reset, v], f"{node.name}.after")


def _float32(value: Any) -> Array:
    return np.asarray(value, np.float32)


def _uniform(value: Any) -> Array:
    array = _float32(value)
    return array.reshape(-1)[:1] if (array == array.flat[0]).all() else array


def _delay(emitter: Emitter, node: Node, value: str, constant: bool) -> str:
    delays = np.unique(np.rint(np.asarray(node.op.delay, np.float64) / emitter.graph.dt))
    if len(delays) != 1 or delays[0] < 0:
        raise ExportError(f"node {node.name!r} delays its elements by different times")
    late = min(int(delays[0]), emitter.timesteps)
    steps = emitter.split(node, value, constant)
    zeros = [_Steps(emitter, node).value(None, steps[0])] * late if late else []
    return _join(emitter, node, [*zeros, *steps[: emitter.timesteps - late]])


def _join(emitter: Emitter, node: Node, steps: list[str]) -> str:
    return emitter.emit("Concat", steps, node.name, axis=0)


NEURON_EMITTERS: dict[type, Callable[[Emitter, Node, str, bool], str]] = {
    nir.LI: _leaky,
    nir.LIF: _leaky,
    nir.I: _integrating,
    nir.IF: _integrating,
    nir.CubaLI: _current_based,
    nir.CubaLIF: _current_based,
    nir.Delay: _delay,
}
"""(emitter, node, folded input, whether it is constant over time) -> ``[T*B, ...]``."""
