"""``tser fit``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tser.cli.console import JsonFlag, guarded, show_json, show_table

MARKS = {"fits": "✓ fits", "does not fit": "✗ does not fit", "unchecked": "? unchecked"}


class Where(StrEnum):
    """Who computes a part of the network."""

    chip = "chip"
    host = "host"


@guarded
def fit(
    graph: Annotated[Path, typer.Argument(metavar="GRAPH", help="A .nir file.")],
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Chip, at least one; may be repeated."),
    ] = None,
    target_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Chip of your own, in TOML; may be repeated."),
    ] = None,
    dt: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time step of a file that states none.")
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            min=1,
            max=16,
            help="Check as if weights were quantised to so many bits.",
        ),
    ] = None,
    first_layer: Annotated[
        Where, typer.Option(help="Who computes the layers that take the input.")
    ] = Where.chip,
    readout: Annotated[
        Where, typer.Option(help="Who adds up a last layer without neurons.")
    ] = Where.chip,
    as_json: JsonFlag = False,
) -> None:
    """Check a graph against the limits of chips.

    Exit code 3: it does not fit one of those named.
    """
    from tser.deploy.fit import fit as check
    from tser.deploy.fit import report
    from tser.deploy.fit_limits import chip_names, load_chip, load_chip_file
    from tser.deploy.fit_network import network_of
    from tser.deploy.graph_file import check_suffix
    from tser.errors import UsageError
    from tser.export.graph import resolve
    from tser.export.nir_file import read_nir

    if not target and not target_file:
        raise UsageError(f"name a chip with --target; chips are {', '.join(chip_names())}")
    chips = [load_chip(name) for name in dict.fromkeys(target or [])]
    chips += [load_chip_file(path) for path in target_file or []]
    check_suffix(graph, ".nir")
    network = network_of(resolve(read_nir(graph), dt, str(graph), timeless=True))
    results = [
        check(
            network,
            chip,
            weight_bits=weight_bits,
            first_on_host=first_layer is Where.host,
            readout_on_host=readout is Where.host,
        )
        for chip in chips
    ]
    found = report(
        network,
        results,
        origin=str(graph),
        weight_bits=weight_bits,
        first_layer=first_layer.value,
        readout=readout.value,
    )
    if as_json:
        show_json(found)
    else:
        for one in found["targets"]:
            _show(one)
    if any(result.verdict == "does not fit" for result in results):
        raise typer.Exit(3)


def _show(found: dict[str, Any]) -> None:
    from tser.deploy.fit import UNPUBLISHED

    rows = [
        [
            row["constraint"].replace("_", " "),
            MARKS[row["verdict"]],
            _used(row),
            _limit(row),
            _share(row["used_fraction"]),
            _layers(row["layers"]),
            "; ".join(filter(None, (row["change"], row["reason"]))),
        ]
        for row in found["rows"]
        if not row["reason"].startswith("no limit")  # those are in the JSON
        if row["reason"] != UNPUBLISHED
    ]
    blank = [row["constraint"] for row in found["rows"] if row["reason"] == UNPUBLISHED]
    if blank:
        names = ", ".join(blank).replace("_", " ")
        rows.append(["", MARKS["unchecked"], "", "", "", "", f"not published: {names}"])
    columns = [
        "constraint",
        "verdict",
        "used",
        "of",
        "used of limit",
        "layer",
        "what to know or change",
    ]
    show_table(found["title"], columns, rows)
    placed = found["placement"]
    if placed is not None and placed["cores"] is not None:
        plural = "" if placed["cores"] == 1 else "s"
        typer.echo(
            f"{found['name']}: placed on {placed['cores']:,} core{plural}; "
            f"no placement needs fewer than {placed['lower_bound']:,}"
        )
    counts = found["counts"]
    typer.echo(
        f"{found['name']}: {found['verdict']} ({counts['does not fit']} of {len(found['rows'])} "
        f"constraints fail, {counts['unchecked']} unchecked)"
    )


def _amount(value: float | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _used(row: dict[str, Any]) -> str:
    excess = row["excess"]
    return _amount(row["used"]) + ("" if excess is None else f" (+{_amount(excess)})")


def _share(fraction: float | None) -> str:
    if fraction is None:
        return ""
    return f"{100 * fraction:,.0f} %" if fraction >= 0.1 else f"{100 * fraction:.2g} %"


def _limit(row: dict[str, Any]) -> str:
    text = _amount(row["limit"])
    return f"{text} {row['unit']}" if text and not isinstance(row["limit"], str) else text


def _layers(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return names[0] + more if names else ""
