"""OpenVINO runs the same ONNX file as ONNX Runtime, with the same spikes."""

import sys

import numpy as np
import pytest

from tests.graphs import Array, conv, dyadic, flatten, full, lif, pool, view
from tser.deploy.backends import NirBackend
from tser.deploy.equivalence import compare
from tser.deploy.onnx_backend import OnnxBackend
from tser.deploy.openvino_backend import OpenVinoBackend
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph
from tser.export.onnx_file import Encoding, compile_onnx

STEPS = 3


def _graph() -> Graph:
    import nir

    rng = np.random.default_rng(0)
    nodes = {
        "conv": conv(dyadic(rng, (4, 2, 3, 3)), (6, 6), padding=1, bias=dyadic(rng, 4)),
        "lif": lif((4, 6, 6)),
        "pool": pool(nir.AvgPool2d, 2),
        "flatten": flatten(),
        "reset": lif(36, v_th=0.25, v_reset=-0.5),
        "fc": nir.Affine(dyadic(rng, (5, 36)), full(5, 0.25)),
    }
    return view((2, 6, 6), nodes)


def _layers(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {node.name: node.output_shape for node in graph.spiking}


def _images(batch: int, *leading: int) -> Array:
    return dyadic(np.random.default_rng(batch), (*leading, batch, 2, 6, 6), most=2)


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    graph = _graph()
    with pytest.raises(UsageError, match=r"pip install 'tser\[openvino\]'"):
        OpenVinoBackend(compile_onnx(graph, STEPS), _layers(graph), "m.onnx")


@pytest.fixture
def _installed() -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("encoding", ["direct", "sequence"])
def test_spikes_and_logits_are_the_interpreters(encoding: Encoding) -> None:
    graph = _graph()
    model = compile_onnx(graph, STEPS, encoding)
    backend = OpenVinoBackend(model, _layers(graph), "m.onnx")
    leading = (STEPS,) if encoding == "sequence" else ()
    batches = [(_images(batch, *leading), None) for batch in (1, 3, 1)]
    evidence = compare(graph, NirBackend(graph, STEPS, "graph"), [backend], batches)
    (comparison,) = evidence.comparisons
    assert (comparison.name, comparison.verdict, evidence.samples) == ("openvino", "E0", 5)
    assert all(layer.reference.sum() > 0 for layer in comparison.layers.values())


@pytest.mark.usefixtures("_installed")
def test_a_trace_outlives_the_next_run() -> None:
    graph = _graph()
    backend = OpenVinoBackend(compile_onnx(graph, STEPS), _layers(graph), "m.onnx")
    first = backend(_images(2))
    kept = first.logits.copy()
    backend(np.zeros((2, 2, 6, 6), np.float32))
    np.testing.assert_array_equal(first.logits, kept)


@pytest.mark.usefixtures("_installed")
def test_no_layers() -> None:
    graph = view((36,), {"fc": _graph().nodes["fc"].op})
    model, x = compile_onnx(graph, STEPS), dyadic(np.random.default_rng(0), (2, 36))
    trace = OpenVinoBackend(model, {}, "m.onnx")(x)
    expected = OnnxBackend(model, {}, "m.onnx")(x)
    np.testing.assert_array_equal(trace.logits, expected.logits)
    assert trace.spikes == {}


@pytest.mark.usefixtures("_installed")
def test_what_it_cannot_run_is_named() -> None:
    graph = _graph()
    backend = OpenVinoBackend(compile_onnx(graph, STEPS), _layers(graph), "m.onnx")
    with pytest.raises(InputFileError, match=r"OpenVINO cannot run m\.onnx: ") as caught:
        backend(np.zeros((1, 2, 7, 7, 7), np.float32)[0])
    assert "\n" not in str(caught.value)
