"""A model that a user brings, through the command line; and that nobody else's code is run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.acceptance.conftest import ROOT, Cli, load
from tests.acceptance.test_bad_input import check
from tser.cli.main import app

MODULE = """
from pathlib import Path

Path("imported").touch()

import norse.torch as norse
import torch
from torch import nn


def box(num_classes):
    p = norse.LIFBoxParameters(
        tau_mem_inv=torch.tensor(500.0), method="triangle", alpha=torch.tensor(1.0)
    )
    return norse.SequentialState(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        norse.LIFBoxCell(p),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, num_classes),
    )


def cuba(num_classes, input_shape):
    p = norse.LIFParameters(
        tau_mem_inv=torch.tensor(500.0), tau_syn_inv=torch.tensor(300.0),
        v_th=torch.tensor(0.4), v_leak=torch.tensor(0.05),
        method="triangle", alpha=torch.tensor(1.0),
    )
    return norse.SequentialState(
        nn.Conv2d(input_shape[0], 6, 3, padding=1),
        nn.BatchNorm2d(6),
        norse.LIFCell(p),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, num_classes),
        norse.LICell(),
    )


def teacher(num_classes):
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def odd(num_classes):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = box(num_classes)

        def forward(self, x, state=None):
            logits, state = self.model(x, state)
            return torch.relu(logits), state

    return Odd()
"""
QUICK = [
    "--set=data.limit_train=100",
    "--set=teacher.width=2",
    "--set=teacher.epochs=1",
    "--set=train.epochs=1",
    "--set=student.timesteps=3",
]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """`cli` without a process of its own: a tenth of the time."""
    path = [entry for entry in sys.path if entry != ""]
    commands = typer.Typer()
    commands.registered_commands += app.registered_commands

    def call(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "path", [*path])
        sys.modules.pop("mine", None)
        monkeypatch.chdir(cwd)
        words = list(map(str, args))
        result = CliRunner().invoke(commands, words)
        return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)

    yield call
    sys.modules.pop("mine", None)


def written(folder: Path) -> Path:
    (folder / "mine.py").write_text(MODULE)
    return folder


@pytest.mark.parametrize(
    ("function", "nodes", "extra"),
    [
        ("box", ["Conv2d", "LIF", "AvgPool2d", "Flatten", "Affine"], []),
        (
            "cuba",
            ["Conv2d", "CubaLIF", "AvgPool2d", "Flatten", "Affine", "CubaLI"],
            ["--teacher", "mine:teacher", "--set=teacher.train=true"],
        ),
    ],
)
def test_from_the_users_model_to_the_verdict(
    cli: Cli, inside: Cli, tmp_path: Path, function: str, nodes: list[str], extra: list[str]
) -> None:
    """distill, export to both formats, and every spike is where PyTorch has it."""
    folder, student = written(tmp_path), ["--student", f"mine:{function}"]
    call = cli if function == "box" else inside
    done = call("distill", *QUICK, *student, *extra, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"tser export run --format nir --student mine:{function}" in done.stderr
    run = folder / "run"
    result = json.loads((run / "eval.json").read_text())
    assert [layer["name"] for layer in result["layers"]] == ["2"]
    assert [layer["neurons"] for layer in result["layers"]] == [6 * 8 * 8]
    assert 0 < result["layers"][0]["firing_rate"] < 1
    assert result["teacher_accuracy"] is not None

    for file_format in ("nir", "onnx"):
        done = call("export", run, "--format", file_format, *student, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert load(done.stdout)["nodes"] == len(nodes) + 2
    for file in ("model.nir", "model.onnx"):
        done = call("validate", run / file, *student, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        verdict = load(done.stdout)
        assert verdict["verdict"] in ("E0", "E1")
        assert verdict["samples"] == 500
        for backend in verdict["backends"]:
            assert backend["neuron_steps"] == 500 * 3 * 6 * 8 * 8
            assert sum(backend["layers"][0]["firing_rate_reference"]) > 0
    verdict = json.loads((run / "validation.json").read_text())
    assert [backend["name"] for backend in verdict["backends"]] == ["nir-f32", "onnx"]
    assert verdict["static"]["identical"]

    done = call("energy", run / "model.nir", "--samples", "20", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [layer["kind"] for layer in load(done.stdout)["layers"]][: len(nodes)]
    done = call("report", run, cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def _strangers_run(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose student and teacher are made by factories, with its graph."""
    folder = written(tmp_path_factory.mktemp("stranger"))
    models = ["--student", "mine:box", "--teacher", "mine:teacher"]
    done = cli("distill", *QUICK, *models, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = cli("export", "run", "--student", "mine:box", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def strangers_run(_strangers_run: Path, tmp_path: Path) -> Path:
    """A copy whose module has not been imported yet."""
    folder = tmp_path / "theirs"
    shutil.copytree(_strangers_run, folder)
    (folder / "imported").unlink()
    return folder


def test_a_teacher_from_a_factory_is_used_as_it_comes(strangers_run: Path) -> None:
    config = (strangers_run / "run" / "config.toml").read_text()
    assert 'factory = "mine:teacher"' in config
    phases = [
        json.loads(line)["phase"]
        for line in (strangers_run / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert set(phases) == {"student"}


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "run"],
        ["eval", "run", "--split", "val"],
        ["eval", "run", "--teacher", "mine:teacher"],
        ["export", "run"],
        ["export", "run", "--format", "onnx", "--out", "new.onnx", "--student", "mine:teacher"],
        ["validate", "run/model.nir"],
        ["validate", "run/model.nir", "--student", "mine:odd"],
        ["validate", "--against", "run", "run/model.nir"],
    ],
    ids=" ".join,
)
def test_opening_somebodys_run_does_not_run_their_code(
    inside: Cli, strangers_run: Path, command: list[str]
) -> None:
    if command[0] == "export":
        (strangers_run / "run" / "model.nir").unlink()
    done = inside(*command, cwd=strangers_run)
    check(done, 2, "made by mine:box", "add --student mine:box if you trust it")
    assert not (strangers_run / "imported").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["energy", "run/model.nir", "--samples", "20"],
        ["energy", "run/model.nir", "--against", "run", "--samples", "20"],
        ["report", "run"],
        ["export", "run/model.nir", "--format", "onnx"],
        ["export", "run", "--format", "onnx"],
    ],
    ids=" ".join,
)
def test_commands_that_need_no_model_import_none(
    inside: Cli, strangers_run: Path, command: list[str]
) -> None:
    done = inside(*command, cwd=strangers_run)
    assert done.returncode == 0, done.stderr
    assert not (strangers_run / "imported").exists()


