"""Shape rules against PyTorch, and every refusal with its reason."""

import re
from typing import Any

import nir
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import conv, convolutions, convolved, flatten, full, lif, pool, pools
from tser.export.shapes import SHAPE_RULES, Shape, as_shape, flatten_range, window

ANY = settings(deadline=None, derandomize=True, max_examples=100)


def _shape(op: Any, shape: Shape) -> Shape:
    return SHAPE_RULES[type(op)](op, shape)


@ANY
@given(convolutions())
def test_convolutions_have_the_shape_of_pytorch(case: tuple[Any, Shape]) -> None:
    op, shape = case
    assert _shape(op, shape) == convolved(op, np.zeros((1, *shape), np.float32)).shape[1:]


@ANY
@given(pools())
def test_pools_have_the_shape_of_pytorch(case: tuple[Any, Shape]) -> None:
    op, shape = case
    sizes = [tuple(v.tolist()) for v in (op.kernel_size, op.stride, op.padding)]
    assert _shape(op, shape) == tuple(F.avg_pool2d(torch.zeros(1, *shape), *sizes).shape[1:])


@ANY
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_flatten_has_the_shape_of_pytorch(sizes: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(sizes) - 1))
    end = data.draw(st.integers(start, len(sizes) - 1))
    expected = tuple(torch.zeros(sizes).flatten(start, end).shape)
    for shift in (0, len(sizes)):  # counted from the front and from the end
        op = nir.Flatten({"input": None}, start_dim=start - shift, end_dim=end - shift)
        assert _shape(op, tuple(sizes)) == expected


def test_flatten_of_the_portable_profile() -> None:
    assert _shape(flatten(), (3, 4, 5)) == (60,)
    assert flatten_range(flatten(), (3, 4, 5)) == (0, 2)


def test_affine_maps_the_last_dimension() -> None:
    op = nir.Affine(weight=full((5, 4), 1), bias=full(5, 0))
    assert _shape(op, (4,)) == (5,)
    assert _shape(op, (2, 3, 4)) == (2, 3, 5)
    assert _shape(nir.Linear(weight=full((5, 4), 1)), (4,)) == (5,)


def test_one_number_fits_any_shape_of_neurons() -> None:
    for shape in ((), (1,), (2, 3, 3)):
        assert _shape(lif(shape), (2, 3, 3)) == (2, 3, 3)


def test_padding_same_puts_the_odd_element_behind() -> None:
    op = conv(np.ones((1, 1, 4, 3)), None, padding="same", dilation=(1, 2))
    assert window(op).pads == ((1, 2), (2, 2))


def test_a_padding_read_from_a_file_may_be_bytes() -> None:
    op = conv(np.ones((1, 1, 3, 3)), None)
    op.padding = b"same"
    assert window(op).pads == ((1, 1), (1, 1))


def test_declared_shapes() -> None:
    assert as_shape(None) is None
    assert as_shape(np.array([2, 3])) == (2, 3)
    assert as_shape(7) == (7,)


def _conv1d(**options: Any) -> nir.Conv1d:
    known: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    weight, bias = np.ones((2, 1, 3)), np.zeros(2)
    return nir.Conv1d(input_shape=None, weight=weight, bias=bias, **(known | options))


def _cuba(**arrays: Any) -> nir.CubaLIF:
    names = ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in")
    return nir.CubaLIF(**{name: arrays.get(name, full(1, 1)) for name in names})


def _named(op: Any, name: str, value: Any) -> Any:
    """``op`` with an attribute that its own constructor would have refused."""
    setattr(op, name, value)
    return op


ONES = np.ones((2, 1, 3, 3))
REFUSED: dict[str, tuple[Any, Shape, str]] = {
    "stride": (conv(ONES, None, stride=0), (1, 5, 5), "must be at least 1"),
    "dilation": (conv(ONES, None, dilation=0), (1, 5, 5), "must be at least 1"),
    "groups": (conv(ONES, None, groups=0), (1, 5, 5), "must be at least 1"),
    "kernel": (pool(nir.AvgPool2d, 0, 1), (1, 5, 5), "must be at least 1"),
    "negative padding": (conv(ONES, None, padding=-1), (1, 5, 5), "must not be negative"),
    "word": (_named(conv(ONES, None), "padding", "full"), (1, 5, 5), "'same' or 'valid'"),
    "same with stride": (conv(ONES, None, stride=2, padding="same"), (1, 5, 5), "needs stride 1"),
    "three numbers": (pool(nir.SumPool2d, 2), (1, 5, 5), "one or two numbers"),
    "channels": (conv(ONES, None), (3, 5, 5), "does not take 3 channels"),
    "groups of outputs": (conv(ONES, None, groups=3), (3, 5, 5), "does not take 3 channels"),
    "bias": (conv(ONES, None, bias=np.zeros(3)), (1, 5, 5), "bias has shape (3,)"),
    "input_shape": (conv(ONES, (6, 5)), (1, 5, 5), "declares input_shape (6, 5)"),
    "map": (conv(ONES, None), (25,), "takes 3-d inputs"),
    "map of a pool": (pool(nir.SumPool2d, 2), (25,), "takes (C, H, W)"),
    "signal": (_conv1d(), (1, 5, 5), "takes 2-d inputs"),
    "window": (conv(ONES, None), (1, 2, 5), "larger than its input"),
    "window of a pool": (pool(nir.AvgPool2d, 4), (1, 5, 3), "larger than its input"),
    "window in 1-d": (_conv1d(dilation=3), (1, 5), "larger than its input"),
    "affine": (nir.Linear(weight=full((2, 3), 1)), (4,), "takes 3 inputs"),
    "affine bias": (nir.Affine(full((2, 3), 1), full(3, 0)), (3,), "bias has shape (3,)"),
    "affine weight": (nir.Linear(weight=full((2, 3, 4), 1)), (4,), "must be [out, in]"),
    "neurons": (lif((2, 3)), (3, 2), "its tau has shape (2, 3)"),
    "ones in front": (lif((1, 1, 1)), (3,), "its tau has shape (1, 1, 1)"),
    "one parameter": (_named(lif(3), "v_reset", full(2, 0)), (3,), "its v_reset has shape (2,)"),
    "input weight": (_cuba(w_in=full(7, 1)), (3,), "its w_in has shape (7,)"),
    "tau": (lif(2, tau=[1e-3, 0]), (2,), "its tau is not positive"),
    "tau is not a number": (lif(2, tau=np.nan), (2,), "its tau is not positive"),
    "synaptic tau": (_cuba(tau_syn=full(1, -1)), (2,), "its tau_syn is not positive"),
    "scale": (nir.Scale(full(2, 1)), (3,), "its scale has shape (2,)"),
    "threshold": (nir.Threshold(full(2, 1)), (3,), "its threshold has shape (2,)"),
    "delay": (nir.Delay(full(2, 1)), (3,), "its delay has shape (2,)"),
    "flatten": (flatten(3), (3, 4), "flattens dimensions -3..-1"),
    "output": (nir.Output(output_type={"output": np.array([3])}), (4,), "declares shape (3,)"),
    "input": (nir.Input(input_type={"input": np.array([1, -8, 8])}), (), "the shape (1, -8, 8)"),
    "input without shape": (nir.Input(input_type={"input": None}), (), "declares no shape"),
}
REFUSED["three numbers"][0].stride = np.array([1, 2, 3])


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused_with_the_reason(case: str) -> None:
    op, shape, reason = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(reason)):
        _shape(op, shape)
