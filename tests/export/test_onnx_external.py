"""ONNX models whose weights stand in a file beside them: over 2 GB, and those of others."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.graphs import Array, dyadic, full, lif, view
from tser.deploy.interpreter import run
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph
from tser.export.onnx_digest import sign
from tser.export.onnx_external import copy_of, data_files, external
from tser.export.onnx_file import (
    IR_VERSION,
    OPSET,
    OnnxOptions,
    compile_onnx,
    read_onnx,
    session_source,
    write_onnx,
)
from tser.export.onnx_forms import Form

SIZE, STEPS = 40, 3
LIMIT = "tser.export.onnx_external.MOST_BYTES"


def _graph(seed: int = 0) -> Graph:
    import nir

    rng = np.random.default_rng(seed)
    nodes = {"fc": nir.Linear(dyadic(rng, (SIZE, SIZE))), "lif": lif(SIZE, v_th=0.25)}
    return view((SIZE,), nodes | {"out": nir.Affine(dyadic(rng, (9, SIZE)), full(9, 0.5))})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is over the limit."""
    monkeypatch.setattr(LIMIT, 3000)


def _compiled(form: Form = "sequence", seed: int = 0) -> onnx.ModelProto:
    return compile_onnx(_graph(seed), STEPS, "direct", OnnxOptions(form))


def _signed(model: onnx.ModelProto) -> onnx.ModelProto:
    sign(model)
    return model


def _logits(source: bytes | str, form: Form, x: Array) -> Array:
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    feeds = {"input": x}
    if form == "scan":
        feeds["timesteps"] = np.array([STEPS], np.int64)
    return session.run(["logits"], feeds)[0]


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("form", ["sequence", "scan"])
def test_a_model_over_the_limit_has_its_weights_beside_it(
    form: Form, small: None, tmp_path: Path
) -> None:
    model, path = _compiled(form), tmp_path / "m.onnx"
    write_onnx(model, path)
    (data,) = data_files(path)
    assert _names(tmp_path) == sorted(["m.onnx", data.name])
    bare = onnx.load_model(path, load_external_data=False)
    stated = [{e.key: e.value for e in tensor.external_data} for tensor in external(bare)]
    assert {one["location"] for one in stated} == {data.name}
    assert all(int(one["offset"]) % 4096 == 0 for one in stated)
    assert path.stat().st_size < data.stat().st_size
    onnx.checker.check_model(str(path), full_check=True)
    assert read_onnx(path).SerializeToString() == model.SerializeToString()
    x = dyadic(np.random.default_rng(1), (2, SIZE), most=2)
    expected, _ = run(_graph(), x, STEPS)
    np.testing.assert_array_equal(_logits(str(path), form, x), expected)
    assert not external(model), "what was written stays as it is"


