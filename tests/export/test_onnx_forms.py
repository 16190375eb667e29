"""Sequence, step and scan give the interpreter's bits, whatever runs them."""

import json
from typing import Any, get_args

import nir
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from tests.graphs import (
    DT,
    TAU,
    Array,
    conv,
    dyadic,
    flatten,
    full,
    lif,
    network,
    pool,
    spikes,
    view,
)
from tests.nodes import CASES, cuba, varied
from tser.deploy.backends import NirBackend
from tser.deploy.interpreter import run
from tser.deploy.onnx_backend import OnnxBackend
from tser.export.graph import Graph, resolve
from tser.export.lower import ExportError
from tser.export.onnx_file import OnnxOptions, compile_onnx, model_metadata, options_of
from tser.export.onnx_forms import Encoding, Form

STEPS = 4
FORMS: tuple[Form, ...] = get_args(Form)
LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class OnnxRuntime:
    """ONNX Runtime at one level of optimisation."""

    def __init__(self, model: onnx.ModelProto, level: str = "all") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.graph_optimization_level = LEVELS[level]
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, names: list[str], feeds: dict[str, Array]) -> list[Array]:
        return self._session.run(names, feeds)


def _outputs(model: onnx.ModelProto, program: Any, x: Array, steps: int) -> dict[str, Array]:
    """Every output ``[T, B, ...]`` of a model in any form, run as its metadata say."""
    stated = model_metadata(model)
    names = [value.name for value in model.graph.output]
    if stated["form"] != "step":
        taken = {value.name for value in model.graph.input}
        feeds = {"input": x, "timesteps": np.array([steps], np.int64)}
        values = program.run(names, {name: feeds[name] for name in taken})
        return dict(zip(names, values, strict=True))
    table = json.loads(stated["states"])
    frames = x if stated["encoding"] == "sequence" else np.stack([x] * steps)
    batch = frames.shape[1]
    state = {
        one["input"]: np.broadcast_to(np.float32(one["initial"]), (batch, *one["shape"])).copy()
        for one in table
    }
    history = []
    for frame in frames:
        values = dict(zip(names, program.run(names, {"input": frame, **state}), strict=True))
        state = {one["input"]: values[one["output"]] for one in table}
        history.append(values)
    kept = [name for name in names if not name.endswith(".next")]
    return {name: np.stack([values[name] for values in history]) for name in kept}


def _x(graph: Graph, encoding: Encoding, batch: int, steps: int = STEPS) -> Array:
    leading = (batch,) if encoding == "direct" else (steps, batch)
    shape = (*leading, *graph.input.output_shape)
    return dyadic(np.random.default_rng(batch), shape, most=2)


def _assert_equal_bits(graph: Graph, form: Form, encoding: Encoding = "direct") -> None:
    model = compile_onnx(graph, STEPS, encoding, OnnxOptions(form, ("spikes", "membranes")))
    program = OnnxRuntime(model)
    layers = [node.name for node in graph.spiking]
    for batch in (1, 3):
        x = _x(graph, encoding, batch)
        expected, kept = run(graph, x, STEPS, record=layers)
        found = _outputs(model, program, x, STEPS)
        np.testing.assert_array_equal(found["logits"], expected)
        for name in layers:
            np.testing.assert_array_equal(found[f"{name}.spikes"], kept[name])


@pytest.mark.parametrize("encoding", ["direct", "sequence"])
@pytest.mark.parametrize("form", ["step", "scan"])
@pytest.mark.parametrize("case", CASES)
def test_every_class_bit_for_bit(case: str, form: Form, encoding: Encoding) -> None:
    op, shape = CASES[case]
    for before in ({}, {"first": lif(shape, v_th=0.25)}):
        _assert_equal_bits(view(shape, {**before, "node": op}), form, encoding)


def _recurrent() -> Graph:
    """CubaLIF neurons with a synapse back to themselves, a loop through delays, a leaky output."""
    rng = np.random.default_rng(5)
    nodes = {
        "fc": nir.Affine(dyadic(rng, (3, 4)), dyadic(rng, 3)),
        "cuba": cuba(nir.CubaLIF, v_leak=0.25, v_threshold=0.25),
        "back": nir.Affine(dyadic(rng, (3, 3)), varied(0.5, -0.25, 1)),
        "late": nir.Delay(varied(0, 1, 2) * DT),
        "lif": lif(3, v_th=0.25),
        "readout": nir.LI(full(3, 2 * DT), full(3, 1), varied(0, 0.5, -0.5)),
    }
    edges = [("input", "fc"), ("fc", "cuba"), ("cuba", "back"), ("back", "cuba")]
    edges += [("cuba", "late"), ("late", "lif"), ("lif", "lif"), ("lif", "cuba")]
    edges += [("lif", "readout"), ("readout", "output")]
    return resolve(network((4,), nodes, edges, (3,)))


