"""Users' models of their own code through the command line, and exports that are not written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
import typer
from typer.testing import CliRunner

from tests.acceptance.conftest import Cli, load
from tests.acceptance.test_bad_input import check
from tser.cli.main import app

MODULE = """
import norse.torch as norse
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, p):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.lif = norse.LIFBoxCell(p)

    def forward(self, x, state=None):
        return self.lif(self.bn(self.conv(x)) + x, state)


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        p = norse.LIFBoxParameters(
            tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(0.5),
            method="triangle", alpha=torch.tensor(1.0),
        )
        self.conv, self.bn = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.lif, self.block = norse.LIFBoxCell(p), Block(6, p)
        self.fc = nn.Linear(96, num_classes)

    def forward(self, x, state=None):
        first, second = (None, None) if state is None else state
        z, first = self.lif(self.bn(self.conv(x)), first)
        z, second = self.block(z, second)
        z = F.max_pool2d(z, 2)
        return self.fc(F.dropout(z.flatten(1), 0.1, self.training)), (first, second)


def net(num_classes):
    return Net(num_classes)


def hooked(num_classes):
    model = Net(num_classes)
    model.conv.register_forward_hook(lambda module, args, out: 0.5 * out)
    return model


def after(num_classes):
    model = Net(num_classes)

    def forward(x, state=None):
        z, state = Block.forward(model.block, x, state)
        return z + x, state

    model.block.forward = forward
    return model


def recurrent(num_classes):
    p = norse.LIFParameters(
        tau_mem_inv=torch.tensor(400.0), v_th=torch.tensor(0.3), method="triangle",
        alpha=torch.tensor(1.0),
    )
    return norse.SequentialState(
        nn.Flatten(), norse.LIFRecurrentCell(64, 20, p), nn.Linear(20, num_classes)
    )
"""
QUICK = [
    "--set=data.limit_train=100",
    "--set=teacher.width=2",
    "--set=teacher.epochs=1",
    "--set=train.epochs=1",
    "--set=student.timesteps=3",
]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cli]:
    """``tser ARGS`` in this process, in a folder with the user's module."""
    path = [entry for entry in sys.path if entry != ""]
    commands = typer.Typer()
    commands.registered_commands += app.registered_commands
    (tmp_path / "ownmodels.py").write_text(MODULE)

    def call(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "path", [*path])
        sys.modules.pop("ownmodels", None)
        monkeypatch.chdir(cwd)
        result = CliRunner().invoke(commands, [*map(str, args)])
        return subprocess.CompletedProcess(args, result.exit_code, result.stdout, result.stderr)

    yield call
    sys.modules.pop("ownmodels", None)


def _trained(own: Cli, folder: Path, name: str) -> list[str]:
    student = ["--student", f"ownmodels:{name}"]
    done = own("distill", *QUICK, *student, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return student


def test_a_model_with_its_own_forward_goes_all_the_way(own: Cli, tmp_path: Path) -> None:
    student = _trained(own, tmp_path, "net")
    done = own("export", "run", *student, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load(done.stdout)["check"] in ("E0", "E1")
    assert "spikes of 4 test images: E" in done.stderr
    done = own("validate", "run/model.nir", *student, "--samples", "100", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    verdict = load(done.stdout)
    assert [layer["name"] for layer in verdict["backends"][0]["layers"]] == ["lif", "block_lif"]
    assert verdict["static"]["identical"]
    done = own("energy", "run/model.nir", "--samples", "10", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_recurrent_model_is_exported_and_checked(own: Cli, tmp_path: Path) -> None:
    student = _trained(own, tmp_path, "recurrent")
    done = own("export", "run", *student, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = load(done.stdout)
    assert result["check"] in ("E0", "E1")
    assert result["nodes"] == 7


def test_an_export_that_does_something_else_is_not_written(own: Cli, tmp_path: Path) -> None:
    """A hook changes what a layer does, which nothing in the layer shows."""
    student = _trained(own, tmp_path, "hooked")
    done = own("export", "run", *student, cwd=tmp_path)
    check(done, 3, "run/model.nir was not written", "rounding cannot explain")
    assert not list((tmp_path / "run").glob("*.nir"))
    assert not list((tmp_path / "run").glob(".model*"))
    done = own("export", "run", *student, "--no-check", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load(done.stdout)["check"] is None
    assert (tmp_path / "run" / "model.nir").exists()


def test_spikes_added_after_the_neurons_are_refused(own: Cli, tmp_path: Path) -> None:
    student = _trained(own, tmp_path, "after")
    done = own("export", "run", *student, cwd=tmp_path)
    check(done, 2, "layer 'max_pool2d' receives a sum of spikes", "before the neurons")
    assert not (tmp_path / "run" / "model.nir").exists()


def test_every_way_to_write_a_file_is_validated(here: Cli, tiny: Path) -> None:
    for name, options in {
        "unit": ["--gain", "unit"],
        "fast": ["--dt", "1e-4", "--gain", "unit"],
        "old": ["--compat", "--compression", "9"],
        "plain": ["--gain", "physical", "--compression", "0"],
    }.items():
        done = here("export", "runs/digits", *options, "--out", f"{name}.nir", "--json", cwd=tiny)
        assert done.returncode == 0, done.stderr
        result = load(done.stdout)
        assert result["check"] in ("E0", "E1")
        assert result["gain"] == ("unit" if "unit" in options else "physical")
        assert result["dt_seconds"] == (1e-4 if name == "fast" else 1e-3)
        against = ["--against", "runs/digits", "--samples", "20", "--json"]
        done = here("validate", f"{name}.nir", *against, cwd=tiny)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["static"]["identical"]
    with h5py.File(tiny / "old.nir") as old, h5py.File(tiny / "plain.nir") as plain:
        assert "v_reset" in plain["node/nodes/stem_lif"]
        assert "v_reset" not in old["node/nodes/stem_lif"]
    assert (tiny / "old.nir").stat().st_size < (tiny / "plain.nir").stat().st_size


@pytest.mark.parametrize(
    "option", [["--gain", "unit"], ["--compat"], ["--compression", "5"]], ids=lambda o: o[0]
)
def test_options_of_nir_are_refused_with_onnx(here: Cli, tiny: Path, option: list[str]) -> None:
    done = here("export", "runs/digits", "--format", "onnx", *option, cwd=tiny)
    check(done, 2, f"{option[0]} is of --format nir")


def test_a_dt_that_is_no_time_is_refused(here: Cli, tiny: Path) -> None:
    done = here("export", "runs/digits", "--dt", "0", "--out", "x.nir", cwd=tiny)
    check(done, 2, "--dt must be a positive number of seconds")
    assert not (tiny / "x.nir").exists()


@pytest.mark.parametrize("kind", ["nir", "onnx"])
def test_an_export_cannot_take_the_place_of_another_file(
    here: Cli, tmp_path: Path, kind: str
) -> None:
    weights = tmp_path / "student.safetensors"
    weights.write_bytes(b"weights")
    done = here("export", "--format", kind, "--out", weights, cwd=tmp_path)
    assert done.returncode == 2
    assert f"does not end in .{kind}" in " ".join(done.stderr.split())
    assert weights.read_bytes() == b"weights"


def test_a_graph_that_is_not_there_is_missing(here: Cli, tmp_path: Path) -> None:
    done = here("export", "none.nir", cwd=tmp_path)
    assert done.returncode == 4
    assert "there is no file none.nir" in done.stderr
