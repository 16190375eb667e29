"""The section on settings: energy against accuracy, and which settings nothing else beats."""

from __future__ import annotations

from collections.abc import Sequence

from tser.deploy.pareto import front
from tser.deploy.report_blocks import (
    Block,
    Bullets,
    Chart,
    Heading,
    Note,
    Section,
    Table,
    Text,
    joules,
    percent,
    rounded,
    step,
)
from tser.deploy.report_charts import tradeoff_chart
from tser.deploy.report_energy_file import EnergyResult, Setting, TargetBill
from tser.deploy.report_results import Commands, Results, age, missing

KINDS = (("steps", "always t steps"), ("early-exit", "stop at a confidence"))


def tradeoff(results: Results) -> Section:
    """Accuracy and energy of every setting."""
    key, title, found = "settings", "Energy against accuracy", results.energy
    command = f"{Commands(results.run).energy} --settings"
    if found is None or not found.settings:
        return Section(key, title, (missing("Not measured yet", command, results),))
    images = (
        "These are validation images."
        if found.split == "val"
        else "These are test images: choose by those for validation, --split val."
    )
    blocks: list[Block] = [
        *age(results.energy_is, "energy.json", command),
        Text(
            f"Every way to run the network, on {found.images} of {found.data}: all images take t "
            "steps, or each stops as soon as its confidence reaches a threshold. On the Pareto "
            f"front (●) is what no other setting beats in both accuracy and energy. {images}"
        ),
        _table(found, found.settings),
    ]
    if found.choices:
        drop = found.choices[0].max_drop
        words = f"The cheapest setting that loses at most {drop:g} percentage points:"
        blocks.append(Bullets(words, tuple(choice.text for choice in found.choices)))
    known = [target for target in found.targets if _front(target, found.settings)]
    for target in known:
        blocks += _drawn(target, found.settings)
    if absent := [target.title for target in found.targets if target not in known]:
        blocks.append(Note(f"Not drawn, as there is no total: {', '.join(absent)}."))
    return Section(key, title, tuple(blocks))


def _front(target: TargetBill, settings: Sequence[Setting]) -> list[int]:
    costs = [setting.energy.get(target.name) for setting in settings]
    return front(costs, [setting.accuracy for setting in settings])


def name_of(setting: Setting) -> str:
    """In a few words."""
    if setting.kind == "steps":
        return step(setting.t or 0)
    return f"confidence {setting.threshold:g}"


def _table(found: EnergyResult, settings: Sequence[Setting]) -> Table:
    fronts = [_front(target, settings) for target in found.targets]
    rows = []
    for at, setting in enumerate(settings):
        prices = [
            joules(setting.energy.get(target.name)) + (" ●" if at in best else "")
            for target, best in zip(found.targets, fronts, strict=True)
        ]
        steps, share = f"{setting.mean_steps:.2f}", percent(setting.accuracy, 2)
        rows.append((name_of(setting), steps, share, rounded(setting.sop), *prices))
    names = [target.name for target in found.targets]
    return Table(
        "Settings; ● on the Pareto front of its target",
        ("setting", "mean steps", "accuracy", "SOP", *names),
        tuple(rows),
        "lrrr" + "r" * len(names),
    )


def _drawn(target: TargetBill, settings: Sequence[Setting]) -> tuple[Block, ...]:
    costs = [setting.energy.get(target.name) for setting in settings]
    best = _front(target, settings)
    groups = []
    for kind, label in KINDS:
        points = [
            (f"{name_of(s)}: {percent(s.accuracy)} for {joules(cost)}", cost, s.accuracy)
            for s, cost in zip(settings, costs, strict=True)
            if s.kind == kind and cost is not None
        ]
        groups.append((label, points))
    line = [(cost, settings[at].accuracy) for at in best if (cost := costs[at]) is not None]
    drawing = tradeoff_chart(
        f"settings-{target.name}",
        f"Accuracy over energy on {target.title}",
        [group for group in groups if group[1]],
        line,
        "energy per inference",
    )
    return (Heading(target.title), Chart(drawing, f"Energy against accuracy on {target.title}."))
