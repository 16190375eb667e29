"""``tser validate`` end to end on a tiny untrained run, and the files it must refuse."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.graphs import full, lif, network, pool, view
from tser.checkpoints import load_student, save_weights, weights_digest
from tser.config import RunConfig, StudentConfig
from tser.config_file import dump_config
from tser.data import load_data
from tser.deploy.graph_file import check_suffix, is_compiled_from, open_nir
from tser.deploy.inputs import data_for_graph, image_batches, rescaled
from tser.deploy.static_check import static_differences
from tser.deploy.validation import validate
from tser.errors import InputFileError, UsageError
from tser.export.export import export_nir, export_onnx
from tser.export.lower import ExportError
from tser.export.nir_file import read_nir, write_nir
from tser.export.onnx_file import model_metadata, read_onnx, write_onnx
from tser.runs import Run
from tser.students import build_student

DATA = load_data("digits")
SAMPLES = 30


def _make(path: Path, seed: int = 2, **student: int) -> Run:
    """A run folder of an untrained student that fires, with both its exports."""
    config = RunConfig(student=StudentConfig(**({"timesteps": 3, "width": 3} | student)))
    torch.manual_seed(seed)
    net = build_student(config.student, config.neuron, DATA.image_shape, DATA.num_classes)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight *= 2  # without training, deeper layers would hardly fire
    path.mkdir()
    (path / "config.toml").write_text(dump_config(config))
    save_weights(net, path / "student.safetensors")
    run = Run(path)
    export_nir(run, run.nir)
    export_onnx(run.nir, run.onnx)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    base = tmp_path_factory.mktemp("runs")
    return {
        "run": _make(base / "run"),
        "other weights": _make(base / "seed", seed=1),
        "wider": _make(base / "wide", width=4),
        "deeper": _make(base / "deep", stages=3),
        "shorter": _make(base / "short", timesteps=2),
    }


@pytest.fixture
def run(runs: dict[str, Run], tmp_path: Path) -> Run:
    """A copy that a test may change."""
    shutil.copytree(runs["run"].path, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def document(runs: dict[str, Run]) -> dict[str, Any]:
    return validate(runs["run"].nir, runs["run"], samples=SAMPLES)


# --- a graph that is what it should be -----------------------------------------------------


def test_an_export_is_equivalent(document: dict[str, Any], runs: dict[str, Run]) -> None:
    run = runs["run"]
    assert document["verdict"] in ("E0", "E1")
    assert document["static"] == {"identical": True, "differences": []}
    assert (document["schema_version"], document["split"], document["data"]) == (
        2,
        "test",
        "digits",
    )
    assert (document["samples"], document["timesteps"]) == (SAMPLES, 3)
    assert (document["graph"], document["against"]) == (str(run.nir), str(run.path))
    assert document["graph_digest"] == document["student_digest"]
    assert document["student_weights"] == weights_digest(run.student) is not None
    assert [b["name"] for b in document["backends"]] == ["nir-f32", "onnx"]
    assert [b["source"] for b in document["backends"]] == [str(run.nir), str(run.onnx)]
    json.dumps(document, allow_nan=False)


def test_every_backend_is_accounted_for(document: dict[str, Any]) -> None:
    neurons = [3 * 64] * 3 + [6 * 16] * 2
    for backend in document["backends"]:
        assert backend["verdict"] in ("E0", "E1")
        assert backend["neuron_steps"] == sum(neurons) * 3 * SAMPLES
        assert [layer["neurons"] for layer in backend["layers"]] == neurons
        assert backend["flips"] == sum(sum(layer["flips"]) for layer in backend["layers"])
        assert (backend["first_divergence"] is None) == (backend["flips"] == 0)
        assert (backend["argmax_differences"], backend["violations"]) == (0, 0)
        assert backend["logits"]["outside_bound"] == 0
        assert backend["reason"]
        for layer in backend["layers"]:
            rates = layer["firing_rate_reference"]
            assert len(rates) == 3
            assert 0 < sum(rates) < 3, layer["name"]
            assert layer["firing_rate_candidate"] == pytest.approx(rates, abs=1e-3)


def test_accuracy_is_that_of_the_student_after_every_step(
    document: dict[str, Any], runs: dict[str, Run]
) -> None:
    student = load_student(runs["run"], DATA)
    with torch.inference_mode():
        logits = student(DATA.normalise(DATA.test.images[:SAMPLES])).cumsum(0)
    right = (logits.argmax(-1) == DATA.test.labels[:SAMPLES]).float().mean(1)
    assert document["accuracy"]["torch"] == pytest.approx(right.tolist())
    assert document["accuracy"]["nir-f32"] == document["accuracy"]["onnx"]
    assert set(document["accuracy"]) == {"torch", "nir-f32", "onnx"}


def test_an_onnx_file_is_judged_on_its_own(runs: dict[str, Run]) -> None:
    found = validate(runs["run"].onnx, runs["run"], samples=SAMPLES)
    assert found["verdict"] in ("E0", "E1")
    assert [backend["name"] for backend in found["backends"]] == ["onnx"]


def test_openvino_runs_beside_onnx_runtime(runs: dict[str, Run]) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    for path, others in ((runs["run"].nir, ["nir-f32"]), (runs["run"].onnx, [])):
        names = [*others, "onnx", "openvino"]
        found = validate(path, runs["run"], samples=SAMPLES, backends=names)
        assert found["verdict"] in ("E0", "E1")
        assert [backend["name"] for backend in found["backends"]] == names
        assert len({backend["source"] for backend in found["backends"][-2:]}) == 1


def test_openvino_that_is_not_installed_is_a_usage_error(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"pip install 'tser\[openvino\]'"):
        validate(runs["run"].onnx, runs["run"], samples=SAMPLES, backends=["openvino"])


def test_a_stale_onnx_file_is_not_used(run: Run, runs: dict[str, Run]) -> None:
    shutil.copy(runs["other weights"].onnx, run.onnx)
    found = validate(run.nir, run, samples=5)
    assert found["verdict"] in ("E0", "E1")
    source = f"compiled from {run.nir}; {run.onnx} is of another graph and was not checked"
    assert found["backends"][1]["source"] == source
    run.onnx.unlink()
    assert validate(run.nir, run, samples=5)["backends"][1]["source"] == f"compiled from {run.nir}"


def test_a_damaged_onnx_file_beside_the_graph_is_named(run: Run) -> None:
    run.onnx.write_bytes(run.onnx.read_bytes()[:500])
    with pytest.raises(InputFileError, match=r"model.onnx is not a valid ONNX model"):
        validate(run.nir, run, samples=5)


# --- a graph that is not -------------------------------------------------------------------


def _edited(run: Run, edit: Callable[[nir.NIRGraph], Any]) -> Path:
    """The run's graph with a change, signed anew."""
    graph = read_nir(run.nir)
    edit(graph)
    write_nir(graph, run.nir)
    return run.nir


