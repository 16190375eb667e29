"""Wrong numbers are named before training or measuring starts, and leave nothing behind.

Arrays of data sets are in tests/tser/test_data_arrays.py, files of MNIST and CIFAR in
test_data_mnist.py and test_data_cifar.py, a loss that breaks in test_loop.py, weights beyond
float16 in tests/export/test_onnx_forms.py, and frames in test_frames.py.
"""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import onnx
import pytest
import torch

from tests.acceptance.conftest import TINY, Cli, load
from tests.acceptance.test_bad_input import check
from tests.graphs import full, lif, network
from tser.checkpoints import save_weights
from tser.cli.main import app
from tser.config import RunConfig, TeacherConfig
from tser.config_file import load_config
from tser.errors import UsageError
from tser.export.onnx_file import write_onnx
from tser.teachers import build_teacher

# --- options -------------------------------------------------------------------------------

COMMANDS = {
    "distill": ["--out", "new", "--dry-run"],
    "export": ["g.nir", "--format", "onnx", "--out", "new.onnx"],
    "validate": ["g.nir", "--against", "g.nir", "--data", "digits", "--out", "new.json"],
    "energy": ["g.nir", "--data", "digits", "--out", "new.json"],
    "fit": ["g.nir", "--target", "loihi"],
    "inspect": ["g.nir"],
    "run": ["g.nir", "--data", "digits", "--out", "new.npz"],
}


def _number_options() -> Iterator[tuple[str, str, str]]:
    """Every option of a command that takes a number, with wrong ones."""
    for one in app.registered_commands:
        name, hints = one.name or "", typing.get_type_hints(one.callback, include_extras=True)
        for key, hint in hints.items():
            if typing.get_origin(hint) is not typing.Annotated:
                continue
            kind, *about = typing.get_args(hint)
            kinds = set(typing.get_args(kind)) or {kind}
            names = [word for part in about for word in getattr(part, "param_decls", None) or ()]
            option = names[0] if names else f"--{key.replace('_', '-')}"
            if kinds & {int, float}:
                yield from ((name, option, value) for value in ("nan", "-1"))


OPTIONS = list(_number_options())


def test_every_command_with_numbers_is_tried() -> None:
    assert {name for name, _, _ in OPTIONS} == set(COMMANDS)
    assert len({(name, option) for name, option, _ in OPTIONS}) >= 17


@pytest.fixture(scope="module")
def _graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "g.nir"
    nir.write(path, _network(10))
    return path


@pytest.fixture
def folder(_graph: Path, tmp_path: Path) -> Path:
    """A folder with a sound graph for the digits, ``g.nir``."""
    (tmp_path / "g.nir").write_bytes(_graph.read_bytes())
    return tmp_path


