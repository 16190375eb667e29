"""Graphs that other libraries wrote, read without these libraries."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.graphs import Array
from tser.deploy.graph_file import open_nir
from tser.deploy.interpreter import run
from tser.deploy.onnx_backend import OnnxBackend
from tser.errors import UsageError
from tser.export.export import export_onnx
from tser.export.onnx_file import OnnxOptions, read_onnx

FOLDER = Path(__file__).parents[1] / "data" / "interop"
NAMES = sorted(path.stem for path in FOLDER.glob("*.nir"))


class Recording(NamedTuple):
    path: Path
    dt: float
    x: Array
    spikes: dict[str, Array]


def _recording(name: str) -> Recording:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        spikes = {key[7:]: arrays[key] for key in arrays.files if key.startswith("spikes_")}
        return Recording(FOLDER / f"{name}.nir", float(arrays["dt"]), arrays["x"], spikes)


def test_both_libraries_have_fixtures() -> None:
    assert {name.partition("_")[0] for name in NAMES} == {"snntorch", "spikingjelly"}


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_graph_gives_the_spikes_of_its_own_library(name: str) -> None:
    recorded = _recording(name)
    graph = open_nir(recorded.path, recorded.dt)
    assert recorded.spikes.keys() == {node.name for node in graph.spiking}
    _, found = run(graph, recorded.x, record=list(recorded.spikes))
    for node, spikes in recorded.spikes.items():
        assert 0.02 < spikes.mean() < 0.9, "a layer that shows nothing"
        np.testing.assert_array_equal(found[node] > 0, spikes, err_msg=node)


@pytest.mark.parametrize("name", NAMES)
def test_the_time_step_has_to_be_given(name: str) -> None:
    with pytest.raises(UsageError, match="--dt"):
        open_nir(FOLDER / f"{name}.nir")


@pytest.mark.parametrize("name", NAMES)
def test_another_time_step_is_another_network(name: str) -> None:
    recorded = _recording(name)
    _, found = run(open_nir(recorded.path, recorded.dt / 10), recorded.x, record=recorded.spikes)
    assert any(((found[node] > 0) != spikes).any() for node, spikes in recorded.spikes.items())


@pytest.mark.parametrize("form", ["sequence", "step", "scan"])
@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_graph_goes_through_onnx(name: str, form: Any, tmp_path: Path) -> None:
    recorded, target = _recording(name), tmp_path / "model.onnx"
    steps = len(recorded.x)
    graph = export_onnx(
        recorded.path,
        target,
        timesteps=steps,
        encoding="sequence",
        dt=recorded.dt,
        options=OnnxOptions(form),
    )
    shapes = {node.name: node.output_shape for node in graph.spiking}
    trace = OnnxBackend(read_onnx(target), shapes, str(target))(recorded.x)
    logits, expected = run(graph, recorded.x, record=list(shapes))
    np.testing.assert_allclose(trace.logits, logits, rtol=1e-5, atol=1e-6)
    for node, spikes in expected.items():
        np.testing.assert_array_equal(trace.spikes[node], spikes > 0, err_msg=node)
        np.testing.assert_array_equal(trace.spikes[node], recorded.spikes[node], err_msg=node)
