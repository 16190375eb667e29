"""Our files in other libraries: the same spikes, and what goes wrong where it is known to."""

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch

from tests.graphs import DT, Array, conv, dyadic, full, lif, network
from tser.deploy.backends import NirBackend, Trace
from tser.deploy.conventions import explain
from tser.deploy.equivalence import compare
from tser.deploy.foreign import FOREIGN, ForeignBackend, quiet
from tser.deploy.graph_file import open_nir
from tser.errors import InputFileError
from tser.export.graph import resolve
from tser.export.lower import lower
from tser.export.nir_file import write_nir
from tser.export.variants import Variant, vary

LIBRARIES = ["nirtorch", "spikingjelly", "snntorch", "norse"]
WIDTH = 8
TRUSTED = [
    (network, library)
    for network in ("linear layers", "convnet", "ResNet-18")
    for library in LIBRARIES
    if library != "norse" or network == "linear layers"
]


@pytest.fixture
def opened(need, tmp_path: Path):
    """Runs a graph in a library; nothing but the file connects the two."""

    def run(library: str, graph: nir.NIRGraph, x: Array, steps: int = 4) -> Trace:
        need(library)
        path = tmp_path / "model.nir"
        write_nir(graph, path)
        return ForeignBackend(library, path, open_nir(path), steps)(x)

    return run


def _images(graph: nir.NIRGraph) -> Array:
    shape = resolve(graph).input.output_shape
    return np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)


def _expected(graph: nir.NIRGraph, x: Array, dt: float | None = None, steps: int = 4) -> Trace:
    return NirBackend(resolve(graph, dt), steps, "interpreter")(x)


def _same(a: Trace, b: Trace) -> bool:
    return all(np.array_equal(a.spikes[name], spikes) for name, spikes in b.spikes.items())


def _chain(**neurons: Any) -> nir.NIRGraph:
    """Two layers of neurons with random weights between."""
    rng = np.random.default_rng(0)
    fc = [nir.Affine(rng.normal(size=(6, 6)).astype(np.float32), full(6, 0)) for _ in range(2)]
    cells = [lif(6, **{"tau": 2e-4, "v_th": 0.3, **neurons}) for _ in range(2)]
    nodes = {"a": fc[0], "first": cells[0], "b": fc[1], "last": cells[1]}
    return network((6,), nodes, dt=1e-4, timesteps=4)


# --- the same spikes -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "library"), TRUSTED)
def test_a_library_gives_our_spikes(name: str, library: str, runs, opened) -> None:
    options = runs.OPTIONS[runs.FITS.get(library, "")]
    graph = vary(lower(runs.NETWORKS[name](WIDTH)).graph, options)
    x, view = _images(graph), resolve(graph)
    trace = opened(library, graph, x)

    class Candidate:
        name, source = library, "file"

        def __call__(self, x: Array) -> Trace:
            return trace

    reference = NirBackend(view, 4, "interpreter")
    (found,) = compare(view, reference, [Candidate()], [(x, None)]).comparisons
    assert all(layer.reference.any() for layer in found.layers.values()), "a silent layer"
    assert found.verdict in ("E0", "E1"), found.reason()


def test_libraries_that_use_pytorch_agree_to_the_last_bit(runs, opened) -> None:
    graph = lower(runs.NETWORKS["ResNet-18"](WIDTH)).graph
    x = _images(graph)
    expected = opened("nirtorch", graph, x)
    for library, variant in (("spikingjelly", Variant()), ("snntorch", Variant(dt=1e-4))):
        trace = opened(library, vary(graph, variant), x)
        assert _same(trace, expected), library
        np.testing.assert_array_equal(trace.logits, expected.logits, err_msg=library)


@pytest.mark.parametrize("name", ["linear layers", "convnet"])
def test_our_maps_for_nirtorch_know_unit_gain(name: str, runs, opened) -> None:
    graph = vary(lower(runs.NETWORKS[name](WIDTH)).graph, Variant("unit"))
    x = _images(graph)
    assert _same(opened("nirtorch", graph, x), _expected(graph, x))


def test_our_maps_for_nirtorch_know_a_readout_of_membranes(opened) -> None:
    graph = _chain(v_leak=0.05, v_reset=-0.1)
    graph.nodes["last"] = nir.LI(tau=full(6, 3e-4), r=full(6, 1.5), v_leak=full(6, 0.2))
    x = _images(graph)
    expected, found = _expected(graph, x), opened("nirtorch", graph, x)
    assert _same(found, expected)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-6)


def test_norse_runs_convolutions_without_pools(opened) -> None:
    rng = np.random.default_rng(0)
    pairs = {"padding": (1, 1), "stride": (1, 1), "dilation": (1, 1)}
    nodes = {
        "conv": conv(rng.normal(size=(3, 2, 3, 3)), (6, 6), **pairs),
        "first": lif((3, 6, 6)),
        "flat": nir.Flatten({"input": np.array([3, 6, 6])}, -3, -1),
        "fc": nir.Affine(rng.normal(size=(4, 108)).astype(np.float32), full(4, 0)),
        "last": lif(4),
    }
    graph = network((2, 6, 6), nodes, timesteps=4)
    x = _images(graph)
    assert _same(opened("norse", graph, x), _expected(graph, x))


