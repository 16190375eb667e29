"""Price operation counts with published figures; what has no figure stays unpriced.

The plain model: every operation times its figure. The memory-aware one is in `memory_model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tser.deploy.bills import Amount, Bill, Item, LayerBill, amount, total
from tser.deploy.counting import LayerCount, OperationCount
from tser.deploy.target_files import Charge, Figure, Target, load_target, target_names

__all__ = [
    "Assumptions",
    "Bill",
    "Charge",
    "Figure",
    "FirstLayer",
    "Target",
    "charges",
    "load_target",
    "price",
    "target_names",
]

FirstLayer = Literal["charge", "once", "host"]
Place = Literal["priced", "unpriced", "inside", "left_out"]
ROUTING: tuple[Charge, ...] = ("spike", "spike_hop")
NO_MEMORY = "memory accesses, which cost more than the arithmetic: --model memory"


@dataclass(frozen=True)
class Assumptions:
    """What a bill needs to know beside the counts.

    Attributes:
        first_layer: layers with analog input are charged at every step, "once" an inference (the
            target holds their current), or run on a "host".
        hops: mean hops of a spike between cores; None: not known.
        latency: time of one inference [s]; None: not known.
    """

    first_layer: FirstLayer = "charge"
    hops: float | None = None
    latency: float | None = None


def charges(row: LayerCount, first_layer: FirstLayer = "charge") -> dict[Charge, int]:
    """Operations of one row, over all samples, by what they are charged as.

    Args:
        row: exact counts.
        first_layer: see `Assumptions`; bias adds of such a layer follow its MACs.
    """
    macs, bias = row.macs, row.bias_adds
    if row.operation == "MAC" and first_layer == "once":
        # Both are the same number at every step taken, so this division leaves no rest.
        macs, bias = row.macs_once, bias * row.macs_once // max(1, row.macs)
    elif row.operation == "MAC" and first_layer == "host":
        macs, bias = 0, 0
    return {
        "accumulate": int(row.sop_structural.sum()) if row.operation == "AC" else 0,
        "multiply_accumulate": macs,
        "bias_add": bias,
        "neuron_update_driven": row.neuron_updates_driven,
        "neuron_update_idle": row.neuron_updates - row.neuron_updates_driven,
    }


def price(counts: OperationCount, target: Target, assumptions: Assumptions | None = None) -> Bill:
    """Energy of one inference.

    Args:
        counts: exact totals over samples.
        target: figures.
        assumptions: about the run; default: nothing is known of hops and time.

    Returns:
        The itemised bill; it has no total while a charged operation has no figure, while routing
        is published but ``hops`` is not known, or while ``counts`` has gaps.
    """
    known = assumptions or Assumptions()
    rows = [
        {**charges(row, known.first_layer), "spike": sent}
        for row, sent in zip(counts.layers, senders(counts), strict=True)
    ]
    items: list[Item] = []
    words: dict[str, list[str]] = {"unpriced": gap_lines(counts), "inside": [], "left_out": []}
    words["left_out"] += target.left_out
    if target.kind == "process":
        words["left_out"].append(NO_MEMORY)
    omitted: dict[str, list[str]] = {}
    for charge, count in _counted(rows, counts.samples, known).items():
        if not count and charge != "static":
            continue
        if charge in target.omitted:
            omitted.setdefault(target.omitted[charge], []).append(charge.replace("_", " "))
            continue
        where, text = _placed(charge, target, known)
        if where in ("priced", "unpriced"):
            figure = target.figure(charge)
            energy = amount(count, figure) if figure and where == "priced" else None
            items.append(Item(charge, count, energy, figure))
        if where != "priced":
            words[where].append(f"{charge.replace('_', ' ')}{text}")
    words["left_out"] += [f"{', '.join(names)}: {why}" for why, names in omitted.items()]
    words["left_out"] += hosted(counts, known.first_layer)
    layers = [
        LayerBill(row.name, _row_energy(charged, counts.samples, target, known))
        for row, charged in zip(counts.layers, rows, strict=True)
    ]
    return Bill(target, items, layers, words["unpriced"], words["inside"], words["left_out"])


def _counted(
    rows: list[dict[Charge, int]], samples: int, known: Assumptions
) -> dict[Charge, float]:
    """What is charged per inference; hops count as one each while they are not known."""
    every: tuple[Charge, ...] = get_args(Charge)
    counted = {charge: sum(row.get(charge, 0) for row in rows) / samples for charge in every}
    counted["spike_hop"] = counted["spike"] * (1.0 if known.hops is None else known.hops)
    counted["static"] = known.latency or 0.0
    return counted


def _placed(charge: Charge, target: Target, known: Assumptions) -> tuple[Place, str]:
    """Where a charge stands in the bill, and what is said of it there."""
    figure = target.figure(charge)
    if charge in target.inside:
        return "inside", f": inside the figure of {target.inside[charge].replace('_', ' ')}"
    if figure is None:
        if charge in (*ROUTING, "static"):
            return "left_out", ": no published figure"
        return "unpriced", f": no published figure for {target.title}"
    if charge == "spike_hop" and known.hops is None:
        why = "how many hops a spike takes follows from the placement: add --hops N"
        return "unpriced", f": {figure.text} per {figure.per}; {why}"
    if charge == "static" and known.latency is None:
        why = "needs the time of an inference, --latency SECONDS"
        return "left_out", f" power, {figure.text} per {figure.per}: {why}"
    return "priced", ""


def _row_energy(
    charged: dict[Charge, int], samples: int, target: Target, known: Assumptions
) -> Amount | None:
    """Energy of one row per inference [J]; None while one of its operations has no price."""
    parts = []
    hops: dict[Charge, int] = {"spike_hop": charged["spike"]}
    for charge, whole in (charged | hops).items():
        figure = target.figure(charge)
        if not whole or charge in target.inside or charge in target.omitted:
            continue
        if figure is None and charge in ROUTING:
            continue
        if figure is None or (charge == "spike_hop" and known.hops is None):
            return None
        times = (known.hops or 0.0) if charge == "spike_hop" else 1.0
        parts.append(amount(whole / samples * times, figure))
    return total(parts)


def senders(counts: OperationCount) -> list[int]:
    """Spikes that each row sends on, over all samples; a layer that nothing reads sends none."""
    read = {row.source for row in counts.layers if row.kind != "neuron"}
    return [
        int(row.events.sum()) if row.kind == "neuron" and row.name in read else 0
        for row in counts.layers
    ]


def gap_lines(counts: OperationCount) -> list[str]:
    """What was not counted, in words."""
    return [f"{gap['name']} ({gap['kind']}): not counted, {gap['reason']}" for gap in counts.gaps]


def hosted(counts: OperationCount, first_layer: FirstLayer) -> list[str]:
    """How layers with analog input are dealt with where they are not charged in full, in words."""
    words = {
        "charge": "",
        "once": "analog input, computed once an inference and held",
        "host": "analog input, computed on a host",
    }[first_layer]
    analog = [row.name for row in counts.layers if row.operation == "MAC"]
    return [f"{name}: {words}" for name in analog] if words else []
