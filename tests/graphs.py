"""Small NIR graphs, built in one line each."""

import itertools
import warnings
from typing import Any

import nir
import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from numpy.typing import NDArray

from tser.export.graph import Graph, resolve
from tser.export.shapes import SHAPE_RULES, Shape, window

Array = NDArray[Any]
DT = 2.0**-10
"""A time step [s] whose ratios to `TAU` are exact in float32."""
TAU = 2.0**-9


def network(
    input_shape: Shape,
    nodes: dict[str, Any],
    edges: list[tuple[str, str]] | None = None,
    output_shape: Shape | None = None,
    **metadata: Any,
) -> nir.NIRGraph:
    """A graph from "input" to "output".

    Args:
        input_shape: without batch and time.
        nodes: all others, by name.
        edges: default: a chain through ``nodes`` in their order.
        output_shape: needed with ``edges``.
        metadata: dt is `DT` unless given; None leaves it out.
    """
    names = ["input", *nodes, "output"]
    if edges is None:
        edges = list(itertools.pairwise(names))
        shape = input_shape
        for op in nodes.values():
            shape = SHAPE_RULES[type(op)](op, shape)
        output_shape = output_shape or shape
    assert output_shape is not None
    ends = {
        "input": nir.Input(input_type={"input": np.array(input_shape)}),
        "output": nir.Output(output_type={"output": np.array(output_shape)}),
    }
    known = {"dt": DT, **metadata}
    return nir.NIRGraph(
        {"input": ends["input"], **nodes, "output": ends["output"]},
        edges,
        metadata={key: value for key, value in known.items() if value is not None},
        type_check=False,
    )


def view(*args: Any, **kwargs: Any) -> Graph:
    """`network`, resolved."""
    return resolve(network(*args, **kwargs))


def full(shape: Shape | int, value: Any) -> Array:
    """A parameter array, float32."""
    return np.full(shape, value, np.float32)


def lif(
    shape: Shape | int,
    *,
    tau: Any = TAU,
    r: Any = 1.0,
    v_leak: Any = 0.0,
    v_th: Any = 1.0,
    v_reset: Any = 0.0,
) -> nir.LIF:
    """LIF neurons with the same parameters, or with arrays of them."""
    return nir.LIF(
        tau=full(shape, tau),
        r=full(shape, r),
        v_leak=full(shape, v_leak),
        v_threshold=full(shape, v_th),
        v_reset=full(shape, v_reset),
    )


def conv(weight: Array, size: tuple[int, int] | None, **options: Any) -> nir.Conv2d:
    """A Conv2d on maps of ``size``; stride 1, no padding, no bias unless given."""
    known = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": np.zeros(len(weight))}
    chosen = known | options
    chosen["bias"] = np.asarray(chosen["bias"], np.float32)
    return nir.Conv2d(input_shape=size, weight=np.asarray(weight, np.float32), **chosen)


def pool(kind: type, kernel: Any, stride: Any = None, padding: Any = 0) -> Any:
    """An AvgPool2d or SumPool2d; the stride is the kernel unless given."""
    pairs = [np.broadcast_to(v, 2).copy() for v in (kernel, stride or kernel, padding)]
    return kind(kernel_size=pairs[0], stride=pairs[1], padding=pairs[2])


def flatten(dimensions: int = 3) -> nir.Flatten:
    """Flatten the last ``dimensions``."""
    return nir.Flatten(input_type={"input": None}, start_dim=-dimensions, end_dim=-1)


def dyadic(rng: np.random.Generator, shape: Any, bits: int = 3, most: float = 1.0) -> Array:
    """Random float32 multiples of ``2**-bits`` from ``-most`` to ``most``: sums are exact."""
    limit = int(most * 2**bits)
    return (rng.integers(-limit, limit + 1, shape) / 2**bits).astype(np.float32)


