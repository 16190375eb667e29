"""The section on energy: bills per target, where each figure comes from, the twin, the rules."""

from __future__ import annotations

from collections.abc import Sequence

from tser.deploy.report_blocks import (
    Block,
    Bullets,
    Details,
    Facts,
    Heading,
    Note,
    Section,
    Sources,
    Table,
    Text,
    joules,
    number,
    span,
)
from tser.deploy.report_energy_file import (
    Amount,
    EnergyResult,
    PricedItem,
    Rule,
    TargetBill,
    Twin,
)
from tser.deploy.report_results import Commands, Results, age, missing
from tser.deploy.target_files import Figure

OPERATIONS = {
    "accumulate": "accumulate (AC)",
    "multiply_accumulate": "multiply-accumulate (MAC)",
    "neuron_update_driven": "neuron update, with input",
    "neuron_update_idle": "neuron update, without input",
    "spike": "spike sent",
    "spike_hop": "hop of a spike",
    "static": "static power",
}
FIRST_LAYER = {
    "charge": "charged at every step",
    "once": "charged once an inference: the target holds their current",
    "host": "run on a host: not in the price",
}
NONE = "–"


def energy(results: Results) -> Section:
    """Energy of an inference on every target, with where each figure comes from."""
    title, found = "Energy per inference", results.energy
    if found is None:
        note = missing("Not priced yet", Commands(results.run).energy, results)
        return Section("energy", title, (note,))
    blocks: list[Block] = [
        *age(results.energy_is, "energy.json", Commands(results.run).energy),
        Text(
            "Operations times published figures. Figures of different targets include different "
            "things, so totals of different targets are not comparable as they stand; there is no "
            "total while an operation that is charged has no published figure. A range follows "
            "from the range that is published for a figure."
        ),
        _overview(found),
        Details("Assumptions of the pricing", (_assumptions(found),)),
        Details("Energy by layer", (_per_layer(found),)),
    ]
    for target in found.targets:
        blocks += _bill(target)
    return Section("energy", title, (*blocks, *_twins(found), *_rules(found.break_even)))


def price(amount: Amount) -> str:
    """An energy with its range, or "unpriced"."""
    return span(amount.joules, amount.low_joules, amount.high_joules)


def total(target: TargetBill) -> str:
    """The total of a bill, or why there is none."""
    if target.low_joules is not None:
        return price(target.total)
    least = target.priced_low_joules
    return f"unpriced (≥ {joules(least)})" if least else "unpriced"


def _overview(found: EnergyResult) -> Table:
    rows = [(target.title, total(target), _brief(target.unpriced)) for target in found.targets]
    rows += [(f"ANN twin, {twin.title}", price(twin.total), NONE) for twin in twins(found)]
    return Table(
        f"Energy of one inference, mean over {found.images} of {found.data}, T = {found.timesteps}",
        ("target", "energy", "no price for"),
        tuple(rows),
        "lrl",
    )


def _brief(unpriced: Sequence[str]) -> str:
    """What has no price, without the reasons, which the bill gives."""
    return ", ".join(line.split(": ")[0] for line in unpriced) or NONE


def twins(found: EnergyResult) -> list[Twin]:
    """The conventional network on every process that was asked for, else on the usual one."""
    return [t.ann_twin for t in found.targets if t.ann_twin is not None] or [found.ann_twin]


def _assumptions(found: EnergyResult) -> Facts:
    chosen = "".join(f", {key} = {value}" for key, value in found.model.options.items())
    plain = "operations alone" if found.model.name == "plain" else "memory accesses as well"
    time, hops = found.latency_seconds, found.hops
    return Facts(
        (
            ("model", f"{found.model.name}: {plain}{chosen}"),
            ("layers with analog input", FIRST_LAYER[found.first_layer]),
            ("hops of a spike", "not stated (--hops)" if hops is None else f"{hops:g}, mean"),
            (
                "time of an inference",
                "not stated (--latency), so no static power" if time is None else f"{time:g} s",
            ),
            ("graph", found.graph),
        )
    )


def _per_layer(found: EnergyResult) -> Table:
    """Energy of every layer on every target, in the order of execution."""
    rows = []
    for position, layer in enumerate(found.layers):
        prices = [price(target.layers[position]) for target in found.targets]
        rows.append((layer.name, layer.kind, *prices))
    return Table(
        "Energy of one inference by layer; neurons: their updates",
        ("layer", "kind", *(target.name for target in found.targets)),
        tuple(rows),
        "ll" + "r" * len(found.targets),
        ("total", "", *(price(target.total) for target in found.targets)),
    )


