"""Tables of docs/reliability.md, from what ``make fuzz`` and ``make soak`` have written.

``python benchmarks/reliability.py table`` writes them, with ``--check`` it ends in an error if that
would change the document.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.document import markdown, write_tables
from benchmarks.soak import COUNTED

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results"
BAD = ("different", "hang", "crash", "traceback", "leftover")
MIB = 2**20


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def fuzz_table() -> str:
    """What became of the mutants of each kind."""
    kinds = _read("fuzz.json")["kinds"]
    columns = ["kind", "same means", "mutants", "refused", "same", "undetectable", "bad"]
    lines = [
        [
            kind["kind"],
            kind["same_means"],
            *(f"{kind[key]:,}" for key in ("mutants", "refused", "same", "undetectable")),
            f"{sum(kind[key] for key in BAD)}",
        ]
        for kind in kinds
    ]
    total = sum(kind["mutants"] for kind in kinds)
    bad = sum(kind[key] for kind in kinds for key in BAD)
    slowest = max(kinds, key=lambda kind: kind["slowest_seconds"])
    child = max(kind["child_peak_bytes"] for kind in kinds)
    here = max(kind["peak_bytes"] for kind in kinds)
    return (
        f"{markdown(columns, lines)}\n"
        f"{total:,} mutants, seed {kinds[0]['seed']}: {bad} hung, crashed, showed a traceback, "
        f"left a file or read as something else. The slowest took "
        f"{slowest['slowest_seconds']:.1f} s ({slowest['kind']}); the readers grew by at most "
        f"{here / MIB:.0f} MiB, the parser's own process by {child / MIB:,.0f} MiB.\n"
    )


def soak_table() -> str:
    """What the process held at the end of the rounds."""
    result = _read("soak.json")
    found, memory = result["second_half"], result["second_half"]["memory_mib"]
    lines = [
        [
            "memory [MiB]",
            f"{result['levels'][0]['memory_mib']:.1f}",
            f"{memory['mean']:.1f}",
            f"{memory['growth']:+.1f} ({memory['allowed']:.1f} allowed)",
            "yes" if memory["flat"] else "no",
        ]
    ]
    for name in COUNTED:
        one = found[name]
        change = f"{one['last'] - one['first']:+d} (highest {one['highest']})"
        lines.append(
            [
                name,
                str(result["levels"][0][name]),
                str(one["first"]),
                change,
                "yes" if one["flat"] else "no",
            ]
        )
    columns = ["", "after the first round", "second half", "change over it", "flat"]
    return (
        f"{result['rounds']} rounds in {result['minutes']:.0f} minutes, {result['interrupted']} of "
        f"them interrupted and resumed:\n\n{markdown(columns, lines)}"
    )


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["table"])
    parser.add_argument("--check", action="store_true")
    tables = {"fuzz": fuzz_table, "soak": soak_table}
    write_tables(DOCUMENT, tables, check=parser.parse_args().check)


if __name__ == "__main__":
    main()
