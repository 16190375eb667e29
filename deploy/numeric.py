"""Stateless NIR nodes; the first axis is any stack of samples.

Weighted sums in float32 use PyTorch's kernels, those in float64 NumPy's matrix product: what is
held against PyTorch to the last bit is as fast, and what judges it shares no kernel with it.
"""

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
CHUNK = 2**20
"""Elements of the unfolded input kept in memory at a time; few enough for a processor's cache."""


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
    kernel = _by_torch if x.dtype == np.float32 else _by_columns
    added = None if bias is None else bias.astype(x.dtype, copy=False)
    return kernel(x, weight.astype(x.dtype, copy=False), added, geometry)


def _by_columns(x: Array, weight: Array, bias: Array | None, geometry: Window) -> Array:
    """Convolution as a matrix product with the windows as columns."""
    groups, outputs = geometry.groups, len(weight)
    size = geometry.output(*x.shape[2:])
    result = np.empty((len(x), outputs, *size), x.dtype)
    taps = weight.reshape(groups, outputs // groups, -1)
    rows = groups * taps.shape[2]
    each = max(1, CHUNK // max(1, rows * size[0] * size[1]))
    for start in range(0, len(x), each):
        view = windows(x[start : start + each], geometry)
        columns = np.empty((x.shape[1], *geometry.kernel, len(view), *size), x.dtype)
        for place in np.ndindex(*geometry.kernel):  # whole rows of the map at a time
            columns[:, *place] = view[..., *place].transpose(1, 0, 2, 3)
        products = taps @ columns.reshape(groups, taps.shape[2], -1)
        maps = products.reshape(outputs, len(view), *size).transpose(1, 0, 2, 3)
        result[start : start + each] = maps
    if bias is not None:
        result += bias.reshape(1, -1, 1, 1)
    return result


def _by_torch(x: Array, weight: Array, bias: Array | None, geometry: Window) -> Array:
    import torch  # here, so that looking at a graph does not wait for it

    (top, bottom), (left, right) = geometry.pads
    with torch.inference_mode():
        image, padding = _tensor(x), (top, left)
        if geometry.pads != ((top, top), (left, left)):
            image, padding = torch.nn.functional.pad(image, (left, right, top, bottom)), (0, 0)
        result = torch.nn.functional.conv2d(
            image,
            _tensor(weight),
            None if bias is None else _tensor(bias),
            geometry.stride,
            padding,
            geometry.dilation,
            geometry.groups,
        )
        return result.contiguous().numpy()


def _tensor(array: Array) -> Any:
    """``array`` as a tensor, which shares its memory where PyTorch allows that."""
    import torch

    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _conv2d(node: Node, x: Array) -> Array:
    return convolve(x, node.op.weight, node.op.bias, window(node.op))


def _conv1d(node: Node, x: Array) -> Array:
    weight = node.op.weight[:, :, None, :]
    return convolve(x[:, :, None, :], weight, node.op.bias, window(node.op))[:, :, 0, :]


def _affine(node: Node, x: Array) -> Array:
    """``[..., in]`` -> ``[..., out]``."""
    weight = node.op.weight.astype(x.dtype, copy=False)
    bias = getattr(node.op, "bias", None)
    if x.dtype == np.float32:
        import torch

        with torch.inference_mode():
            result: Array = (_tensor(x) @ _tensor(weight).T).numpy()
    else:
        result = x @ weight.T
    return result if bias is None else result + bias.astype(x.dtype, copy=False)


def _sum_pool(node: Node, x: Array) -> Array:
    geometry = window(node.op)
    view = windows(x, geometry)
    if geometry.kernel[0] * geometry.kernel[1] > view.shape[2] * view.shape[3]:
        total: Array = view.sum((-2, -1))
        return total
    total = np.zeros(view.shape[:4], x.dtype)
    for place in np.ndindex(*geometry.kernel):
        total += view[..., *place]
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
