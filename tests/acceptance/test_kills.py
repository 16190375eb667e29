"""Commands killed (SIGKILL) at random instants: no broken file, and no earlier result is lost.

TSER_KILLS=500 makes so many kills, and -s shows how many of them met a file being written.
"""

import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.kills import Outcome, Server, server
from tser.checkpoints import load_checkpoint
from tser.config_file import load_config
from tser.deploy.report_energy_file import EnergyResult
from tser.deploy.report_files import Environment, Evaluation
from tser.deploy.report_reading import read_document, read_epochs
from tser.deploy.report_validation_file import ValidationResult
from tser.leftovers import is_leftover, remove_leftovers
from tser.runs import Run

KILLS = int(os.environ.get("TSER_KILLS", "58"))
SHARES = {"distill": 10, "nir": 12, "onnx": 10, "validate": 8, "energy": 10, "report": 8}
"""Of 58 kills."""
TINY = (
    "--set=data.limit_train=64",
    "--set=teacher.width=4",
    "--set=teacher.epochs=1",
    "--set=student.width=4",
    "--set=student.timesteps=2",
    "--set=train.epochs=2",
    "--set=train.batch_size=16",
    "--set=train.checkpoint_steps=2",
    "--set=train.curriculum_epochs=1",
    "--set=train.device=cpu",
    "--deterministic",
)
LOCK = ".lock"
"""A killed training leaves it; it locks nothing then."""
KILLED = -signal.SIGKILL
TRAINED = {
    "config.toml",
    "environment.json",
    "metrics.jsonl",
    "teacher.safetensors",
    "student.safetensors",
    "checkpoint.pt",
    "eval.json",
}


@dataclass(frozen=True)
class Case:
    """A command that writes ``file``, and another that wrote the earlier one."""

    file: str
    command: tuple[str, ...]
    earlier: tuple[str, ...]


CASES = {
    "nir": Case("model.nir", ("export", "run"), ("export", "run", "--gain", "unit", "--no-check")),
    "onnx": Case(
        "model.onnx",
        ("export", "run", "--format", "onnx"),
        ("export", "run", "--format", "onnx", "--form", "scan"),
    ),
    "validate": Case(
        "validation.json",
        ("validate", "run", "--samples", "8", "--backend", "nir-f32"),
        ("validate", "run", "--samples", "4", "--backend", "nir-f32"),
    ),
    "energy": Case(
        "energy.json",
        ("energy", "run/model.nir", "--samples", "8"),
        ("energy", "run/model.nir", "--samples", "4", "--target", "loihi"),
    ),
    "report": Case(
        "report.json", ("report", "run", "--format", "json"), ("report", "run", "--format", "json")
    ),
}


@pytest.fixture(scope="module")
def tser() -> Iterator[Server]:
    with server() as found:
        yield found


def ran(tser: Server, folder: Path, *args: str, **how: float) -> Outcome:
    scratch = folder.with_name(f"{folder.name}-scratch")
    scratch.mkdir(exist_ok=True)
    return tser.run(*args, folder=folder, scratch=scratch, **how)


