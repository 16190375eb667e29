"""Runs that are killed (SIGKILL), at whatever instant, and continued: the same bits at the end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tser.config import RunConfig
from tser.config_file import load_config
from tser.leftovers import is_leftover
from tser.runs import Run, create_run

ROOT = Path(__file__).parents[2]
TINY = (
    "data.limit_train=64",
    "teacher.width=4",
    "teacher.epochs=2",
    "student.width=4",
    "student.timesteps=2",
    "train.epochs=3",
    "train.batch_size=16",
    "train.checkpoint_steps=3",
    "train.curriculum_epochs=1",
    "train.device=cpu",
    "train.deterministic=true",
)
FILES = {
    "config.toml",
    "environment.json",
    "metrics.jsonl",
    "teacher.safetensors",
    "student.safetensors",
    "checkpoint.pt",
}
NEVER = 10**9
KILLED = -signal.SIGKILL


def tiny() -> RunConfig:
    return load_config("digits", TINY)


def outcome(run: Run) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """What two equal runs share: both networks, and the metrics without the seconds."""
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        del row["seconds"], row["data_wait"]
    return run.teacher.read_bytes(), run.student.read_bytes(), rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run; tests leave it as it is."""
    run = Run(tmp_path_factory.mktemp("whole") / "run")
    assert processes.finish(processes.start(processes.train, tiny(), run, False, NEVER)) == [0]
    return run


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_again_and_again_ends_the_same(seed: int, whole: Run, tmp_path: Path) -> None:
    """At random places among all at which its files are touched, the very first among them."""
    run, draw, kills = Run(tmp_path / "run"), random.Random(seed), 0
    fatal = 1 + seed
    while True:
        resume = run.config_file.exists()
        assert resume or create_run(run.path, "run") == run  # else it may start again
        (code,) = processes.finish(processes.start(processes.train, tiny(), run, resume, fatal))
        if code == 0:
            break
        assert code == KILLED
        kills += 1
        assert kills < 40
        fatal = draw.randint(5, 60)
    assert kills >= 3
    assert {path.name for path in run.path.iterdir()} == FILES
    assert outcome(run) == outcome(whole)


@pytest.mark.parametrize("number", [1, 2, 6])
def test_a_checkpoint_cut_off_in_the_middle_is_not_used(
    number: int, whole: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    half = processes.start(processes.train_until_half_a_checkpoint, tiny(), run, number)
    assert processes.finish(half) == [KILLED]
    assert run.checkpoint.exists() == (number > 1)
    assert [path for path in run.path.iterdir() if is_leftover(path)]
    assert processes.finish(processes.start(processes.train, tiny(), run, True, NEVER)) == [0]
    assert {path.name for path in run.path.iterdir()} == FILES
    assert outcome(run) == outcome(whole)


def cli(*args: str | Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "tser", "distill", *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_the_command_line_ends_the_same_in_every_process(whole: Run, tmp_path: Path) -> None:
    """Two fresh processes, the second killed at a random moment and continued by a third."""
    settings = ["digits", *(f"--set={text}" for text in TINY[:-1]), "--deterministic"]
    fresh, killed = Run(tmp_path / "fresh"), Run(tmp_path / "killed")
    with cli(*settings, "--out", fresh.path) as process:
        assert process.wait(300) == 0
    with cli(*settings, "--out", killed.path) as process:
        while process.poll() is None and not killed.metrics.exists():
            time.sleep(0.01)
        time.sleep(random.Random(0).uniform(0, 0.5))
        process.kill()
    with cli("--resume", "--out", killed.path) as process:
        assert process.wait(300) in (0, 2)  # 2: it had finished when it was to be killed
    assert fresh.config() == killed.config() == tiny()
    assert outcome(killed) == outcome(fresh) == outcome(whole)