@pytest.mark.parametrize("encoding", ["direct", "sequence"])
@pytest.mark.parametrize("form", FORMS)
def test_a_recurrent_graph_bit_for_bit(form: Form, encoding: Encoding) -> None:
    graph = _recurrent()
    assert graph.recurrent
    x = _x(graph, encoding, 3)
    _, kept = run(graph, x, STEPS, record=["cuba", "lif"])
    assert all(0 < value.mean() < 1 for value in kept.values()), "silence proves nothing"
    _assert_equal_bits(graph, form, encoding)


@pytest.mark.parametrize("form", FORMS)
def test_nested_graphs_and_fan_in(form: Form) -> None:
    ends = {"in": nir.Input({"input": np.array([3])}), "out": nir.Output({"output": np.array([3])})}
    inner = nir.NIRGraph({**ends, "lif": lif(3)}, [("in", "lif"), ("lif", "out")], type_check=False)
    nodes = {"block": inner, "a": nir.Scale(full(3, 0.5)), "sum": lif(3, v_th=0.5)}
    edges = [("input", "block"), ("input", "a"), ("block", "sum"), ("a", "sum"), ("input", "sum")]
    graph = resolve(network((3,), nodes, [*edges, ("sum", "output")], (3,)))
    assert [node.name for node in graph.spiking] == ["block.lif", "sum"]
    _assert_equal_bits(graph, form)


@pytest.mark.parametrize("form", FORMS)
def test_layers_may_be_named_like_ports_and_states(form: Form) -> None:
    names = ["logits", "input.each", "lif", "lif.v", "lif.v.next", "timesteps", "tick", "scan"]
    nodes = {name: lif(2, v_th=0.25) for name in names}
    _assert_equal_bits(view((2,), nodes), form)
    _assert_equal_bits(view((2,), {name: nir.Scale(full(2, 2)) for name in names}), form)


