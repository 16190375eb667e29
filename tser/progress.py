"""Progress on stderr: a live bar in a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def format_metrics(metrics: dict[str, float]) -> str:
    """``name value`` pairs; accuracies as percentages."""
    parts = []
    for name, value in metrics.items():
        parts.append(f"{name} {value:.2%}" if "accuracy" in name else f"{name} {value:.4g}")
    return "  ".join(parts)


class Reporter:
    """Shows the progress of one training phase.

    Args:
        title: what is being trained.
        steps: optimisation steps in the whole phase.
        done: steps done before (when resuming).
        quiet: show nothing.
    """

    def __init__(self, title: str, steps: int, done: int = 0, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        self._title, self._quiet = title, quiet
        self._bar: Progress | None = None
        self._started = time.monotonic()
        self._epochs = 0  # finished by this process; a resumed run has finished more
        if sys.stderr.isatty() and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=steps, completed=done, metrics="")

    def __enter__(self) -> Reporter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self) -> None:
        """One optimisation step is done."""
        if self._bar:
            self._bar.advance(self._task)

    def epoch(self, number: int, total: int, metrics: dict[str, float]) -> None:
        """An epoch is done.

        Args:
            number: 1-based.
            total: epochs in the phase.
            metrics: what to show.
        """
        text = format_metrics(metrics)
        if self._bar:
            self._bar.update(self._task, metrics=text)
        elif not self._quiet:
            self._epochs += 1
            seconds = time.monotonic() - self._started
            left = seconds / self._epochs * (total - number)
            sys.stderr.write(
                f"{self._title} {number}/{total}  {text}  {seconds:.0f} s, {left:.0f} s left\n"
            )
            sys.stderr.flush()

    def note(self, text: str) -> None:
        """Write one line about the phase; above the bar where there is one."""
        if self._bar:
            self._console.print(f"{self._title}: {text}", markup=False, highlight=False)
        elif not self._quiet:
            sys.stderr.write(f"{self._title}: {text}\n")
            sys.stderr.flush()
