"""``tser schema``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tser.cli.console import guarded


@guarded
def schema(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this one; default: list the names.")
    ] = None,
) -> None:
    """JSON Schemas of all JSON output: list them, or print one.

    Which command writes what is in docs/cli.md.
    """
    from tser.deploy.schema_files import schema_names, schema_text

    if name is not None:
        sys.stdout.write(schema_text(name))
        return
    for one in schema_names():
        typer.echo(one)