def _double(graph: nir.NIRGraph) -> None:
    graph.nodes["block1_main_conv2"].weight[:] *= 2


def _threshold(graph: nir.NIRGraph) -> None:
    graph.nodes["block1_main_lif1"].v_threshold[:] *= np.float32(1.05)


def _unlink(graph: nir.NIRGraph) -> None:
    graph.edges.remove(("stem_lif", "block1_neuron"))


def _slow(graph: nir.NIRGraph) -> None:
    graph.metadata["dt"] *= 0.9


CHANGES: dict[str, tuple[Callable[[nir.NIRGraph], Any], str, str]] = {
    "weights": (_double, "block1_main_conv2.weight differs", "block1_neuron"),
    "thresholds": (_threshold, "block1_main_lif1.v_threshold differs", "block1_main_lif1"),
    "edges": (_unlink, "node 'block1_neuron' has other incoming edges", "block1_neuron"),
    "dt": (_slow, "dt is 0.0009 s, the student has 0.001 s", "stem_lif"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_graph_is_told_apart(run: Run, case: str) -> None:
    edit, difference, layer = CHANGES[case]
    found = validate(_edited(run, edit), run, samples=SAMPLES)
    assert not found["static"]["identical"]
    assert len(found["static"]["differences"]) == 1
    assert difference in found["static"]["differences"][0]
    assert found["verdict"] in ("E2", "E3")
    assert found["graph_digest"] != found["student_digest"]
    for backend in found["backends"]:
        assert backend["verdict"] in ("E2", "E3")
        assert backend["violations"] > 0
        assert backend["first_divergence"]["layer"] == layer


@pytest.mark.parametrize(
    ("key", "value"), [("timesteps", 9), ("input_mean", "[0.9]"), ("input_max_value", 255)]
)
def test_another_way_to_run_it_is_a_difference(run: Run, key: str, value: Any) -> None:
    found = validate(_edited(run, lambda g: g.metadata.update({key: value})), run, samples=5)
    (difference,) = found["static"]["differences"]
    assert difference.startswith(f"{key} is {value}, not ")
    assert found["contradictions"] == [difference]
    assert found["verdict"] == "E3"


def test_a_graph_that_states_less_is_no_difference(run: Run) -> None:
    found = validate(_edited(run, lambda g: g.metadata.pop("input_mean")), run, samples=5)
    assert found["static"]["identical"]


def test_a_time_step_that_is_not_the_students_is_wrong_although_every_spike_agrees(
    run: Run,
) -> None:
    def slower(graph: nir.NIRGraph) -> None:
        graph.metadata["dt"] *= 2
        for op in graph.nodes.values():
            if isinstance(op, nir.LIF):
                op.tau[:] *= 2

    found = validate(_edited(run, slower), run, samples=SAMPLES)
    assert {backend["verdict"] for backend in found["backends"]} == {"E0"}
    assert found["verdict"] == "E3"
    assert found["contradictions"] == ["dt is 0.002 s, the student has 0.001 s"]


def test_a_file_cannot_widen_the_bounds_that_it_is_held_to(run: Run) -> None:
    """Two branches that cancel would be a large sum, and a large sum has a wide bound."""

    def cancelling(graph: nir.NIRGraph) -> None:
        graph.nodes["stem_lif"].v_threshold[:] *= np.float32(1.001)
        shape = graph.nodes["stem_lif"].v_threshold.shape
        for name, factor in (("up", 1e4), ("down", -1e4)):
            graph.nodes[name] = nir.Scale(full(shape, factor))
            graph.edges += [("stem_conv", name), (name, "stem_lif")]

    found = validate(_edited(run, cancelling), run, samples=SAMPLES)
    for backend in found["backends"]:
        assert backend["verdict"] in ("E2", "E3")
        assert backend["violations"] > 0


def test_a_graph_that_is_not_a_number_is_refused(run: Run) -> None:
    path = _edited(run, lambda g: g.nodes["readout"].bias.fill(np.nan))
    assert "bias of node 'readout' holds NaN" in _refused(path, run)


def test_logits_that_are_not_finite_are_wrong(run: Run) -> None:
    model = onnx.load_model(run.onnx)
    for tensor in model.graph.initializer:
        if tensor.name == "readout.bias":
            bias = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(bias, np.inf), tensor.name))
    write_onnx(model, run.onnx)
    found = validate(run.onnx, run, samples=5)
    (backend,) = found["backends"]
    assert found["verdict"] == "E3"
    assert backend["argmax_differences"] >= 3
    assert backend["logits"]["outside_bound"] > 0
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("key", "value"), [("dt", "0.5"), ("input_mean", "[0.9]"), ("nir_sha256", "0" * 64)]
)
def test_what_a_model_says_of_itself_is_checked(run: Run, key: str, value: str) -> None:
    model = onnx.load_model(run.onnx)
    onnx.helper.set_model_props(model, model_metadata(model) | {key: value})
    path = run.onnx.with_name("copy.onnx")
    write_onnx(model, path)
    found = validate(path, run, samples=5)
    assert found["verdict"] == "E3"
    assert found["contradictions"][0].startswith(f"{key} is {value}, not ")