@pytest.mark.parametrize(("name", "option", "value"), OPTIONS)
def test_an_option_that_is_no_usable_number(
    here: Cli, folder: Path, name: str, option: str, value: str
) -> None:
    done = here(name, *COMMANDS[name], option, value, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert option in done.stderr or "dt" in done.stderr or "train.seed" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["g.nir"]


# --- configuration -------------------------------------------------------------------------


def _number_settings() -> list[tuple[str, type]]:
    return [
        (f"{section}.{key}", field.annotation)
        for section, part in RunConfig.model_fields.items()
        for key, field in getattr(part.annotation, "model_fields", {}).items()
        if field.annotation in (int, float)
    ]


@pytest.mark.parametrize(("key", "kind"), _number_settings())
def test_a_setting_that_is_no_usable_number(key: str, kind: type) -> None:
    wrong = ["nan", "inf", "-inf", "1e999", "true", '"1"', "[1]"]
    wrong += ["-2"] if key not in ("neuron.v_th", "neuron.v_leak", "neuron.v_reset") else ["1e31"]
    for value in [*wrong, *(["1.5"] if kind is int else [])]:
        with pytest.raises(UsageError, match=key.replace(".", r"\.")):
            load_config("digits", [f"{key}={value}"])


@pytest.mark.parametrize(
    "setting",
    [
        "train.lr=0", "train.lr=1e39", "teacher.lr=1e39", "train.epochs=0", "train.batch_size=0",
        "train.batch_size=1", "train.batch_size=100000000000000000000", "train.momentum=1",
        "train.weight_decay=1e300", "train.accumulate=0", "train.warmup_epochs=1e300",
        "loss.temperature=0", "loss.temperature=1e300", "loss.temperature=1e-300",
        "loss.alpha=1e300", "loss.gamma=1e300", "loss.self_weight=1e300",
        "neuron.dt=0", "neuron.dt=1e-320", "neuron.tau_mem=0", "neuron.tau_mem=1e300",
        "neuron.alpha=1e300", "student.stages=100000000000000000000", "student.timesteps=0",
        "student.width=100000000", "data.workers=1000000", "data.size=1000000000",
    ],
)  # fmt: skip
def test_an_absurd_setting(setting: str) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(UsageError, match=key.replace(".", r"\.")):
        load_config("digits", [setting])


# --- models and weights --------------------------------------------------------------------

MODULE = """
import math
import norse.torch as norse
import torch
from torch import nn

def _model(outputs, value=None):
    model = norse.SequentialState(
        nn.Flatten(), nn.Linear(64, 8), norse.LIFBoxCell(), nn.Linear(8, outputs)
    )
    if value is not None:
        with torch.no_grad():
            model[1].weight[3, 5] = value
    return model

def nan_student(): return _model(10, math.nan)
def infinite_student(): return _model(10, math.inf)
def student_of_7(): return _model(7)
def good_student(): return _model(10)

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = _model(10)
    def forward(self, x, state=None):
        logits, state = self.model(x, state)
        return torch.relu(logits), state

def odd_student(): return Odd()

def _teacher(outputs, value=0.5):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
    with torch.no_grad():
        model[1].bias[0] = value
    return model

def nan_teacher(): return _teacher(10, math.nan)
def teacher_of_100(): return _teacher(100)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "wrong_models.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", ["", *(entry for entry in sys.path if entry)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("wrong_models", None)


@pytest.mark.parametrize(
    ("role", "function", "words"),
    [
        ("student", "nan_student", ["NaN", "'1.weight'"]),
        ("student", "infinite_student", ["infinite", "'1.weight'"]),
        ("student", "student_of_7", ["(4, 2, 7)", "[4, 2, 10]"]),
        ("teacher", "nan_teacher", ["NaN", "'1.bias'"]),
        ("teacher", "teacher_of_100", ["(2, 100)", "(2, 10)"]),
    ],
)
def test_a_model_that_cannot_be_meant(
    here: Cli, models: Path, role: str, function: str, words: list[str]
) -> None:
    done = here("distill", *TINY, f"--{role}", f"wrong_models:{function}", cwd=models)
    check(done, 2, function, *words)
    assert [path.name for path in models.iterdir()] == ["wrong_models.py"]


def _teacher(path: Path, outputs: int, value: float) -> Path:
    teacher = build_teacher(TeacherConfig(width=4), (1, 8, 8), outputs)
    with torch.no_grad():
        next(teacher.parameters()).view(-1)[3] = value
    save_weights(teacher, path)
    return path


@pytest.mark.parametrize(
    ("outputs", "value", "words"),
    [(100, 0.0, ["(100,", "(10,"]), (10, np.nan, ["'0.weight'", "NaN"]), (10, np.inf, ["NaN"])],
)
def test_a_given_teacher_that_cannot_be_meant(
    here: Cli, tmp_path: Path, outputs: int, value: float, words: list[str]
) -> None:
    file = _teacher(tmp_path / "teacher.safetensors", outputs, value)
    check(here("distill", *TINY, "--teacher", file, cwd=tmp_path), 4, str(file), *words)
    assert list(tmp_path.rglob("*.safetensors")) == [file]


def test_a_student_that_will_not_be_exported_is_told_before_it_is_trained(
    here: Cli, models: Path
) -> None:
    for function, warned in (("odd_student", True), ("good_student", False)):
        train = ["--student", f"wrong_models:{function}", "--out", function]
        done = here("distill", *TINY, *train, cwd=models)
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        told = [at for at, line in enumerate(lines) if line.startswith("warning: ")]
        assert len(told) == warned, done.stderr
        if warned:
            assert "the output of relu is not a spike" in lines[told[0]]
            assert told[0] < next(
                at for at, line in enumerate(lines) if line.startswith("teacher 1/")
            )


# --- graphs --------------------------------------------------------------------------------


def _network(outputs: int, weight: float = 0.1, **metadata: Any) -> nir.NIRGraph:
    nodes = {
        "flat": nir.Flatten({"input": np.array([1, 8, 8])}, start_dim=0, end_dim=-1),
        "fc": nir.Affine(full((outputs, 64), weight), full(outputs, 0.1)),
        "lif": lif(outputs),
        "out": nir.Linear(full((outputs, outputs), weight)),
    }
    return network((1, 8, 8), nodes, output_shape=(outputs,), timesteps=3, **metadata)


RUN = ["run", "w.nir", "--data", "digits", "--samples", "2", "--out", "o.npz", "--trace", "t.npz"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("nodes/fc/weight", np.nan, ["weight of node 'fc'"]),
        ("nodes/fc/bias", np.inf, ["bias of node 'fc'"]),
        ("nodes/lif/tau", 0.0, ["'lif'", "tau is not positive"]),
        ("nodes/lif/tau", -1.0, ["'lif'", "tau is not positive"]),
        ("nodes/lif/tau", np.nan, ["tau of node 'lif'"]),
        ("nodes/lif/v_threshold", np.nan, ["v_threshold of node 'lif'"]),
        ("nodes/lif/v_threshold", -np.inf, ["v_threshold of node 'lif'"]),
        ("nodes/lif/r", np.inf, ["r of node 'lif'"]),
        ("metadata/dt", 0.0, ["its dt 0.0"]),
        ("metadata/dt", np.nan, ["its dt nan"]),
        ("metadata/dt", 1e300, ["its dt 1e+300"]),
        ("metadata/dt", 1e-320, ["its dt 1e-320"]),
    ],
)
def test_a_graph_with_a_wrong_number(
    here: Cli, folder: Path, key: str, value: float, words: list[str]
) -> None:
    wrong = (folder / "g.nir").rename(folder / "w.nir")
    with h5py.File(wrong, "r+") as file:
        file[f"node/{key}"][...] = value
    check(here(*RUN, cwd=folder), 4, "w.nir", *words)
    assert list(folder.iterdir()) == [wrong]


@pytest.mark.parametrize(
    ("mean", "std"),
    [("[NaN]", "[1]"), ("[0]", "[NaN]"), ("[0]", "[Infinity]"), ("[0]", "[0]"), ("[0]", "[-1]"),
     ("[0]", "[1e-320]"), ("[1e300]", "[1]"), ("[0, 0]", "[1, 1]"), ("[[0]]", "[1]")],
)  # fmt: skip
def test_a_graph_whose_input_scaling_gives_no_numbers(
    here: Cli, tmp_path: Path, mean: str, std: str
) -> None:
    nir.write(tmp_path / "w.nir", _network(10, input_mean=mean, input_std=std))
    check(here(*RUN, cwd=tmp_path), 4, "w.nir", "its input scaling")
    assert [path.name for path in tmp_path.iterdir()] == ["w.nir"]


ENERGY = ["energy", "w.nir", "--data", "digits", "--samples", "2", "--out", "new.json"]


@pytest.mark.parametrize("line", [RUN, ENERGY, [*ENERGY, "--settings"]], ids=" ".join)
def test_weights_that_overflow_predict_nothing(here: Cli, tmp_path: Path, line: list[str]) -> None:
    nir.write(tmp_path / "w.nir", _network(10, 1e38))
    check(here(*line, cwd=tmp_path), 4, "w.nir", "step 1 of sample", "too large for float32")
    assert [path.name for path in tmp_path.iterdir()] == ["w.nir"]


def test_a_scaling_without_numbers_is_found_in_either_graph(here: Cli, folder: Path) -> None:
    nir.write(folder / "w.nir", _network(10, input_mean="[0]", input_std="[NaN]"))
    for graph, other in (("w.nir", "g.nir"), ("g.nir", "w.nir")):
        done = here("validate", graph, "--against", other, "--data", "digits", cwd=folder)
        check(done, 4, "w.nir", "its input scaling")


def test_a_signed_onnx_model_with_nan_is_refused(here: Cli, folder: Path) -> None:
    assert here("export", "g.nir", "--format", "onnx", cwd=folder).returncode == 0
    model = onnx.load_model(folder / "g.onnx")
    weights = next(t for t in model.graph.initializer if len(t.dims) == 2)
    wrong = onnx.numpy_helper.to_array(weights).copy()
    wrong[0, 1] = np.nan
    weights.CopyFrom(onnx.numpy_helper.from_array(wrong, weights.name))
    write_onnx(model, folder / "w.onnx")
    for command in ("run", "validate"):
        more = ["--against", "g.nir"] if command == "validate" else []
        done = here(command, "w.onnx", *more, "--data", "digits", cwd=folder)
        check(done, 4, "w.onnx", weights.name, "NaN")


@pytest.mark.parametrize(
    "line",
    [
        RUN,
        ["energy", "w.nir", "--data", "digits", "--settings", "--out", "new.json"],
        ["validate", "w.nir", "--against", "w.nir", "--data", "digits", "--out", "new.json"],
    ],
    ids=lambda line: line[0],
)
def test_a_graph_of_other_classes_than_the_data(here: Cli, tmp_path: Path, line: list[str]) -> None:
    nir.write(tmp_path / "w.nir", _network(7))
    check(here(*line, cwd=tmp_path), 2, "w.nir", "7 classes", "'digits' has 10")
    assert [path.name for path in tmp_path.iterdir()] == ["w.nir"]


def test_an_onnx_model_of_other_classes_than_the_data(here: Cli, tmp_path: Path) -> None:
    names = json.dumps(list("abcdefg"))
    nir.write(tmp_path / "w.nir", _network(7, class_names=names))
    done = here("export", "w.nir", "--format", "onnx", "--out", "w.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = here("run", "w.onnx", "--data", "digits", "--samples", "2", cwd=tmp_path)
    check(done, 2, "w.onnx", "7 classes", "'digits' has 10")


def test_an_input_that_is_not_finite_is_named(here: Cli, folder: Path) -> None:
    x = np.zeros((5, 1, 8, 8), np.float32)
    x[3, 0, 2, 2] = np.nan
    np.save(folder / "x.npy", x)
    done = here("run", "g.nir", "--input", "x.npy", "--out", "new.npz", cwd=folder)
    check(done, 4, "x.npy", "not finite", "sample 3")
    assert not (folder / "new.npz").exists()


def test_a_threshold_that_is_never_reached_is_one(here: Cli, folder: Path) -> None:
    """NIR allows it, every executor agrees on it, and the layer is seen to be silent."""
    with h5py.File(folder / "g.nir", "r+") as file:
        file["node/nodes/lif/v_threshold"][...] = np.inf
    for extra in ([], ["--runtime", "onnx"]):
        line = ["run", "g.nir", "--data", "digits", "--samples", "9", "--trace", "t.npz"]
        done = here(*line, *extra, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert load(done.stdout)["firing_rates"] == {"lif": 0.0}


@pytest.mark.parametrize(("key", "value"), [("nodes/lif/tau", np.inf), ("metadata/dt", 1e29)])
def test_a_decay_of_nothing_or_of_all_has_an_answer(
    here: Cli, folder: Path, key: str, value: float
) -> None:
    with h5py.File(folder / "g.nir", "r+") as file:
        file[f"node/{key}"][...] = value
    done = here("fit", "g.nir", "--target", "loihi", "--json", cwd=folder)
    assert done.returncode in (0, 3), done.stderr
    rows = {row["constraint"]: row for row in load(done.stdout)["targets"][0]["rows"]}
    assert rows["decay_bits"]["verdict"] == "fits"
