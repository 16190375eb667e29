"""How long the command line takes to answer.

    python benchmarks/import_time.py run    # adds a line to the results
    python benchmarks/import_time.py table  # puts the table into docs/performance.md

Wall-clock time of fresh processes, the commands in turn, the first round left out because it
fills the caches; the newest line of ``benchmarks/results/import_time.jsonl`` counts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from document import Row, append_row, machine, markdown, read_rows, spread, write_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "import_time.jsonl"
DOCUMENT = ROOT / "docs" / "performance.md"

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import tser": ("-c", "import tser"),
    "tser --version": ("-m", "tser", "--version"),
    "tser --help": ("-m", "tser", "--help"),
    "tser distill --help": ("-m", "tser", "distill", "--help"),
    "import torch": ("-c", "import torch"),
}
"""Name in the table -> arguments of Python; the first and the last are there to compare with."""


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure")
    run.add_argument("--rounds", type=int, default=15)
    table = commands.add_parser("table", help="put the table into the document")
    table.add_argument("--check", action="store_true", help="only say whether it is up to date")
    for command in (run, table):
        command.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "table":
        write_tables(DOCUMENT, make_tables(read_rows(arguments.results)), check=arguments.check)
    else:
        setting = machine()
        append_row(arguments.results, {"seconds": measure(arguments.rounds), "machine": setting})


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of every command, in the order of the rounds."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True
            )
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def make_tables(rows: list[Row]) -> dict[str, Callable[[], str]]:
    """Mark in the document -> table."""
    return {"start-up": lambda: start_up_table(rows)}


def start_up_table(rows: list[Row]) -> str:
    """Median and quartiles of every command, of the newest line."""
    if not rows:
        return "Not measured yet.\n"
    lines = [
        [f"`{name}`", spread([1000 * value for value in values], 0)]
        for name, values in rows[-1]["seconds"].items()
    ]
    found = rows[-1]["machine"]
    where = f"{found['cpus']} cores of {found['processor']}, Python {found['python']}"
    return markdown([where, "ms"], lines) + (
        f"\nMedian and quartiles of {len(next(iter(rows[-1]['seconds'].values())))} processes; "
        f"torch {found['packages']['torch']}.\n"
    )


if __name__ == "__main__":
    main()
