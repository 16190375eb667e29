"""How ``tser`` ends: errors of usage as one sentence, and output that could not be written."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from tser.cli.console import debugging, say
from tser.errors import TserError

# Typer 0.29 brings its own copy of click, earlier ones need the package: this is either's.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


class Program(TyperGroup):
    """All commands."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; as typer's own, but for how errors are said."""
        if not standalone_mode:
            return super().main(
                args, prog_name, complete_var, standalone_mode, windows_expand_args, **extra
            )
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except TserError as error:  # of what is no command: the output of --help
            if debugging():
                raise
            say(f"error: {error}")
            code = error.exit_code
        except _USAGE_ERROR as error:
            _refuse(error)
        except typer.Abort:
            say("interrupted")
            code = 130
        sys.exit(_flushed(code if isinstance(code, int) else 0))


def _refuse(error: Any) -> NoReturn:
    """Say what is wrong with the command line."""
    context = error.ctx
    if context is not None and type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(context.get_help(), err=True)  # `tser` alone
        sys.exit(2)
    text = " ".join(error.format_message().split()).rstrip(".")
    text = text[:1].lower() + text[1:].replace(": Value error, ", ": ")
    text = re.sub(
        r"\.? \((?:Possible options|Did you mean one of): (.*)\)\Z", r"; did you mean \1?", text
    )
    text = re.sub(r"\. Did you mean", "; did you mean", text)
    if context is not None:
        text += f"{'' if text.endswith('?') else ';'} see '{context.command_path} --help'"
    say(f"error: {text}")
    sys.exit(2)


def _flushed(code: int) -> int:
    """``code``, or another where what was printed did not get out."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return 1  # the reader of our output has left, as in `tser env | head -1`
    except TserError as error:
        say(f"error: {error}")
        return error.exit_code
    return code
