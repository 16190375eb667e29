"""The section on fit: the exported graph held against the limits of chips."""

from __future__ import annotations

import re
from typing import Any

from tser.deploy.fit import UNPUBLISHED, Fit, fit, report
from tser.deploy.fit_limits import load_chip
from tser.deploy.fit_network import network_of
from tser.deploy.fit_rows import DOES_NOT, FITS, UNCHECKED, Row
from tser.deploy.report_blocks import (
    Block,
    Bullets,
    Details,
    Note,
    Section,
    Sources,
    Table,
    Text,
)
from tser.deploy.report_results import Commands, Results, missing
from tser.export.graph import Graph

CHIPS = ("speck2e", "speck2f", "xylo_a2", "xylo_a3", "loihi", "truenorth")
"""Those whose rules are published as far as a network can be held against them exactly."""
MARKS = {FITS: "✓ fits", DOES_NOT: "✗ does not fit", UNCHECKED: "? unchecked"}
NONE = "–"


def fitting(results: Results) -> Section:
    """Verdict on every chip, and every limit with what is used of it."""
    title, graph = "Fit per chip", results.graph
    if graph is None:
        note = missing("Not exported yet", Commands(results.run).export_nir)
        return Section("fit", title, (note,))
    network = network_of(graph)
    chips = [load_chip(name) for name in CHIPS]
    whole = [fit(network, chip) for chip in chips]
    inner = [fit(network, chip, first_on_host=True, readout_on_host=True) for chip in chips]
    text = Text(
        "model.nir held against every published limit of each chip. Weights count as they are, "
        "without quantisation. Where the verdict is no, the rows below give the layer, the excess "
        "and a change that would fit."
    )
    overview = Table(
        "Verdict by chip; with a host, it computes the layers that take the input and adds up the "
        "readout",
        ("chip", "whole network", "with a host", "limits not met", "cores"),
        tuple(_verdicts(one, other) for one, other in zip(whole, inner, strict=True)),
        "lllrl",
    )
    blocks: list[Block] = [text, overview]
    blocks += [Details(f"{one.chip.title}: every limit", _limits(one)) for one in whole]
    blocks.append(Note("Other chips and quantised weights:", _more(results)))
    return Section("fit", title, tuple(blocks))


def fit_document(results: Results, graph: Graph) -> dict[str, Any]:
    """The verdicts as ``tser fit --json`` gives them.

    Args:
        results: of the run.
        graph: its model.nir.
    """
    found = [fit(graph, load_chip(name)) for name in CHIPS]
    return report(graph, found, origin=str(results.run.nir))


def _more(results: Results) -> str:
    return Commands(results.run).fit(["loihi2"]) + " --weight-bits 8"


def _verdicts(one: Fit, with_host: Fit) -> tuple[str, ...]:
    failing = [row.constraint.replace("_", " ") for row in one.rows if row.verdict == DOES_NOT]
    return (
        one.chip.title,
        mark(one.verdict),
        mark(with_host.verdict),
        f"{len(failing)} of {len(one.rows)}",
        _cores(one),
    )


def mark(verdict: str) -> str:
    """A verdict with its sign."""
    sign = "✗" if verdict == DOES_NOT else "✓" if verdict == FITS else "?"
    return f"{sign} {verdict}"


def _cores(one: Fit) -> str:
    placed = one.placement
    if placed is None:
        return NONE
    if placed.stuck:
        return "cannot be placed"
    return f"{placed.cores:,} (no placement needs fewer than {placed.lower_bound:,})"


def _limits(one: Fit) -> tuple[Block, ...]:
    shown = [row for row in one.rows if not row.reason.startswith("no limit")]
    blank = [row.constraint for row in shown if row.reason == UNPUBLISHED]
    order = {DOES_NOT: 0, FITS: 1, UNCHECKED: 2}
    rows = sorted((r for r in shown if r.reason != UNPUBLISHED), key=lambda r: order[r.verdict])
    sources = list(dict.fromkeys(row.source for row in rows if row.source))
    table = Table(
        f"Limits of {one.chip.title}",
        ("constraint", "verdict", "used", "limit", "layer", "what to know or change", "source"),
        tuple(_row(row, sources) for row in rows),
        "llrrllr",
    )
    blocks: list[Block] = [table]
    if blank:
        names = tuple(name.replace("_", " ") for name in blank)
        blocks.append(Bullets("Not published, so not checked:", (", ".join(names),)))
    if sources:
        blocks.append(Sources("Sources:", tuple(map(_source, sources))))
    return tuple(blocks)


def _source(text: str) -> tuple[str, str]:
    """A publication, and the address that stands behind it in brackets."""
    found = re.fullmatch(r"(.*\S) \((https://[^\s()]+)\)", text)
    return (found[1], found[2]) if found else (text, "")


def _row(row: Row, sources: list[str]) -> tuple[str, ...]:
    excess = "" if row.excess is None else f" (+{_amount(row.excess)})"
    unit = f" {row.unit}" if row.limit is not None and not isinstance(row.limit, str) else ""
    more = f" and {len(row.layers) - 1} more" if len(row.layers) > 1 else ""
    said = "; ".join(filter(None, (row.change, row.reason)))
    return (
        row.constraint.replace("_", " "),
        MARKS[row.verdict],
        (_amount(row.used) or NONE) + excess,
        (_amount(row.limit) or NONE) + unit,
        row.layers[0] + more if row.layers else NONE,
        said or NONE,
        str(1 + sources.index(row.source)) if row.source else NONE,
    )


def _amount(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
