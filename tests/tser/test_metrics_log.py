"""The metrics of a training: rows in metrics.jsonl, and the same numbers in TensorBoard."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tser.config_file import load_config
from tser.distill import distill
from tser.errors import UsageError
from tser.metrics_log import MetricsLog
from tser.runs import Run

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


def row(phase: str, epoch: int, loss: float) -> dict[str, Any]:
    return {"phase": phase, "epoch": epoch, "loss": loss, "val_accuracy": [0.125, loss / 8]}


def shown(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads: (epoch, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_a_row_is_one_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with MetricsLog(run) as log:
        log.write(row("teacher", 1, 0.5))
    with MetricsLog(run) as log:
        log.write(row("student", 1, 0.25))
    lines = run.metrics.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"schema_version": 1, **row("teacher", 1, 0.5)},
        {"schema_version": 1, **row("student", 1, 0.25)},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@needs_tensorboard
def test_tensorboard_shows_every_row_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with MetricsLog(run, tensorboard=True) as log:
        log.write(row("student", 1, 0.5))
        log.write(row("student", 2, 0.25))
    run.metrics.write_text(json.dumps(row("student", 1, 0.5)) + "\n")  # resumed after epoch 1
    with MetricsLog(run, tensorboard=True) as log:
        log.write(row("student", 2, 0.125))
    assert shown(run) == {
        "student/loss": [(1, 0.5), (2, 0.125)],
        "student/val_accuracy": [(1, 0.0625), (2, 0.015625)],
    }


@needs_tensorboard
def test_a_run_is_shown_in_tensorboard(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    config = load_config(
        "digits",
        [
            *("data.limit_train=32", "teacher.width=4", "teacher.epochs=1", "student.width=4"),
            *("train.epochs=2", "train.batch_size=16", "train.device=cpu"),
            "train.tensorboard=true",
        ],
    )
    distill(config, run)
    found = shown(run)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [step for step, _ in found["teacher/loss"]] == [1]
    assert [value for _, value in found["student/kl"]] == pytest.approx(
        [line["kl"] for line in rows[1:]]
    )


def test_tensorboard_that_is_not_installed_is_asked_for_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = load_config("digits", ["train.tensorboard=true"])
    with pytest.raises(UsageError, match=r'pip install "tser\[tensorboard\]"'):
        distill(config, Run(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
