"""Sections on the student's confidence: stopping early because of it, and whether it is earned."""

from __future__ import annotations

from tser.deploy.charts import Line, exit_chart, line_chart
from tser.deploy.report_blocks import (
    Chart,
    Group,
    Note,
    Section,
    Table,
    Text,
    percent,
    step,
)
from tser.deploy.report_files import Evaluation, Exit
from tser.deploy.report_results import Commands, Results, missing
from tser.deploy.report_svg import SERIES
from tser.deploy.report_training import evaluation_age, interval


def early_exit(results: Results) -> Section:
    """Accuracy and mean steps when the student stops as soon as it is confident enough."""
    key, title, found = "early-exit", "Early exit", results.evaluation
    if found is None or found.early_exit is None:
        return Section(key, title, (_missing(results),))
    exits = sorted(found.early_exit, key=lambda point: point.threshold)
    if found.timesteps == 1 or not exits:
        one = found.timesteps == 1
        why = "With T = 1 there is no step to leave out." if one else "No threshold was tried."
        return Section(key, title, (*evaluation_age(results), Note(why)))
    text = Text(
        "Every image takes steps until the confidence, the largest softmax of the mean logits so "
        f"far, reaches a threshold, or else all {found.timesteps}. {_finding(exits, found)} These "
        "are test images: choose a threshold by those for validation, with the command below."
    )
    chart = exit_chart(
        "exit-chart",
        "Test accuracy over mean steps used, stopping at a confidence and always taking t steps",
        [(point.threshold, point.mean_steps, point.accuracy) for point in exits],
        found.accuracy,
    )
    caption = (
        "Numbers at points: the threshold, where there is room. Squares: t = 1 to "
        f"{found.timesteps} for every image."
    )
    note = Note("Early exit on validation images:", Commands(results.run).evaluate_validation)
    both = Group((Chart(chart, caption), _exits(exits, found)))
    return Section(key, title, (*evaluation_age(results), text, both, note))


def _finding(exits: list[Exit], found: Evaluation) -> str:
    """The fewest steps that lose nothing against taking all of them."""
    whole = found.accuracy[-1]
    enough = [point for point in exits if point.accuracy >= whole]
    if not enough:
        return f"None of the thresholds keeps the {percent(whole)} of all steps."
    best = min(enough, key=lambda point: point.mean_steps)
    return (
        f"At the threshold {best.threshold:g}, {best.mean_steps:.2f} steps on average give "
        f"{percent(best.accuracy)}; all {found.timesteps} steps give {percent(whole)}."
    )


def _exits(exits: list[Exit], found: Evaluation) -> Table:
    rows = [(f"{point.threshold:g}", point.mean_steps, point.accuracy) for point in exits]
    rows.append(("none", float(found.timesteps), found.accuracy[-1]))
    cells = []
    for name, steps, accuracy in rows:
        low, high = interval(accuracy, found.samples)
        within = f"{100 * low:.1f} – {percent(high)}"
        saved = percent(1 - steps / found.timesteps)
        cells.append((name, f"{steps:.2f}", percent(accuracy), within, saved))
    return Table(
        f"Stopping at a confidence, {found.samples:,} test images of {found.data}",
        ("threshold", "mean steps", "accuracy", "95 % interval", "steps saved"),
        tuple(cells[:-1]),
        "lrrrr",
        cells[-1],
    )


def calibration(results: Results) -> Section:
    """Expected calibration error after every step."""
    key, title, found = "calibration", "Calibration", results.evaluation
    if found is None or found.calibration_error is None:
        return Section(key, title, (_missing(results),))
    errors, steps = found.calibration_error, list(range(1, found.timesteps + 1))
    text = Text(
        "How far the confidence after t steps is from the share of right answers. Expected "
        "calibration error: in 15 bins of equal width, the difference between mean confidence and "
        "accuracy, averaged over the images; 0 is best. The early exit trusts this confidence."
    )
    chart = line_chart(
        "calibration-chart",
        f"Expected calibration error of the student after 1 to {found.timesteps} steps",
        [Line("student", steps, errors, SERIES[0])],
        x_label="time steps t",
        y_label="calibration error",
        percentages=True,
        from_zero=True,
    )
    table = Table(
        f"Calibration on {found.samples:,} test images of {found.data}",
        ("after", "accuracy", "calibration error"),
        tuple((step(t), percent(found.accuracy[t - 1]), percent(errors[t - 1], 2)) for t in steps),
        "lrr",
    )
    both = Group((Chart(chart, "Expected calibration error after t steps."), table))
    return Section(key, title, (*evaluation_age(results), text, both))


def _missing(results: Results) -> Note:
    if results.evaluation is None:
        return missing("Not evaluated yet", Commands(results.run).evaluate)
    text = "Not in eval.json, which is from an earlier version of tser. To add it, run"
    return Note(text, Commands(results.run).evaluate)
