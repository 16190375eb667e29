"""ONNX compiled from NIR gives the interpreter's bits in ONNX Runtime; other files are refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

from tests.graphs import (
    DT,
    Array,
    conv,
    convolutions,
    dyadic,
    flatten,
    full,
    lif,
    network,
    pool,
    pools,
    view,
)
from tests.nodes import CASES
from tser import __version__
from tser.deploy.interpreter import run
from tser.errors import InputFileError
from tser.export.graph import Graph, resolve
from tser.export.lower import ExportError
from tser.export.onnx_file import (
    IR_VERSION,
    OPSET,
    Encoding,
    compile_onnx,
    model_metadata,
    read_onnx,
    write_onnx,
)
from tser.export.onnx_steps import step_names
from tser.export.shapes import Shape

ANY = settings(deadline=None, derandomize=True, max_examples=40)


def _execute(model: onnx.ModelProto, x: Array, *names: str) -> list[Array]:
    """The named tensors, by ONNX Runtime on the CPU; default: the logits."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in names:
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(list(names) or ["logits"], {"input": x})


def _assert_equal_bits(graph: Graph, steps: int, encoding: Encoding = "direct") -> None:
    """One model, several batch sizes."""
    model = compile_onnx(graph, steps, encoding)
    for batch in (1, 3):
        leading = (batch,) if encoding == "direct" else (steps, batch)
        x = dyadic(np.random.default_rng(batch), (*leading, *graph.input.output_shape), most=2)
        expected, _ = run(graph, x, steps)
        (actual,) = _execute(model, x)
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, expected)


def test_every_class_has_a_case() -> None:
    covered = {type(op).__name__ for op, _ in CASES.values()}
    assert len(covered) == 16  # 19 without Input and Output, which each has, and NIRGraph


@pytest.mark.parametrize("encoding", ["direct", "sequence"])
@pytest.mark.parametrize("case", CASES)
def test_every_class_bit_for_bit(case: str, encoding: Encoding) -> None:
    op, shape = CASES[case]
    # Spikes in, as deployed, and the node on its own: constant input and none.
    for before in ({}, {"first": lif(shape, v_th=0.25)}):
        for steps in (1, 4):
            _assert_equal_bits(view(shape, {**before, "node": op}), steps, encoding)


@ANY
@given(convolutions())
def test_any_convolution_bit_for_bit(case: tuple[Any, Shape]) -> None:
    op, shape = case
    _assert_equal_bits(view(shape, {"conv": op}), 2)


@ANY
@given(pools())
def test_any_pool(case: tuple[Any, Shape]) -> None:
    op, shape = case
    graph, x = view(shape, {"pool": op}), np.random.default_rng(0).normal(size=(2, *shape))
    (actual,) = _execute(compile_onnx(graph, 2), x.astype(np.float32))
    np.testing.assert_allclose(actual, run(graph, x, 2)[0], rtol=1e-5, atol=1e-6)


def _network() -> nir.NIRGraph:
    """A residual convnet with everything a student has."""
    rng = np.random.default_rng(3)
    shape = (4, 6, 6)
    nodes = {
        "stem": conv(dyadic(rng, (4, 1, 3, 3)), (6, 6), padding=1, bias=dyadic(rng, 4)),
        "stem_lif": lif(shape),
        "conv": conv(dyadic(rng, (4, 4, 3, 3)), (6, 6), padding=1),
        "lif": lif(shape, v_th=0.5),
        "pool": pool(nir.AvgPool2d, 2),
        "flatten": flatten(),
        "fc": nir.Affine(dyadic(rng, (5, 36)), dyadic(rng, 5)),
    }
    edges = [*itertools.pairwise(["input", *nodes, "output"]), ("stem_lif", "lif")]
    stated = {"timesteps": 4, "class_names": json.dumps(list("abcde")), "sha256": "0" * 64}
    return network((1, 6, 6), nodes, edges, (5,), **stated)