@pytest.mark.parametrize("level", LEVELS)
def test_all_forms_round_alike(level: str) -> None:
    """Real numbers, in sizes for which ONNX Runtime has convolutions that sum in another order."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    maps = (16, 6, 6)
    nodes = {
        "stem": conv(weights(16, 3, 3, 3), (8, 8)),
        "cuba": nir.CubaLIF(
            tau_syn=full(maps, 3.3e-3),
            tau_mem=full(maps, 7.1e-3),
            r=full(maps, 0.7),
            v_leak=full(maps, 0.03),
            w_in=full(maps, 2.3),
            v_threshold=full(maps, 0.4),
            v_reset=full(maps, 0),
        ),
        "conv": conv(weights(32, 16, 3, 3), (6, 6)),
        "lif": lif((32, 4, 4), tau=7e-3, r=1.3, v_leak=0.11, v_th=0.3),
        "pool": pool(nir.AvgPool2d, 2),
        "flatten": flatten(),
        "fc": nir.Affine(weights(10, 128), weights(10)),
        "i": nir.I(full(10, 333)),
    }
    graph = view((3, 8, 8), nodes, dt=1e-3, timesteps=5)
    x = weights(4, 3, 8, 8)
    found = {}
    for form in FORMS:
        model = compile_onnx(graph, options=OnnxOptions(form, ("spikes", "membranes")))
        found[form] = _outputs(model, OnnxRuntime(model, level), x, 5)
    for name, expected in found["sequence"].items():
        assert expected.any()
        for form in ("step", "scan"):
            np.testing.assert_array_equal(found[form][name], expected, err_msg=f"{form} {name}")


# --- what the forms take and give ----------------------------------------------------------


@pytest.mark.parametrize("encoding", ["direct", "sequence"])
def test_a_scan_runs_for_any_time(encoding: Encoding) -> None:
    graph = view((2,), {"lif": lif(2, v_th=0.5), "fc": nir.Linear(full((3, 2), 0.5))})
    model = compile_onnx(graph, None, encoding, OnnxOptions("scan"))
    assert "timesteps" not in model_metadata(model)
    program = OnnxRuntime(model)
    for steps in (1, 2, 9):
        x = _x(graph, encoding, 3, steps)
        (logits,) = _outputs(model, program, x, steps).values()
        np.testing.assert_array_equal(logits, run(graph, x, steps)[0])


def _ports(values: Any) -> dict[str, list[int | str]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values
    }


def test_the_ports_of_a_step() -> None:
    model = compile_onnx(_recurrent(), options=OnnxOptions("step", ("spikes",)))
    states: dict[str, list[int | str]] = {
        "cuba.v": ["B", 3],
        "cuba.i": ["B", 3],
        "cuba.last": ["B", 3],
        "late.x": ["B", 2, 3],
        "lif.v": ["B", 3],
        "lif.last": ["B", 3],
        "readout.v": ["B", 3],
    }
    assert _ports(model.graph.input) == {"input": ["B", 4], **states}
    assert _ports(model.graph.output) == {
        "logits": ["B", 3],
        "cuba.spikes": ["B", 3],
        "lif.spikes": ["B", 3],
        **{f"{name}.next": shape for name, shape in states.items()},
    }
    table = {one["input"]: one for one in json.loads(model_metadata(model)["states"])}
    assert table.keys() == states.keys()
    assert (table["cuba.v"]["initial"], table["cuba.i"]["initial"]) == (0.25, 0)
    assert table["readout.v"] == {
        "input": "readout.v",
        "output": "readout.v.next",
        "shape": [3],
        "initial": [0, 0.5, -0.5],
    }


def test_the_ports_of_a_scan() -> None:
    graph = view((2,), {"lif": lif(2)})
    for encoding, inputs in (
        ("direct", {"input": ["B", 2], "timesteps": [1]}),
        ("sequence", {"input": ["T", "B", 2]}),
    ):
        model = compile_onnx(graph, None, encoding, OnnxOptions("scan", ("membranes",)))
        assert _ports(model.graph.input) == inputs
        expected = {"logits": ["T", "B", 2], "lif.membranes": ["T", "B", 2]}
        assert _ports(model.graph.output) == expected


@pytest.mark.parametrize("form", FORMS)
def test_membranes_are_those_that_the_threshold_sees(form: Form) -> None:
    graph = view((3,), {"lif": lif(3, v_th=0.5, v_reset=-1), "li": nir.LI(*[full(3, DT)] * 3)})
    model = compile_onnx(graph, STEPS, "sequence", OnnxOptions(form, ("membranes", "spikes")))
    found = _outputs(model, OnnxRuntime(model), _x(graph, "sequence", 2), STEPS)
    assert set(found) == {"logits", "lif.spikes", "lif.membranes", "li.membranes"}
    np.testing.assert_array_equal(found["lif.membranes"] > 0.5, found["lif.spikes"] > 0)
    assert found["lif.spikes"].any()
    np.testing.assert_array_equal(found["li.membranes"], found["logits"])


@pytest.mark.parametrize("form", FORMS)
def test_what_no_output_needs_is_left_out(form: Form) -> None:
    aside = nir.LI(full(2, TAU), full(2, 1), full(2, 0))
    nodes = {"lif": lif(2), "aside": aside}
    edges = [("input", "lif"), ("lif", "aside"), ("lif", "output")]
    graph = resolve(network((2,), nodes, edges, (2,)))
    model = compile_onnx(graph, 3, options=OnnxOptions(form))
    assert b"aside.v" not in model.graph.SerializeToString()
    assert b"lif.v" in model.graph.SerializeToString()


def test_a_scan_computes_the_first_synapse_once() -> None:
    nodes = {"stem": nir.Linear(full((2, 2), 1)), "lif": lif(2), "fc": nir.Linear(full((2, 2), 1))}
    model = compile_onnx(view((2,), nodes), options=OnnxOptions("scan"))
    (scan,) = [node for node in model.graph.node if node.op_type == "Scan"]
    body = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    assert [node.name for node in body.node if node.op_type == "Gemm"] == ["fc.t"]
    assert [node.name for node in model.graph.node if node.op_type == "Gemm"] == ["stem"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["direct", "sequence"])
def test_models_are_valid_and_say_what_they_are(form: Form, encoding: Encoding) -> None:
    options = OnnxOptions(form, ("spikes", "membranes"), "float16")
    model = compile_onnx(_recurrent(), 3, encoding, options)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert options_of(model) == options
    assert compile_onnx(_recurrent(), 3, encoding, options) == model


# --- another runtime, other weights ----------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["direct", "sequence"])
def test_the_reference_evaluator_agrees(form: Form, encoding: Encoding) -> None:
    rng = np.random.default_rng(1)
    maps = {
        "stem": conv(dyadic(rng, (2, 1, 3, 3)), (4, 4), padding=1),
        "lif": lif((2, 4, 4), v_th=0.5),
        "pool": pool(nir.SumPool2d, 2),
        "late": nir.Delay(varied(*range(8)).reshape(2, 2, 2) % 3 * DT),
        "flatten": flatten(),
        "fc": nir.Affine(dyadic(rng, (3, 8)), dyadic(rng, 3)),
    }
    for graph in (view((1, 4, 4), maps), _recurrent()):
        model = compile_onnx(graph, STEPS, encoding, OnnxOptions(form, ("spikes",)))
        x = _x(graph, encoding, 2)
        found = _outputs(model, ReferenceEvaluator(model), x, STEPS)
        np.testing.assert_array_equal(found["logits"], run(graph, x, STEPS)[0])
        expected = _outputs(model, OnnxRuntime(model, "off"), x, STEPS)
        for name, value in found.items():
            np.testing.assert_array_equal(value, expected[name])


def _weights(value: float) -> Graph:
    nodes = {"fc": nir.Affine(full((2, 3), value), full(2, 0.25)), "lif": lif(2)}
    return view((3,), nodes, timesteps=2)


@pytest.mark.parametrize("form", FORMS)
def test_float16_weights_are_stored_as_such_and_computed_in_float32(form: Form) -> None:
    model = compile_onnx(_weights(0.1), options=OnnxOptions(form, ("membranes",), "float16"))
    graphs = [model.graph, *(a.g for node in model.graph.node for a in node.attribute)]
    kinds = {tensor.name: tensor.data_type for graph in graphs for tensor in graph.initializer}
    half = onnx.TensorProto.FLOAT16
    assert {name for name, kind in kinds.items() if kind == half} == {"fc.weight", "fc.bias"}
    x = spikes(np.random.default_rng(0), (4, 3))
    found = _outputs(model, OnnxRuntime(model), x, 2)
    rounded = _weights(float(np.float16(0.1)))
    np.testing.assert_array_equal(found["logits"], run(rounded, x, 2)[0])
    exact = compile_onnx(rounded, options=OnnxOptions(form, ("membranes",)))
    expected = _outputs(exact, OnnxRuntime(exact), x, 2)
    np.testing.assert_array_equal(found["lif.membranes"], expected["lif.membranes"])


def test_weights_beyond_float16_are_refused_by_name() -> None:
    with pytest.raises(ExportError, match=r"fc.weight exceeds what float16 can hold"):
        compile_onnx(_weights(7e4), options=OnnxOptions(weights="float16"))


@pytest.mark.parametrize("form", ["sequence", "step", "scan"])
def test_spikes_that_come_too_late_for_the_output_are_there(form: Form) -> None:
    """The last steps of a layer in front of a Delay, and a layer that leads nowhere."""
    nodes = {
        "first": lif(3),
        "wait": nir.Delay(full(3, 2 * DT)),
        "last": lif(3, v_th=0.25),
        "aside": lif(3, v_th=0.25),
    }
    edges = [("input", "first"), ("first", "wait"), ("wait", "last"), ("last", "output")]
    graph = resolve(network((3,), nodes, [*edges, ("first", "aside")], (3,), timesteps=4))
    layers = {node.name: node.output_shape for node in graph.spiking}
    model = compile_onnx(graph, 4, options=OnnxOptions(form))
    backend = OnnxBackend(model, layers, "m", None if form == "sequence" else 4)
    expected = NirBackend(graph, 4, "the graph")(np.full((2, 3), 3, np.float32))
    found = backend(np.full((2, 3), 3, np.float32))
    for name in layers:
        np.testing.assert_array_equal(found.spikes[name], expected.spikes[name])
        assert expected.spikes[name].any()
