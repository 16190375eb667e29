"""Seeds, replays and lags of whole comparisons; graphs against graphs; executors by name."""

import sys
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from tests.graphs import DT, Array, full, lif, network
from tser.deploy.backends import Backend, NirBackend, Trace
from tser.deploy.candidates import BACKENDS, executors, open_subject, pair_layers
from tser.deploy.equivalence import compare
from tser.deploy.spike_file import SpikeFile
from tser.deploy.tally import Comparison
from tser.deploy.validation import validate
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph, resolve
from tser.export.nir_file import write_nir
from tser.export.onnx_file import compile_onnx, write_onnx

T, SIZE = 6, 12


def _net(**changes: Any) -> nir.NIRGraph:
    """Three layers one behind another; ``changes`` replace nodes."""
    rng = np.random.default_rng(0)

    def weights() -> Array:
        return rng.normal(0, 0.8, (SIZE, SIZE)).astype(np.float32)

    nodes: dict[str, Any] = {}
    for name in ("1", "2", "3"):
        nodes[f"fc{name}"] = nir.Affine(weights(), full(SIZE, 0.3))
        nodes[f"lif{name}"] = lif(SIZE, tau=3e-3, v_th=0.3)
    return network((SIZE,), nodes | changes, timesteps=T)


def _x(count: int = 40) -> Array:
    return np.random.default_rng(1).normal(size=(count, SIZE)).astype(np.float32)


def _judge(candidate: Backend, graph: Graph, x: Array) -> Comparison:
    reference = NirBackend(graph, T, "the graph")
    (found,) = compare(graph, reference, [candidate], [(x, None)]).comparisons
    return found


def test_a_replay_shows_the_one_layer_that_is_wrong() -> None:
    graph, x = resolve(_net()), _x()
    wrong = NirBackend(resolve(_net(lif2=lif(SIZE, tau=3e-3, v_th=0.31))), T, "wrong")
    found = _judge(wrong, graph, x)
    flips = {name: int(layer.flips.sum()) for name, layer in found.layers.items()}
    assert flips["lif1"] == 0
    assert min(flips["lif2"], flips["lif3"]) > 0  # the third layer only follows
    replayed = {name: layer.replayed for name, layer in found.layers.items()}
    assert (replayed["lif1"], replayed["lif3"]) == (0, 0)
    assert replayed["lif2"] is not None
    assert replayed["lif2"] > 0
    assert found.layers["lif3"].seeds == 0
    second = found.layers["lif2"]
    assert second.seeds == second.uncertified > 0
    assert second.certified_bound == 0
    assert list(found.diagnoses) == ["lif2"]


def test_a_wrong_reset_is_not_in_a_single_step_and_a_wrong_threshold_is() -> None:
    graph, x = resolve(_net()), _x()
    for change, in_one_step in (({"v_reset": -0.2, "v_th": 0.3}, False), ({"v_th": 0.31}, True)):
        wrong = NirBackend(resolve(_net(lif2=lif(SIZE, tau=3e-3, **change))), T, "wrong")
        layer = _judge(wrong, graph, x).layers["lif2"]
        assert layer.replayed is not None
        assert layer.replayed > 0
        assert bool(layer.one_step) == in_one_step


def test_a_layer_that_is_a_step_late_says_so() -> None:
    nodes: dict[str, Any] = {
        "fc": nir.Linear(np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)),
        "wait": nir.Delay(full(SIZE, 0)),
        "lif": lif(SIZE, tau=3e-3, v_th=0.3),
    }
    graph = resolve(network((SIZE,), nodes, timesteps=T))
    late = resolve(network((SIZE,), nodes | {"wait": nir.Delay(full(SIZE, DT))}, timesteps=T))
    frames = np.random.default_rng(2).normal(size=(T, 30, SIZE)).astype(np.float32)
    candidate = NirBackend(late, T, "late")
    layer = _judge(candidate, graph, frames).layers["lif"]
    assert layer.lag == 1
    assert _judge(NirBackend(graph, T, "same"), graph, frames).layers["lif"].lag == 0


class Shifted:
    """Spikes of the graph, counted into other steps."""

    name, source = "shifted", "a tape"

    def __init__(self, graph: Graph) -> None:
        self._inner = NirBackend(graph, T, "")

    def __call__(self, x: Array) -> Trace:
        trace = self._inner(x)
        return Trace(trace.logits, {key: value[::-1] for key, value in trace.spikes.items()})


