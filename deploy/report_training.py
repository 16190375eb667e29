"""Sections on the student itself: accuracy, training and firing."""

from __future__ import annotations

import math

from tser.config import LossConfig
from tser.deploy.charts import Line, line_chart, rate_chart
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
from tser.deploy.report_files import Epoch, Evaluation
from tser.deploy.report_results import Commands, Results, missing
from tser.deploy.report_svg import INK, SERIES

FEW_STEPS = 6
"""A table with a column for each of them fits beside a chart."""


def accuracy(results: Results) -> Section:
    """Test accuracy after every step, beside the teacher's."""
    title, found = "Accuracy against time", results.evaluation
    if found is None:
        note = missing("Not evaluated yet", Commands(results.run).evaluate)
        return Section("accuracy", title, (note,))
    steps = list(range(1, found.timesteps + 1))
    ranges = [interval(share, found.samples) for share in found.accuracy]
    line = Line(
        "student",
        steps,
        found.accuracy,
        SERIES[0],
        low=[low for low, _ in ranges],
        high=[high for _, high in ranges],
    )
    teacher = found.teacher_accuracy
    chart = line_chart(
        "accuracy-chart",
        f"Test accuracy of the student after 1 to {found.timesteps} steps",
        [line],
        x_label="time steps t",
        y_label="test accuracy",
        percentages=True,
        level=None if teacher is None else (f"teacher, {percent(teacher)}", teacher),
    )
    rows = [_accuracy_row(step(t), found.accuracy[t - 1], found.samples) for t in steps]
    if teacher is not None:
        rows.append(_accuracy_row("teacher", teacher, found.samples))
    table = Table(
        f"Accuracy on {found.samples:,} test images of {found.data}",
        ("after", "accuracy", "correct", "95 % interval"),
        tuple(rows),
        "lrrr",
    )
    text = Text(
        "The prediction after t steps is the class with the largest mean logit over steps 1 to t. "
        "Band and interval: Wilson's 95 % interval for this number of images."
    )
    band = "Accuracy of the student after t steps."
    return Section(
        "accuracy",
        title,
        (*evaluation_age(results), text, Group((Chart(chart, band), table))),
    )


def _accuracy_row(name: str, share: float, samples: int) -> tuple[str, str, str, str]:
    low, high = interval(share, samples)
    right = f"{round(share * samples):,}"
    return name, percent(share), right, f"{100 * low:.1f} – {percent(high)}"


