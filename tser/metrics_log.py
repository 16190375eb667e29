"""The log of a training: metrics.jsonl, and TensorBoard where it is wanted."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tser.errors import UsageError
from tser.files import write_text
from tser.runs import Run

_EVENTS = "events.out.tfevents.*"


class MetricsLog:
    """Takes one row an epoch and writes it wherever it is wanted.

    TensorBoard's files are written anew from metrics.jsonl, which is what counts: a resumed run
    shows every epoch once.

    Args:
        run: the folder.
        tensorboard: also write ``tensorboard/``.

    Raises:
        UsageError: tensorboard is not installed.
    """

    def __init__(self, run: Run, *, tensorboard: bool = False) -> None:
        self._path = run.metrics
        self._board: Any = _open_board(run.path / "tensorboard") if tensorboard else None
        if self._board and self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                self._show(json.loads(line))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board:
            self._board.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; it is on the disk when this returns.

        Args:
            row: has "phase" and "epoch"; numbers, and lists with one entry a time step.
        """
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._board:
            self._show(row)

    def _show(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("phase", "epoch"):
                last = value[-1] if isinstance(value, list) else value
                self._board.add_scalar(f"{row['phase']}/{name}", last, row["epoch"])
        self._board.flush()


def check_tensorboard() -> None:
    """See to it that tensorboard can be used.

    Raises:
        UsageError: it is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "train.tensorboard needs the package tensorboard; install it with "
            'pip install "tser[tensorboard]"'
        )


def _open_board(folder: Path) -> Any:
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob(_EVENTS):
        old.unlink()
    return SummaryWriter(str(folder))


def truncate_metrics(run: Run, state: dict[str, Any] | None) -> None:
    """Drop rows after the checkpoint: an epoch that is repeated must not be logged twice.

    Args:
        run: the folder.
        state: its checkpoint; None if it has none.
    """
    if not run.metrics.exists():
        return
    kept = []
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # the last line of a killed run
        finished = run.teacher.exists() and row["phase"] == "teacher"
        reached = state and row["phase"] == state["phase"] and row["epoch"] <= state["epoch"]
        if finished or reached or run.student.exists():
            kept.append(line)
        else:
            sys.stderr.write(f"repeating {row['phase']} epoch {row['epoch']}\n")
    write_text(run.metrics, "".join(line + "\n" for line in kept))
