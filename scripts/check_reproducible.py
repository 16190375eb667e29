"""Make the same run several times, each in other surroundings, and compare every byte.

    python scripts/check_reproducible.py            # the digits, small, a few minutes
    python scripts/check_reproducible.py --set student.arch=resnet18 --samples 50

Every command is a process of its own. The surroundings differ in the seed of Python's hashes, the
folder, the time zone and locale, the number of threads, and the time. The exit code is 1 if a file
differs in more than the times that it states (`tser.determinism.TIME_FIELDS`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tser.determinism import UNCOMPARED, without_times

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "data.limit_train=400",
    "teacher.width=8",
    "teacher.epochs=2",
    "student.width=8",
    "train.epochs=2",
)
SURROUNDINGS: tuple[dict[str, str], ...] = (
    {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
    {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2", "TZ": "Asia/Tokyo"},
    {"PYTHONHASHSEED": "3", "OMP_NUM_THREADS": "3", "LC_ALL": "C", "OPENBLAS_NUM_THREADS": "3"},
)


def commands(settings: list[str], samples: int) -> list[list[str]]:
    """The whole path of a run named ``run`` in the current folder."""
    given = [part for text in [*SMALL, *settings] for part in ("--set", text)]
    few = ["--samples", str(samples)]
    backends = [f"--backend={name}" for name in ("nir-f32", "nir-f64", "onnx", "onnx-noopt")]
    fixed = ["--deterministic"]
    return [
        ["distill", "digits", "--out", "run", "--device", "cpu", *given, *fixed],
        ["eval", "run", *fixed],
        ["export", "run", "--format", "nir", *fixed],
        ["export", "run", "--format", "onnx", *fixed],
        ["validate", "run/model.nir", "--probes", *few, *backends, *fixed],
        ["energy", "run/model.nir", "--settings", *few, *fixed],
    ]


def make(folder: Path, surroundings: dict[str, str], lines: list[list[str]]) -> None:
    """Run all commands in ``folder``.

    Raises:
        SystemExit: one fails.
    """
    folder.mkdir(parents=True)
    inherited = {key: value for key, value in os.environ.items() if key != "LC_ALL"}
    for line in lines:
        done = subprocess.run(
            [sys.executable, "-m", "tser", *line],
            cwd=folder,
            env={**inherited, "PYTHONPATH": str(ROOT), **surroundings},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"tser {' '.join(line)} failed in {surroundings}:\n{done.stderr}")


def differing(first: Path, other: Path) -> list[str]:
    """Names of files of two runs that are not the same, or in one of them only."""
    names = {path.name for run in (first, other) for path in run.iterdir()} - UNCOMPARED
    return [
        name
        for name in sorted(names)
        if not (first / name).is_file()
        or not (other / name).is_file()
        or without_times(first / name) != without_times(other / name)
    ]


def main() -> None:
    """Compare, and say what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=V", dest="settings")
    parser.add_argument("--samples", type=int, default=200)
    options = parser.parse_args()
    lines = commands(options.settings, options.samples)
    bad = []
    with tempfile.TemporaryDirectory(prefix="tser-reproducible-") as text:
        runs = []
        for number, surroundings in enumerate(SURROUNDINGS):
            run = Path(text) / ("folder " * number + str(number)) / "run"
            make(run.parent, surroundings, lines)
            runs.append(run)
            if number:
                found = differing(runs[0], run)
                bad += found
                print(f"{surroundings}: {', '.join(found) or 'the same bits'}", flush=True)
        names = sorted(path.name for path in runs[0].iterdir())
    print(f"compared: {', '.join(name for name in names if name not in UNCOMPARED)}")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
