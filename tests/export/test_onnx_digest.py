"""Models of ours carry a digest: what is damaged or edited is refused, what others made is not."""

from collections.abc import Callable
from pathlib import Path

import nir
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.fuzz.mutations import mutant
from tests.graphs import dyadic, full, lif, view
from tser.deploy.inspection_onnx import inspect_onnx
from tser.errors import InputFileError
from tser.export.onnx_digest import digest, manifest, sign
from tser.export.onnx_external import external
from tser.export.onnx_file import OnnxOptions, compile_onnx, read_onnx, read_unverified, write_onnx
from tser.export.onnx_forms import Form

SIZE, STEPS = 20, 3
LIMIT = "tser.export.onnx_external.MOST_BYTES"


def compiled(form: Form = "sequence") -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = {"fc": nir.Linear(dyadic(rng, (SIZE, SIZE))), "lif": lif(SIZE, v_th=0.25)}
    graph = view((SIZE,), nodes | {"out": nir.Affine(dyadic(rng, (9, SIZE)), full(9, 0.5))})
    return compile_onnx(graph, STEPS, "direct", OnnxOptions(form))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_onnx(compiled(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def refusal(path: Path) -> str:
    with pytest.raises(InputFileError) as caught:
        read_onnx(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def edited(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load_model(path)
    change(model)
    onnx.save_model(model, path)


@pytest.mark.parametrize("form", ["sequence", "scan", "step"])
def test_a_written_model_carries_its_digest(form: Form, tmp_path: Path) -> None:
    model, again = compiled(form), compiled(form)
    for one, name in ((model, "a.onnx"), (again, "b.onnx")):
        write_onnx(one, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    read, state = read_unverified(tmp_path / "a.onnx")
    assert state == "ok"
    assert read.metadata_props[-1].key == "sha256"
    assert read.metadata_props[-1].value == digest(compiled(form)) == digest(read)
    sign(read)
    assert read.SerializeToString() == model.SerializeToString()


def _weights(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(one for one in model.graph.initializer if one.name == "fc.weight")


def _one_bit(model: onnx.ModelProto) -> None:
    data = bytearray(_weights(model).raw_data)
    data[7] ^= 1
    _weights(model).raw_data = bytes(data)


def _alpha(model: onnx.ModelProto) -> None:
    node = next(one for one in model.graph.node if one.op_type == "ThresholdedRelu")
    node.attribute[0].f = 0.5


def _order(model: onnx.ModelProto) -> None:
    kept = [*model.graph.initializer]
    del model.graph.initializer[:]
    model.graph.initializer.extend(reversed(kept))


def _metadata(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        stated = {one.key: one.value for one in model.metadata_props}
        helper.set_model_props(model, stated | {key: value})

    return change


def _unknown_field(model: onnx.ModelProto) -> None:
    model.MergeFromString(bytes([0xF8, 0x3F, 1]))  # field 1023, the number 1


EDITS = {
    "a bit of a weight": _one_bit,
    "an attribute": _alpha,
    "the order of weights": _order,
    "opset": lambda model: setattr(model.opset_import[0], "version", 17),
    "a shape": lambda model: model.graph.initializer[0].dims.append(1),
    "timesteps": _metadata("timesteps", "4"),
    "another key": _metadata("note", "mine"),
    "its digest": _metadata("sha256", "0" * 64),
    "producer": lambda model: setattr(model, "producer_name", "other"),
    "an unknown field": _unknown_field,
}


@pytest.mark.parametrize("name", EDITS)
def test_what_was_edited_is_refused_and_shown_by_inspect(name: str, path: Path) -> None:
    edited(path, EDITS[name])
    assert "its contents do not match the digest it carries; export it again" in refusal(path)
    if name != "a shape":  # the checker of ONNX refuses that
        found = inspect_onnx(path)
        assert (found["manifest"], found["neurons"]) == ("wrong", None)
        assert found["problem"] == refusal(path)


def test_an_edited_model_that_is_written_anew_is_read(path: Path) -> None:
    model = read_onnx(path)
    _one_bit(model)
    write_onnx(model, path)
    assert inspect_onnx(path)["manifest"] == "ok"
    assert read_onnx(path).SerializeToString() == model.SerializeToString()


def test_a_model_without_other_metadata_is_signed(tmp_path: Path) -> None:
    model = compiled()
    del model.metadata_props[:]
    write_onnx(model, tmp_path / "m.onnx")
    assert read_unverified(tmp_path / "m.onnx")[1] == "ok"


def test_a_model_of_ours_without_a_digest_is_refused(path: Path) -> None:
    edited(path, lambda model: model.metadata_props.pop())
    assert "is of an earlier version: it has no digest; export it again" in refusal(path)
    assert inspect_onnx(path)["manifest"] == "wrong"


def test_models_of_other_tools_need_none(path: Path) -> None:
    def foreign(model: onnx.ModelProto) -> None:
        model.producer_name = "pytorch"
        del model.metadata_props[:]
        model.metadata_props.add(key="sha256", value="of the data it was trained on")

    edited(path, foreign)
    read_onnx(path)
    found = inspect_onnx(path)
    assert (found["ours"], found["manifest"], found["problem"]) == (False, "absent", "")


def test_the_digest_tells_where_a_text_ends() -> None:
    """Two fields that are the same bytes side by side are not the same model."""
    seen = set()
    for names in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""]):
        model = compiled()
        del model.graph.node[0].input[:]
        model.graph.node[0].input.extend(names)
        seen.add(digest(model))
    assert len(seen) == 4


def test_weights_beside_a_model_are_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LIMIT, 1000)
    model, path = compiled(), tmp_path / "m.onnx"
    write_onnx(model, path)
    assert external(onnx.load_model(path, load_external_data=False))
    read, state = read_unverified(path)
    assert (state, digest(read)) == ("ok", digest(compiled()))
    (data,) = (one for one in tmp_path.iterdir() if one.suffix == ".data")
    content = bytearray(data.read_bytes())
    content[5] ^= 4
    data.write_bytes(content)
    assert "do not match the digest" in refusal(path)
    weights = numpy_helper.to_array(_weights(read_unverified(path)[0]))
    assert not np.array_equal(weights, numpy_helper.to_array(_weights(model)))


@pytest.mark.parametrize("beside", [False, True])
def test_no_mutant_is_another_model(
    beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice of `make fuzz`."""
    if beside:
        monkeypatch.setattr(LIMIT, 1000)
    path = tmp_path / "m.onnx"
    write_onnx(compiled("scan"), path)
    wanted = read_onnx(path).SerializeToString()
    refused = 0
    for file in sorted(tmp_path.iterdir()):
        data = file.read_bytes()
        for seed in range(100):
            file.write_bytes(mutant(data, f"{file.suffix} {seed}"))
            try:
                assert read_onnx(path).SerializeToString() == wanted
            except InputFileError:
                refused += 1
        file.write_bytes(data)
    assert refused >= 90
    assert manifest(read_onnx(path)) == "ok"
