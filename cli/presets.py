"""``tser presets``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tser.cli.console import JsonFlag, guarded, show_json, show_table

presets = typer.Typer(name="presets", help="List the presets, or show one.")


@presets.callback(invoke_without_command=True)
@guarded
def list_presets(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the presets."""
    from tser.config_file import load_config, preset_names

    if context.invoked_subcommand is not None:
        return
    configs = {name: load_config(name) for name in preset_names()}
    if as_json:
        show_json(
            {
                "schema_version": 1,
                "presets": {name: config.model_dump() for name, config in configs.items()},
            }
        )
        return
    rows = [
        [name, c.data.name, str(c.student.timesteps), str(c.student.width), str(c.train.epochs)]
        for name, c in configs.items()
    ]
    show_table("Presets", ["name", "data", "T", "width", "epochs"], rows)


@presets.command("show")
@guarded
def show(name: Annotated[str, typer.Argument(help="Name of a preset.")]) -> None:
    """Print a preset's TOML."""
    from tser.config_file import preset_text

    sys.stdout.write(preset_text(name))
