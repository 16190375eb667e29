"""What all commands share: data on stdout, talk on stderr, errors as one sentence."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import typer

from tser.cli.streams import drop_output
from tser.errors import TserError
from tser.files import to_json
from tser.printable import one_line
from tser.room import file_error

P = ParamSpec("P")
R = TypeVar("R")

PLAIN_WIDTH = 200
"""Columns of a table that does not go to a terminal: wide enough to fold nothing."""

SHORT = 12
"""Characters of a cell that a narrow terminal does not fold if it can be helped."""

MOST_STEPS = 10_000
"""Time steps that an option may ask for; far more than any network uses."""

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout, and no tables.")
]
DataRoot = Annotated[
    str | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help="Folder to look for the data set in; default: the usual places.",
    ),
]

StudentFactory = Annotated[
    str | None,
    typer.Option(
        "--student",
        metavar="MODULE:FUNCTION",
        help="Import this factory of the user's own student; without it none is imported.",
    ),
]
TeacherFactory = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        metavar="MODULE:FUNCTION",
        help="Import this factory of the user's own teacher; without it none is imported.",
    ),
]

Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="The same bits on every run, or an error; on one CPU thread."
    ),
]


def say(text: str) -> None:
    """One line for people, on stderr."""
    sys.stderr.write(one_line(text) + "\n")
    sys.stderr.flush()


def show_json(document: Any) -> None:
    """The result of a command as JSON, on stdout."""
    text = to_json(document)
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":  # JSON is UTF-8 or ASCII
        text = json.dumps(json.loads(text), indent=2) + "\n"
    sys.stdout.write(text)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; columns after the first are right-aligned.

    In a narrow terminal long cells are folded; short ones, such as numbers, stay on one line.
    """
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    # Text, not str: names that come from files are not markup.
    table = Table()
    for number, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if number == 0 else "right"
        widest = max(len(one_line(row[number])) for row in rows) if rows else 0
        least = widest if widest <= SHORT else None
        table.add_column(Text(one_line(column)), justify=justify, overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    console = Console(width=width, highlight=False)
    wide = console.options.update(width=PLAIN_WIDTH)
    if Measurement.get(console, wide, table).maximum > console.width:
        table.box, table.padding = box.MINIMAL, 0
        table.show_edge = table.pad_edge = False
    console.print(Text(one_line(title), style="bold"))
    console.print(table)


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn every failure of a command into one sentence on stderr and an exit code.

    The traceback is shown with ``tser --debug`` only.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of our output has left, as in `tser env | head -1`.
            drop_output(sys.stdout.fileno())
            raise typer.Exit(1) from None
        except TserError as error:
            if debugging():
                raise
            say(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            if debugging():
                raise
            if isinstance(error, OSError) and (told := file_error(error)):
                say(f"error: {told}")
                raise typer.Exit(told.exit_code) from None
            kind = type(error).__name__
            say(
                f"error: unexpected failure ({kind}: {' '.join(str(error).split())}); "
                "run 'tser --debug …' to see where"
            )
            raise typer.Exit(1) from None

    return run


def debugging() -> bool:
    """Whether tracebacks were asked for."""
    return os.environ.get("TSER_DEBUG", "") not in ("", "0")


def percent(value: float) -> str:
    """``0.9933`` as ``99.33 %``."""
    return f"{100 * value:.2f} %"