def test_the_parts_of_a_model_are_those_of_a_fresh_export(run: Run) -> None:
    assert validate(run.onnx, run, samples=5)["static"]["identical"]
    model = onnx.load_model(run.onnx)
    raw = next(t for t in model.graph.initializer if t.name == "readout.bias")
    raw.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(raw) + np.float32(1e-6), raw.name))
    write_onnx(model, run.onnx)
    assert not validate(run.onnx, run, samples=5)["static"]["identical"]


def test_the_graph_of_other_weights(runs: dict[str, Run]) -> None:
    found = validate(runs["other weights"].nir, runs["run"], samples=SAMPLES)
    assert found["verdict"] == "E3"
    assert len(found["static"]["differences"]) >= 6


def test_what_differs_between_two_graphs() -> None:
    a = view((3,), {"lif": lif(3), "s": nir.Scale(full(3, 1))})
    b = view((3,), {"lif": nir.IF(full(3, 1), full(3, 1)), "t": nir.Scale(full(3, 1))}, dt=1.0)
    assert static_differences(a, b) == [
        "dt is 1 s, the student has 0.000976562 s",
        "node 'lif' is of class IF, the student has LIF",
        "node 'output' has other incoming edges than the student",
        "node 's' is missing in the file",
        "node 't' is missing in the student",
    ]
    assert static_differences(a, a) == []


