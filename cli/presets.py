"""``tser presets``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from tser.cli.console import JsonFlag, guarded, show_json, show_table

presets = typer.Typer(name="presets", help="List the presets, or show one.")


@presets.callback(invoke_without_command=True)
@guarded
def list_presets(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the presets."""
    from tser.config_file import load_config, preset_names
    from tser.errors import UsageError

    if context.invoked_subcommand is not None:
        if as_json:
            raise UsageError("--json before show would be lost; write it after the name")
        return
    configs = {name: load_config(name) for name in preset_names()}
    if as_json:
        _show_json(configs)
        return
    rows = [
        [name, c.data.name, str(c.student.timesteps), str(c.student.width), str(c.train.epochs)]
        for name, c in configs.items()
    ]
    show_table("Presets", ["name", "data", "T", "width", "epochs"], rows)


@presets.command("show")
@guarded
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a preset.")],
    as_json: JsonFlag = False,
) -> None:
    """Print a preset's TOML, ready to be changed into your own."""
    from tser.config_file import load_config, preset_text

    text = preset_text(name)
    if as_json:
        _show_json({name: load_config(name)})
    else:
        sys.stdout.write(text)


def _show_json(configs: dict[str, Any]) -> None:
    presets = {name: config.model_dump() for name, config in configs.items()}
    show_json({"schema_version": 1, "presets": presets})
