"""One tiny finished run, made through the command line, for all acceptance tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tser.cli.main import app

ROOT = Path(__file__).parents[2]
TINY = [
    "--set=data.limit_train=200",
    "--set=teacher.width=4",
    "--set=teacher.epochs=2",
    "--set=student.width=4",
    "--set=train.epochs=2",
]

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run ``tser ARGS`` in a folder of its own process."""

    def call(*args: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tser", *map(str, args)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    return call


@pytest.fixture(scope="session")
def here() -> Cli:
    """Run ``tser ARGS`` in this process: starting Python for every command takes minutes."""
    commands = typer.Typer()  # without the options of `tser` itself
    commands.registered_commands += app.registered_commands

    def call(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        with contextlib.chdir(cwd):
            done = CliRunner().invoke(commands, [*map(str, args)], catch_exceptions=False)
        return subprocess.CompletedProcess(args, done.exit_code, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def _tiny(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run ``runs/digits`` and its exports; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    for args in (
        ["distill", *TINY],
        ["export", "--format", "nir"],
        ["export", "--format", "onnx"],
    ):
        done = cli(*args, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def tiny(_tiny: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, in a folder with a space and a letter beyond ASCII."""
    folder = tmp_path / "tiny übung"
    shutil.copytree(_tiny, folder)
    return folder


def load(text: str) -> dict[str, Any]:
    """JSON from stdout; fails when anything else is there."""
    document: dict[str, Any] = json.loads(text)
    return document
