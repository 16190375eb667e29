"""Bad input: one sentence, the right exit code, no traceback, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.conftest import TINY, Cli


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
    check(cli("validate", graph, "--against", "other", cwd=tmp_path), 4, "other", "layers")


def test_debug_shows_the_traceback(cli: Cli, tmp_path: Path) -> None:
    done = cli("--debug", "distill", "nope", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
