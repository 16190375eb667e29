"""Exported models fed with recorded spikes, layer by layer."""

from typing import Any

import nir
import numpy as np
import pytest

from tests.graphs import DT, TAU, Array, conv, dyadic, flatten, full, lif, network, pool
from tser.deploy.backends import NirBackend
from tser.deploy.onnx_backend import OnnxBackend
from tser.export.graph import Graph, resolve
from tser.export.onnx_file import OnnxOptions, compile_onnx
from tser.export.onnx_forms import Form

T, B = 5, 3


def _chain() -> Graph:
    """Dyadic, so that every executor must agree to the last spike."""
    rng = np.random.default_rng(0)
    nodes: dict[str, Any] = {
        "conv1": conv(dyadic(rng, (3, 1, 3, 3), bits=3), (6, 6), padding=1),
        "first": lif((3, 6, 6), v_th=0.5, v_reset=-0.25),
        "pool": pool(nir.SumPool2d, 2),
        "conv2": conv(dyadic(rng, (4, 3, 3, 3), bits=3), (3, 3), padding=1),
        "second": lif((4, 3, 3), v_leak=0.25, v_th=0.75),
        "flatten": flatten(),
        "fc": nir.Affine(dyadic(rng, (7, 36), bits=3), dyadic(rng, 7, bits=3)),
        "third": nir.IF(full(7, 0.5 / DT), full(7, 0.5), full(7, 0.125)),
        "head": nir.Linear(dyadic(rng, (2, 7), bits=3)),
    }
    return resolve(network((1, 6, 6), nodes, timesteps=T))


def _loop() -> Graph:
    """Two layers in a cycle, one of them current-based, and one that feeds itself."""
    rng = np.random.default_rng(1)
    weights = {name: dyadic(rng, (5, 5), bits=3) for name in "abc"}
    cuba = nir.CubaLIF(
        tau_syn=full(5, TAU),
        tau_mem=full(5, TAU),
        r=full(5, 1),
        v_leak=full(5, 0),
        v_threshold=full(5, 0.25),
        v_reset=full(5, 0.125),
        w_in=full(5, 2),
    )
    nodes: dict[str, Any] = {
        "first": lif(5, v_th=0.25),
        "forth": nir.Affine(weights["a"], dyadic(rng, 5, bits=3)),
        "second": cuba,
        "back": nir.Linear(weights["b"]),
        "self": nir.Linear(weights["c"]),
    }
    edges = [("input", "first"), ("first", "forth"), ("forth", "second"), ("second", "back")]
    edges += [("back", "first"), ("second", "self"), ("self", "second"), ("second", "output")]
    return resolve(network((5,), nodes, edges, (5,), timesteps=T))


GRAPHS = {"chain": _chain, "loop": _loop}


def _onnx(graph: Graph, form: Form, optimised: bool = True, frames: bool = False) -> OnnxBackend:
    layers = {node.name: node.output_shape for node in graph.spiking}
    encoding: Any = "sequence" if frames else "direct"
    model = compile_onnx(graph, T, encoding, OnnxOptions(form))
    return OnnxBackend(model, layers, "a model", T if form != "sequence" else None, optimised)


def _inputs(graph: Graph, frames: bool) -> Array:
    leading = (T, B) if frames else (B,)
    return dyadic(np.random.default_rng(2), (*leading, *graph.input.output_shape), bits=2)


def _changed(spikes: dict[str, Array]) -> dict[str, Array]:
    """Spikes that no run gave: every tenth is turned over."""
    rng = np.random.default_rng(3)
    return {name: value ^ (rng.random(value.shape) < 0.1) for name, value in spikes.items()}


def _states(graph: Graph, spikes: dict[str, Array]) -> dict[str, Array]:
    """Membranes before each step: at rest, then any."""
    rng = np.random.default_rng(4)
    found = {}
    for name, value in spikes.items():
        found[name] = (rng.integers(-4, 4, value.shape) / 8).astype(np.float32)
        found[name][0] = getattr(graph.nodes[name].op, "v_leak", 0.0)
    return found


CASES = [
    pytest.param(graph, form, optimised, frames, id=f"{graph}-{form}-{optimised}-{frames}")
    for graph in GRAPHS
    for form, optimised in (("sequence", True), ("sequence", False), ("step", True))
    for frames in (False, True)
]


@pytest.mark.parametrize(("name", "form", "optimised", "frames"), CASES)
def test_a_model_replays_as_the_interpreter_does(
    name: str, form: Form, optimised: bool, frames: bool
) -> None:
    graph = GRAPHS[name]()
    model, interpreter = _onnx(graph, form, optimised, frames), NirBackend(graph, T, "the graph")
    x = _inputs(graph, frames)
    recorded = model(x).spikes
    assert all(0.02 < spikes.mean() < 0.98 for spikes in recorded.values())
    own = model.replay(x, recorded)
    for layer, spikes in recorded.items():
        np.testing.assert_array_equal(own[layer], spikes)
    changed = _changed(recorded)
    for states in (None, _states(graph, recorded)):
        expected = interpreter.replay(x, changed, states)
        actual = model.replay(x, changed, states)
        for layer, spikes in expected.items():
            np.testing.assert_array_equal(actual[layer], spikes)
            reads = states is not None or (name, layer) != ("chain", "first")
            assert bool((spikes != recorded[layer]).any()) == reads


def test_a_loop_hides_its_steps() -> None:
    graph = _chain()
    x = _inputs(graph, frames=False)
    model = _onnx(graph, "scan")
    with pytest.raises(NotImplementedError, match="inside a loop"):
        model.replay(x, model(x).spikes)


def test_a_model_runs_alike_with_and_without_optimisations() -> None:
    graph = _chain()
    x = _inputs(graph, frames=False)
    one, other = (_onnx(graph, "sequence", optimised) for optimised in (True, False))
    assert (one.name, other.name) == ("onnx", "onnx-noopt")
    for layer, spikes in one(x).spikes.items():
        np.testing.assert_array_equal(other(x).spikes[layer], spikes)
