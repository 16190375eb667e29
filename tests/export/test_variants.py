"""The same network in other units: the same spikes, and what a file of it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import nir
import norse.torch as norse
import numpy as np
import pytest
import torch
from torch import nn

from tests.graphs import Array
from tser.config import NeuronConfig, StudentConfig
from tser.deploy.interpreter import run
from tser.errors import UsageError
from tser.export.graph import decay, resolve
from tser.export.lower import lower
from tser.export.nir_file import digest, read_nir, write_nir
from tser.export.variants import Variant, stated_variant, vary, without_reset
from tser.students import build_student
from tser.user_models import UserStudent

STEPS = 5


def _convnet(tau: float = 2e-3, **neuron: float) -> nir.NIRGraph:
    torch.manual_seed(0)
    values = NeuronConfig(tau_mem=tau, **neuron)
    config = StudentConfig(timesteps=STEPS, width=4, stages=2)
    student = build_student(config, values, (1, 8, 8), 10).eval()
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight *= 2
    return lower(student).graph


def _cells() -> nir.NIRGraph:
    torch.manual_seed(0)
    model = norse.SequentialState(
        nn.Flatten(),
        nn.Linear(64, 20), norse.IAFCell(),
        norse.LIFRecurrentCell(20, 12, norse.LIFParameters(v_th=torch.tensor(0.1))),
        nn.Linear(12, 10), norse.LICell(),
    )  # fmt: skip
    return lower(UserStudent(model, STEPS, (1, 8, 8), 10, "mine:make").eval()).graph


def _run(graph: nir.NIRGraph) -> tuple[Array, dict[str, Array]]:
    view = resolve(graph)
    x = np.random.default_rng(0).normal(0.5, 1, (6, 1, 8, 8)).astype(np.float32)
    logits, spikes = run(view, x, STEPS, record=[node.name for node in view.spiking])
    for name, value in spikes.items():
        assert 0.01 < value.mean() < 0.9, name
    return logits, spikes


def _same(a: nir.NIRGraph, b: nir.NIRGraph) -> None:
    (logits, spikes), (others, theirs) = _run(a), _run(b)
    for name, value in spikes.items():
        np.testing.assert_array_equal(theirs[name], value)
    np.testing.assert_allclose(others, logits, rtol=1e-4, atol=1e-6)


GRAPHS = {"convnet": _convnet, "cells": _cells, "slow": lambda: _convnet(3.7e-3, v_leak=0.05)}
VARIANTS = {
    "unit": Variant("unit"),
    "dt": Variant(dt=1e-4),
    "both": Variant("unit", 2.5e-4),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", GRAPHS)
def test_another_variant_is_the_same_network(name: str, variant: str) -> None:
    graph = GRAPHS[name]()
    before = digest(graph)
    varied = vary(graph, VARIANTS[variant])
    _same(graph, varied)
    assert digest(graph) == before
    assert digest(varied) != before
    assert stated_variant(varied.metadata) == VARIANTS[variant]
    assert vary(graph, stated_variant(varied.metadata)).metadata == varied.metadata
    assert digest(vary(graph, stated_variant(varied.metadata))) == digest(varied)


def test_the_plain_variant_is_the_graph_itself() -> None:
    graph = _convnet()
    assert vary(graph, Variant()) is graph
    assert stated_variant(graph.metadata) == Variant()


def test_unit_gain_is_the_convention_of_snntorch() -> None:
    """``r = tau / dt``, and one step adds the synapse's output as it is."""
    graph, varied = _convnet(4e-3), vary(_convnet(4e-3), Variant("unit"))
    for name, op in graph.nodes.items():
        other = varied.nodes[name]
        if isinstance(op, nir.LIF):
            np.testing.assert_allclose(other.r, op.tau / 1e-3, rtol=1e-6)
            np.testing.assert_allclose(decay(1e-3, other.tau) * other.r, 1, rtol=1e-6)
            np.testing.assert_array_equal(other.tau, op.tau)
        if isinstance(op, nir.Conv2d):
            np.testing.assert_array_equal(other.weight, op.weight / 4)
            np.testing.assert_array_equal(other.bias, op.bias / 4)
    np.testing.assert_array_equal(varied.nodes["readout"].weight, graph.nodes["readout"].weight)


def test_an_identity_shortcut_gets_a_scale_of_its_own() -> None:
    """Spikes have no weights to make smaller."""
    varied = vary(_convnet(), Variant("unit"))
    between = varied.nodes["block1_neuron_gain_stem_lif"]
    assert isinstance(between, nir.Scale)
    assert (between.scale == 0.5).all()
    assert ("stem_lif", "block1_neuron_gain_stem_lif") in varied.edges
    assert ("stem_lif", "block1_neuron") not in varied.edges
    assert sum(isinstance(op, nir.Scale) for op in varied.nodes.values()) == 1


def test_another_dt_keeps_the_time_constants_in_steps() -> None:
    graph, varied = _cells(), vary(_cells(), Variant(dt=1e-4))
    assert (varied.metadata["dt"], varied.metadata["dt_before"]) == (1e-4, 1e-3)
    for name, op in graph.nodes.items():
        other: Any = varied.nodes[name]
        for key in ("tau", "tau_mem", "tau_syn"):
            if hasattr(op, key):
                np.testing.assert_allclose(getattr(other, key) * 10, getattr(op, key), rtol=1e-6)
        if isinstance(op, nir.IF):
            np.testing.assert_allclose(other.r, 10 * op.r, rtol=1e-6)


@pytest.mark.parametrize("dt", [0.0, -1e-3, float("nan"), float("inf")])
def test_a_dt_that_is_none_is_refused(dt: float) -> None:
    with pytest.raises(UsageError, match="--dt must be a positive number of seconds"):
        vary(_cells(), Variant(dt=dt))


# --- files ---------------------------------------------------------------------------------


def test_a_compatible_file_leaves_out_the_resets_and_reads_the_same(tmp_path: Path) -> None:
    graph = _convnet()
    names = without_reset(graph)
    assert sorted(names) == sorted(n for n, op in graph.nodes.items() if isinstance(op, nir.LIF))
    write_nir(graph, tmp_path / "a.nir", without_reset=names)
    with h5py.File(tmp_path / "a.nir") as file:
        for name in names:
            assert "v_reset" not in file[f"node/nodes/{name}"]
            assert "v_threshold" in file[f"node/nodes/{name}"]
    assert digest(read_nir(tmp_path / "a.nir")) == digest(graph)


def test_a_reset_that_is_not_zero_cannot_be_left_out() -> None:
    with pytest.raises(UsageError, match="layer 'stem_lif' resets to another value than 0"):
        without_reset(_convnet(v_reset=-0.1))


def test_compression_changes_the_size_and_nothing_else(tmp_path: Path) -> None:
    graph = _convnet()
    sizes = []
    for level in (0, 9):
        write_nir(graph, tmp_path / f"{level}.nir", compression=level)
        sizes.append((tmp_path / f"{level}.nir").stat().st_size)
        assert digest(read_nir(tmp_path / f"{level}.nir")) == digest(graph)
    assert sizes[1] < 0.95 * sizes[0]
