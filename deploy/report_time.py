"""The section on what more steps cost: operations and energy against time, beside the accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from tser.deploy.charts import Line, line_chart
from tser.deploy.report_blocks import (
    Block,
    Chart,
    Group,
    Note,
    Section,
    Table,
    Text,
    percent,
    rounded,
    step,
)
from tser.deploy.report_energy import price
from tser.deploy.report_energy_file import Amount, EnergyResult, TargetBill
from tser.deploy.report_results import Commands, Results, age, missing
from tser.deploy.report_svg import INK, SERIES

LOOKS = [(colour, dash) for dash in ("-", "--", ":") for colour in (*SERIES, INK)]
"""Of the lines of targets: fifteen that differ."""


def over_time(results: Results) -> Section:
    """Operations and energy of an inference that stops after step 1..T."""
    key, title, found = "time", "Operations and energy against time", results.energy
    if found is None:
        note = missing("Not measured yet", Commands(results.run).energy, results)
        return Section(key, title, (note,))
    text = Text(
        "What an inference has cost when it stops after t steps, mean over "
        f"{found.images} of {found.data}."
    )
    charts: list[Block] = [Chart(_operations(found), "Synaptic operations after t steps.")]
    drawn = [target for target in found.targets if _middles(target.after_step)]
    if drawn:
        place = f" on {drawn[0].title}" if len(drawn) == 1 else ""
        banded = any(a.low_joules != a.high_joules for t in drawn for a in t.after_step)
        bands = " Bands: the range of the published figures." if banded else ""
        caption = f"Energy after t steps{place}.{bands}"
        charts.append(Chart(_energy(drawn), caption))
    absent = [target.title for target in found.targets if target not in drawn]
    notes = (Note(f"Not drawn, as there is no total: {', '.join(absent)}."),) if absent else ()
    ages = age(results.energy_is, "energy.json", Commands(results.run).energy)
    return Section(key, title, (*ages, text, Group(tuple(charts)), *notes, _table(results, found)))


def _operations(found: EnergyResult) -> str:
    steps = list(range(1, found.timesteps + 1))
    dense = [found.totals.dense * t / found.timesteps for t in steps]
    return line_chart(
        "time-operations",
        f"Synaptic operations after 1 to {found.timesteps} steps, and those of a dense execution",
        [
            Line("spiking", steps, found.sop_after, SERIES[0]),
            Line("dense", steps, dense, INK, "--"),
        ],
        x_label="time steps t",
        y_label="operations per inference",
        engineering="",
        from_zero=True,
    )


def middle(amount: Amount) -> float | None:
    """The value of an energy [J], the middle of its range where that is all there is."""
    if amount.joules is not None or amount.low_joules is None or amount.high_joules is None:
        return amount.joules
    return (amount.low_joules + amount.high_joules) / 2


def _middles(amounts: Sequence[Amount]) -> list[float]:
    """Of all of them, or none."""
    found = [middle(amount) for amount in amounts]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else []


def _energy(targets: Sequence[TargetBill]) -> str:
    lines = []
    for number, target in enumerate(targets):
        colour, dash = LOOKS[number % len(LOOKS)]
        amounts = target.after_step
        low = [amount.low_joules or 0.0 for amount in amounts]
        high = [amount.high_joules or 0.0 for amount in amounts]
        band = (low, high) if low != high else ([], [])
        steps = list(range(1, len(amounts) + 1))
        lines.append(Line(target.name, steps, _middles(amounts), colour, dash, *band))
    values = [value for line in lines for value in line.y]
    wide = min(values) > 0 and max(values) > 20 * min(values)
    return line_chart(
        "time-energy",
        f"Energy after 1 to {len(targets[0].after_step)} steps on {len(targets)} targets",
        lines,
        x_label="time steps t",
        y_label="energy per inference",
        engineering="J",
        logarithmic=wide,
        from_zero=not wide,
    )


def _table(results: Results, found: EnergyResult) -> Table:
    """Per step: accuracy where eval.json is of the same T, operations and energy."""
    measured = results.evaluation
    same = found.split == "test" and measured and measured.timesteps == found.timesteps
    accuracy = measured.accuracy if measured and same else None
    first = () if accuracy is None else ("accuracy",)
    heads = ("after", *first, "SOP", *(target.name for target in found.targets))
    rows = []
    for t, operations in enumerate(found.sop_after, 1):
        share = () if accuracy is None else (percent(accuracy[t - 1]),)
        prices = [price(target.after_step[t - 1]) for target in found.targets]
        rows.append((step(t), *share, rounded(operations), *prices))
    return Table(
        "An inference that stops after t steps",
        heads,
        tuple(rows),
        "l" + "r" * (len(heads) - 1),
    )
