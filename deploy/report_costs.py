"""Sections on what an inference costs: operations per layer and energy per target."""

from __future__ import annotations

from tser.deploy.charts import operations_chart
from tser.deploy.energy import Figure
from tser.deploy.report_blocks import (
    Block,
    Bullets,
    Chart,
    Details,
    Heading,
    Note,
    Section,
    Table,
    Text,
    joules,
    number,
)
from tser.deploy.report_files import EnergyResult, LayerOperations, PricedItem, TargetBill
from tser.deploy.report_results import Commands, Results, age, missing

OPERATIONS = {
    "accumulate": "accumulate (AC)",
    "multiply_accumulate": "multiply-accumulate (MAC)",
    "neuron_update_driven": "neuron update, with input",
    "neuron_update_idle": "neuron update, without input",
}
NONE = "–"


def operations(results: Results) -> Section:
    """Synaptic operations of every layer."""
    title, found = "Operations per layer", results.energy
    if found is None:
        note = missing("Not measured yet", Commands(results.run).energy, results)
        return Section("operations", title, (note,))
    return Section(
        "operations",
        title,
        (
            *age(results.energy_is, "energy.json", Commands(results.run).energy),
            Text(
                f"Means per inference over {found.samples:,} test images of {found.data}, T = "
                f"{found.timesteps}, counted on the exported graph. A synaptic operation (SOP) is "
                "one event reaching one target inside the feature map, biases excluded; effective "
                "ones have a weight that is not zero. Dense is every such connection at every "
                "step. A layer with analog input multiplies and accumulates (MAC), all others only "
                "accumulate (AC)."
            ),
            *_operations_chart(found),
            _operations_table(found),
            *_gaps(found),
        ),
    )


def _operations_chart(found: EnergyResult) -> tuple[Chart, ...]:
    synapses = [
        (row.name, row.sop_structural, row.dense, row.operation == "MAC")
        for row in found.layers
        if row.kind != "neuron"
    ]
    if not synapses:
        return ()
    chart = operations_chart(
        "operations-chart",
        "Synaptic operations of every layer, and what a dense execution would do",
        synapses,
        "operations per inference",
    )
    caption = "Operations done (colour) of those that a dense execution would do (grey)."
    return (Chart(chart, caption),)


def _operations_table(found: EnergyResult) -> Table:
    totals = found.totals
    return Table(
        "Operations per inference. Events: non-zero inputs of a synaptic layer; for neurons the "
        f"spikes they emit ({number(totals.spikes)} in all), which are not in the total",
        (
            "layer",
            "kind",
            "operation",
            "events",
            "SOP structural",
            "SOP effective",
            "dense",
            "MACs",
            "neuron updates",
        ),
        tuple(_operations_row(row) for row in found.layers),
        "lllrrrrrr",
        (
            "total",
            "",
            "",
            number(totals.events),
            number(totals.sop_structural),
            number(totals.sop_effective),
            number(totals.dense),
            number(totals.macs),
            number(totals.neuron_updates),
        ),
    )


def _operations_row(row: LayerOperations) -> tuple[str, ...]:
    first = (row.name, row.kind, row.operation or NONE, number(row.events))
    if row.kind == "neuron":
        return (*first, NONE, NONE, NONE, NONE, number(row.neuron_updates))
    synaptic = (number(row.sop_structural), number(row.sop_effective), number(row.dense))
    return (*first, *synaptic, number(row.macs) if row.operation == "MAC" else NONE, NONE)


def _gaps(found: EnergyResult) -> tuple[Block, ...]:
    if not found.gaps:
        return (Text("No node of the graph was left uncounted; folded pools and biases are free."),)
    items = tuple(f"{gap.name} ({gap.kind}): {gap.reason}" for gap in found.gaps)
    note = Note("The totals are too low: some nodes could not be counted.", tone="caution")
    return (note, Bullets("Not counted:", items))


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
            "total while an operation that is charged has no published figure."
        ),
    ]
    if found.first_layer == "host":
        blocks.append(Note("Layers with analog input are taken to run on a host: not in the price"))
    blocks.append(_overview(found))
    blocks.append(_per_layer(found))
    for target in found.targets:
        blocks += _bill(target)
    return Section("energy", title, (*blocks, *_twin(found)))


