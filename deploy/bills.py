"""Bills: priced lines with a range, and no total while a charged line has no price."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tser.deploy.counting import OperationCount
from tser.deploy.target_files import MILLIWATT, PICOJOULE, Figure, Target


@dataclass(frozen=True)
class Amount:
    """An energy [J] and its range; ``value`` is None where a figure in it is only a range."""

    low: float
    value: float | None
    high: float

    def __add__(self, other: Amount) -> Amount:
        both = None if self.value is None or other.value is None else self.value + other.value
        return Amount(self.low + other.low, both, self.high + other.high)


NOTHING = Amount(0.0, 0.0, 0.0)


def amount(count: float, figure: Figure) -> Amount:
    """``count`` operations (seconds, for a power) at ``figure`` [J]."""
    scale = count * (MILLIWATT if figure.unit == "mW" else PICOJOULE)
    low, high = figure.bounds
    return Amount(scale * low, None if figure.value is None else scale * figure.value, scale * high)


def total(amounts: Iterable[Amount]) -> Amount:
    """Their sum [J]."""
    return sum(amounts, NOTHING)


@dataclass(frozen=True)
class Item:
    """One line of a bill, per inference.

    Attributes:
        charge: what is counted.
        count: operations (seconds, for static power).
        energy: None where no figure is published, or where something about the run is not known.
        figure: the figure used.
    """

    charge: str
    count: float
    energy: Amount | None
    figure: Figure | None


@dataclass(frozen=True)
class LayerBill:
    """Energy of one row of the counts per inference; None while a line of it has no price."""

    name: str
    energy: Amount | None


@dataclass(frozen=True)
class Bill:
    """Energy of one inference on one target.

    Attributes:
        target: priced for.
        items: lines.
        layers: the same by row of the counts; static power belongs to none.
        unpriced: charged lines without a price, in words; there is no total while there are any.
        inside: charges that a figure above holds already, in words.
        left_out: what the total does not include, in words.
    """

    target: Target
    items: list[Item]
    layers: list[LayerBill]
    unpriced: list[str]
    inside: list[str]
    left_out: list[str]

    @property
    def priced(self) -> Amount:
        """Sum of the lines that have a price."""
        return total(item.energy for item in self.items if item.energy is not None)

    @property
    def energy(self) -> Amount | None:
        """The total, None while a charged line is unpriced."""
        return None if self.unpriced else self.priced

    @property
    def energy_joules(self) -> float | None:
        """The total [J]; None while there is none, and where a figure in it is only a range."""
        return None if self.energy is None else self.energy.value


def first_steps(counts: OperationCount, steps: int) -> OperationCount:
    """What the first ``steps`` of T steps cost: the counts of a run that stops there.

    Args:
        counts: of all T steps.
        steps: 1..T.
    """
    share = counts.timesteps

    def cut(whole: int) -> int:
        return whole * steps // share  # exact: the same number in every step

    layers = []
    for row in counts.layers:
        seen = int(row.events.sum())
        kept = int(row.events[:steps].sum())
        layers.append(
            replace(
                row,
                events=row.events[:steps],
                sop_structural=row.sop_structural[:steps],
                sop_effective=row.sop_effective[:steps],
                dense=cut(row.dense),
                dense_padded=cut(row.dense_padded),
                macs=cut(row.macs),
                bias_adds=cut(row.bias_adds),
                neuron_updates=cut(row.neuron_updates),
                neuron_updates_driven=int(np.sum(row.driven_per_step[:steps])),
                driven_per_step=row.driven_per_step[:steps],
                firing_rate=row.firing_rate * kept * share / (seen * steps) if seen else 0.0,
            )
        )
    return replace(counts, layers=layers, timesteps=steps)


def amount_document(energy: Amount | None) -> dict[str, float | None]:
    """``joules``, ``low_joules``, ``high_joules``; all None without a price."""
    if energy is None:
        return {"joules": None, "low_joules": None, "high_joules": None}
    return {"joules": energy.value, "low_joules": energy.low, "high_joules": energy.high}


def item_document(item: Item) -> dict[str, Any]:
    """One line as plain values."""
    return {
        "charge": item.charge,
        "count": item.count,
        **amount_document(item.energy),
        "figure": None if item.figure is None else item.figure.model_dump(),
    }
