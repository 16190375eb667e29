"""The same commands with --deterministic: the same bytes, whatever surrounds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import ROOT, TINY
from tser.determinism import TIME_FIELDS, UNCOMPARED, without_times
from tser.runs import Run

COMMANDS: list[list[str]] = [
    ["distill", *TINY, "--set=data.workers=0", "--out", "run", "--device=cpu"],
    ["eval", "run"],
    ["export", "run", "--format=nir"],
    ["export", "run", "--format=onnx"],
    ["validate", "run/model.nir", "--samples=40"],
    ["energy", "run/model.nir", "--samples=40", "--settings"],
]
PIPELINE = """
import sys
import torch
import typer
from typer.testing import CliRunner
from tser.cli.main import app

torch.set_num_threads(int(sys.argv[1]))
commands = typer.Typer()
commands.registered_commands += app.registered_commands
for line in {lines!r}:
    sys.argv = ["tser", *line]  # as environment.json records it
    done = CliRunner().invoke(commands, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
"""
RESULTS = {
    "config.toml",
    "environment.json",
    "metrics.jsonl",
    "teacher.safetensors",
    "student.safetensors",
    "eval.json",
    "model.nir",
    "model.onnx",
    "validation.json",
    "energy.json",
}


def pipeline(folder: Path, threads: int, **surroundings: str) -> Run:
    """The whole path in a process of its own."""
    folder.mkdir()
    lines = [[*line, "--deterministic"] for line in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE.format(lines=lines), str(threads)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(threads),
            **surroundings,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return Run(folder / "run")


@pytest.mark.slow
def test_two_processes_make_the_same_bytes(tmp_path: Path) -> None:
    """With other hash seeds, folders, time zones and numbers of threads."""
    first = pipeline(tmp_path / "a", 1, PYTHONHASHSEED="1", TZ="UTC")
    second = pipeline(tmp_path / "b é", 2, PYTHONHASHSEED="2", TZ="Asia/Tokyo")
    for run in (first, second):
        assert {path.name for path in run.path.iterdir()} - UNCOMPARED == RESULTS
    for name in sorted(RESULTS):
        assert without_times(first.path / name) == without_times(second.path / name), name
    assert set(TIME_FIELDS) <= RESULTS
    # The times are there, and they alone are left out.
    (row, *_) = first.metrics.read_text(encoding="utf-8").splitlines()
    assert all(f'"{field}"' in row for field in TIME_FIELDS["metrics.jsonl"])
    assert b'"loss"' in without_times(first.metrics)