@pytest.mark.parametrize("encoding", ["direct", "sequence"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_network_bit_for_bit(encoding: Encoding, steps: int) -> None:
    _assert_equal_bits(resolve(_network()), steps, encoding)


def test_fan_in_of_what_is_constant_and_what_is_not() -> None:
    edges = [("input", "a"), ("a", "lif"), ("input", "b"), ("lif", "sum"), ("b", "sum")]
    edges += [("input", "sum"), ("sum", "output")]
    nodes = {"a": nir.Scale(full(3, 2)), "lif": lif(3), "b": nir.Scale(full(3, 0.5))}
    graph = resolve(network((3,), nodes | {"sum": nir.Scale(full(3, 1))}, edges, (3,)))
    for encoding in ("direct", "sequence"):
        _assert_equal_bits(graph, 3, encoding)


def test_nested_graphs() -> None:
    ends = {"in": nir.Input({"input": np.array([3])}), "out": nir.Output({"output": np.array([3])})}
    inner = nir.NIRGraph({**ends, "lif": lif(3)}, [("in", "lif"), ("lif", "out")], type_check=False)
    edges = [("input", "block"), ("block", "output")]
    _assert_equal_bits(resolve(network((3,), {"block": inner}, edges, (3,))), 3)


# --- the model -----------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["direct", "sequence"])
def test_the_model_is_valid_onnx(encoding: Encoding) -> None:
    model = compile_onnx(resolve(_network()), encoding=encoding)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert (model.ir_version, model.producer_name) == (IR_VERSION, "tser")

    def dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
        shape = value.type.tensor_type.shape.dim
        return [dim.dim_param or dim.dim_value for dim in shape]

    leading = ["B"] if encoding == "direct" else [4, "B"]
    assert [(v.name, dimensions(v)) for v in model.graph.input] == [("input", [*leading, 1, 6, 6])]
    assert [(v.name, dimensions(v)) for v in model.graph.output] == [("logits", [4, "B", 5])]


def test_tensors_have_the_names_of_the_nodes() -> None:
    graph = resolve(_network())
    model, x = compile_onnx(graph), dyadic(np.random.default_rng(0), (2, 1, 6, 6))
    names = [name for name in graph.nodes if name not in ("input", "output")]
    _, expected = run(graph, x, record=names)
    for name in names:
        # Before the first neuron nothing depends on time.
        tensors = [name] if name == "stem" else step_names(name, 4)
        for t, value in enumerate(_execute(model, x, *tensors)):
            np.testing.assert_array_equal(value, expected[name][t])


def test_names_of_steps_do_not_take_those_of_nodes() -> None:
    nodes = {"a": lif(2), "a.above.1": lif(2), "a.t0": lif(2), "a.1": nir.Scale(full(2, 2))}
    graph = view((2,), nodes | {"logits": _fc()})
    _assert_equal_bits(graph, 3)
    model = compile_onnx(graph, 3)
    made = [output for node in model.graph.node for output in node.output]
    for name in (*nodes, "logits"):
        assert {*step_names(name, 3)} <= set(made)
    assert len(made) == len(set(made))


def _fc() -> nir.Affine:
    return nir.Affine(full((2, 2), 0.5), full(2, 0.25))


def test_metadata() -> None:
    stated = model_metadata(compile_onnx(resolve(_network()), 3, "sequence"))
    assert stated["nir_sha256"] == "0" * 64
    assert (stated["opset"], stated["form"], stated["weights"]) == ("18", "sequence", "float32")
    assert json.loads(stated["layers"]) == {"stem_lif": [4, 6, 6], "lif": [4, 6, 6]}
    assert "sha256" not in stated
    assert (stated["dt"], stated["timesteps"], stated["encoding"]) == (str(DT), "3", "sequence")
    assert json.loads(stated["class_names"]) == list("abcde")
    model = compile_onnx(resolve(_network()))
    assert (model_metadata(model)["timesteps"], model.producer_version) == ("4", __version__)


@pytest.mark.parametrize("steps", [1, 3])
def test_nothing_is_computed_in_vain(steps: int) -> None:
    graph = _network()
    graph.nodes["aside"] = nir.Affine(full((2, 36), 1), full(2, 0))
    graph.edges.append(("flatten", "aside"))
    model = compile_onnx(resolve(graph), steps)
    used = {name for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        assert set(node.output) & (used | {"logits"}), f"nothing reads {node.name}"
    unused = {value.name for value in model.graph.initializer} - used
    assert not unused
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 1 + steps  # the first sees the same image at every step
    assert kinds.count("ThresholdedRelu") == 2 * (steps - 1)  # the last reset reaches nothing


def test_bytes_do_not_depend_on_the_run() -> None:
    first, second = (compile_onnx(resolve(_network())).SerializeToString() for _ in range(2))
    assert first == second


# --- what is refused -----------------------------------------------------------------------


def test_an_unknown_number_of_steps_is_asked_for() -> None:
    with pytest.raises(ExportError, match="pass --timesteps"):
        compile_onnx(view((2,), {"lif": lif(2)}))


def test_a_pool_that_pads_more_than_its_window_is_refused_by_node() -> None:
    graph = view((1, 4, 4), {"wide": pool(nir.AvgPool2d, 2, 2, 2)})
    with pytest.raises(ExportError, match="node 'wide' pads by its window or more"):
        compile_onnx(graph, 3)


@pytest.mark.parametrize("name", ["input", "logits"])
def test_a_spiking_layer_may_have_the_name_of_an_end_of_the_model(name: str) -> None:
    ends = {"in": nir.Input({"input": np.array([2])}), "out": nir.Output({"output": np.array([2])})}
    graph = nir.NIRGraph(
        {**ends, name: lif(2)}, [("in", name), (name, "out")], {"dt": DT}, type_check=False
    )
    _assert_equal_bits(resolve(graph), 3)


def test_the_names_of_spikes_are_not_taken_by_what_is_constant() -> None:
    graph = view((2,), {"lif.t1": nir.Scale(full(2, 2)), "lif": lif(2)})
    _assert_equal_bits(graph, 3)
    made = {name for node in compile_onnx(graph, 3).graph.node for name in node.output}
    assert {*step_names("lif", 3)} <= made


# --- files ---------------------------------------------------------------------------------


def test_a_written_model_is_read_as_it_was(tmp_path: Path) -> None:
    model = compile_onnx(resolve(_network()))
    write_onnx(model, tmp_path / "m.onnx")
    assert read_onnx(tmp_path / "m.onnx").SerializeToString() == model.SerializeToString()
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def _external(array: Array) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(array, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    return tensor


def _hiding(where: str) -> onnx.ModelProto:
    """A model that adds two numbers from the file ``../secret.bin`` to its input."""
    tensor = _external(full(2, 0))
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    output = [helper.make_tensor_value_info("w", TensorProto.FLOAT, [2])]
    inner = helper.make_graph([constant], "inner", [], output)
    flag = numpy_helper.from_array(np.array(True), "flag")
    nodes = {
        "initialiser": [],
        "constant": [constant],
        "subgraph": [helper.make_node("If", ["flag"], ["w"], then_branch=inner, else_branch=inner)],
    }[where]
    nodes.append(helper.make_node("Add", ["input", "w"], ["logits"]))
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])]
        for name in ("input", "logits")
    ]
    kept = {"initialiser": [tensor], "constant": [], "subgraph": [flag]}[where]
    graph = helper.make_graph(nodes, "g", *ends, kept)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def _refused(path: Path) -> str:
    with pytest.raises(InputFileError) as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("where", ["initialiser", "constant", "subgraph"])
def test_data_outside_the_file_are_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "secret.bin").write_bytes(full(2, 7).tobytes())
    path = tmp_path / "models" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(_hiding(where).SerializeToString())
    assert "only a file beside it, named without a path, is read" in _refused(path)


@pytest.mark.parametrize("data", [b"", b"not ONNX", bytes(999), b"\x08\x08" * 40])
def test_a_file_of_another_kind(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert "is not a valid ONNX model" in _refused(path)


def test_metadata_that_are_cut_off_are_missed(tmp_path: Path) -> None:
    model, path = compile_onnx(resolve(_network())), tmp_path / "m.onnx"
    write_onnx(model, path)
    while model.metadata_props:
        model.metadata_props.pop()  # the rest is valid ONNX, and could be run in the wrong form
        path.write_bytes(model.SerializeToString())
        assert "it has no digest; export it again" in _refused(path)


def test_a_truncated_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    data = compile_onnx(resolve(_network())).SerializeToString()
    for keep in (0.1, 0.5, 0.99):
        path.write_bytes(data[: int(keep * len(data))])
        _refused(path)


def test_no_model(tmp_path: Path) -> None:
    assert "there is no file" in _refused(tmp_path / "none.onnx")
    _refused(tmp_path)
