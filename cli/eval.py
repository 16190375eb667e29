"""``tser eval``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tser.cli.console import (
    DataRoot,
    Deterministic,
    JsonFlag,
    StudentFactory,
    TeacherFactory,
    guarded,
    percent,
    say,
    show_json,
    show_table,
)


class Split(StrEnum):
    """Which images."""

    test = "test"
    val = "val"


IMAGES = {Split.test: "test", Split.val: "validation"}


@guarded
def evaluate(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run folder; default: the newest.")
    ] = None,
    split: Annotated[
        Split, typer.Option(help="test writes eval.json; val is only printed.")
    ] = Split.test,
    student: StudentFactory = None,
    teacher: TeacherFactory = None,
    data_root: DataRoot = None,
    deterministic: Deterministic = False,
    as_json: JsonFlag = False,
) -> None:
    """Accuracy after each step, calibration, early exit, firing rates.

    Writes eval.json in the run.
    """
    from tser.files import write_json
    from tser.runs import find_run

    found = find_run(run).naming(student, teacher)
    if run is None:
        say(f"run: {found.path}")
    from tser.determinism import deterministic as fixed_bits
    from tser.evaluate import evaluate as compute

    with fixed_bits(deterministic):
        result = compute(found, Path(data_root) if data_root else None, split=split.value)
    if split is Split.test:
        write_json(found.evaluation, result)
        say(f"wrote {found.evaluation}")
    if as_json:
        show_json(result)
        return
    pairs = zip(result["accuracy"], result["calibration_error"], strict=True)
    rows = [[f"t = {t}", percent(a), percent(e)] for t, (a, e) in enumerate(pairs, 1)]
    if result["teacher_accuracy"] is not None:
        rows = [["teacher (ANN)", percent(result["teacher_accuracy"]), ""], *rows]
    show_table(
        f"{result['data']}: {result['samples']} {IMAGES[split]} images",
        ["after", "accuracy", "calibration error"],
        rows,
    )
    show_table(
        "Early exit: stop once the confidence reaches a threshold",
        ["threshold", "accuracy", "mean steps"],
        [
            [f"{point['threshold']:g}", percent(point["accuracy"]), f"{point['mean_steps']:.2f}"]
            for point in result["early_exit"]
        ],
    )
    show_table(
        "Firing rate [spikes a neuron and step]",
        ["layer", "neurons", "rate"],
        [[r["name"], str(r["neurons"]), f"{r['firing_rate']:.4f}"] for r in result["layers"]],
    )