def test_one_number_for_all_neurons_is_held_against_each_of_them() -> None:
    """As Norse writes them; the shape alone would hide that tau is wrong."""
    stated = lif(3, tau=0.002, v_th=0.5)
    one = nir.LIF(*(np.float32(v) for v in (2e-6, 1, 0, 0.5)), v_reset=np.float32(0))
    found = static_differences(view((3,), {"lif": stated}), view((3,), {"lif": one}))
    assert (
        "lif.tau differs from the student: shape (), not (3,), in 3 of 3 values, by at most 0.002"
        in found
    )
    assert "lif.v_threshold differs from the student: shape (), not (3,), the same values" in found


# --- files that cannot be judged -----------------------------------------------------------


def _refused(path: Path, run: Run) -> str:
    with pytest.raises(InputFileError) as caught:
        validate(path, run, samples=5)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_graph_of_wider_layers_is_not_equivalent(runs: dict[str, Run]) -> None:
    for path in (runs["wider"].nir, runs["wider"].onnx):
        found = validate(path, runs["run"], samples=5)
        assert found["verdict"] == "E3"
        for backend in found["backends"]:
            assert backend["layers"] == []
            assert backend["reason"] == (
                "layer 'stem_lif' has neurons of shape (4, 8, 8), the student has (3, 8, 8)"
            )


def test_a_graph_with_a_stage_more_is_judged_by_the_layers_of_the_student(
    runs: dict[str, Run],
) -> None:
    for path in (runs["deeper"].nir, runs["deeper"].onnx):
        assert validate(path, runs["run"], samples=5)["verdict"] == "E3"


def test_a_graph_of_other_layers_is_refused(runs: dict[str, Run]) -> None:
    assert "has other spiking layers than the student" in _refused(runs["run"].nir, runs["deeper"])


def test_a_model_of_other_timesteps_is_not_equivalent(runs: dict[str, Run]) -> None:
    found = validate(runs["shorter"].onnx, runs["run"], samples=5)
    assert "logits of shape (2, 5, 10)" in found["backends"][0]["reason"]
    assert found["verdict"] == "E3"


def test_a_graph_of_other_classes_is_not_equivalent(run: Run) -> None:
    def fewer(graph: nir.NIRGraph) -> None:
        head = graph.nodes["readout"]
        graph.nodes["readout"] = nir.Affine(head.weight[:7], head.bias[:7])
        graph.nodes["output"] = nir.Output({"output": np.array([7])})

    found = validate(_edited(run, fewer), run, samples=5)
    assert found["verdict"] == "E3"
    assert all("logits of shape (3, 5, 7)" in one["reason"] for one in found["backends"])


def test_a_graph_of_other_images_is_refused(run: Run) -> None:
    def larger(graph: nir.NIRGraph) -> None:
        graph.nodes["input"] = nir.Input({"input": np.array([1, 9, 9])})

    assert "declares input_shape (8, 8)" in _refused(_edited(run, larger), run)


def test_a_tampered_file_is_refused(run: Run) -> None:
    graph = read_nir(run.nir)
    graph.nodes["readout"].bias[0] += 1
    nir.write(run.nir, graph)  # with the digest of before
    assert "do not match the digest" in _refused(run.nir, run)


