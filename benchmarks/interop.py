"""What other libraries do with our NIR files, and tser with theirs, spike by spike.

    python benchmarks/interop.py run       # needs the extra: pip install -e '.[interop]'
    python benchmarks/interop.py table     # puts the tables into docs/interop.md
    python benchmarks/interop.py fixtures  # writes tests/data/interop

Networks have random weights; batch norm has the statistics of random images, so that every layer
fires. The newest line of ``benchmarks/results/interop.jsonl`` counts.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

from document import Row, append_row, machine, markdown, read_rows, write_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "interop.jsonl"
DOCUMENT = ROOT / "docs" / "interop.md"
FIXTURES = ROOT / "tests" / "data" / "interop"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure")
    run.add_argument("--width", type=int, default=64, help="of the ResNet-18")
    table = commands.add_parser("table", help="put the tables into the document")
    table.add_argument("--check", action="store_true", help="only say whether they are up to date")
    for command in (run, table):
        command.add_argument("--results", type=Path, default=RESULTS)
    commands.add_parser("fixtures", help="write tests/data/interop")
    arguments = parser.parse_args()
    if arguments.command == "table":
        rows = read_rows(arguments.results)
        tables = {name: functools.partial(make, rows) for name, make in TABLES.items()}
        write_tables(DOCUMENT, tables, check=arguments.check)
        return
    import interop_runs  # here, so that tables are quick to make

    if arguments.command == "fixtures":
        interop_runs.write_fixtures(FIXTURES)
        return
    row = {"opened": interop_runs.opened(arguments.width), "read": interop_runs.read()}
    row |= {"width": arguments.width, "versions": interop_runs.versions(), "machine": machine()}
    append_row(arguments.results, row)


# --- tables --------------------------------------------------------------------------------


def opened_table(rows: list[Row]) -> str:
    """Every network with the options that each library needs."""
    if not rows:
        return "Not measured yet.\n"
    lines = [
        [row["network"], _with_version(row, rows), _code(row["options"]), *_cells(row)]
        for row in rows[-1]["opened"]
        if row["fits"]
    ]
    head = ["network", "library", "`tser export`", "spikes", "differ", "verdict", "logits"]
    return markdown(head, lines)


def _cells(row: Row) -> list[str]:
    if "error" in row:
        return ["", "", "fails", ""]
    return [f"{row['compared']:,}", f"{row['differ']:,}", row["verdict"], f"{row['logits']:.1e}"]


def options_table(rows: list[Row]) -> str:
    """The small networks with every combination of options."""
    if not rows:
        return "Not measured yet.\n"
    small = [row for row in rows[-1]["opened"] if row["network"] != "ResNet-18"]
    libraries = list(dict.fromkeys(row["library"] for row in small))
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in small:
        found.setdefault((row["network"], row["options"]), {})[row["library"]] = _in_short(row)
    lines = [
        [network, _code(options), *(results[name] for name in libraries)]
        for (network, options), results in found.items()
    ]
    return markdown(["network", "`tser export`", *libraries], lines)


def _in_short(row: Row) -> str:
    if "error" in row:
        return "fails"
    return f"{row['differ'] / row['compared']:.1%} differ" if row["differ"] else "same"


def read_table(rows: list[Row]) -> str:
    """Graphs of other libraries."""
    if not rows:
        return "Not measured yet.\n"
    lines = [
        [_with_version(row, rows), row["says"], f"{1e3 * row['dt']:g} ms", *_found(row)]
        for row in rows[-1]["read"]
    ]
    head = ["written by", "network", "dt", "spikes", "differ", "differ in ONNX Runtime"]
    return markdown(head, lines)


def _found(row: Row) -> list[str]:
    return [f"{row[key]:,}" for key in ("compared", "interpreter", "onnx")]


def _with_version(row: Row, rows: list[Row]) -> str:
    return f"{row['library']} {rows[-1]['versions'][row['library']]}"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "opened": opened_table,
    "options": options_table,
    "read": read_table,
}
"""Mark in the document -> table."""


if __name__ == "__main__":
    main()
