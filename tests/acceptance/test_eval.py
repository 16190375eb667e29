"""``tser eval``: what it prints is what it writes, and only the test record is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tests.acceptance.conftest import Cli, load


def test_the_tables_say_what_the_file_says(cli: Cli, tiny: Path) -> None:
    run = tiny / "runs" / "digits"
    done = cli("eval", run, cwd=tiny)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "eval.json").read_text())
    assert result["split"] == "test"
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in done.stdout.splitlines()
        if line.startswith("│")
    ]
    pairs = zip(result["accuracy"], result["calibration_error"], strict=True)
    for t, (accuracy, error) in enumerate(pairs, 1):
        assert [f"t = {t}", f"{100 * accuracy:.2f} %", f"{100 * error:.2f} %"] in cells
    for point in result["early_exit"]:
        accuracy = f"{100 * point['accuracy']:.2f} %"
        assert [f"{point['threshold']:g}", accuracy, f"{point['mean_steps']:.2f}"] in cells
    for layer in result["layers"]:
        assert [layer["name"], str(layer["neurons"]), f"{layer['firing_rate']:.4f}"] in cells
    assert str(run / "eval.json") in done.stderr


def test_validation_images_leave_the_test_record_alone(cli: Cli, tiny: Path) -> None:
    run = tiny / "runs" / "digits"
    before = {path: path.read_bytes() for path in run.iterdir()}
    done = cli("eval", run, "--split", "val", "--json", cwd=tiny)
    assert done.returncode == 0, done.stderr
    result = load(done.stdout)
    assert (result["split"], result["samples"]) == ("val", 200)
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    # The same images and weights as at the end of the last epoch of training.
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["accuracy"] == pytest.approx(last["val_accuracy"], abs=1e-9)

    done = cli("eval", run, "--split", "val", cwd=tiny)
    assert "200 validation images" in done.stdout
    assert done.stderr == ""


def test_an_unknown_split(cli: Cli, tiny: Path) -> None:
    done = cli("eval", "runs/digits", "--split", "train", cwd=tiny)
    assert done.returncode == 2
    assert "train" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_teacher_of_another_run_is_no_yardstick(cli: Cli, tiny: Path) -> None:
    run = tiny / "runs" / "digits"
    before = (run / "eval.json").read_bytes()
    own = run.parent / "own.safetensors"
    (run / "teacher.safetensors").rename(own)
    try:
        with safe_open(own, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file({name: -value for name, value in weights.items()}, run / "teacher.safetensors")
        done = cli("eval", "runs/digits", cwd=tiny)
        assert done.returncode == 4
        assert "holds another teacher than the one that student.safetensors learnt" in done.stderr
        assert (run / "eval.json").read_bytes() == before
        (run / "teacher.safetensors").unlink()
        done = cli("eval", "runs/digits", "--split", "val", "--json", cwd=tiny)
        assert load(done.stdout)["teacher_accuracy"] is None
    finally:
        own.replace(run / "teacher.safetensors")