# --- what goes wrong -----------------------------------------------------------------------


def test_nirtorch_itself_leaves_the_bias_at_random(need) -> None:
    need("nirtorch")
    import nirtorch

    fc = nir.Affine(full((6, 6), 1), full(6, 2))
    loaded = nirtorch.nir_to_torch(network((6,), {"fc": fc}), {})
    assert (loaded.get_submodule("fc").bias != 2).all()


def test_snntorch_runs_any_file_with_its_own_dt(opened) -> None:
    graph = _chain(tau=2e-3)
    graph.metadata["dt"] = 1e-3
    x = _images(graph)
    found, expected = opened("snntorch", graph, x, 12), _expected(graph, x, steps=12)
    assert not _same(found, expected)
    del graph.metadata["dt"], graph.metadata["sha256"]
    assert _same(found, _expected(graph, x, 1e-4, 12))


@pytest.mark.parametrize("library", ["snntorch", "norse"])
def test_a_reset_to_another_value_is_ignored(library: str, opened) -> None:
    graph = _chain(v_reset=-0.2)
    x = _images(graph)
    found = opened(library, graph, x, 12)
    assert not _same(found, _expected(graph, x, steps=12))
    assert _same(found, _expected(_chain(), x, steps=12))


def test_norse_ignores_the_gain(opened) -> None:
    graph = _chain(r=2.0)
    x = _images(graph)
    found = opened("norse", graph, x, 12)
    assert not _same(found, _expected(graph, x, steps=12))
    assert _same(found, _expected(_chain(), x, steps=12))


def test_norse_runs_only_what_lies_before_or_behind_a_pool(need, tmp_path: Path) -> None:
    need("norse")
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    flat = nir.Flatten({"input": np.array([1, 2, 2])}, -3, -1)
    nodes = {"lif": lif((1, 4, 4)), "pool": pool, "flat": flat}
    path = tmp_path / "model.nir"
    write_nir(network((1, 4, 4), nodes), path)
    for _ in range(3):
        with quiet():
            loaded = FOREIGN["norse"].load(path, DT)
            out, _ = loaded(torch.ones(3, 1, 4, 4))
        assert "pool" not in dict(loaded.named_children())
        assert out.shape in [(3, 1, 4, 4), (3, 16)]  # of the pooled maps it would be (3, 4)


def _two_paths(late: str = "") -> nir.NIRGraph:
    """Two layers of neurons with linear layers side by side between, one ``late`` by a step."""
    rng = np.random.default_rng(0)
    nodes: dict[str, Any] = {"first": lif(6, v_th=0.3), "last": lif(6, v_th=0.3)}
    edges = [("input", "a"), ("a", "first"), ("last", "output")]
    for name in ("a", "main", "shortcut"):
        nodes[name] = nir.Affine(rng.normal(size=(6, 6)).astype(np.float32), full(6, 0.1))
    for way in ("main", "shortcut"):
        if way == late:
            nodes["delay"] = nir.Delay(full(6, DT))
            edges += [("first", way), (way, "delay"), ("delay", "last")]
        else:
            edges += [("first", way), (way, "last")]
    return network((6,), nodes, edges, (6,), timesteps=12)


def test_norse_brings_one_of_two_paths_a_step_late(opened) -> None:
    x = _images(_two_paths())
    found = opened("norse", _two_paths(), x, 12)
    assert not _same(found, _expected(_two_paths(), x, steps=12))
    late = [_expected(_two_paths(way), x, steps=12) for way in ("main", "shortcut")]
    assert sum(_same(found, expected) for expected in late) == 1


@pytest.mark.parametrize("name", ["convnet", "ResNet-18"])
def test_norse_cannot_run_our_students(name: str, runs, opened) -> None:
    """It ends in an error, leaves layers out, or gives another shape: that changes by import."""
    graph = lower(runs.NETWORKS[name](WIDTH)).graph
    for _ in range(3):
        with pytest.raises(InputFileError, match="^Norse "):
            opened("norse", graph, _images(graph))


def test_spikingjelly_fires_on_the_threshold_itself(opened) -> None:
    rng = np.random.default_rng(0)
    op = lif(40, v_th=0.5)
    fc = nir.Affine(dyadic(rng, (40, 6), bits=1), full(40, 0))
    graph = network((6,), {"fc": fc, "lif": op}, timesteps=12)
    x = dyadic(rng, (8, 6), bits=1)
    found = opened("spikingjelly", graph, x, 12)
    assert not _same(found, _expected(graph, x, steps=12))
    current = np.broadcast_to(x @ fc.weight.T, (12, 8, 40))
    assert explain(op, DT, current, found.spikes["lif"]) == [("at_threshold",)]


@pytest.mark.parametrize("library", ["spikingjelly", "snntorch"])
def test_a_shortcut_with_unit_gain_is_refused(library: str, runs, opened) -> None:
    """Spikes have no weights to fold the gain into, so a Scale carries it, which few know."""
    graph = vary(lower(runs.NETWORKS["convnet"](WIDTH)).graph, Variant("unit", 1e-4))
    with pytest.raises(InputFileError, match="cannot run .*Scale"):
        opened(library, graph, _images(graph))
