"""Bad input: one sentence, the right exit code, no traceback, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.acceptance.conftest import ROOT, TINY, Cli
from tests.hostile import HOSTILE


def check(done: object, code: int, *words: str) -> None:
    """One ``error:`` line with every one of ``words``, and the exit code."""
    returncode, stderr = done.returncode, done.stderr  # type: ignore[attr-defined]
    assert returncode == code, stderr
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert all(word in errors[0] for word in words), errors[0]
    assert "unexpected failure" not in errors[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["distill", "digit"], ["'digit'", "did you mean 'digits'"]),
        (["distill", "--set", "train.epoch=3"], ["train.epoch", "did you mean 'epochs'"]),
        (["distill", "--set", "student.timesteps=0"], ["student.timesteps", "0"]),
        (["distill", "--set", "data.name=\"digitz\""], ["digitz", "digits"]),
        (["distill", "--set", "train.lr=fast"], ["train.lr", "fast"]),
        (["distill", "--set", "nonsense"], ["--set", "nonsense"]),
        (["distill", "missing.toml"], ["missing.toml"]),
        (["distill", "--device", "cuda:99"], ["cuda:99", "--device cpu"]),
        (["distill", "--resume"], ["runs"]),
        (["distill", "--set", "data.name=\"fashion-mnist\"", "--data-root", "empty"], ["empty"]),
        (["eval", "nowhere"], ["nowhere"]),
        (["report", "empty"], ["empty", "config.toml"]),
        (["targets", "loihi9"], ["loihi9", "'loihi'"]),
        (["presets", "show", "fashion"], ["fashion", "fashion-mnist"]),
    ],
)  # fmt: skip
def test_usage(cli: Cli, tmp_path: Path, args: list[str], words: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    check(cli(*args, cwd=tmp_path), 2, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("suffix", [".nir", ".onnx"])
def test_a_file_that_is_something_else(cli: Cli, tiny: Path, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    file = folder / f"wrong{suffix}"
    file.write_text("this is no graph")
    run = tiny / "runs" / "digits"
    check(cli("validate", file, "--against", run, cwd=folder), 4, str(file))
    assert list(folder.iterdir()) == [file]


def test_a_damaged_graph(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    data = (tiny / "runs" / "digits" / "model.nir").read_bytes()
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    file = folder / "cut.nir"
    file.write_bytes(data[: len(data) // 2])
    check(cli("energy", file, "--data", "digits", cwd=folder), 4, str(file))
    check(cli("export", file, "--format", "onnx", cwd=folder), 4, str(file))
    assert list(folder.iterdir()) == [file]


def test_energy_of_another_kind_of_file(cli: Cli, tiny: Path) -> None:
    check(cli("energy", "runs/digits/model.onnx", "--data", "digits", cwd=tiny), 4, ".nir")


def test_incomplete_run(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    run = tiny / "runs" / "digits"
    (run / "student.safetensors").unlink()
    for command in ("eval", "export", "report"):
        check(cli(command, run, cwd=tmp_path), 2, str(run), "incomplete", "--resume")


def test_student_that_does_not_match_its_weights(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    run = tiny / "runs" / "digits"
    config = (run / "config.toml").read_text()
    head, tail = config.split("[student]")
    (run / "config.toml").write_text(f"{head}[student]{tail.replace('width = 4', 'width = 5')}")
    check(cli("export", run, "--out", tmp_path / "x.nir", cwd=tmp_path), 4, "student.safetensors")
    assert not (tmp_path / "x.nir").exists()


def test_another_runs_graph(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    done = cli("distill", *TINY, "--set", "student.stages=1", "--out", "other", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    graph = tiny / "runs" / "digits" / "model.nir"
    done = cli("validate", graph, "--against", "other", cwd=tmp_path)
    assert done.returncode == 3
    assert "is missing in the student" in done.stderr
    assert "verdict: E3" in done.stderr


def test_debug_shows_the_traceback(cli: Cli, tmp_path: Path) -> None:
    done = cli("--debug", "distill", "nope", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def _hostile(folder: Path, name: str) -> Path:
    file = folder / "hostile.nir"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nir's constructors divide by strides
        HOSTILE[name](file)
    return file


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_asks_for_too_much(here: Cli, tmp_path: Path, name: str) -> None:
    file = _hostile(tmp_path, name)
    check(here("inspect", file, cwd=tmp_path), 4, str(file))
    check(here("export", file, "--format", "onnx", cwd=tmp_path), 4, str(file))
    check(here("energy", file, "--data", "digits", cwd=tmp_path), 4, str(file))
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["a huge image", "a cycle without delay", "words for weights"])
def test_validating_a_file_that_asks_for_too_much(
    here: Cli, tiny: Path, tmp_path: Path, name: str
) -> None:
    file = _hostile(tmp_path, name)
    check(here("validate", file, "--against", tiny / "runs" / "digits", cwd=tmp_path), 4, str(file))


@pytest.mark.skipif(torch.version.cuda is not None, reason="its libraries alone take that much")
@pytest.mark.parametrize(
    "name", ["a huge image", "many large layers", "four gigabytes of zeros", "huge padding"]
)
def test_two_gigabytes_are_enough_to_refuse_it(tmp_path: Path, name: str) -> None:
    file = _hostile(tmp_path, name)
    limited = 'ulimit -v 2097152; exec "$0" -m tser inspect "$1"'
    done = subprocess.run(
        ["sh", "-c", limited, sys.executable, file],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    check(done, 4, str(file))


def test_mutants_of_a_graph_are_the_graph_or_refused(here: Cli, tiny: Path, tmp_path: Path) -> None:
    data = (tiny / "runs" / "digits" / "model.nir").read_bytes()
    whole = here("inspect", "model.nir", "--json", cwd=tiny / "runs" / "digits")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(len(data))] ^= rng.integers(1, 256, dtype=np.uint8)
        (tmp_path / "model.nir").write_bytes(damaged.tobytes())
        done = here("inspect", "model.nir", "--json", cwd=tmp_path)
        if done.returncode:
            check(done, 4, "model.nir")
        else:
            assert done.stdout == whole.stdout


@pytest.mark.parametrize("suffix", [".nir", ".onnx", ".txt"])
def test_inspecting_what_is_something_else(here: Cli, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"wrong{suffix}"
    file.write_text("this is no graph")
    check(here("inspect", file, cwd=tmp_path), 4, str(file))
    check(here("inspect", tmp_path / f"none{suffix}", cwd=tmp_path), 4, "there is no file")


def test_an_onnx_file_cut_short_or_with_weights_elsewhere(
    here: Cli, tiny: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    data = (tiny / "runs" / "digits" / "model.onnx").read_bytes()
    file.write_bytes(data[: len(data) // 2])
    check(here("inspect", file, cwd=tmp_path), 4, str(file))
    model = onnx.load_model_from_string(data)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../../../etc/passwd")
    file.write_bytes(model.SerializeToString())
    check(here("inspect", file, cwd=tmp_path), 4, str(file), "only a file beside it")