def test_a_model_within_the_limit_is_one_file(tmp_path: Path) -> None:
    write_onnx(_compiled(), tmp_path / "m.onnx")
    assert _names(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("form", ["sequence", "scan"])
@pytest.mark.parametrize("most", [3000, 2**31])
def test_a_runtime_loads_a_model_of_any_size(
    form: Form, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LIMIT, most)
    x = dyadic(np.random.default_rng(1), (2, SIZE), most=2)
    with session_source(_compiled(form)) as source:
        assert isinstance(source, str if most == 3000 else bytes)
        logits = _logits(source, form, x)
    np.testing.assert_array_equal(logits, run(_graph(), x, STEPS)[0])
    assert most != 3000 or not Path(str(source)).exists()


@pytest.mark.parametrize("most", [3000, 2**31])
def test_a_copy_is_the_same(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LIMIT, most)
    model = _compiled("scan")
    copy = copy_of(model)
    assert copy.SerializeToString() == model.SerializeToString()
    copy.graph.output.add()
    assert len(model.graph.output) == 1


def test_a_smaller_model_takes_the_weights_of_the_one_before_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    (tmp_path / "m.onnx.data").write_text("of somebody else")
    write_onnx(_compiled(), path)
    with monkeypatch.context() as patched:
        patched.setattr(LIMIT, 3000)
        write_onnx(_compiled(), path)
    assert len(external(onnx.load_model(path, load_external_data=False)))
    write_onnx(_compiled(), path)
    assert _names(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx.data").read_text() == "of somebody else"


def test_equal_models_have_equal_files(small: None, tmp_path: Path) -> None:
    """Under whatever names they stood before."""
    path = tmp_path / "m.onnx"
    found = []
    for seed in (0, 1, 0):
        write_onnx(_compiled(seed=seed), path)
        found.append({file.name: file.read_bytes() for file in tmp_path.iterdir()})
    assert found[0] == found[2] != found[1]
    assert all(len(files) == 2 for files in found)


def test_a_folder_in_the_way(small: None, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.mkdir()
    with pytest.raises(UsageError, match=r"m.onnx: it is a folder"):
        write_onnx(_compiled(), path)
    path.rmdir()
    write_onnx(_compiled(), path)
    (data,) = data_files(path)
    data.unlink()
    path.unlink()
    data.mkdir()
    with pytest.raises(UsageError, match=r"\.data: it is a folder"):
        write_onnx(_compiled(), path)
    assert _names(tmp_path) == [data.name]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from tests.export.test_onnx_external import _compiled
    import tser.export.onnx_external as external
    from tser.export.onnx_file import write_onnx

    external.MOST_BYTES = 3000
    folder, left, model = Path(sys.argv[1]), 0, _compiled(seed=1)

    def counted(function):
        def call(*args, **kwargs):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call

    for steps in range(20):
        path = folder / str(steps) / "m.onnx"
        write_onnx(_compiled(), path)
        child = os.fork()
        if not child:
            left = steps
            for name in ("replace", "unlink", "open", "chmod"):
                setattr(Path, name, counted(getattr(Path, name)))
            write_onnx(model, path)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_kill_leaves_no_broken_model(small: None, tmp_path: Path) -> None:
    """Killed at each step of replacing a model: the old one whole, or the new one."""
    old, new = (_signed(_compiled(seed=seed)).SerializeToString() for seed in (0, 1))
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    found = []
    for folder in sorted(tmp_path.iterdir(), key=lambda path: int(path.name)):
        path = folder / "m.onnx"
        found.append({old: "old", new: "new"}[read_onnx(path).SerializeToString()])
        write_onnx(_compiled(seed=1), path)
        assert len(list(folder.iterdir())) == 2  # nothing that was left by the kill
    assert found == sorted(found, key=["old", "new"].index)
    assert set(found) == {"old", "new"}


# --- files that nobody vouches for ---------------------------------------------------------

VALUES = full(4, 7)


def _adding(**stated: str) -> onnx.ModelProto:
    """A model that adds four numbers from another file to its input."""
    tensor = numpy_helper.from_array(VALUES, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in stated.items():
        tensor.external_data.add(key=key, value=value)
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])]
        for name in ("input", "logits")
    ]
    nodes = [helper.make_node("Add", ["input", "w"], ["logits"])]
    graph = helper.make_graph(nodes, "g", *ends, [tensor])
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights in a folder and above it."""
    inside = tmp_path / "models"
    (inside / "deeper").mkdir(parents=True)
    for place in (inside, tmp_path, inside / "deeper"):
        (place / "w.bin").write_bytes(VALUES.tobytes())
    return inside


def _read(folder: Path, **stated: str) -> onnx.ModelProto:
    path = folder / "m.onnx"
    path.write_bytes(_adding(**stated).SerializeToString())
    return read_onnx(path)


def _refused(folder: Path, **stated: str) -> str:
    with pytest.raises(InputFileError) as caught:
        _read(folder, **stated)
    assert "\n" not in str(caught.value)
    assert str(folder / "m.onnx") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("stated", [{}, {"offset": "0"}, {"offset": "0", "length": "16"}])
def test_weights_beside_a_model_are_read(folder: Path, stated: dict[str, str]) -> None:
    model = _read(folder, location="w.bin", **stated)
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), VALUES)
    assert not external(model)
    model.SerializeToString()


@pytest.mark.parametrize(
    "name",
    ["../w.bin", "deeper/w.bin", "./w.bin", "..", ".", "", "deeper\\w.bin", "C:w.bin", "w.bin\0"],
)
def test_weights_anywhere_else_are_refused(folder: Path, name: str) -> None:
    assert "named without a path" in _refused(folder, location=name)


def test_an_absolute_path_is_refused(folder: Path) -> None:
    assert "named without a path" in _refused(folder, location=str(folder / "w.bin"))


def test_weights_without_a_place_are_refused(folder: Path) -> None:
    assert "named without a path" in _refused(folder, offset="0")


def test_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "w.bin")
    assert "links to another folder" in _refused(folder, location="link.bin")
    (folder / "inner.bin").symlink_to(folder / "w.bin")
    assert _read(folder, location="inner.bin")


def test_what_is_no_file_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe.bin")
    (folder / "dangling.bin").symlink_to(folder / "none.bin")
    for name in ("none.bin", "deeper", "pipe.bin", "dangling.bin", "x" * 999):
        assert "there is no such file" in _refused(folder, location=name)


@pytest.mark.parametrize(
    "stated",
    [
        {"length": "17"},
        {"offset": "1", "length": "16"},
        {"offset": "-4", "length": "4"},
        {"offset": "17"},
        {"length": "-1"},
        {"length": "many"},
        {"offset": "9" * 40},
    ],
)
def test_bytes_that_are_not_there_are_refused(folder: Path, stated: dict[str, str]) -> None:
    assert "does not have" in _refused(folder, location="w.bin", **stated)


def test_the_same_bytes_for_many_tensors_are_refused(folder: Path) -> None:
    model = _adding(location="w.bin")
    again = model.graph.initializer.add()
    again.CopyFrom(model.graph.initializer[0])
    again.name = "v"
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputFileError, match="does not have"):
        read_onnx(path)


def test_weights_of_another_size_than_stated_do_not_run(folder: Path) -> None:
    with pytest.raises(InputFileError, match="is not a valid ONNX model"):
        _read(folder, location="w.bin", length="8")


def test_weights_that_are_cut_off_are_missed(small: None, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_onnx(_compiled(), path)
    (data,) = data_files(path)
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(InputFileError, match="it is cut off or of another model"):
        read_onnx(path)
