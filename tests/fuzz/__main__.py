"""``make fuzz``: what every reader makes of thousands of damaged files.

For each kind of file, seeded mutants are read as a command reads them. A line a kind goes to
stdout and all to benchmarks/results/fuzz.json; the exit status is 1 where a file hung, crashed or
confused its reader, or was taken for another one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.document import machine
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.originals import make_originals
from tests.fuzz.workers import BAD, MEMORY, SECONDS, damaged, judge, preload

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "fuzz.json"
OUTCOMES = ("refused", "same", "undetectable", *BAD)
HEAD = ("kind", "mutants", *OUTCOMES, "MB", "child MB", "slowest s", "s")


def fuzz(kind: Kind, originals: Path, seed: int, count: int) -> dict[str, Any]:
    """What became of ``count`` mutants of one kind."""
    begun, found, bad = time.monotonic(), Counter[str](), []
    peak, child_peak, slowest = 0, 0, 0.0
    for verdict in judge(kind, originals, range(count), partial(damaged, kind, originals, seed)):
        found[verdict.outcome] += 1
        peak, child_peak = max(peak, verdict.peak), max(child_peak, verdict.child_peak)
        slowest = max(slowest, verdict.seconds)
        if verdict.outcome in BAD:
            bad.append({"number": verdict.number, "is": verdict.outcome, "text": verdict.text})
    return {
        "kind": kind.name,
        "same_means": kind.same,
        "seed": seed,
        "mutants": count,
        **{outcome: found[outcome] for outcome in OUTCOMES},
        "peak_bytes": peak,
        "child_peak_bytes": child_peak,
        "slowest_seconds": round(slowest, 2),
        "seconds": round(time.monotonic() - begun, 1),
        "bad": bad[:20],
    }


def _line(row: dict[str, Any]) -> str:
    sizes = [f"{row[key] / 1e6:.0f}" for key in ("peak_bytes", "child_peak_bytes")]
    last = [*sizes, row["slowest_seconds"], row["seconds"]]
    values = [row[key] for key in ("kind", "mutants", *OUTCOMES)]
    return "  ".join(str(v).rjust(len(h)) for v, h in zip([*values, *last], _heads(), strict=True))


def _heads() -> list[str]:
    width = max(len(kind.name) for kind in KINDS)
    return [HEAD[0].rjust(width), *HEAD[1:]]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _keep(rows: list[dict[str, Any]]) -> None:
    """Write the results; those of kinds that were left out stay."""
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["kinds"] if RESULTS.exists() else []
    found = {row["kind"]: row for row in [*known, *rows]}
    document = {
        "schema_version": 1,
        "seconds_allowed": SECONDS,
        "bytes_allowed": MEMORY,
        "kinds": [found[kind.name] for kind in KINDS if kind.name in found],
        "machine": machine(),
    }
    RESULTS.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Run all kinds; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    default = int(os.environ.get("FUZZ_MUTANTS", "5000"))
    parser.add_argument("--mutants", type=int, default=default, help="of each kind")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--kind", action="append", choices=[kind.name for kind in KINDS])
    options = parser.parse_args()
    preload()
    rows = []
    _say("  ".join(_heads()))
    with tempfile.TemporaryDirectory(prefix="tser-fuzz-") as folder:
        make_originals(Path(folder))
        for kind in KINDS:
            if options.kind and kind.name not in options.kind:
                continue
            rows.append(fuzz(kind, Path(folder), options.seed, options.mutants))
            _say(_line(rows[-1]))
            for one in rows[-1]["bad"][:5]:
                _say(f"  mutant {one['number']}: {one['is']}: {one['text']}")
    _keep(rows)
    return int(any(row[outcome] for row in rows for outcome in BAD))


if __name__ == "__main__":
    sys.exit(main())
