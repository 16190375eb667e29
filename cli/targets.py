"""``tser targets``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tser.cli.console import JsonFlag, guarded, say, show_json, show_table
from tser.printable import one_line

TargetFiles = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Your own target, as a TOML file; may be repeated."),
]


@guarded
def targets(
    name: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Show these with their figures.")
    ] = None,
    target_file: TargetFiles = None,
    as_json: JsonFlag = False,
) -> None:
    """List chips and processes to price for, or the figures of some."""
    from tser.deploy.target_files import choose_targets, target_names

    everything = not name and not target_file
    chosen = choose_targets(target_names() if everything else (name or []), target_file or [])
    if as_json:
        show_json({"schema_version": 2, "targets": [t.model_dump(mode="json") for t in chosen]})
        return
    if everything:
        rows = [_row(target) for target in chosen]
        columns = ["name", "title", "process", "SOP", "neuron update", "routing", "static power"]
        show_table("Targets; – : nothing published, or not separately", columns, rows)
        say("figures with their operating point, scope, evidence and source: tser targets NAME")
        return
    for target in chosen:
        _show(target)


def _row(target: Any) -> list[str]:
    def cell(charge: str) -> str:
        figure = target.figure(charge)
        if figure is not None:
            return str(figure.text)
        return "inside" if charge in target.inside else "–"

    node = f"{target.process_nm} nm" if target.process_nm else "–"
    charges = ("accumulate", "neuron_update_driven", "spike_hop", "static")
    return [target.name, target.title, node, *map(cell, charges)]


def _show(target: Any) -> None:
    node = f", {target.process_nm} nm" if target.process_nm else ""
    _write(f"{target.name}: {target.title}{node}")
    for charge, figure in target.charges.items():
        text = target.figures[figure].text if figure else "unpriced: nothing published"
        _write(f"  {_words(charge)}: {text}")
    for charge, holder in target.inside.items():
        _write(f"  {_words(charge)}: inside the figure of {_words(holder)}")
    for charge, why in target.omitted.items():
        _write(f"  {_words(charge)}: left out, {why}")
    for line in target.left_out:
        _write(f"  left out: {line}")
    for line in target.notes:
        _write(f"  note: {line}")
    for label, figure in target.figures.items():
        used = [_words(charge) for charge, name in target.charges.items() if name == label]
        read = "read in a work that cites it" if figure.second_hand else "read in the source"
        _write("")
        _write(f"  {label}: {figure.text} per {figure.per}")
        _write(f"    charged for: {', '.join(used) or 'nothing'}")
        _write(f"    operating point: {figure.operating_point}")
        _write(f"    scope: {figure.scope}: {figure.covers}")
        _write(f"    evidence: {figure.evidence}, {read}")
        _write(f"    source: {figure.source}")
        _write(f"    {figure.url}")
    _write("")


def _words(charge: str) -> str:
    return charge.replace("_", " ")


def _write(line: str) -> None:
    sys.stdout.write(one_line(line) + "\n")
