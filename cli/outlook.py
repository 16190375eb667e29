"""What ``tser distill --dry-run`` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from tser.cli.console import say, show_json, show_table

if TYPE_CHECKING:
    from tser.dry_run import Cost, Outlook


def show_outlook(outlook: Outlook, as_json: bool) -> None:
    """Print what a run would be."""
    if as_json:
        show_json({"schema_version": 1, **asdict(outlook)})
        return
    shape = " x ".join(map(str, outlook.image_shape))
    source = "read" if outlook.loaded else "not read: the step saw random images"
    show_table(
        f"Student, T = {outlook.timesteps}, on images {shape}",
        ["layer", "kind", "output of the measured step", "parameters"],
        [
            [
                row.name,
                row.kind,
                " x ".join(map(str, row.shape)),
                f"{row.parameters:,}" if row.parameters else "",
            ]
            for row in outlook.layers
        ],
    )
    costs = [("student", outlook.student)]
    if outlook.teacher is not None:
        costs = [("teacher", outlook.teacher), *costs]
    show_table(
        f"Training on {outlook.data} ({source}): {outlook.training_images:,} images, "
        f"{outlook.steps_per_epoch:,} steps of {outlook.batch_size} an epoch, on {outlook.device}",
        ["", "parameters", "weights and optimiser", "kept for backward", "an epoch", "all epochs"],
        [_row(name, cost) for name, cost in costs],
    )
    loss = "  ".join(f"{name} {value:.4g}" for name, value in outlook.loss.items())
    say(f"one step on {outlook.student.measured_on} images: {loss}")
    if outlook.compile != "off":
        what = "neurons" if outlook.compile == "neuron" else "whole step"
        say(f"training would compile the student's {what}, which makes the steps faster")
    if outlook.low_memory:
        say("with --low-memory training keeps about a third of what this step kept for backward")
    say("times are of the training steps alone, scaled from that step; nothing was written")


def _row(name: str, cost: Cost) -> list[str]:
    return [
        name,
        f"{cost.parameters:,}",
        _bytes(cost.state_bytes),
        _bytes(cost.kept_bytes),
        _time(cost.epoch_seconds),
        _time(cost.epoch_seconds * cost.epochs),
    ]


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
