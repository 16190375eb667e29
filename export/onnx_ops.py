"""How each stateless NIR node is written in ONNX operators.

Every operator sees one time step, ``[B, ...]``. Folding T into the batch would take a Split and a
Concat around every neuron; unrolled, nothing is copied between the layers and a step is still in
the cache when the next operator reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import nir
import numpy as np
from onnx import TensorProto

from tser.export.graph import Node
from tser.export.lower import ExportError
from tser.export.onnx_emitter import Emitter, float32
from tser.export.shapes import window


def _conv(emitter: Emitter, node: Node, value: str, name: str) -> str:
    geometry, spatial = window(node.op), node.op.weight.ndim - 2
    first = 2 - spatial  # a 1-d convolution has no height
    inputs = [value, emitter.weight(f"{node.name}.weight", node.op.weight)]
    if np.any(node.op.bias):
        inputs.append(emitter.weight(f"{node.name}.bias", node.op.bias))
    return emitter.emit(
        "Conv",
        inputs,
        name,
        kernel_shape=geometry.kernel[first:],
        strides=geometry.stride[first:],
        dilations=geometry.dilation[first:],
        group=geometry.groups,
        pads=_pads(list(geometry.pads)[first:]),
    )


def _pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """ONNX order: all beginnings, then all ends."""
    return [begin for begin, _ in pads] + [end for _, end in pads]


def _affine(emitter: Emitter, node: Node, value: str, name: str) -> str:
    bias = getattr(node.op, "bias", None)
    if len(node.input_shape) == 1:
        inputs = [value, emitter.weight(f"{node.name}.weight", node.op.weight)]
        if bias is not None:
            inputs.append(emitter.weight(f"{node.name}.bias", bias))
        return emitter.emit("Gemm", inputs, name, transB=1)
    weight = emitter.weight(f"{node.name}.weight", node.op.weight.T)
    if bias is None:
        return emitter.emit("MatMul", [value, weight], name)
    product = emitter.emit("MatMul", [value, weight], f"{node.name}.product")
    addend = emitter.weight(f"{node.name}.bias", bias)
    return emitter.emit("Add", [product, addend], name)


def _average_pool(emitter: Emitter, node: Node, value: str, name: str) -> str:
    geometry = window(node.op)
    if any(max(pads) >= size for pads, size in zip(geometry.pads, geometry.kernel, strict=True)):
        raise ExportError(f"node {node.name!r} pads by its window or more; ONNX cannot express it")
    return emitter.emit(
        "AveragePool",
        [value],
        name,
        kernel_shape=geometry.kernel,
        strides=geometry.stride,
        pads=_pads(geometry.pads),
        count_include_pad=1,
    )


def _sum_pool(emitter: Emitter, node: Node, value: str, name: str) -> str:
    # ONNX has no sum-pool; a depthwise convolution with ones keeps sums of spikes exact, an
    # average times the area would not.
    geometry, channels = window(node.op), node.input_shape[0]
    ones = np.ones((channels, 1, *geometry.kernel), np.float32)
    return emitter.emit(
        "Conv",
        [value, emitter.constant(f"{node.name}.ones", ones)],
        name,
        kernel_shape=geometry.kernel,
        strides=geometry.stride,
        pads=_pads(geometry.pads),
        group=channels,
    )


def _flatten(emitter: Emitter, node: Node, value: str, name: str) -> str:
    target = np.array([-1, *node.output_shape], np.int64)
    shape = emitter.constant(f"{node.name}.shape", target)
    return emitter.emit("Reshape", [value, shape], name)


def _scale(emitter: Emitter, node: Node, value: str, name: str) -> str:
    scale = emitter.constant(f"{node.name}.scale", float32(node.op.scale))
    return emitter.emit("Mul", [value, scale], name)


def _threshold(emitter: Emitter, node: Node, value: str, name: str) -> str:
    threshold = emitter.constant(f"{node.name}.threshold", float32(node.op.threshold))
    above = emitter.emit("Greater", [value, threshold], f"{node.name}.above")
    return emitter.emit("Cast", [above], name, to=TensorProto.FLOAT)


def _output(emitter: Emitter, node: Node, value: str, name: str) -> str:
    return value


STATELESS_EMITTERS: dict[type, Callable[[Emitter, Node, str, str], str]] = {
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
"""(emitter, node, input, name of the output) -> output, all of one step."""
