"""The section on operations: of every layer, per inference."""

from __future__ import annotations

from tser.deploy.charts import operations_chart
from tser.deploy.report_blocks import (
    Block,
    Bullets,
    Chart,
    Details,
    Note,
    Section,
    Table,
    Text,
    number,
)
from tser.deploy.report_energy_file import EnergyResult, LayerOperations
from tser.deploy.report_results import Commands, Results, age, missing

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
                f"Means per inference over {found.images} of {found.data}, T = "
                f"{found.timesteps}, counted on the exported graph. A synaptic operation (SOP) is "
                "one event reaching one target inside the feature map, biases excluded; effective "
                "ones have a weight that is not zero. Dense is every such connection at every "
                "step. A layer with analog input multiplies and accumulates (MAC), all others only "
                "accumulate (AC)."
            ),
            *_operations_chart(found),
            _operations_table(found),
            Details("Memory, bias adds and driven updates by layer", (_sizes(found),)),
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


def _sizes(found: EnergyResult) -> Table:
    totals = found.totals
    rows = tuple(
        (
            row.name,
            _bytes(row.parameter_bits),
            _bytes(row.state_bits),
            number(row.bias_adds) if row.kind != "neuron" else NONE,
            number(row.neuron_updates_driven) if row.kind == "neuron" else NONE,
        )
        for row in found.layers
    )
    last = (_bytes(totals.parameter_bits), _bytes(totals.state_bits))
    adds = (number(totals.bias_adds), number(totals.neuron_updates_driven))
    heads = ("layer", "parameters", "state", "bias adds", "driven updates")
    return Table(
        "Memory in float32, and per inference bias adds and updates of neurons that had input",
        heads,
        rows,
        "lrrrr",
        ("total", *last, *adds),
    )


def _bytes(bits: float) -> str:
    return f"{bits / 8 / 1024:,.1f} KiB" if bits else NONE


def _gaps(found: EnergyResult) -> tuple[Block, ...]:
    if not found.gaps:
        return (Text("No node of the graph was left uncounted; folded pools cost nothing."),)
    items = tuple(f"{gap.name} ({gap.kind}): {gap.reason}" for gap in found.gaps)
    note = Note("The totals are too low: some nodes could not be counted.", tone="caution")
    return (note, Bullets("Not counted:", items))