def spikes(rng: np.random.Generator, shape: Any, rate: float = 0.3) -> Array:
    """Random binary float32 values."""
    return (rng.random(shape) < rate).astype(np.float32)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Any, Shape]:
    """A Conv1d or Conv2d of any geometry with dyadic weights, many of them 0, and its input shape.

    Kernels larger than the input are among them where the padding makes room.
    """
    axes = draw(st.sampled_from([1, 2, 2]))

    def sizes(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes))

    kernel, stride, dilation, padding = sizes(1, 4), sizes(1, 3), sizes(1, 2), sizes(0, 3)
    stated: Any = draw(st.sampled_from([padding, padding, "same", "valid"]))
    if stated == "same":
        stride = [1] * axes
    groups, outputs, inputs = (draw(st.integers(1, high)) for high in (3, 2, 2))
    shape = (groups * inputs, *sizes(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    options = {
        "weight": dyadic(rng, (groups * outputs, inputs, *kernel), bits=1),
        "bias": dyadic(rng, groups * outputs),
        "groups": groups,
        "input_shape": None,
    }
    if axes == 1:
        first = stated if isinstance(stated, str) else stated[0]
        op: Any = nir.Conv1d(stride=stride[0], dilation=dilation[0], padding=first, **options)
    else:
        pads = stated if isinstance(stated, str) else tuple(stated)
        op = nir.Conv2d(stride=tuple(stride), dilation=tuple(dilation), padding=pads, **options)
    assume(min(window(op).output(*(1, *shape[1:])[-2:])) >= 1)
    return op, shape


def convolved(op: Any, x: Array) -> Array:
    """PyTorch's answer for a Conv1d or Conv2d on ``[N, C, ...]``, in the precision of ``x``."""
    function = F.conv1d if isinstance(op, nir.Conv1d) else F.conv2d
    image = torch.from_numpy(x)
    weight, bias = (torch.from_numpy(v).to(image.dtype) for v in (op.weight, op.bias))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same'")  # an even kernel costs a copy
        result = function(image, weight, bias, op.stride, op.padding, op.dilation, op.groups)
    return result.numpy()


@st.composite
def pools(draw: st.DrawFn) -> tuple[Any, Shape]:
    """A SumPool2d or AvgPool2d of any geometry that PyTorch has too, and its input shape."""
    kind = draw(st.sampled_from([nir.SumPool2d, nir.AvgPool2d]))
    pairs = [draw(st.tuples(*[st.integers(1, high)] * 2)) for high in (4, 3)]
    padding = tuple(draw(st.integers(0, size // 2)) for size in pairs[0])
    op = pool(kind, *pairs, padding)
    shape = (draw(st.integers(1, 2)), *draw(st.tuples(*[st.integers(1, 7)] * 2)))
    assume(min(window(op).output(*shape[1:])) >= 1)
    return op, shape


def taps(op: Any, shape: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """Every connection of a weighted node, one by one: (input, output, weight).

    Taps that fall on the padding are among them, with an input outside ``shape``.
    """
    if isinstance(op, nir.Affine | nir.Linear):
        fronts = itertools.product(*map(range, shape[:-1]))
        pairs = list(itertools.product(fronts, *map(range, op.weight.shape)))
        return [((*front, i), (*front, o), float(op.weight[o, i])) for front, o, i in pairs]
    maps = op.weight.ndim == 4
    weight = op.weight if maps else op.weight[:, :, None]
    geometry = window(op)
    rows, columns = geometry.output(*(1, *shape[1:])[-2:])
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    top, left = geometry.pads[0][0], geometry.pads[1][0]
    outputs, inputs = weight.shape[:2]
    found = []
    for o, y, x in itertools.product(range(outputs), range(rows), range(columns)):
        first = o // (outputs // geometry.groups) * inputs
        for c, i, j in itertools.product(*map(range, weight.shape[1:])):
            place = (first + c, y * sh + i * dh - top, x * sw + j * dw - left)
            source, target = (place, (o, y, x)) if maps else (place[::2], (o, x))
            found.append((source, target, float(weight[o, c, i, j])))
    return found


def inside(place: tuple[int, ...], shape: Shape) -> bool:
    """Whether an index lies within ``shape``."""
    return all(0 <= index < size for index, size in zip(place, shape, strict=True))
