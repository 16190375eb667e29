"""ONNX Runtime on every form of a model gives the interpreter's spikes, layer by layer."""

from pathlib import Path
from typing import get_args

import nir
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.graphs import DT, TAU, Array, dyadic, full, lif, network, view
from tests.nodes import cuba, varied
from tser.config import NeuronConfig, StudentConfig
from tser.deploy.backends import NirBackend, TorchBackend
from tser.deploy.equivalence import compare
from tser.deploy.graph_file import open_nir
from tser.deploy.onnx_backend import OnnxBackend
from tser.deploy.onnx_model import OnnxModel
from tser.deploy.openvino_backend import OpenVinoBackend
from tser.deploy.weights_effect import float16_effect, random_inputs
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph, resolve
from tser.export.lower import lower
from tser.export.nir_file import write_nir
from tser.export.onnx_file import OnnxOptions, compile_onnx, read_onnx, write_onnx
from tser.export.onnx_forms import Form
from tser.layers import Student
from tser.students import build_student

FORMS: tuple[Form, ...] = get_args(Form)
STEPS = 3


def _layers(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {node.name: node.output_shape for node in graph.spiking}


def _student(arch: str) -> Student:
    """A tiny network in which every layer fires."""
    torch.manual_seed(0)
    config = StudentConfig.model_validate({"arch": arch, "width": 4, "timesteps": STEPS})
    student = build_student(config, NeuronConfig(), (3, 32, 32), 10)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        student.train()(torch.randn(8, 3, 32, 32))
    return student.eval()


@pytest.mark.parametrize("arch", ["resnet18", "vgg16"])
def test_networks_go_from_torch_through_files_to_onnx_runtime(arch: str, tmp_path: Path) -> None:
    student = _student(arch)
    lowered = lower(student)
    write_nir(lowered.graph, tmp_path / "m.nir")
    graph = open_nir(tmp_path / "m.nir")
    candidates = [NirBackend(graph, STEPS, "nir")]
    for form in FORMS:
        path = tmp_path / f"{form}.onnx"
        write_onnx(compile_onnx(graph, options=OnnxOptions(form)), path)
        candidates.append(OnnxBackend(read_onnx(path), _layers(graph), str(path)))
    x = torch.randn(3, 3, 32, 32).numpy()
    evidence = compare(
        graph,
        TorchBackend(student, lowered.modules, "torch"),
        candidates,
        [(x, None)],
        lowered.bias_magnitude,
    )
    assert all(one.verdict in ("E0", "E1") for one in evidence.comparisons)
    traces = [candidate(x) for candidate in candidates[1:]]
    for trace in traces:
        np.testing.assert_array_equal(trace.logits, traces[0].logits)
        for name, spikes in trace.spikes.items():
            np.testing.assert_array_equal(spikes, traces[0].spikes[name])
            assert spikes.any(), "a silent layer proves nothing"


def _recurrent() -> Graph:
    rng = np.random.default_rng(2)
    nodes = {
        "fc": nir.Linear(dyadic(rng, (3, 2), most=2)),
        "cuba": cuba(nir.CubaLIF, v_threshold=0.25),
        "back": nir.Linear(dyadic(rng, (3, 3))),
        "late": nir.Delay(varied(0, 1, 2) * DT),
    }
    edges = [("input", "fc"), ("fc", "cuba"), ("cuba", "back"), ("back", "cuba")]
    edges += [("cuba", "late"), ("late", "output")]
    return resolve(network((2,), nodes, edges, (3,), timesteps=5))


@pytest.mark.parametrize("form", FORMS)
def test_a_recurrent_network_goes_through_files_to_onnx_runtime(form: Form, tmp_path: Path) -> None:
    graph, path = _recurrent(), tmp_path / "m.onnx"
    write_onnx(compile_onnx(graph, options=OnnxOptions(form)), path)
    backend = OnnxBackend(read_onnx(path), _layers(graph), str(path))
    x = dyadic(np.random.default_rng(0), (20, 2), most=2)
    reference = NirBackend(graph, 5, "nir")
    evidence = compare(graph, reference, [backend], [(x, None)])
    assert evidence.verdict == "E0"
    assert 0 < reference(x).spikes["cuba"].mean() < 1


@pytest.mark.parametrize("form", FORMS)
def test_frames_and_images(form: Form) -> None:
    graph = view((2,), {"lif": lif(2, v_th=0.5)}, timesteps=STEPS)
    model = compile_onnx(graph, encoding="sequence", options=OnnxOptions(form))
    backend = OnnxBackend(model, _layers(graph), "m.onnx")
    image = dyadic(np.random.default_rng(0), (4, 2), most=2)
    frames = dyadic(np.random.default_rng(1), (STEPS, 4, 2), most=2)
    for x in (image, frames):
        trace, expected = backend(x), NirBackend(graph, STEPS, "nir")(x)
        np.testing.assert_array_equal(trace.logits, expected.logits)
        np.testing.assert_array_equal(trace.spikes["lif"], expected.spikes["lif"])


@pytest.mark.parametrize("form", ["step", "scan"])
def test_time_may_be_chosen_unless_it_is_unrolled(form: Form) -> None:
    graph = view((2,), {"lif": lif(2)}, timesteps=STEPS)
    x = np.ones((1, 2), np.float32)
    longer = OnnxBackend(compile_onnx(graph, options=OnnxOptions(form)), {}, "m.onnx", 7)
    assert longer(x).logits.shape == (7, 1, 2)
    with pytest.raises(UsageError, match=r"m.onnx was unrolled for 3 time steps, not 7"):
        OnnxBackend(compile_onnx(graph), {}, "m.onnx", 7)
    unknown = view((2,), {"lif": lif(2)})
    backend = OnnxBackend(compile_onnx(unknown, options=OnnxOptions(form)), {}, "m.onnx")
    with pytest.raises(InputFileError, match=r"m.onnx does not say how many .*--timesteps"):
        backend(x)


@pytest.mark.parametrize("states", [None, "no JSON", "{}", '[{"input": "a"}]', "[1]"])
def test_a_step_model_without_its_states_is_refused(states: str | None) -> None:
    model = compile_onnx(view((2,), {"lif": lif(2)}), options=OnnxOptions("step"))
    kept = {p.key: p.value for p in model.metadata_props if p.key != "states"}
    onnx.helper.set_model_props(model, kept | ({} if states is None else {"states": states}))
    if states == "{}":  # no state at all: the runtime misses its inputs
        with pytest.raises(InputFileError, match=r"ONNX Runtime cannot run m.onnx"):
            OnnxBackend(model, {}, "m.onnx", 2)(np.ones((1, 2), np.float32))
        return
    with pytest.raises(InputFileError, match="do not list the states of a step"):
        OnnxModel(model, {}, "m.onnx")


@pytest.mark.parametrize("form", ["step", "scan"])
def test_openvino_is_given_the_sequence_form_only(form: Form) -> None:
    model = compile_onnx(view((2,), {"lif": lif(2)}), options=OnnxOptions(form))
    with pytest.raises(UsageError, match=f"m.onnx is of the {form} form.* leave out --openvino"):
        OpenVinoBackend(model, {}, "m.onnx")


# --- what float16 weights change -------------------------------------------------------------


def _drifting(weight: float) -> Graph:
    """Neurons that sit on their threshold when the weight is 1 and all inputs are."""
    nodes = {"fc": nir.Linear(full((2, 1), weight)), "lif": lif(2, tau=TAU / 2, v_th=1)}
    return view((1,), nodes, timesteps=STEPS)


def test_the_effect_of_float16_weights_is_counted() -> None:
    ones: Array = np.ones((4, 1), np.float32)
    exact = float16_effect(_drifting(1.5), [ones])
    assert exact == {
        "samples": 4,
        "neuron_steps": 4 * 2 * STEPS,
        "spikes": 4 * 2 * STEPS,
        "flips": 0,
        "changed_predictions": 0,
    }
    # Just above the threshold in float32, on it in float16: not one spike is left.
    lost = float16_effect(_drifting(1 + 2**-15), [ones])
    assert (lost["spikes"], lost["flips"]) == (4 * 2 * STEPS, 4 * 2 * STEPS)


def test_changed_predictions_are_counted() -> None:
    weight = np.array([[1], [1 + 2**-15]], np.float32)
    graph = view((1,), {"fc": nir.Linear(weight)}, timesteps=1)
    assert float16_effect(graph, [np.ones((3, 1), np.float32)])["changed_predictions"] == 3
    frames = np.ones((2, 3, 1), np.float32)
    assert float16_effect(graph, [frames])["changed_predictions"] == 3


def test_random_inputs_are_the_same_every_time() -> None:
    (first,), (second,) = random_inputs((2, 3)), random_inputs((2, 3))
    assert first.shape == (16, 2, 3)
    np.testing.assert_array_equal(first, second)
