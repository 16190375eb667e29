"""The same architecture as a conventional network, priced under the same model."""

from __future__ import annotations

from typing import Any

from tser.deploy.bills import Bill, Item, LayerBill, amount, amount_document, item_document, total
from tser.deploy.counting import LayerCount, OperationCount
from tser.deploy.energy import NO_MEMORY, gap_lines
from tser.deploy.memory_bills import BEYOND, bill_of, check_process
from tser.deploy.memory_model import LayerShape, MemoryOptions, twin_uses
from tser.deploy.target_files import Charge, Target

NOT_COUNTED = "activation functions and pools, which cost no multiplications"


def twin_bill(
    counts: OperationCount,
    target: Target,
    shapes: dict[str, LayerShape] | None = None,
    options: MemoryOptions | None = None,
) -> Bill:
    """Every connection once, as a MAC, and every bias once.

    Args:
        counts: of the spiking network.
        target: a process.
        shapes: for the memory-aware model; None: the plain one.
        options: of the memory-aware model.

    Raises:
        UsageError: the target is a chip.
    """
    check_process(target)
    left_out = [*target.left_out, NOT_COUNTED]
    bias = [_bias(row, counts) for row in counts.layers]
    if shapes is not None:
        chosen, word = options or MemoryOptions(), target.word_bits or 0
        rows = [
            list(twin_uses(row, shapes[row.name], chosen, word, adds))
            for row, adds in zip(counts.layers, bias, strict=True)
        ]
        names = [row.name for row in counts.layers]
        left_out.append(BEYOND)
        return bill_of(target, names, rows, 1, chosen.ram, gap_lines(counts), left_out)
    left_out.append(NO_MEMORY)
    items: list[Item] = []
    layers = [LayerBill(row.name, None) for row in counts.layers]
    unpriced = gap_lines(counts)
    per_row: dict[Charge, list[int]] = {
        "multiply_accumulate": [row.ann_macs for row in counts.layers],
        "bias_add": bias,
    }
    for charge, column in per_row.items():
        figure, count = target.figure(charge), sum(column)
        energy = None if figure is None else amount(count, figure)
        if count:
            items.append(Item(charge, count, energy, figure))
        if count and figure is None:
            unpriced.append(f"{charge.replace('_', ' ')}: no published figure for {target.title}")
    for number, row in enumerate(counts.layers):
        figures = [(target.figure(charge), column[number]) for charge, column in per_row.items()]
        if all(figure is not None or not count for figure, count in figures):
            parts = [amount(count, figure) for figure, count in figures if figure is not None]
            layers[number] = LayerBill(row.name, total(parts))
    return Bill(target, items, layers, unpriced, [], left_out)


def _bias(row: LayerCount, counts: OperationCount) -> int:
    """Bias adds of one inference of the conventional layer."""
    return row.bias_adds // (counts.samples * counts.timesteps)


def ann_twin(
    counts: OperationCount,
    target: Target,
    shapes: dict[str, LayerShape] | None = None,
    options: MemoryOptions | None = None,
) -> dict[str, Any]:
    """The bill of the twin as plain values; see `twin_bill`."""
    bill = twin_bill(counts, target, shapes, options)
    energy = amount_document(bill.energy)
    figure = target.figure("multiply_accumulate")
    return {
        "target": target.name,
        "title": target.title,
        "macs": sum(row.ann_macs for row in counts.layers),
        "energy_joules": energy["joules"],
        "low_joules": energy["low_joules"],
        "high_joules": energy["high_joules"],
        "figure": None if figure is None else figure.model_dump(),
        "items": [item_document(item) for item in bill.items],
        "unpriced": bill.unpriced,
        "left_out": bill.left_out,
    }
