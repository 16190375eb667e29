"""``tser``: the command line. Importing it, and ``tser --help``, load no torch."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from tser import __version__
from tser.cli.compare import compare
from tser.cli.console import say
from tser.cli.distill import distill
from tser.cli.energy import energy
from tser.cli.env import env
from tser.cli.eval import evaluate
from tser.cli.export import export
from tser.cli.fit import fit
from tser.cli.inspect import inspect
from tser.cli.presets import presets
from tser.cli.program import Program
from tser.cli.report import report
from tser.cli.run import run
from tser.cli.schema import schema
from tser.cli.signs import spell_out_signs
from tser.cli.streams import steady_streams
from tser.cli.targets import targets
from tser.cli.validate import validate

EPILOG = """\
\b
Exit codes:
  0    done, and any check holds
  1    unexpected failure
  2    bad usage or configuration
  3    the check ran and the answer is no
  4    a bad input file
  130  interrupted

\b
Example:
  tser distill digits
  tser export --format nir
  tser validate
  tser energy --json | jq '.targets[] | {name, energy_joules}'

Results go to stdout, all else to stderr. 'tser COMMAND --help' says more.
"""

app = typer.Typer(
    name="tser",
    cls=Program,
    help="Distil spiking networks, export them to NIR and ONNX, check them spike by spike, "
    "and price their energy.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain text: what a help looks like does not depend on rich or on the terminal.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> bool:
    if value:
        typer.echo(f"tser {__version__}")
        raise typer.Exit
    return value


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; so does TSER_DEBUG=1.")
    ] = False,
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
app.command("schema")(schema)


def main() -> None:
    """Entry point of the ``tser`` script."""
    steady_streams()
    spell_out_signs()
    # Without a folder to write to it says so at length, then works all the same.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Norse scripts its functions when it is imported; new versions of PyTorch say so to everybody.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    try:
        Path.cwd()
    except OSError:
        say("error: the working directory is gone or may not be entered; change to another one")
        sys.exit(2)
    app(prog_name="tser")


if __name__ == "__main__":
    main()
