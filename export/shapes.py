"""Shapes through a NIR graph: one rule for each node class; no batch, no time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

Shape = tuple[int, ...]

MOST_VALUES = 2**24
"""Values that a node may give for one sample and step, padding included: twenty times the largest
layer of a ResNet on ImageNet. A file that declares more would exhaust the machine."""
MOST_TAPS = 2**16
"""Positions of a kernel: a pool over a whole image of ImageNet has 50,176."""
MOST_WORK = 2**31
"""Kernel positions times channels times output positions: a layer of seconds for each sample."""


class Repairable(ValueError):
    """A shape that the file declares contradicts the one that arrives, which says what was meant.

    Attributes:
        changes: attributes of the node with the values that fit.
    """

    def __init__(self, message: str, **changes: Any) -> None:
        super().__init__(message)
        self.changes = changes


@dataclass(frozen=True)
class Window:
    """A sliding window over (H, W); 1-d convolutions have H = 1.

    Attributes:
        kernel: (KH, KW).
        stride: (SH, SW).
        dilation: (DH, DW).
        pads: ((top, bottom), (left, right)).
        groups: channel groups.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    groups: int

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Output (H, W), floored as in PyTorch."""
        sizes = []
        for axis, size in enumerate((height, width)):
            span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            sizes.append((size + sum(self.pads[axis]) - span) // self.stride[axis] + 1)
        return sizes[0], sizes[1]


def window(op: Any) -> Window:
    """The sliding window of a Conv1d, Conv2d, SumPool2d or AvgPool2d node.

    Raises:
        ValueError: a stride, dilation or padding that makes no sense.
    """
    if isinstance(op, nir.SumPool2d | nir.AvgPool2d):
        kernel = _pair(op.kernel_size)
        stride, dilation, groups = _pair(op.stride), (1, 1), 1
    elif isinstance(op, nir.Conv1d):
        kernel = (1, int(op.weight.shape[2]))
        stride = (1, _pair(op.stride)[1])
        dilation = (1, _pair(op.dilation)[1])
        groups = int(op.groups)
    else:
        kernel = (int(op.weight.shape[2]), int(op.weight.shape[3]))
        stride, dilation, groups = _pair(op.stride), _pair(op.dilation), int(op.groups)
    padding = op.padding.decode() if isinstance(op.padding, bytes) else op.padding
    if min(*stride, *dilation, *kernel, groups) < 1:
        raise ValueError("kernel, stride, dilation and groups must be at least 1")
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding must be numbers, 'same' or 'valid', got {padding!r}")
        if padding == "same" and stride != (1, 1):
            raise ValueError("padding 'same' needs stride 1")
        same = padding == "same"
        total = [d * (k - 1) if same else 0 for d, k in zip(dilation, kernel, strict=True)]
        top, left = total[0] // 2, total[1] // 2
        pads = ((top, total[0] - top), (left, total[1] - left))
    else:
        height, width = _pair(padding)
        if isinstance(op, nir.Conv1d):
            height = 0
        if min(height, width) < 0:
            raise ValueError(f"padding must not be negative, got {(height, width)}")
        pads = ((height, height), (width, width))
    return Window(kernel, stride, dilation, pads, groups)


def _pair(value: Any) -> tuple[int, int]:
    values = np.asarray(value).reshape(-1)
    if values.size not in (1, 2):
        raise ValueError(f"expected one or two numbers, got {values.tolist()}")
    return int(values[0]), int(values[-1])


def as_shape(value: Any) -> Shape | None:
    """A declared shape as a tuple, or None when the file does not state one."""
    if value is None:
        return None
    return tuple(int(size) for size in np.asarray(value).reshape(-1))


def _declared_input(op: Any, _: Shape | None) -> Shape:
    shape = as_shape(op.input_type["input"])
    if shape is None:
        raise ValueError("it declares no shape")
    if min(shape, default=1) < 1:
        raise ValueError(f"it declares the shape {shape}")
    _check_size(shape)
    return shape


def _parameters(*names: str) -> Callable[[Any, Shape], Shape]:
    """Elementwise nodes: their parameters have the shape of the input, or are one number."""

    def rule(op: Any, shape: Shape) -> Shape:
        for name in names:
            value = np.asarray(getattr(op, name))
            if value.shape not in (shape, (1,), ()):
                message = f"its {name} has shape {value.shape}, its input {shape}"
                fitting = _fitted(value, shape)
                if fitting is None:
                    raise ValueError(message)
                raise Repairable(message, **{name: fitting})
            if name.startswith("tau") and not (value > 0).all():
                raise ValueError(f"its {name} is not positive everywhere")
        return shape

    return rule


def _fitted(value: Any, shape: Shape) -> Any:
    """``value`` in ``shape`` where only axes of length 1 differ, else None."""
    if _without_ones(value.shape) == _without_ones(shape):
        return value.reshape(shape)
    if value.ndim == len(shape) and all(
        n in (1, size) for n, size in zip(value.shape, shape, strict=True)
    ):
        return np.broadcast_to(value, shape).copy()
    return None


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _affine(op: Any, shape: Shape) -> Shape:
    if op.weight.ndim != 2:
        raise ValueError(f"its weight must be [out, in], got shape {op.weight.shape}")
    outputs, inputs = op.weight.shape
    if not shape or shape[-1] != inputs:
        raise ValueError(f"its weight takes {inputs} inputs, it is given shape {shape}")
    bias = getattr(op, "bias", None)
    if bias is not None and np.shape(bias) != (outputs,):
        raise ValueError(f"its bias has shape {np.shape(bias)}, not ({outputs},)")
    result = (*shape[:-1], int(outputs))
    _check_size(result)
    return result


def _conv(op: Any, shape: Shape) -> Shape:
    spatial = op.weight.ndim - 2
    if len(shape) != spatial + 1:
        raise ValueError(f"it takes {spatial + 1}-d inputs, it is given shape {shape}")
    stated = as_shape(op.input_shape)
    if stated is not None and stated != shape[1:]:
        fitting = int(shape[1]) if spatial == 1 else np.array(shape[1:])
        message = f"it declares input_shape {stated}, it is given {shape[1:]}"
        raise Repairable(message, input_shape=fitting)
    geometry = window(op)
    outputs, per_group = int(op.weight.shape[0]), int(op.weight.shape[1])
    if per_group * geometry.groups != shape[0] or outputs % geometry.groups:
        raise ValueError(
            f"its weight {op.weight.shape} with {geometry.groups} groups does not take "
            f"{shape[0]} channels"
        )
    if np.shape(op.bias) != (outputs,):
        raise ValueError(f"its bias has shape {np.shape(op.bias)}, not ({outputs},)")
    result = (outputs, *_slide(geometry, shape)[2 - spatial :])
    _check_size(result)
    return result


def _pool(op: Any, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"it takes (C, H, W), it is given shape {shape}")
    return (shape[0], *_slide(window(op), shape))


def _slide(geometry: Window, shape: Shape) -> tuple[int, int]:
    height, width = shape[1:] if len(shape) == 3 else (1, shape[1])
    size = geometry.output(height, width)
    if min(size) < 1:
        raise ValueError(f"its window {geometry.kernel} is larger than its input {shape}")
    (top, bottom), (left, right) = geometry.pads
    _check_size((shape[0], height + top + bottom, width + left + right))
    taps = math.prod(geometry.kernel)
    if taps > MOST_TAPS or taps * shape[0] * math.prod(size) > MOST_WORK:
        raise ValueError(f"its window {geometry.kernel} on inputs {shape} is beyond what can run")
    return size


def _check_size(shape: Shape) -> None:
    if math.prod(shape) > MOST_VALUES:
        raise ValueError(
            f"shape {shape} has {math.prod(shape):,} values, more than the {MOST_VALUES:,} "
            "that a layer may have"
        )


def flatten_range(op: Any, shape: Shape) -> tuple[int, int]:
    """First and last flattened dimension (inclusive) of a Flatten node on ``shape``.

    Raises:
        ValueError: dimensions that ``shape`` does not have.
    """
    start, end = (int(d) + len(shape) * (int(d) < 0) for d in (op.start_dim, op.end_dim))
    if not 0 <= start <= end < len(shape):
        raise ValueError(f"it flattens dimensions {op.start_dim}..{op.end_dim} of shape {shape}")
    return start, end


def _flatten(op: Any, shape: Shape) -> Shape:
    stated = as_shape((op.input_type or {}).get("input"))
    if stated is not None and stated != shape:
        message = f"it declares the input {stated}, it is given {shape}"
        changes: dict[str, Any] = {"input_type": {"input": np.array(shape)}}
        if stated[1:] == shape and op.start_dim > 0:  # it counts the batch as a dimension
            changes["start_dim"] = int(op.start_dim) - 1
            changes["end_dim"] = int(op.end_dim) - (int(op.end_dim) > 0)
        raise Repairable(message, **changes)
    start, end = flatten_range(op, shape)
    return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])


def _output(op: Any, shape: Shape) -> Shape:
    stated = as_shape(op.output_type["output"])
    if stated is not None and stated != shape:
        message = f"it declares shape {stated}, it is given {shape}"
        raise Repairable(message, output_type={"output": np.array(shape)})
    return shape


_FIRING = ("v_threshold", "v_reset")
_CURRENT_BASED = ("tau_syn", "tau_mem", "r", "v_leak", "w_in")
SHAPE_RULES: dict[type, Callable[[Any, Any], Shape]] = {
    nir.Input: _declared_input,
    nir.Output: _output,
    nir.Affine: _affine,
    nir.Linear: _affine,
    nir.Scale: _parameters("scale"),
    nir.Conv1d: _conv,
    nir.Conv2d: _conv,
    nir.SumPool2d: _pool,
    nir.AvgPool2d: _pool,
    nir.Flatten: _flatten,
    nir.Delay: _parameters("delay"),
    nir.Threshold: _parameters("threshold"),
    nir.I: _parameters("r"),
    nir.IF: _parameters("r", *_FIRING),
    nir.LI: _parameters("tau", "r", "v_leak"),
    nir.LIF: _parameters("tau", "r", "v_leak", *_FIRING),
    nir.CubaLI: _parameters(*_CURRENT_BASED),
    nir.CubaLIF: _parameters(*_CURRENT_BASED, *_FIRING),
}
"""(node, input shape) -> output shape; raises ValueError with the reason when it cannot be.

``NIRGraph``, the nineteenth class, has no rule: nested graphs are opened before.
"""
