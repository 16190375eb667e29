"""Whether a graph fits a chip: every limit a row, and what would make it fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tser.deploy.fit_budgets import BUDGETS
from tser.deploy.fit_limits import ELSEWHERE, Chip
from tser.deploy.fit_network import READOUT, Network, narrowed, network_of, without
from tser.deploy.fit_rows import DOES_NOT, FITS, UNCHECKED, Case, Row, Rule
from tser.deploy.fit_walls import UNUSED, WALLS
from tser.deploy.placement import Placement, lower_bound, tile_layers
from tser.deploy.placement_layers import match_layers
from tser.export.graph import Graph

RULES: dict[str, Rule] = {**WALLS, **BUDGETS}
"""Every kind of limit -> its rule; walls first."""
UNPUBLISHED = "not published"
STEPS = 32
"""Widths that are tried: 1/32, 2/32, … of the channels."""
Overall = Literal["fits", "fits as far as checked", "does not fit"]


@dataclass(frozen=True)
class Fit:
    """The verdict on one chip.

    Attributes:
        chip: checked against.
        verdict: over all rows.
        rows: one for each kind of limit, walls first.
        placement: of the layers; None where it is not published.
        width: largest factor of the channels with which what fails by width fits; None where
            nothing fails by it, or no width is small enough.
        width_helps: whether something fails by width.
    """

    chip: Chip
    verdict: Overall
    rows: tuple[Row, ...]
    placement: Placement | None
    width: float | None
    width_helps: bool


def fit(
    graph: Graph | Network,
    chip: Chip,
    *,
    weight_bits: int | None = None,
    first_on_host: bool = False,
    readout_on_host: bool = False,
) -> Fit:
    """Check a network against every limit of a chip.

    Args:
        graph: the resolved view; its dt may be NaN.
        chip: the limits.
        weight_bits: take weights as quantised to so many bits; default: as they are.
        first_on_host: a host computes the layers that take the input.
        readout_on_host: a host adds up what the network ends in.

    Raises:
        InputFileError: more ways through pools and flattenings than any network has.
    """
    whole = graph if isinstance(graph, Network) else network_of(graph)

    def keep(network: Network) -> Network:
        return without(network, first=first_on_host, readout=readout_on_host)

    def case(network: Network) -> Case:
        return Case(network, chip, weight_bits, _place(network, chip, weight_bits))

    now = case(keep(whole))
    rows = _rows(now)
    failing = {row.constraint for row in rows if _by_width(row)}
    width = None
    if failing:

        def fits(network: Network) -> bool:
            kept = keep(network)
            return not _hopeless(kept, chip) and not any(map(_by_width, _rows(case(kept))))

        width = _width(whole, fits)
        rows = [
            _advised(row, width, now.network) if row.constraint in failing else row for row in rows
        ]
    return Fit(chip, _overall(rows), tuple(rows), now.placement, width, bool(failing))


def _overall(rows: list[Row]) -> Overall:
    verdicts = {row.verdict for row in rows}
    if DOES_NOT in verdicts:
        return "does not fit"
    return "fits as far as checked" if UNCHECKED in verdicts else "fits"


def _place(network: Network, chip: Chip, weight_bits: int | None) -> Placement | None:
    if not network.populations:
        return None
    if chip.placement == "tiles":
        return tile_layers(network, chip, weight_bits)
    return match_layers(network, chip) if chip.placement == "layer_a_core" else None


def _rows(case: Case) -> list[Row]:
    chip = case.chip
    elsewhere = {k for k in ELSEWHERE[chip.placement] if getattr(chip.limits, k) is None}
    rows = [_row(kind, case) for kind in RULES if kind not in elsewhere]
    for node, reason in case.network.unmodelled:
        rows.append(Row("nodes", "wall", UNCHECKED, (node,), reason=reason))
    if not case.network.populations:
        rows.append(Row("nodes", "wall", UNCHECKED, reason="nothing is left for the chip"))
    return rows


def _row(kind: str, case: Case) -> Row:
    group: Literal["wall", "budget"] = "wall" if kind in WALLS else "budget"
    chip = case.chip
    limit = getattr(chip.limits, kind)
    if limit is None:
        if kind in chip.unlimited:
            return Row(kind, group, FITS, reason=f"no limit: {chip.unlimited[kind]}")
        if kind in UNUSED and UNUSED[kind](case.network):
            return Row(kind, group, FITS, reason="the network has nothing of the kind")
        reason = chip.unchecked.get(kind, UNPUBLISHED)
        return Row(kind, group, UNCHECKED, reason=reason)
    found = RULES[kind](case, limit.value)
    notes = [found.reason, limit.note]
    return Row(
        kind,
        group,
        found.verdict,
        found.layers,
        found.used,
        found.limit,
        limit.unit,
        found.excess,
        "; ".join(note for note in notes if note and note != found.change),
        found.change,
        found.by_width,
        chip.sources[limit.source],
        limit.second_hand,
    )


# --- how narrow it would have to be ----------------------------------------------------------


def _width(network: Network, fits: Callable[[Network], bool]) -> float | None:
    """The largest of the tried factors with which no row fails that a width can mend."""
    for step in range(STEPS - 1, 0, -1):
        smaller = narrowed(network, step / STEPS)
        if smaller is not None and fits(smaller):
            return step / STEPS
    return None


def _hopeless(network: Network, chip: Chip) -> bool:
    """Whether even the lower bound is too much, so that placing is a waste of time."""
    if chip.placement != "tiles" or chip.limits.cores is None:
        return False
    return lower_bound(network, chip, 1) > chip.limits.cores.value


def _by_width(row: Row) -> bool:
    return row.verdict == DOES_NOT and row.by_width


def _advised(row: Row, width: float | None, network: Network) -> Row:
    if width is None:
        extra = f"no width from 1/{STEPS} on is narrow enough"
        return replace(row, change="; ".join(t for t in (row.change, extra) if t))
    hidden = next((p.size[0] for p in network.populations if p.kind != READOUT), 1)
    text = f"width factor {width:g} fits ({hidden} channels become {max(1, round(hidden * width))})"
    return replace(row, change=text)


# --- documents -------------------------------------------------------------------------------


def document(result: Fit) -> dict[str, Any]:
    """One chip's verdict as JSON."""
    chip = result.chip
    counts = {
        name: sum(r.verdict == name for r in result.rows) for name in (FITS, DOES_NOT, UNCHECKED)
    }
    return {
        "name": chip.name,
        "title": chip.title,
        "exact": chip.exact,
        "verdict": result.verdict,
        "counts": counts,
        "width_factor": result.width,
        "rows": [
            {**asdict(row), "layers": list(row.layers), "used_fraction": row.share}
            for row in result.rows
        ],
        "placement": _placement(result.placement, chip),
    }


