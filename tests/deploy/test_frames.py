"""Inputs that change at every step: the executors and the comparison of their spikes."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.graphs import Array, lif, view
from tser.config import NeuronConfig, StudentConfig
from tser.config_file import load_config
from tser.data import ArraySplit, ImageData
from tser.data.images import make_image_data
from tser.deploy.backends import NirBackend, TorchBackend, Trace
from tser.deploy.counting import count_operations
from tser.deploy.equivalence import compare
from tser.deploy.inputs import data_for_graph, image_batches
from tser.deploy.onnx_backend import OnnxBackend
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph, resolve
from tser.export.lower import lower
from tser.export.onnx_file import compile_onnx, model_metadata
from tser.layers import Student
from tser.models import make_run_student, make_run_teacher
from tser.students import build_student

T, SHAPE, COUNT = 4, (2, 6, 6), 20


@pytest.fixture(scope="module")
def data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 3, (COUNT, T, *SHAPE), dtype=torch.uint8, generator=generator)
    split = ArraySplit(frames, torch.arange(COUNT) % 3)
    names = ("a", "b", "c")
    return make_image_data("events", names, train=split, val=split, test=split, max_value=255)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    config = StudentConfig(timesteps=T, width=4)
    return build_student(config, NeuronConfig(), SHAPE, 3).eval()


@pytest.fixture(scope="module")
def graph(student: Student, data: ImageData) -> Graph:
    return resolve(lower(student, data).graph)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Inputs strong enough for untrained layers to fire."""
    return 6 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def layers(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {node.name: node.output_shape for node in graph.spiking}


def compiled(graph: Graph, **options: Any) -> OnnxBackend:
    return OnnxBackend(compile_onnx(graph, **options), layers(graph), "m.onnx")


# --- the student ---------------------------------------------------------------------------


def test_the_same_frame_at_every_step_is_a_still_image(student: Student) -> None:
    image = noise(3, *SHAPE)
    with torch.no_grad():
        still, moving = student(image), student(image.expand(T, *image.shape))
        other = student(noise(T, *image.shape, seed=1))
    assert torch.allclose(still, moving, atol=1e-6)
    assert not torch.allclose(still, other, atol=1e-3)


def test_a_step_knows_the_frames_before_it_and_none_after(student: Student) -> None:
    frames = noise(T, 3, *SHAPE)
    later = frames.clone()
    later[2:] = noise(2, 3, *SHAPE, seed=1)
    with torch.no_grad():
        a, b = student(frames), student(later)
    assert torch.allclose(a[:2], b[:2], atol=1e-6)
    assert not torch.allclose(a[2:], b[2:], atol=1e-3)


def test_another_number_of_frames_is_refused(student: Student) -> None:
    with pytest.raises(ValueError, match="x has 5 frames, the student takes T = 4"):
        student(torch.rand(5, 2, *SHAPE))


def test_a_teacher_sees_the_mean_of_the_frames(data: ImageData) -> None:
    config = load_config("digits", ["teacher.width=4", f"student.timesteps={T}"])
    torch.manual_seed(0)
    teacher = make_run_teacher(config, data).eval()
    frames = torch.rand(T, 3, *SHAPE)
    with torch.no_grad():
        assert torch.equal(teacher(frames), teacher(frames.mean(0)))
        assert teacher(frames).shape == (3, 3)


def test_a_student_with_other_steps_is_refused(data: ImageData) -> None:
    config = load_config("digits", ["student.timesteps=6"])
    with pytest.raises(UsageError, match="student.timesteps is 6 .* of events have 4 frames"):
        make_run_student(config, data)


class _OneImage(nn.Module):
    """A user's model that makes its own T steps of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(72, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.readout(x.flatten(1))
        return logits.expand(T, *logits.shape)


def test_a_users_student_that_takes_one_image_is_refused(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tser.user_models._imported", lambda factory: _OneImage)
    config = load_config("digits", ["student.factory=mine:one", f"student.timesteps={T}"])
    with pytest.raises(UsageError, match="mine:one takes one image for all steps and events has"):
        make_run_student(config, data, ["mine:one"])


# --- exported graphs -----------------------------------------------------------------------


def test_the_graph_and_its_onnx_say_what_they_take(
    graph: Graph, student: Student, data: ImageData
) -> None:
    assert graph.metadata["encoding"] == "frames"
    assert lower(student).graph.metadata["encoding"] == "direct"
    model = compile_onnx(graph)
    assert model_metadata(model)["encoding"] == "sequence"
    (value,) = model.graph.input
    assert len(value.type.tensor_type.shape.dim) == 5
    with pytest.raises(UsageError, match="a frame for each step.*--encoding sequence"):
        compile_onnx(graph, encoding="direct")
    still = resolve(lower(student).graph)
    assert model_metadata(compile_onnx(still))["encoding"] == "direct"


def test_all_executors_agree(graph: Graph, student: Student, data: ImageData) -> None:
    lowered = lower(student, data)
    candidates = [NirBackend(graph, T, "graph"), NirBackend(graph, T, "graph", double=True)]
    evidence = compare(
        graph,
        TorchBackend(student, lowered.modules, "student"),
        [*candidates, compiled(graph)],
        image_batches(data, 15, batch_size=6),
        lowered.bias_magnitude,
    )
    assert evidence.samples == 15
    assert evidence.verdict in ("E0", "E1")
    assert [comparison.samples for comparison in evidence.comparisons] == [15] * 3
    for layer in evidence.comparisons[0].layers.values():
        assert 0 < int(layer.reference.sum()) < layer.neurons * T * 15
    assert set(evidence.correct) == {"torch", "nir-f32", "nir-f64", "onnx"}


class _Wrong:
    """The interpreter, with one spike of one sample turned over."""

    name, source = "wrong", "graph"

    def __init__(self, graph: Graph, place: tuple[int, ...]) -> None:
        self._right, self._place = NirBackend(graph, T, "graph"), place

    def __call__(self, x: Array) -> Trace:
        trace = self._right(x)
        layer = next(iter(trace.spikes))
        spikes = trace.spikes[layer].copy()
        spikes[self._place] ^= True
        return Trace(trace.logits, {**trace.spikes, layer: spikes})


@pytest.mark.parametrize("place", [(0, 0, 1, 2, 3), (2, 4, 0, 5, 5), (3, 5, 3, 0, 0)])
def test_a_wrong_spike_is_found_in_its_sample_and_step(
    graph: Graph, data: ImageData, place: tuple[int, ...]
) -> None:
    batches = image_batches(data, 6)
    right = NirBackend(graph, T, "graph")
    (comparison,) = compare(graph, right, [_Wrong(graph, place)], batches).comparisons
    first = comparison.first_divergence
    assert first is not None
    assert (first["t"], first["sample"], *first["neuron"]) == place
    assert comparison.flips == 1
    assert next(iter(comparison.layers.values())).violations == 1
    assert comparison.verdict != "E1"


def test_a_direct_model_does_not_take_frames(graph: Graph, student: Student) -> None:
    still = resolve(lower(student).graph)
    frames = np.zeros((T, 2, *SHAPE), np.float32)
    with pytest.raises(InputFileError, match="m.onnx takes one image for all steps, not a frame"):
        compiled(still)(frames)
    image = np.random.default_rng(0).random((2, *SHAPE), np.float32)
    once = compiled(still)(image)
    repeated = compiled(still, encoding="sequence")
    every = np.repeat(image[None], T, 0)
    for trace in (repeated(image), repeated(every)):
        np.testing.assert_allclose(trace.logits, once.logits, atol=1e-6)
        assert all(np.array_equal(trace.spikes[name], once.spikes[name]) for name in once.spikes)


def test_a_model_without_inputs_is_refused(student: Student) -> None:
    still = resolve(lower(student).graph)
    model = onnx.ModelProto()
    model.CopyFrom(compile_onnx(still))
    del model.graph.input[:]
    with pytest.raises(InputFileError, match="m.onnx"):
        OnnxBackend(model, layers(still), "m.onnx")(np.zeros((2, *SHAPE), np.float32))


def test_events_are_counted_frame_by_frame(graph: Graph, data: ImageData) -> None:
    counts = count_operations(graph, (x for x, _ in image_batches(data, None, batch_size=7)))
    stem = counts.layers[0]
    frames = data.test.images_at(torch.arange(COUNT))
    assert stem.events.tolist() == [int((frames[:, t] != 0).sum()) for t in range(T)]
    assert counts.samples == COUNT


# --- data and graph must belong together ---------------------------------------------------


def still_graph(**metadata: Any) -> Graph:
    return view(SHAPE, {"lif": lif(SHAPE)}, **metadata)


@pytest.mark.parametrize(
    ("metadata", "kind", "message"),
    [
        ({"encoding": "frames"}, "still", "takes a frame for each step, 'x.npz' has still images"),
        ({"encoding": "direct"}, "frames", "takes a still image, 'x.npz' has frames"),
        ({"timesteps": 9}, "frames", "runs for 9 time steps, samples of 'x.npz' have 4 frames"),
    ],
)
def test_data_of_another_kind_are_refused(
    tmp_path: Any, metadata: dict[str, Any], kind: str, message: str
) -> None:
    shape = (COUNT, T, *SHAPE) if kind == "frames" else (COUNT, *SHAPE)
    np.savez(tmp_path / "x.npz", x=np.ones(shape, np.uint8), y=np.arange(COUNT) % 2)
    with pytest.raises(UsageError, match=message):
        data_for_graph(still_graph(**metadata), "x.npz", tmp_path, "net.nir")


@pytest.mark.parametrize("metadata", [{"timesteps": T}, {"encoding": "frames"}, {"encoding": "?"}])
def test_data_that_fit_are_taken(tmp_path: Any, metadata: dict[str, Any]) -> None:
    x = np.ones((COUNT, T, *SHAPE), np.uint8)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(COUNT) % 2)
    taken = data_for_graph(still_graph(**metadata), "x.npz", tmp_path, "net.nir")
    assert next(image_batches(taken, 3))[0].shape == (T, 3, *SHAPE)