@pytest.fixture(scope="module")
def trained(tser: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and every file that is made of one; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    for args in (("distill", "digits", "--out", "run", *TINY), CASES["nir"].command):
        done = ran(tser, folder, *args)
        assert done.code == 0, done.stderr
    return folder


def contents(run: Path) -> dict[str, bytes]:
    """The files of a run by name, without those that only a killed process leaves."""
    return {
        path.name: path.read_bytes()
        for path in sorted(run.iterdir())
        if not is_leftover(path) and path.name != LOCK
    }


def leftovers(*folders: Path) -> set[str]:
    return {path.name for folder in folders for path in folder.iterdir() if is_leftover(path)}


def instants(whole: Outcome, draw: random.Random, count: int) -> Iterator[dict[str, float]]:
    """How to kill a command: at any instant, while it writes its result, or at an event."""
    first, last = (whole.events[number - 1] for number in (whole.writing[0], whole.writing[-1]))
    for number in range(count):
        yield (
            {"delay": draw.uniform(0, whole.seconds)},
            {"delay": draw.uniform(first, last)},
            {"fatal": draw.randint(1, len(whole.events))},
            {"fatal": draw.choice(whole.writing[1:])},  # before the first there is no such file
        )[number % 4]


def how_many(name: str) -> int:
    return max(3, KILLS * SHARES[name] // sum(SHARES.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_result_is_the_earlier_one_or_the_new_one(
    name: str, tser: Server, trained: Path, tmp_path: Path
) -> None:
    case, folder = CASES[name], tmp_path / "work"
    shutil.copytree(trained, folder)
    run, draw = folder / "run", random.Random(name)
    scratch = folder.with_name("work-scratch")
    file = run / case.file
    if name == "report":
        shutil.move(run / "eval.json", tmp_path)  # else both reports are the same
    assert ran(tser, folder, *case.earlier).code == 0
    if name == "report":
        shutil.move(tmp_path / "eval.json", run)
    before = contents(run)
    whole = ran(tser, folder, *case.command)
    assert whole.code == 0, whole.stderr
    after = contents(run)
    assert set(after) == set(before)
    changed = {found for found in after if after[found] != before[found]}
    assert changed == {case.file}  # so whoever can read these two can read all that is found below
    file.write_bytes(before[case.file])
    met = kills = 0
    for how in instants(whole, draw, how_many(name)):
        if "fatal" in how:  # removing those of the kill before would be events too
            remove_leftovers(run)
        old = leftovers(run)
        done = ran(tser, folder, *case.command, **how)
        assert done.code in (0, KILLED), done.stderr
        found = contents(run)
        assert {one for one in found if found[one] != before[one]} <= {case.file}, how
        assert set(found) == set(before), how
        assert found[case.file] in (before[case.file], after[case.file]), how
        if done.code == KILLED:
            kills += 1
            met += bool(leftovers(run) - old) or found[case.file] != before[case.file]
        file.write_bytes(before[case.file])
    sys.stdout.write(f"\n{name}: {kills} kills, {met} while a result was written, 0 broken files\n")
    assert kills >= how_many(name) // 2
    assert met >= kills // 10
    done = ran(tser, folder, *case.command)
    assert done.code == 0, done.stderr
    assert contents(run) == after
    assert not leftovers(run, scratch)


def check_readable(run: Run) -> None:
    """Each file of a run that is there, by its own reader."""
    if run.config_file.exists():
        load_config(str(run.config_file))
    if run.checkpoint.exists():
        load_checkpoint(run.checkpoint)
    for path in (run.teacher, run.student):
        assert not path.exists() or load_file(path)
    read_epochs(run.metrics)
    read_document(run.environment, Environment, "")
    read_document(run.evaluation, Evaluation, "")


@pytest.mark.slow
def test_a_training_goes_on_to_the_same_bits(tser: Server, trained: Path, tmp_path: Path) -> None:
    whole = ran(tser, tmp_path, "distill", "digits", "--out", "whole", *TINY)
    assert whole.code == 0, whole.stderr
    same = ("teacher.safetensors", "student.safetensors", "config.toml")
    expected = contents(tmp_path / "whole")
    assert set(expected) == TRAINED
    assert all(expected[name] == contents(trained / "run")[name] for name in same)
    draw, kills, met, number = random.Random("distill"), 0, 0, 0
    folder = tmp_path / "work"
    folder.mkdir()
    while kills < how_many("distill"):
        number += 1
        run = Run(folder / f"run{number}")
        kept: dict[str, bytes] = {}
        for _ in range(1000):
            started = run.config_file.exists()
            args = ["--resume"] if started else ["digits", *TINY]
            old = leftovers(run.path) if run.path.exists() else set()
            how = (
                {"fatal": draw.randint(1, len(whole.events))}
                if draw.random() < 0.5
                else {"delay": draw.uniform(0, whole.seconds)}
            )
            done = ran(tser, folder, "distill", "--out", run.path.name, *args, **how)
            if not run.path.exists():
                assert done.code == KILLED
                kills += 1
                continue
            check_readable(run)
            found = contents(run.path)
            assert all(found[name] == content for name, content in kept.items())
            kept = {name: found[name] for name in same if name in found}
            if run.student.exists():
                break  # trained; whether it was evaluated before it died or not
            assert done.code == KILLED, done.stderr
            kills += 1
            met += bool(leftovers(run.path) - old)
        assert ran(tser, folder, "eval", run.path.name).code == 0
        found = contents(run.path)
        assert {name: found[name] for name in same} == {name: expected[name] for name in same}
        assert set(found) == TRAINED
        assert not leftovers(run.path)
    sys.stdout.write(f"\ndistill: {kills} kills, {met} while a file was written, 0 broken files\n")


def test_the_readers_take_the_results_of_whole_commands(
    tser: Server, trained: Path, tmp_path: Path
) -> None:
    """What the bytes above are compared with."""
    folder = tmp_path / "work"
    shutil.copytree(trained, folder)
    run = Run(folder / "run")
    for name in ("validate", "energy"):
        for args in (CASES[name].earlier, CASES[name].command):
            assert ran(tser, folder, *args).code == 0
            assert read_document(run.validation, ValidationResult, "")
            assert name == "validate" or read_document(run.energy, EnergyResult, "")
