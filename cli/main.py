"""``tser``: the command line. Importing it, and ``tser --help``, load no torch."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tser import __version__
from tser.cli.compare import compare
from tser.cli.distill import distill
from tser.cli.energy import energy
from tser.cli.env import env
from tser.cli.eval import evaluate
from tser.cli.export import export
from tser.cli.fit import fit
from tser.cli.inspect import inspect
from tser.cli.presets import presets
from tser.cli.report import report
from tser.cli.run import run
from tser.cli.targets import targets
from tser.cli.validate import validate

app = typer.Typer(
    name="tser",
    help="Distil spiking networks, export them to NIR and ONNX, check them spike by spike, "
    "and price their energy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> bool:
    if value:
        typer.echo(f"tser {__version__}")
        raise typer.Exit
    return value


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["TSER_DEBUG"] = "1"


app.command("distill")(distill)
app.command("eval")(evaluate)
app.command("export")(export)
app.command("validate")(validate)
app.command("energy")(energy)
app.command("fit")(fit)
app.command("inspect")(inspect)
app.command("run")(run)
app.command("report")(report)
app.command("compare")(compare)
app.add_typer(presets)
app.command("targets")(targets)
app.command("env")(env)


def main() -> None:
    """Entry point of the ``tser`` script."""
    app()


if __name__ == "__main__":
    main()
