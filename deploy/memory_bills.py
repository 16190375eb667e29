"""Bills of the memory-aware model: what its operations and accesses cost."""

from __future__ import annotations

import numpy as np

from tser.deploy.bills import Amount, Bill, Item, LayerBill, amount, total
from tser.deploy.counting import OperationCount
from tser.deploy.energy import Assumptions, gap_lines, hosted
from tser.deploy.memory_model import LayerShape, MemoryOptions, Use, spiking_uses
from tser.deploy.target_files import PICOJOULE, SRAM, Figure, Target
from tser.errors import UsageError

BEYOND = "static power, and memory outside the chip: every value is assumed to be on it"
LINEAR_SLOPE, LINEAR_OFFSET = 1.09e-5, 13.2
"""Energy of an access by a straight line [pJ per bit of the memory], [pJ]."""


def access_joules(bits: int, target: Target, ram: str) -> float:
    """Energy of one access to a memory of ``bits`` [J].

    Raises:
        UsageError: the target lacks a figure that ``ram`` needs.
    """
    if ram == "linear":
        return (LINEAR_SLOPE * bits + LINEAR_OFFSET) * PICOJOULE
    missing = [name for name in SRAM if name not in target.figures]
    if missing:
        raise UsageError(
            f"target {target.name!r} has no figure {missing[0]!r}, which --memory ram={ram} needs; "
            "use ram=linear"
        )
    prices = [target.figures[name].value or target.figures[name].bounds[0] for name in SRAM]
    if ram == "word64":
        return prices[0] * (target.word_bits or 0) / 64 * PICOJOULE
    return float(np.interp(bits / 8, [0, *SRAM.values()], [0.0, *prices])) * PICOJOULE


def price_memory(
    counts: OperationCount,
    target: Target,
    shapes: dict[str, LayerShape],
    options: MemoryOptions | None = None,
    assumptions: Assumptions | None = None,
) -> Bill:
    """Energy of one inference with memory.

    Args:
        counts: exact totals over samples.
        target: a process.
        shapes: of the same graph.
        options: the disputed choices.
        assumptions: about the run.

    Raises:
        UsageError: a chip, whose figures hold its memory already.
    """
    check_process(target)
    chosen, known = options or MemoryOptions(), assumptions or Assumptions()
    word = target.word_bits or 0
    rows = [
        list(spiking_uses(row, shapes[row.name], counts.samples, chosen, word, known.first_layer))
        for row in counts.layers
    ]
    names = [row.name for row in counts.layers]
    left_out = [*target.left_out, BEYOND, *hosted(counts, known.first_layer)]
    return bill_of(target, names, rows, counts.samples, chosen.ram, gap_lines(counts), left_out)


def check_process(target: Target) -> None:
    """Refuse a chip.

    Raises:
        UsageError: the target is a chip.
    """
    if target.kind != "process":
        raise UsageError(
            f"--model memory adds memory accesses to bare arithmetic, and the figures of "
            f"{target.name!r} are of a chip; use --target cmos45 or --model plain"
        )


def bill_of(
    target: Target,
    names: list[str],
    rows: list[list[Use]],
    samples: int,
    ram: str,
    unpriced: list[str],
    left_out: list[str],
) -> Bill:
    """The bill of ``rows`` (one list of uses a row, over ``samples``), means per inference."""
    lines: dict[str, tuple[int, list[Amount], Figure | None]] = {}
    layers: list[LayerBill] = []
    missing: set[str] = set()
    for name, uses in zip(names, rows, strict=True):
        parts: list[Amount] = []
        for use in uses:
            if not use.count:
                continue
            energy, figure = _use_energy(use, samples, target, ram)
            if energy is None:
                missing.add(use.item)
            else:
                parts.append(energy)
            count, known, _ = lines.get(use.item, (0, [], None))
            lines[use.item] = (count + use.count, [*known, *([energy] if energy else [])], figure)
        short = any(use.item in missing and use.count for use in uses)
        layers.append(LayerBill(name, None if short else total(parts)))
    items = []
    for item, (count, known, figure) in lines.items():
        energy = None if item in missing else total(known)
        shown = figure or _mean_access(energy, count / samples, ram)
        items.append(Item(item, count / samples, energy, None if energy is None else shown))
    wanting = [f"{i.replace('_', ' ')}: no published figure for {target.title}" for i in missing]
    return Bill(target, items, layers, [*unpriced, *sorted(wanting)], [], left_out)


def _use_energy(
    use: Use, samples: int, target: Target, ram: str
) -> tuple[Amount | None, Figure | None]:
    count = use.count / samples
    if use.charge is None:
        joules = count * access_joules(use.bits, target, ram)
        return Amount(joules, joules, joules), None
    figure = target.figure(use.charge)
    if figure is None:
        return None, None
    return amount(count, figure), figure


def _mean_access(energy: Amount | None, count: float, ram: str) -> Figure | None:
    """What one access costs in the mean over layers, as a figure."""
    if energy is None or energy.value is None or not energy.value:
        return None
    return Figure(
        value=energy.value / count / PICOJOULE,
        unit="pJ",
        per="access to on-chip memory, mean over layers",
        operating_point=f"45 nm, 0.9 V; ram={ram}",
        scope="per operation",
        covers="one value read or written; the size of each memory is that of the layer",
        evidence="derived",
        second_hand=True,
        source="E. Lemaire et al., An analytical estimation of spiking neural networks energy "
        "efficiency, ICONIP 2022 (arXiv 2210.13107), after Horowitz 2014",
        url="https://doi.org/10.1007/978-3-031-30105-6_48",
    )