def _bill(target: TargetBill) -> tuple[Block, ...]:
    table = Table(
        f"Energy of one inference on {target.name}",
        ("operation", "count", "figure", "evidence", "energy"),
        tuple(_item(item) for item in target.items),
        "lrrlr",
        ("total", "", "", "", total(target)),
    )
    lists = (
        ("Charged, but without a price:", target.unpriced),
        ("Inside a figure above:", target.inside),
        ("Left out of the total:", target.left_out),
        ("To know:", target.notes),
    )
    folded: tuple[Block, ...] = (
        *_figures(target.items),
        *(Bullets(words, tuple(items)) for words, items in lists if items),
    )
    details = (Details(f"Assumptions and sources: {target.title}", folded),) if folded else ()
    return (Heading(target.title), table, *details)


def _item(item: PricedItem) -> tuple[str, ...]:
    name = OPERATIONS.get(item.charge, item.charge.replace("_", " "))
    count = f"{item.count:g} s" if item.charge == "static" else number(item.count)
    figure = item.figure
    if figure is None:
        return name, count, "none published", NONE, "unpriced"
    evidence = figure.evidence + (", second hand" if figure.second_hand else "")
    return name, count, figure.text, evidence, price(item)


def _figures(items: Sequence[PricedItem]) -> tuple[Block, ...]:
    """Each figure once, and the publications under it."""
    figures: list[Figure] = []
    for item in items:
        if item.figure is not None and item.figure not in figures:
            figures.append(item.figure)
    if not figures:
        return ()
    sources = list(dict.fromkeys((figure.source, figure.url) for figure in figures))
    rows = tuple(
        (
            figure.per,
            figure.text,
            figure.operating_point,
            f"{figure.scope}: {figure.covers}",
            figure.evidence,
            "a work that cites it" if figure.second_hand else "the source",
            str(1 + sources.index((figure.source, figure.url))),
        )
        for figure in figures
    )
    heads = ("figure", "value", "operating point", "scope", "evidence", "read in", "source")
    table = Table("Figures that were used", heads, rows, "lrllllr")
    return (table, Sources("Sources:", tuple(sources)))


def _twins(found: EnergyResult) -> tuple[Block, ...]:
    """The student beside its conventional twin, each process under the same model."""
    bills = {target.name: target for target in found.targets}
    totals = found.totals
    blocks: list[Block] = [
        Heading("ANN twin"),
        Text(
            "The twin is the same architecture as a conventional network, priced under the same "
            "model: every connection once an inference, as a MAC."
        ),
    ]
    for twin in twins(found):
        same = bills.get(twin.target)
        rows = (
            (
                f"spiking student, T = {found.timesteps}",
                number(totals.macs),
                number(totals.accumulates),
                "not asked for" if same is None else total(same),
            ),
            ("ANN twin", number(twin.macs), "inside the MACs", price(twin.total)),
        )
        heads = ("", "MACs", "accumulates", "energy")
        blocks.append(Table(f"The student beside its twin, {twin.title}", heads, rows, "lrrr"))
        if same is not None and same.energy_joules and twin.energy_joules:
            ratio = twin.energy_joules / same.energy_joules
            memory = (
                ""
                if found.model.name == "memory"
                else (
                    " Memory accesses, which are in neither, can turn this round: --model memory."
                )
            )
            words = f"By these figures the twin takes {ratio:.2g} times the energy of the student."
            blocks.append(Text(words + memory))
        folded = (*_figures(twin.items), *_left_out(twin))
        blocks.append(Details(f"Assumptions and sources: ANN twin, {twin.title}", folded))
    return tuple(blocks)


def _left_out(twin: Twin) -> tuple[Block, ...]:
    lists = (
        ("Charged, but without a price:", twin.unpriced),
        ("Left out of the total:", twin.left_out),
    )
    return tuple(Bullets(words, tuple(items)) for words, items in lists if items)


def _rules(rules: Sequence[Rule]) -> tuple[Block, ...]:
    if not rules:
        return ()
    rows = tuple(
        (
            rule.name,
            rule.quantity,
            NONE if rule.value is None else f"{rule.value:.3g}",
            f"{rule.low:g}" if rule.low == rule.high else f"{rule.low:g} – {rule.high:g}",
            rule.text,
            str(position),
        )
        for position, rule in enumerate(rules, 1)
    )
    heads = ("rule", "quantity", "here", "break-even", "finding", "source")
    text = (
        "Published rules of when a spiking network takes less energy than a conventional one: "
        "below the break-even the spiking one wins. They rest on assumptions of their own."
    )
    blocks: list[Block] = [Heading("Break-even rules"), Text(text)]
    if loose := [rule.name for rule in rules if not rule.applies]:
        blocks.append(Note(f"Not stated for a run such as this one: {', '.join(loose)}."))
    blocks.append(Table("Break-even rules held against this network", heads, rows, "llrrlr"))
    blocks.append(Sources("Sources:", tuple((rule.source, rule.url) for rule in rules)))
    return tuple(blocks)
