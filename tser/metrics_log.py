"""The log of a training: metrics.jsonl, and TensorBoard where it is wanted."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tser.errors import InputFileError, UsageError
from tser.files import append_line, write_text
from tser.plain_files import read_results
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
            for _, row in _rows(self._path):
                self._show(row)

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

        Raises:
            TserError: it cannot be written; the rows before it are as they were.
        """
        append_line(self._path, json.dumps({"schema_version": 1, **row}))
        if self._board:
            self._show(row)

    def _show(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("schema_version", "phase", "epoch"):
                last = value[-1] if isinstance(value, list) and value else value
                if isinstance(last, int | float):
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
    if folder.is_symlink():  # old events would be deleted where it leads
        raise InputFileError(f"{folder} is a link; put the folder itself in its place")
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob(_EVENTS):
        old.unlink()
    return SummaryWriter(str(folder))


def truncate_metrics(run: Run, state: dict[str, Any] | None) -> None:
    """Drop rows after the checkpoint: an epoch that is repeated must not be logged twice.

    Args:
        run: the folder.
        state: its checkpoint; None if it has none.

    Raises:
        InputFileError: it is a link, or a line before the last is damaged.
    """
    if run.metrics.is_symlink():  # rows would be added to the file that it leads to
        raise InputFileError(f"{run.metrics} is a link; put the file itself in its place")
    kept, there = [], 0
    for line, row in _rows(run.metrics) if run.metrics.exists() else ():
        finished = run.teacher.exists() and row["phase"] == "teacher"
        reached = state and row["phase"] == state["phase"] and row["epoch"] <= state["epoch"]
        if finished or reached or run.student.exists():
            kept.append(line)
            there += bool(state and row["phase"] == state["phase"])
        else:
            sys.stderr.write(f"repeating {row['phase']} epoch {row['epoch']}\n")
    if state and there < state["epoch"]:
        sys.stderr.write(
            f"note: {run.metrics} has {there} of the {state['epoch']} epochs that {state['phase']} "
            "has been trained; the others are lost\n"
        )
    if run.metrics.exists():
        write_text(run.metrics, "".join(line + "\n" for line in kept))


def whole_lines(content: bytes) -> list[bytes]:
    """The lines of a file that lines are appended to, without a half-written last one.

    A kill or a power cut while it is written leaves it without its end, or zeros in its place;
    anything else is no line of ours, and stays to be refused.
    """
    *lines, last = content.split(b"\n")
    if last.strip(b"\0") and not last.startswith(b"{"):
        return [*lines, last]
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        return lines
    return [*lines, last]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of metrics.jsonl and what they hold; half a line at the end is left out.

    Raises:
        InputFileError: another line is damaged.
    """
    try:
        lines = whole_lines(read_results(path))
    except OSError as error:
        raise InputFileError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode())
            known = row["phase"] in ("teacher", "student") and isinstance(row["epoch"], int)
        except (ValueError, TypeError, LookupError, RecursionError):
            known = False
        if not known:
            raise InputFileError(
                f"{path}, line {number}, is damaged; delete that line, or the file to go on "
                "without the rows so far"
            )
        yield line.decode(), row