def _placement(placement: Placement | None, chip: Chip) -> dict[str, Any] | None:
    if placement is None:
        return None
    return {
        "kind": chip.placement,
        "cores": None if placement.stuck else placement.cores,
        "lower_bound": placement.lower_bound,
        "layers": [
            {
                "layer": t.layer,
                "tile": list(t.tile),
                "tiles": t.tiles,
                "neurons": t.load.neurons,
                "axons_in": t.load.axons_in,
                "axons_out": t.load.axons_out,
                "synaptic_memory_bits": t.load.synaptic_memory,
            }
            for t in placement.tilings
        ],
        "assigned": placement.assigned,
        "stuck": [
            {"layer": layer, "resource": resource, "needed": needed, "held": held}
            for layer, resource, needed, held in placement.stuck
        ],
    }


def report(
    graph: Graph | Network,
    results: list[Fit],
    *,
    origin: str,
    weight_bits: int | None = None,
    first_layer: str = "chip",
    readout: str = "chip",
) -> dict[str, Any]:
    """Verdicts on several chips as one JSON document."""
    network = graph if isinstance(graph, Network) else network_of(graph)
    return {
        "schema_version": 1,
        "graph": origin,
        "dt_seconds": None if math.isnan(network.dt) else network.dt,
        "encoding": network.encoding or None,
        "weight_bits": weight_bits,
        "first_layer": first_layer,
        "readout": readout,
        "neurons": sum(p.neurons for p in network.populations if p.kind != READOUT),
        "synapses": sum(p.synapses for p in network.populations),
        "layers": [
            {
                "name": p.name,
                "kind": p.kind,
                "size": list(p.size),
                "fan_in": p.fan_in,
                "synapses": p.synapses,
                "sources": [c.source for c in p.incoming],
            }
            for p in network.populations
        ],
        "targets": [document(result) for result in results],
    }