def test_the_rate_error_counts_spikes_of_each_neuron_whenever_they_fall() -> None:
    graph, x = resolve(_net()), _x()
    found = _judge(Shifted(graph), graph, x)
    assert found.flips > 0
    assert all(layer.count_distance == 0 for layer in found.layers.values())
    assert "shifted cannot be fed recorded spikes" in found.not_replayed
    assert all(layer.replayed is None for layer in found.layers.values())


def test_logits_that_are_wrong_are_explained_too() -> None:
    head = {"head": nir.Affine(np.eye(SIZE, dtype=np.float32), full(SIZE, 0.25))}
    bare = {"head": nir.Affine(np.eye(SIZE, dtype=np.float32), full(SIZE, 0))}
    found = _judge(NirBackend(resolve(_net(**bare)), T, "wrong"), resolve(_net(**head)), _x())
    assert (found.flips, found.verdict) == (0, "E2")
    assert found.logits_outside_bound > 0
    assert "no_bias:head" in found.diagnoses[""].departures


# --- two graphs ----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A graph, one with other names, a wrong one, an ONNX form, and inputs."""
    graph = _net()
    names = {"lif1": "a", "lif2": "b", "lif3": "c"}
    renamed = nir.NIRGraph(
        {names.get(name, name): op for name, op in graph.nodes.items()},
        [(names.get(a, a), names.get(b, b)) for a, b in graph.edges],
        metadata=dict(graph.metadata),
        type_check=False,
    )
    made = {
        "graph": graph,
        "renamed": renamed,
        "wrong": _net(lif2=lif(SIZE, tau=3e-3, v_th=0.31)),
        "narrow": network((SIZE,), {"lif1": lif(SIZE)}, timesteps=T),
    }
    paths = {name: tmp_path / f"{name}.nir" for name in made}
    for name, path in paths.items():
        write_nir(made[name], path)
    paths["onnx"] = tmp_path / "graph.onnx"
    write_onnx(compile_onnx(open_subject(paths["graph"]).view, T), paths["onnx"])
    paths["x"] = tmp_path / "x.npy"
    np.save(paths["x"], _x())
    return paths


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("graph", "graph"),
        ("renamed", "graph"),
        ("onnx", "graph"),
        ("graph", "onnx"),
        ("onnx", "onnx"),
    ],
)
def test_two_graphs_of_one_network(files: dict[str, Path], one: str, other: str) -> None:
    found = validate(files[one], files[other], source=files["x"])
    assert found["verdict"] in ("E0", "E1")
    assert found["samples"] == 40
    assert found["static"]["identical"] == (one != "renamed")
    assert all(backend["layers"] for backend in found["backends"])


@pytest.mark.parametrize("other", ["graph", "onnx", "renamed"])
def test_two_graphs_of_two_networks(files: dict[str, Path], other: str) -> None:
    found = validate(files["wrong"], files[other], source=files["x"])
    assert found["verdict"] == "E3"
    for backend in found["backends"]:
        assert backend["violations"] > 0
        assert next(one["layer"] for one in backend["diagnosis"]) in ("lif2", "b")
        assert backend["first_divergence"]["window"]["reference"]


