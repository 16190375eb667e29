"""Graphs written by other libraries: tser gives the spikes of the library's own network."""

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import nn

from tests.graphs import Array
from tser.deploy.interpreter import run

RIGHT = [
    ("snnTorch", "conv"),
    ("snnTorch", "synaptic"),
    ("snnTorch", "recurrent"),
    ("SpikingJelly", "conv"),
    ("SpikingJelly", "reset"),
    ("SpikingJelly", "if"),
    ("SpikingJelly", "cuba"),
]


@pytest.fixture
def written(exporting, need):
    """A graph that a library writes of one of our networks, and what its own network did."""

    def make(library: str, case: Any) -> Any:
        need(library)
        known = exporting.CASES[library]
        return exporting.write(library, known[case] if isinstance(case, str) else case)

    return make


def _silent(spikes: dict[str, Array]) -> bool:
    return any(not 0.01 < value.mean() < 0.95 for value in spikes.values())


def test_every_network_of_the_table_is_tested(exporting) -> None:
    listed = [(library, name) for library, cases in exporting.CASES.items() for name in cases]
    assert listed == [*RIGHT, ("Norse", "boxes")]


@pytest.mark.parametrize(("library", "name"), RIGHT)
def test_a_graph_gives_the_spikes_of_its_library(library: str, name: str, written, runs) -> None:
    given = written(library, name)
    assert not _silent(given.spikes)
    found = runs.differences(runs.as_read(given.graph, given.dt), given)
    assert (found["interpreter"], found["onnx"]) == (0, 0)


# --- snnTorch ------------------------------------------------------------------------------


def _linear_and(neurons: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 12), neurons)


def _other_reset(exporting, alpha: float | None = None, **options: Any) -> Any:
    def make() -> nn.Sequential:
        return _linear_and(exporting.leaky(0.5, (12,), alpha=alpha, **options))

    return exporting.Case(make, (16,), "")


def test_the_reset_that_snntorch_starts_from_is_written_as_another(
    exporting, written, runs
) -> None:
    """Its default takes the threshold off v, which NIR cannot say; the file says: to 0."""
    case = _other_reset(exporting, reset_mechanism="subtract", reset_delay=True)
    given = written("snnTorch", case)
    assert (np.asarray(given.graph.nodes["1"].v_reset) == 0).all()
    graph = runs.as_read(given.graph, given.dt)
    _, kept = run(graph, given.x, record=["1"])
    ours, theirs = kept["1"] > 0, given.spikes["1"]
    assert (ours != theirs).any()
    fired = np.cumsum(theirs, 0) - theirs > 0
    assert (ours == theirs)[~fired].all(), "it is the reset that differs"


def test_a_late_reset_to_zero_is_the_same_for_leaky_and_another_for_synaptic(
    exporting, written, runs
) -> None:
    for alpha, same in ((None, True), (0.75, False)):
        given = written("snnTorch", _other_reset(exporting, alpha, reset_delay=True))
        assert not _silent(given.spikes)
        found = runs.differences(runs.as_read(given.graph, given.dt), given)
        assert (found["interpreter"] == 0) == same


def test_a_bias_on_the_way_back_counts_from_the_first_step(exporting, written, runs) -> None:
    """NIR does not say where a cycle waits: as in snnTorch, it is the spikes that are late."""
    case = exporting.Case(lambda: exporting.recurrent(bias=True), (16,), "")
    given = written("snnTorch", case)
    assert not _silent(given.spikes)
    found = runs.differences(runs.as_read(given.graph, given.dt), given)
    assert (found["interpreter"], found["onnx"]) == (0, 0)
    plain = written("snnTorch", "recurrent")
    assert any((given.spikes[name] != plain.spikes[name]).any() for name in plain.spikes)


def test_snntorch_cannot_write_neurons_with_one_decay_for_a_layer(exporting, need) -> None:
    need("snnTorch")
    import snntorch

    net = _linear_and(snntorch.Leaky(beta=0.5, init_hidden=True, reset_mechanism="zero"))
    with pytest.raises(ValueError, match="type mismatch"):
        exporting.snntorch_graph(net, torch.ones(1, 16))


def test_snntorch_takes_the_batch_for_a_dimension_of_the_input(exporting, need) -> None:
    need("snnTorch")
    from snntorch.export_nir import export_to_nir

    with exporting.quiet(), pytest.raises(ValueError, match="type mismatch: input.output"):
        export_to_nir(_linear_and(exporting.leaky(0.5, (12,))), torch.ones(1, 16))


def test_snntorch_cannot_run_a_recurrent_synaptic_that_resets_at_once(need) -> None:
    need("snnTorch")
    import snntorch

    neurons = snntorch.RSynaptic(
        alpha=0.75, beta=0.5, linear_features=12, init_hidden=True, reset_delay=False
    )
    with pytest.raises(TypeError, match="NoneType"):
        neurons(torch.ones(1, 12))


# --- SpikingJelly --------------------------------------------------------------------------


def test_spikingjelly_refuses_to_write_a_subtractive_reset(exporting, need) -> None:
    need("SpikingJelly")
    from spikingjelly.activation_based import neuron

    case = exporting.Case(lambda: _linear_and(neuron.LIFNode(v_reset=None)), (16,), "")
    with pytest.raises(NotImplementedError, match="soft reset"):
        exporting.write("SpikingJelly", case)


# --- Norse ---------------------------------------------------------------------------------


def test_norse_writes_dt_times_tau(written, runs) -> None:
    given = written("Norse", "boxes")
    assert not _silent(given.spikes)
    tau, dt = 1 / 500, given.dt
    np.testing.assert_allclose(np.asarray(given.graph.nodes["1"].tau), dt * tau, rtol=1e-6)
    assert runs.differences(runs.as_read(given.graph, dt), given)["interpreter"] > 0
    healed = runs.differences(runs.as_read(given.graph, dt * dt), given)
    assert (healed["interpreter"], healed["onnx"]) == (0, 0)


def test_norse_loses_pools_and_wants_a_bias(exporting, need) -> None:
    need("Norse")
    import norse.torch as norse

    with exporting.quiet():
        pooled = norse.SequentialState(nn.Conv2d(1, 2, 3), norse.LIFBoxCell(), nn.AvgPool2d(2))
        graph = norse.to_nir(pooled, torch.ones(1, 1, 8, 8))
        assert graph.nodes["2"] is None
        plain = norse.SequentialState(nn.Conv2d(1, 2, 3, bias=False), norse.LIFBoxCell())
        with pytest.raises(AttributeError, match="detach"):
            norse.to_nir(plain, torch.ones(1, 1, 8, 8))


def test_norse_graphs_cannot_be_compressed(written, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Scalar datasets"):
        nir.write(tmp_path / "a.nir", written("Norse", "boxes").graph)