def interval(share: float, samples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion.

    >>> low, high = interval(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    z = 1.959964
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    spread = math.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2)
    half = z * spread / (1 + z * z / samples)
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluation_age(results: Results) -> tuple[Note, ...]:
    """A warning when eval.json is of another student."""
    if results.evaluation_is != "stale":
        return ()
    text = (
        "Out of date: eval.json is of other weights, another data set or another T than the run "
        "folder holds now. To bring it up to date, run"
    )
    return (Note(text, Commands(results.run).evaluate, "caution"),)


def learning(results: Results) -> Section:
    """Loss parts and accuracy over the epochs of the teacher and the student."""
    title = "Learning curves"
    student = [row for row in results.epochs if row.phase == "student"]
    teacher = [row for row in results.epochs if row.phase == "teacher"]
    if not student:
        note = Note("There is no log of the training (metrics.jsonl) in the run folder.")
        return Section("learning", title, (note,))
    loss = results.config.loss
    text = Text(
        f"The loss of the student is {_loss_in_words(loss)}. The weights of the last epoch, "
        f"{student[-1].epoch} of {results.config.train.epochs}, are the ones that are reported; "
        "no epoch was picked by its accuracy."
    )
    charts = Group(
        (
            Chart(_loss_chart(student, teacher), "Mean loss of every epoch, training images."),
            Chart(_accuracy_chart(student, teacher), "Accuracy at the end of every epoch."),
        )
    )
    return Section("learning", title, (text, charts, _last_epochs(student, teacher)))


def _loss_in_words(loss: LossConfig) -> str:
    """The formula with its weights, then what each term is; terms of weight 0 are left out."""
    convex = loss.weighting == "convex" and loss.alpha
    formula = f"(1 − {loss.alpha:g}) CE" if convex else "CE"
    terms = [f"CE is the cross-entropy ({loss.ce})"]
    if loss.kl != "none" and loss.alpha:
        formula += f" + {loss.alpha:g} KL"
        terms.append(
            f"KL the divergence from the teacher ({loss.kl}, temperature {loss.temperature:g})"
        )
    if loss.gamma:
        formula += f" − {loss.gamma:g} H"
        terms.append("H the entropy of the student's predictions")
    if loss.self_weight:
        formula += f" + {loss.self_weight:g} S"
        terms.append("S the divergence of the steps from their own mean")
    return f"{formula}: {', '.join(terms)}"


def _loss_chart(student: list[Epoch], teacher: list[Epoch]) -> str:
    lines = []
    parts = (
        ("cross-entropy CE", "ce"),
        ("divergence KL", "kl"),
        ("entropy H", "entropy"),
        ("self-divergence S", "self_kl"),
    )
    for (label, part), colour in zip(parts, SERIES, strict=False):
        points = [(row.epoch, getattr(row, part)) for row in student]
        points = [(epoch, value) for epoch, value in points if value is not None]
        if points and any(value for _, value in points):
            lines.append(Line(label, [e for e, _ in points], [v for _, v in points], colour))
    if teacher:
        losses = [row.loss for row in teacher]
        lines.append(Line("teacher CE", [row.epoch for row in teacher], losses, INK, "--"))
    return line_chart(
        "loss-chart",
        "Loss parts of the student and loss of the teacher over epochs",
        lines,
        x_label="epoch",
        y_label="loss [nat]",
        logarithmic=bool(lines) and all(value > 0 for line in lines for value in line.y),
    )


def _accuracy_chart(student: list[Epoch], teacher: list[Epoch]) -> str:
    epochs = [row.epoch for row in student]
    steps = len(student[-1].val_accuracy)
    lines = [
        Line(
            f"student, validation, t = {steps}",
            epochs,
            [row.val_accuracy[-1] for row in student],
            SERIES[0],
        ),
        Line("student, training", epochs, [row.train_accuracy for row in student], SERIES[1]),
    ]
    if steps > 1:
        first = [row.val_accuracy[0] for row in student]
        lines.insert(1, Line("student, validation, t = 1", epochs, first, SERIES[2], ":"))
    if teacher:
        values = [row.val_accuracy[-1] for row in teacher]
        epochs = [row.epoch for row in teacher]
        lines.append(Line("teacher, validation", epochs, values, INK, "--"))
    return line_chart(
        "learning-chart",
        "Training and validation accuracy of student and teacher over epochs",
        lines,
        x_label="epoch",
        y_label="accuracy",
        percentages=True,
    )


def _last_epochs(student: list[Epoch], teacher: list[Epoch]) -> Table:
    rows = []
    for name, epochs in (("teacher", teacher), ("student", student)):
        if epochs:
            last = epochs[-1]
            parts = (last.loss, last.ce, last.kl, last.entropy, last.self_kl)
            rows.append(
                (
                    name,
                    str(last.epoch),
                    *("–" if part is None else f"{part:.4g}" for part in parts),
                    percent(last.train_accuracy),
                    percent(last.val_accuracy[-1]),
                    f"{sum(row.seconds for row in epochs):,.0f}",
                )
            )
    return Table(
        "The last epoch; accuracy of the student after all steps",
        ("", "epoch", "loss", "CE", "KL", "H", "S", "training", "validation", "all epochs [s]"),
        tuple(rows),
        "lrrrrrrrrr",
    )


def firing(results: Results) -> Section:
    """Firing rate of every layer, overall and per step."""
    title, found = "Firing rates", results.evaluation
    if found is None:
        note = missing("Not evaluated yet", Commands(results.run).evaluate)
        return Section("firing", title, (note,))
    layers = [(row.name, row.firing_rate, row.firing_rate_per_step) for row in found.layers]
    if not layers:
        return Section("firing", title, (Note("The student has no spiking layer."),))
    text = Text(
        f"Spikes per neuron and step, mean over {found.samples:,} test images of {found.data}."
    )
    chart = rate_chart(
        "firing-chart", "Firing rate of every layer", layers, "firing rate per neuron and step"
    )
    both = (Chart(chart, "Bars: mean over all steps. Dots: single steps."), _rate_table(found))
    beside = (Group(both),) if found.timesteps <= FEW_STEPS else both
    return Section("firing", title, (*evaluation_age(results), text, *beside))


def _rate_table(found: Evaluation) -> Table:
    return Table(
        "Firing rate per layer and step",
        ("layer", "neurons", "mean", *(step(t) for t in range(1, found.timesteps + 1))),
        tuple(
            (
                row.name,
                f"{row.neurons:,}",
                percent(row.firing_rate),
                *(percent(rate) for rate in row.firing_rate_per_step),
            )
            for row in found.layers
        ),
        "lrr" + "r" * found.timesteps,
    )