@pytest.mark.parametrize("name", ["model.txt", "model.nir", "model.onnx"])
def test_a_file_of_another_kind_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert "there is no file" in _refused(path, run)
    path.write_text("hello")
    _refused(path, run)


def test_a_run_of_other_weights_than_its_configuration(run: Run, runs: dict[str, Run]) -> None:
    shutil.copy(runs["wider"].student, run.student)
    with pytest.raises(InputFileError, match="has shape"):
        validate(run.nir, run, samples=5)


# --- the pieces ----------------------------------------------------------------------------


def test_suffixes_are_held_to(tmp_path: Path) -> None:
    path = tmp_path / "a.nir"
    path.touch()
    check_suffix(path, ".nir", ".onnx")
    with pytest.raises(InputFileError, match=r"a.nir is not a .onnx file"):
        check_suffix(path, ".onnx")


def test_an_onnx_model_belongs_to_one_graph(runs: dict[str, Run]) -> None:
    graph = open_nir(runs["run"].nir)
    assert is_compiled_from(read_onnx(runs["run"].onnx), graph)
    assert not is_compiled_from(read_onnx(runs["other weights"].onnx), graph)
    assert not is_compiled_from(read_onnx(runs["run"].onnx), view((3,), {"lif": lif(3)}))


def test_export_does_not_overwrite_its_source(run: Run) -> None:
    before = run.nir.read_bytes()
    with pytest.raises(UsageError, match="would overwrite its own source"):
        export_onnx(run.nir, run.nir)
    assert run.nir.read_bytes() == before


def test_an_export_that_fails_writes_nothing(tmp_path: Path) -> None:
    graph = network((1, 4, 4), {"wide": pool(nir.AvgPool2d, 2, 2, 2)}, timesteps=3)
    source, out = tmp_path / "wide.nir", tmp_path / "wide.onnx"
    write_nir(graph, source)
    out.write_text("precious")
    with pytest.raises(ExportError, match="'wide' pads by its window or more"):
        export_onnx(source, out)
    assert out.read_text() == "precious"


def test_images_come_in_batches() -> None:
    batches = list(image_batches(DATA, 25, batch_size=10))
    assert [len(labels) for _, labels in batches] == [10, 10, 5]
    images = np.concatenate([x for x, _ in batches])
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, DATA.normalise(DATA.test.images[:25]).numpy())
    labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels, DATA.test.labels[:25].numpy())
    everything = sum(len(labels) for _, labels in image_batches(DATA, None))
    assert everything == len(DATA.test) == sum(len(y) for _, y in image_batches(DATA, 10**6))
    with pytest.raises(UsageError, match="must be at least 1, got 0"):
        next(image_batches(DATA, 0))


def test_a_graph_says_how_its_inputs_are_scaled() -> None:
    stated = {"input_mean": "[0.25]", "input_std": "[2.0]"}
    graph = view((1, 8, 8), {"lif": lif((1, 8, 8))}, **stated)
    data = data_for_graph(graph, "digits", None, "net.nir")
    assert (data.mean, data.std) == ((0.25,), (2.0,))
    assert rescaled(DATA, {}, "net.nir") is DATA
    with pytest.raises(UsageError, match=r"net.nir takes inputs of shape \(3,\), images of 'digit"):
        data_for_graph(view((3,), {"lif": lif(3)}), "digits", None, "net.nir")


@pytest.mark.parametrize("mean", ["x", "[]", '["a"]', "[0.1, 0.2]", 3, "{}", "null"])
def test_a_scaling_that_makes_no_sense_is_refused(mean: Any) -> None:
    with pytest.raises(InputFileError, match=r"net.nir: its input scaling"):
        rescaled(DATA, {"input_mean": mean, "input_std": "[1.0]"}, "net.nir")


@pytest.mark.parametrize("std", ["[0.0]", "[-1.0]"])
def test_a_deviation_is_positive(std: str) -> None:
    with pytest.raises(InputFileError, match="does not fit 1 channels"):
        rescaled(DATA, {"input_mean": "[0.0]", "input_std": std}, "net.nir")
