"""``tser compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tser.cli.console import JsonFlag, guarded, say, show_json, show_table


class Format(StrEnum):
    """How the comparison is written."""

    text = "text"
    html = "html"
    md = "md"
    json = "json"
    csv = "csv"


@guarded
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Two run folders or more.")],
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="Tables on the terminal, or a page, Markdown, all measurements as JSON, or all "
            "tables as CSV; default: as --out is named, else text.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; default: stdout.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Runs side by side: settings, accuracy, energy, fit, verdicts."""
    from tser.errors import UsageError

    if as_json and (out is not None or form not in (None, Format.json)):
        raise UsageError("--json prints --format json; leave out --json, or --out and --format")
    if as_json:
        form = Format.json
    if form is None:
        named = out.suffix.removeprefix(".") if out else "text"
        form = Format(named) if named in list(Format) else None
    if form is None or (form is Format.text and out is not None):
        raise UsageError(f"--out {out}: add --format html, md, json or csv")
    from tser.deploy.comparison import compare_runs

    text, parts = compare_runs(runs, form.value, out)
    if form is Format.text:
        _show(parts)
    elif out is None:
        show_json(json.loads(text)) if form is Format.json else typer.echo(text, nl=False)
    else:
        say(f"wrote {out} ({out.stat().st_size:,} bytes)")


def _show(parts: Sequence[Any]) -> None:
    """The tables and notes of sections, for the terminal."""
    from tser.deploy.report_blocks import Note, Table
    from tser.deploy.report_formats import flat, one_line

    for part in parts:
        for block in flat(part.blocks):
            if isinstance(block, Table):
                title = f"{part.title}: {block.caption}"
                rows = [[one_line(cell) for cell in row] for row in block.rows]
                show_table(one_line(title), [one_line(head) for head in block.columns], rows)
            elif isinstance(block, Note):
                say(one_line(f"{part.title}: {block.text} {block.command}"))
