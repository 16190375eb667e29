"""A few mutants of every kind, for the test suite."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

from tests.fuzz.kinds import KINDS
from tests.fuzz.originals import make_originals
from tests.fuzz.workers import damaged, judge, preload

SEED = 8


def run(folder: Path, count: int) -> None:
    """Write what became of ``count`` mutants of each kind to ``folder``/verdicts, a line each."""
    preload()
    originals = folder / "originals"
    originals.mkdir()
    make_originals(originals)
    with (folder / "verdicts").open("w", encoding="utf-8") as file:
        for kind in KINDS:
            make = partial(damaged, kind, originals, SEED)
            for verdict in judge(kind, originals, range(count), make):
                file.write(json.dumps([kind.name, dataclasses.asdict(verdict)]) + "\n")