def total(target: TargetBill) -> str:
    """The total of a bill, or why there is none."""
    if target.energy_joules is not None:
        return joules(target.energy_joules)
    return f"unpriced (≥ {joules(target.priced_joules)})" if target.priced_joules else "unpriced"


def _overview(found: EnergyResult) -> Table:
    rows = [(target.title, total(target), "; ".join(target.unpriced)) for target in found.targets]
    twin = found.ann_twin
    rows.append(("ANN twin, 45 nm CMOS", joules(twin.energy_joules), ""))
    return Table(
        "Energy of one inference",
        ("target", "energy", "no figure for"),
        tuple((name, value, gaps or NONE) for name, value, gaps in rows),
        "lrl",
    )


def _per_layer(found: EnergyResult) -> Table:
    """Energy of every layer on every target, in the order of execution."""
    rows = []
    for position, layer in enumerate(found.layers):
        prices = [target.layers[position].joules for target in found.targets]
        rows.append((layer.name, layer.kind, *map(joules, prices)))
    totals = (joules(target.energy_joules) for target in found.targets)
    return Table(
        "Energy of one inference by layer; neurons: their updates",
        ("layer", "kind", *(target.name for target in found.targets)),
        tuple(rows),
        "ll" + "r" * len(found.targets),
        ("total", "", *totals),
    )


def _bill(target: TargetBill) -> tuple[Block, ...]:
    table = Table(
        f"Energy of one inference on {target.name}",
        ("operation", "count", "figure [pJ]", "evidence", "energy"),
        tuple(_item(item) for item in target.items),
        "lrrlr",
        ("total", "", "", "", total(target)),
    )
    used = {
        item.figure.source + item.figure.unit: item.figure for item in target.items if item.figure
    }
    details: list[Block] = [_figures(list(used.values()))] if used else []
    if target.left_out:
        details.append(Bullets("Left out of the total:", tuple(target.left_out)))
    if target.unpriced:
        details.append(Bullets("Charged, but without a published figure:", tuple(target.unpriced)))
    folded = (Details(f"Figures, scope and sources: {target.title}", tuple(details)),)
    return (Heading(target.title), table, *(folded if details else ()))


def _item(item: PricedItem) -> tuple[str, ...]:
    name = OPERATIONS.get(item.charge, item.charge.replace("_", " "))
    if item.figure is None or item.joules is None:
        return name, number(item.count), "none published", NONE, "unpriced"
    figure = item.figure
    evidence = figure.evidence + (", second hand" if figure.second_hand else "")
    return name, number(item.count), f"{figure.value_pj:g}", evidence, joules(item.joules)


def _figures(figures: list[Figure]) -> Table:
    return Table(
        "Figures that were used",
        ("figure", "value [pJ]", "operating point", "scope", "evidence", "read in", "source"),
        tuple(
            (
                figure.unit.removeprefix("pJ "),
                f"{figure.value_pj:g}",
                figure.operating_point,
                figure.scope,
                figure.evidence,
                "a work that cites it" if figure.second_hand else "the source",
                figure.source,
            )
            for figure in figures
        ),
        "lrlllll",
    )


def _twin(found: EnergyResult) -> tuple[Block, ...]:
    twin, totals = found.ann_twin, found.totals
    same = next((target for target in found.targets if target.name == "cmos45"), None)
    table = Table(
        "The student beside its ANN twin, 45 nm CMOS, arithmetic alone",
        ("", "MACs", "accumulates", "energy"),
        (
            (
                f"spiking student, T = {found.timesteps}",
                number(totals.macs),
                number(totals.accumulates),
                "not asked for" if same is None else total(same),
            ),
            ("ANN twin", number(twin.macs), "inside the MACs", joules(twin.energy_joules)),
        ),
        "lrrr",
    )
    text = (
        "The twin is the same architecture as a conventional network: every connection once, as a "
        f"MAC of {twin.figure.value_pj:g} pJ."
    )
    if same is not None and same.energy_joules:
        ratio = twin.energy_joules / same.energy_joules
        text += (
            f" By these figures it takes {ratio:.2g} times the energy of the student; memory "
            "access, which is not in them, can turn this round."
        )
    details = Details("Figure, scope and source: ANN twin", (_figures([twin.figure]),))
    return (Heading("ANN twin"), Text(text), table, details)
