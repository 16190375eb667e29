"""``tser report``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tser.cli.console import DataRoot, JsonFlag, guarded, say, show_json


class Format(StrEnum):
    """How the report is written."""

    html = "html"
    md = "md"
    json = "json"
    csv = "csv"


@guarded
def report(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run folder; default: the newest.")
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="A page, Markdown, all measurements as JSON, or all tables as CSV; "
            "default: as --out is named, else html.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write; default: report.FORMAT in the run."),
    ] = None,
    data_root: DataRoot = None,
    as_json: JsonFlag = False,
) -> None:
    """Write everything known about a run as one self-contained file."""
    from tser.runs import find_run

    found = find_run(run)
    if run is None:
        say(f"run: {found.path}")
    from tser.deploy.report import write_report

    if form is None:
        named = out.suffix.removeprefix(".") if out else ""
        form = Format(named) if named in list(Format) else Format.html
    path = write_report(found, out, Path(data_root) if data_root else None, form.value)
    say(f"wrote {path} ({path.stat().st_size:,} bytes)")
    if as_json:
        show_json({"schema_version": 1, "format": form.value, "file": str(path)})
