"""Stateless nodes in NumPy against PyTorch, over any geometry."""

from typing import Any

import nir
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import Array, conv, convolutions, convolved, dyadic, full, pools, view
from tser.deploy import numeric
from tser.deploy.numeric import STATELESS
from tser.export.graph import Node
from tser.export.shapes import SHAPE_RULES, Shape

ANY = settings(deadline=None, derandomize=True, max_examples=100)
RNG = np.random.default_rng(0)


def _apply(op: Any, x: Array) -> Array:
    shape = x.shape[1:]
    node = Node("node", op, (), shape, SHAPE_RULES[type(op)](op, shape))
    return STATELESS[type(op)](node, x)


@ANY
@given(convolutions(), st.integers(1, 3))
def test_convolution(case: tuple[Any, Shape], count: int) -> None:
    op, shape = case
    x = dyadic(np.random.default_rng(count), (count, *shape))
    expected = convolved(op, x)
    np.testing.assert_array_equal(_apply(op, x), expected)
    np.testing.assert_array_equal(_apply(op, x.astype(np.float64)), expected)


def test_what_may_not_be_written_is_read() -> None:
    """Weights of a file may be read-only, and values that are constant over time are a view."""
    x, op = dyadic(RNG, (1, 2, 6, 6)), conv(dyadic(RNG, (3, 2, 3, 3)), None)
    expected = _apply(op, np.repeat(x, 4, 0))
    op.weight.flags.writeable = op.bias.flags.writeable = False
    np.testing.assert_array_equal(_apply(op, np.broadcast_to(x, (4, 2, 6, 6))), expected)
    linear = nir.Linear(np.broadcast_to(np.float32(2), (3, 6)))
    np.testing.assert_array_equal(_apply(linear, x), np.repeat(2 * x.sum(-1, keepdims=True), 3, -1))


@ANY
@given(pools(), st.integers(1, 3))
def test_pools(case: tuple[Any, Shape], count: int) -> None:
    op, shape = case
    x = np.random.default_rng(count).normal(size=(count, *shape))
    sizes = [tuple(v.tolist()) for v in (op.kernel_size, op.stride, op.padding)]
    expected = F.avg_pool2d(torch.from_numpy(x), *sizes).numpy()
    if isinstance(op, nir.SumPool2d):
        expected = expected * np.prod(op.kernel_size)
    np.testing.assert_allclose(_apply(op, x), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_input_decides_the_precision(dtype: type[np.floating[Any]]) -> None:
    x = RNG.normal(size=(2, 3, 5, 5)).astype(dtype)
    op = conv(RNG.normal(size=(4, 3, 3, 3)), None, bias=RNG.normal(size=4), padding=1)
    result = _apply(op, x)
    assert result.dtype == dtype
    error = np.abs(result - convolved(op, x.astype(np.float64))).max()
    assert error < 1e-5 if dtype is np.float32 else error < 1e-13
    affine = nir.Affine(weight=RNG.normal(size=(2, 5)), bias=RNG.normal(size=2))
    found = _apply(affine, x)
    assert found.dtype == dtype
    error = np.abs(found - (x.astype(np.float64) @ affine.weight.T + affine.bias)).max()
    assert error < 1e-5 if dtype is np.float32 else error < 1e-13


def test_a_batch_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = dyadic(RNG, (7, 2, 6, 6)).astype(np.float64)
    op = conv(dyadic(RNG, (3, 2, 3, 3)), None, padding=1)
    whole, sizes = _apply(op, x), []

    def counted(part: Array, geometry: Any) -> Array:
        sizes.append(len(part))
        return windows(part, geometry)

    windows = numeric.windows
    monkeypatch.setattr(numeric, "windows", counted)
    monkeypatch.setattr(numeric, "CHUNK", 2 * 36 * 18)
    np.testing.assert_array_equal(_apply(op, x), whole)
    assert sizes == [2, 2, 2, 1]


def test_affine_linear_and_scale() -> None:
    x, weight, bias = dyadic(RNG, (3, 2, 5)), dyadic(RNG, (4, 5)), dyadic(RNG, 4)
    product = np.einsum("noi,ki->nok", x, weight)
    np.testing.assert_array_equal(_apply(nir.Affine(weight, bias), x), product + bias)
    np.testing.assert_array_equal(_apply(nir.Linear(weight), x), product)
    scale = dyadic(RNG, (2, 5))
    np.testing.assert_array_equal(_apply(nir.Scale(scale), x), x * scale)


def test_threshold_is_strict() -> None:
    x = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.25]], np.float32)
    assert _apply(nir.Threshold(full(3, 0.5)), x).tolist() == [[0, 1, 0]]


def test_flatten_and_the_ends_keep_the_values() -> None:
    x = dyadic(RNG, (2, 3, 4, 5))
    part = nir.Flatten({"input": None}, start_dim=1, end_dim=2)
    np.testing.assert_array_equal(_apply(part, x), x.reshape(2, 3, 20))
    graph = view((3,), {})
    for node in (graph.input, graph.output):
        assert STATELESS[type(node.op)](node, x) is x