@pytest.mark.parametrize(
    ("named", "missing", "imported"),
    [
        ([], "teacher", False),
        (["--teacher", "mine:teacher"], "student", True),  # the teacher was named
        (["--student", "x:y"], "student", False),
    ],
)
def test_resuming_somebodys_run_does_not_run_their_code(
    inside: Cli, strangers_run: Path, named: list[str], missing: str, imported: bool
) -> None:
    (strangers_run / "run" / "student.safetensors").unlink()
    done = inside("distill", "--out", "run", "--resume", *named, cwd=strangers_run)
    check(done, 2, f"add --{missing} mine:", "if you trust it")
    assert (strangers_run / "imported").exists() == imported


def test_resuming_with_both_named(inside: Cli, strangers_run: Path) -> None:
    run = strangers_run / "run"
    before = (run / "student.safetensors").read_bytes()
    (run / "student.safetensors").unlink()
    models = ["--student", "mine:box", "--teacher", "mine:teacher"]
    done = inside("distill", "--out", "run", "--resume", *models, cwd=strangers_run)
    assert done.returncode == 0, done.stderr
    assert (run / "student.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "source", [["--set", 'student.factory="mine:box"'], ["theirs.toml"], ["--set", "teacher.x=1"]]
)
def test_a_configuration_imports_nothing(inside: Cli, tmp_path: Path, source: list[str]) -> None:
    folder = written(tmp_path)
    (folder / "theirs.toml").write_text('preset = "digits"\n[student]\nfactory = "mine:box"\n')
    done = inside("distill", *source, cwd=folder)
    assert done.returncode == 2
    assert not (folder / "imported").exists()
    assert not (folder / "runs").exists()


def test_eval_measures_the_teacher_only_when_it_is_named(inside: Cli, strangers_run: Path) -> None:
    accuracies = []
    for extra in ([], ["--teacher", "mine:teacher"]):
        done = inside("eval", "run", "--student", "mine:box", "--json", *extra, cwd=strangers_run)
        assert done.returncode == 0, done.stderr
        accuracies.append(load(done.stdout)["teacher_accuracy"])
    assert accuracies[0] is None
    assert 0 <= accuracies[1] <= 1


def test_a_model_that_cannot_be_exported_says_so(inside: Cli, tmp_path: Path) -> None:
    folder = written(tmp_path)
    done = inside("distill", *QUICK, "--student", "mine:odd", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = inside("export", "run", "--student", "mine:odd", cwd=folder)
    check(done, 2, "the model (Odd), line ", "of mine.py", "the output of relu is not a spike")
    assert not (folder / "run" / "model.nir").exists()


def test_a_module_that_has_changed_since_is_refused(inside: Cli, strangers_run: Path) -> None:
    """Neurons are no weights: without a check they would change behind the run's back."""
    module = strangers_run / "mine.py"
    module.write_text(module.read_text().replace("torch.tensor(500.0)", "torch.tensor(400.0)"))
    for command in ("eval", "export"):
        done = inside(command, "run", "--student", "mine:box", cwd=strangers_run)
        check(done, 4, "tau_mem_inv", "500", "400", "mine:box")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--student", "nowhere:f"], ["nowhere", "ModuleNotFoundError"]),
        (["--student", "mine:nothing"], ["mine", "'nothing'"]),
        (["--student", "mine"], ["package.module:function", "'mine'"]),
        (["--student", "mine:teacher"], ["mine:teacher must map", "[3, 2, 10]"]),
        (["--teacher", "mine:box"], ["mine:box", "tuple", "(2, 10)"]),
        (["--teacher", "mine:nothing"], ["mine", "'nothing'"]),
        (["--teacher", "none.safetensors"], ["none.safetensors"]),
    ],
)
def test_models_that_do_not_fit(
    inside: Cli, tmp_path: Path, args: list[str], words: list[str]
) -> None:
    done = inside("distill", *QUICK, *args, cwd=written(tmp_path))
    check(done, 4 if "none.safetensors" in args else 2, *words)
    assert not (tmp_path / "runs").exists()


def test_the_example_of_the_guide_works(inside: Cli, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "mymodel.py").write_text(example)
    models = ["--student", "mymodel:student", "--teacher", "mymodel:teacher"]
    train = ["--set", "teacher.train=true", *QUICK]
    for args in (
        ["distill", *train, *models, "--out", "runs/mine"],
        ["export", "runs/mine", *models[:2]],
        ["validate", "runs/mine/model.nir", *models[:2], "--samples", "50"],
    ):
        done = inside(*args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_factory_for_a_run_that_has_none_is_refused(
    inside: Cli, strangers_run: Path, tiny: Path
) -> None:
    done = inside("eval", "runs/digits", "--student", "mine:box", cwd=tiny)
    check(done, 2, "the student of runs/digits is tser's own, not made by mine:box")
