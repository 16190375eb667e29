"""The counters of other libraries, where they are right, and benchmarks/counters.py."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import nir
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from tests.graphs import convolutions, spikes, view
from tser.deploy.counting import count_operations
from tser.deploy.foreign import quiet
from tser.export.shapes import Shape

ROOT = Path(__file__).parents[2]
GOLDEN = {
    "3x3, pad 1": 6744,
    "3x3, no pad": 4824,
    "3x3, stride 2, pad 1": 1696,
    "1x1, stride 2": 264,
    "depthwise 3x3": 1686,
    "3x3, dilation 2, pad 2": 5704,
}
SOME = settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("counters")


@pytest.fixture
def layer_operations() -> Any:
    """NeuroBench's count of one layer: (input, layer, total) -> (operations, whether spiking)."""
    with quiet():
        pytest.importorskip("neurobench", reason="NeuroBench is absent")
        from neurobench.metrics.utils.layers import single_layer_MACs
    return single_layer_MACs


def test_ours_is_what_is_counted_one_by_one(counters: ModuleType) -> None:
    found = {case.title: counters.ours(case) for case in counters.cases()}
    expected = {case.title: counters.brute_force(case) for case in counters.cases()}
    assert found == expected
    assert {title: found[title].ac for title in GOLDEN} == GOLDEN
    kinds = {title for title, ops in found.items() if ops.mac}
    assert kinds == {"analog image", "analog, but one batch binary"}


def test_neurobench_agrees_on_spikes(counters: ModuleType, layer_operations: Any) -> None:
    """Also where they have a sign; of all connections it counts those with a weight alone."""
    right = {*GOLDEN, "half of the weights 0", "3x3, no pad, with bias", "signed spikes, -1 and 1"}
    for case in counters.cases():
        if case.title in right:
            with quiet():
                peer = counters.neurobench(case)
            assert (peer.ac, peer.mac) == (counters.ours(case).effective, 0), case.title


@SOME
@given(convolutions())
def test_neurobench_agrees_on_any_convolution(
    layer_operations: Any, case: tuple[Any, Shape]
) -> None:
    op, shape = case
    x = spikes(np.random.default_rng(0), (1, 2, *shape))
    kind = nn.Conv1d if isinstance(op, nir.Conv1d) else nn.Conv2d
    outputs, inputs = len(op.weight), shape[0]
    padding = op.padding if isinstance(op.padding, str) else tuple(np.ravel(op.padding).tolist())
    stride, dilation = (tuple(np.ravel(v).tolist()) for v in (op.stride, op.dilation))
    geometry = (op.weight.shape[2:], stride, padding, dilation)
    layer = kind(inputs, outputs, *geometry, op.groups)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(op.weight))
    (row,) = count_operations(view(shape, {"conv": op}), [x]).layers
    with quiet():
        effective, spiking = layer_operations(torch.from_numpy(x[0]), layer)
        dense, _ = layer_operations(torch.from_numpy(x[0]), layer, total=True)
    assert spiking
    assert (row.sop_effective.sum(), row.dense) == (effective, dense)


def test_neurobench_agrees_on_its_keyword_spotter(layer_operations: Any) -> None:
    """M5 on 8,000 samples: 1,880,256 operations, layer by layer."""
    x, total = torch.ones(1, 1, 8000), 0
    layers = [nn.Conv1d(i, o, *g) for i, o, *g in ((1, 32, 80, 16), (32, 32, 3), (32, 64, 3))]
    for layer in [*layers, nn.Conv1d(64, 64, 3)]:
        with quiet():
            dense, _ = layer_operations(x, layer, total=True)
        total += dense
        weight, stride = layer.weight.detach().numpy(), layer.stride[0]
        op = nir.Conv1d(None, weight, stride, 0, 1, 1, np.zeros(len(weight), np.float32))
        (row,) = count_operations(view(x.shape[1:], {"conv": op}), [x[None].numpy()]).layers
        assert row.dense == dense
        x = nn.functional.max_pool1d(layer(x), 4).detach()
    with quiet():
        total += layer_operations(x.mean(-1), nn.Linear(64, 35), total=True)[0]
    assert total == 1_880_256


def test_the_document_says_what_was_counted(counters: ModuleType) -> None:
    text = counters.DOCUMENT.read_text(encoding="utf-8")
    made = counters.table(counters.read_rows(counters.RESULTS))
    assert f"{counters.BEGIN}{made}{counters.END}" in text


def test_the_results_are_of_these_cases(counters: ModuleType) -> None:
    newest = counters.read_rows(counters.RESULTS)[-1]
    assert list(newest["cases"]) == [case.title for case in counters.cases()]
    for case in counters.cases():
        assert newest["cases"][case.title]["tser"] == vars(counters.ours(case))
        assert newest["cases"][case.title]["why"] == case.why