def test_models_without_a_graph_can_differ_but_not_be_certified(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "wrong.onnx"
    write_onnx(compile_onnx(open_subject(files["wrong"]).view, T), path)
    found = validate(path, files["onnx"], source=files["x"])
    assert found["verdict"] in ("E2", "E3")
    assert "no .nir graph is at hand" in found["backends"][0]["reason"]


def test_graphs_need_inputs_that_are_named(files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="pass --data NAME, --input FILE.npy or --probes"):
        validate(files["graph"], files["graph"])


def test_graphs_of_other_layers_cannot_be_compared(files: dict[str, Path]) -> None:
    with pytest.raises(InputFileError, match="has other spiking layers than the reference"):
        validate(files["narrow"], files["graph"], source=files["x"])


def test_layers_are_paired_by_name_and_else_by_position() -> None:
    a, b = {"x": (1,), "y": (2,)}, {"p": (1,), "q": (2,)}
    assert pair_layers(a, dict(reversed(a.items()))) == {"x": "x", "y": "y"}
    assert pair_layers(a, b) == {"p": "x", "q": "y"}
    assert pair_layers(a, {"x": (1,), "y": (2,), "z": (3,)}) == {"x": "x", "y": "y"}
    assert pair_layers(a, {"p": (1,)}) is None


def test_probes_alone_judge_two_graphs(files: dict[str, Path]) -> None:
    found = validate(files["graph"], files["graph"], probes=True)
    assert (found["verdict"], found["samples"], found["backends"]) == ("E0", 0, [])
    networks = {one["network"].split(",")[0] for one in found["probes"]}
    assert networks == {"given", "dyadic twin", "known by hand"}
    assert all(one["passed"] for one in found["probes"])
    wrong = validate(files["wrong"], files["graph"], probes=True)
    assert wrong["verdict"] == "E3"
    assert any(
        one["diagnosis"][0]["layer"] == "lif2" for one in wrong["probes"] if one["diagnosis"]
    )


# --- executors -----------------------------------------------------------------------------


def test_every_executor_by_its_name(files: dict[str, Path]) -> None:
    subject = open_subject(files["graph"])
    for name in ("nir-f32", "nir-f64", "onnx", "onnx-noopt"):
        (one,) = executors(subject, [name], T, frames=False)
        assert one.name == name
        assert one(_x(2)).logits.shape == (T, 2, SIZE)
    with pytest.raises(UsageError, match="--backend tpu is not known; choose from nir-f32"):
        executors(subject, ["tpu"], T, frames=False)
    with pytest.raises(UsageError, match="--backend nir-f32 runs .nir files"):
        executors(open_subject(files["onnx"]), ["nir-f32"], T, frames=False)
    assert set(BACKENDS) >= {"norse", "snntorch", "spikingjelly", "nirtorch", "openvino"}


def test_a_model_of_other_steps_is_compiled_afresh_or_not_probed(files: dict[str, Path]) -> None:
    (one,) = executors(open_subject(files["graph"]), ["onnx"], 2, frames=False)
    assert len(one(_x(2)).logits) == 2
    found = validate(files["onnx"], files["graph"], probes=True)
    verdicts = {one["probe"]: one["verdict"] for one in found["probes"]}
    assert (verdicts["random"], verdicts["one step"]) == ("E0", None)


def test_a_library_that_is_not_installed_is_a_usage_error(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "snntorch", None)
    with pytest.raises(UsageError, match=r"pip install 'tser\[interop\]'"):
        executors(open_subject(files["graph"]), ["snntorch"], T, frames=False)


def test_a_library_that_cannot_run_a_file_is_a_finding(tmp_path: Path) -> None:
    pytest.importorskip("snntorch", reason="the extra interop is not installed")
    graph = network((SIZE,), {"wait": nir.Delay(full(SIZE, 0)), "lif": lif(SIZE)}, timesteps=T)
    path = tmp_path / "g.nir"
    write_nir(graph, path)
    np.save(tmp_path / "x.npy", _x(2))
    found = validate(path, path, source=tmp_path / "x.npy", backends=["snntorch", "nir-f32"])
    broken, fine = found["backends"]
    assert (broken["verdict"], broken["layers"], fine["verdict"]) == ("E3", [], "E0")
    assert "snnTorch" in broken["reason"]


# --- recorded spikes -----------------------------------------------------------------------


def test_spikes_are_kept_as_bits(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    validate(files["graph"], files["graph"], source=files["x"], trace=path, backends=["nir-f32"])
    graph = open_subject(files["graph"]).view
    expected = NirBackend(graph, T, "")(_x()).spikes
    with np.load(path) as kept:
        for name, spikes in expected.items():
            for who in ("reference", "nir-f32"):
                packed, shape = kept[f"{who}/{name}"], kept[f"{who}/{name}.shape"]
                assert packed.shape == (T, 40, 2)
                bits = np.unpackbits(packed, axis=-1, count=int(np.prod(shape)))
                np.testing.assert_array_equal(bits.reshape(T, 40, *shape), spikes)


def test_what_never_ran_is_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    with SpikeFile(path, {"a": (3,), "b": (3,)}, 1, 2, packed=True) as file:
        file.add({"a": np.ones((1, 2, 3), bool)})
    with np.load(path) as kept:
        assert sorted(kept) == ["a", "a.shape"]
