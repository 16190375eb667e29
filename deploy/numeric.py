"""Stateless NIR nodes in NumPy; the first axis is any stack of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tser.export.graph import Node
from tser.export.shapes import Window, flatten_range, window

Array = NDArray[Any]
CHUNK = 2**24
"""Elements of the unfolded input kept in memory at a time."""


def windows(x: Array, geometry: Window) -> Array:
    """View of ``x`` ``[N, C, H, W]`` as its windows, ``[N, C, H', W', KH, KW]``, zero-padded."""
    padded = np.pad(x, ((0, 0), (0, 0), *geometry.pads))
    (kh, kw), (dh, dw), (sh, sw) = geometry.kernel, geometry.dilation, geometry.stride
    span = (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    view = sliding_window_view(padded, span, axis=(2, 3))
    return view[:, :, ::sh, ::sw, ::dh, ::dw]


def convolve(x: Array, weight: Array, bias: Array | None, geometry: Window) -> Array:
    """Cross-correlation, ``[N, C, H, W]`` -> ``[N, O, H', W']``, in the dtype of ``x``.

    Args:
        x: ``[N, C, H, W]``.
        weight: ``[O, C / groups, KH, KW]``.
        bias: ``[O]`` or None.
        geometry: stride, padding, dilation, groups.
    """
    groups = geometry.groups
    outputs = len(weight)
    height, width = geometry.output(*x.shape[2:])
    result = np.empty((len(x), outputs, height, width), x.dtype)
    taps = weight.astype(x.dtype, copy=False).reshape(groups, outputs // groups, -1)
    each = max(1, CHUNK // max(1, height * width * taps.shape[0] * taps.shape[2]))
    for start in range(0, len(x), each):
        view = windows(x[start : start + each], geometry)
        count = len(view)
        columns = view.reshape(count, groups, -1, *view.shape[2:]).transpose(1, 0, 3, 4, 2, 5, 6)
        columns = columns.reshape(groups, count * height * width, -1)
        products = columns @ taps.transpose(0, 2, 1)
        products = products.reshape(groups, count, height, width, -1).transpose(1, 0, 4, 2, 3)
        result[start : start + each] = products.reshape(count, outputs, height, width)
    if bias is not None:
        result += bias.astype(x.dtype, copy=False).reshape(1, -1, 1, 1)
    return result


def _conv2d(node: Node, x: Array) -> Array:
    return convolve(x, node.op.weight, node.op.bias, window(node.op))


def _conv1d(node: Node, x: Array) -> Array:
    weight = node.op.weight[:, :, None, :]
    return convolve(x[:, :, None, :], weight, node.op.bias, window(node.op))[:, :, 0, :]


def _affine(node: Node, x: Array) -> Array:
    weight: Array = node.op.weight.astype(x.dtype, copy=False)
    result: Array = x @ weight.T
    bias = getattr(node.op, "bias", None)
    return result if bias is None else result + bias.astype(x.dtype, copy=False)


def _sum_pool(node: Node, x: Array) -> Array:
    total: Array = windows(x, window(node.op)).sum((-2, -1))
    return total


def _average_pool(node: Node, x: Array) -> Array:
    kernel = window(node.op).kernel
    mean: Array = _sum_pool(node, x) / x.dtype.type(kernel[0] * kernel[1])
    return mean


def _flatten(node: Node, x: Array) -> Array:
    flatten_range(node.op, node.input_shape)
    return x.reshape(len(x), *node.output_shape)


def _scale(node: Node, x: Array) -> Array:
    scaled: Array = x * np.asarray(node.op.scale, x.dtype)
    return scaled


def _threshold(node: Node, x: Array) -> Array:
    return (x > np.asarray(node.op.threshold, x.dtype)).astype(x.dtype)


def _identity(node: Node, x: Array) -> Array:
    return x


STATELESS: dict[type, Callable[[Node, Array], Array]] = {
    nir.Input: _identity,
    nir.Output: _identity,
    nir.Affine: _affine,
    nir.Linear: _affine,
    nir.Scale: _scale,
    nir.Conv1d: _conv1d,
    nir.Conv2d: _conv2d,
    nir.SumPool2d: _sum_pool,
    nir.AvgPool2d: _average_pool,
    nir.Flatten: _flatten,
    nir.Threshold: _threshold,
}
"""(node, ``[N, *input_shape]``) -> ``[N, *output_shape]``, in the dtype of the input."""
