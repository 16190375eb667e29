"""A long job: the whole path again and again in one process, watched for what piles up.

    python -m benchmarks.soak --minutes 35 --out benchmarks/results/soak.json

Each round distils a tiny run, is stopped in the middle by SIGTERM, resumes, exports to NIR and
ONNX, validates, prices and reports, all by calling the commands in this process, as a notebook
would. Every tenth round does so in child processes of its own, the training killed (SIGKILL).
After each round: memory, file handles, threads, child processes, files left over. The exit code
is 1 if any of them grows over the second half.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from tser.files import write_json
from tser.interrupt import handle_signals
from tser.leftovers import is_leftover
from tser.runs import Run

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (
    "data.limit_train=200",
    "teacher.width=4",
    "teacher.epochs=2",
    "student.width=4",
    "train.epochs=4",
    "train.batch_size=32",
    "train.device='cpu'",
)
VARIETY: tuple[tuple[str, ...], ...] = ((), ("data.workers=2",), ("train.deterministic=true",))
"""More settings, of one round after the other."""
GROWTH = 0.02
"""Share of the memory that a straight line through the second half may rise in all of it."""
CHILDREN_EVERY = 10
COUNTED = ("handles", "threads", "children", "temporary", "leftovers")
MIB = 2**20


@dataclass(frozen=True)
class Level:
    """What this process holds after a round.

    Attributes:
        seconds: since the start.
        memory_mib: resident, after collecting garbage.
        handles: open file descriptors.
        threads: of this process.
        children: processes that it started and that still are.
        temporary: entries of the folder for temporary files.
        leftovers: temporary files in the run folder.
        disk_mib: of the run folder.
    """

    seconds: float
    memory_mib: float
    handles: int
    threads: int
    children: int
    temporary: int
    leftovers: int
    disk_mib: float


def measure(started: float, temporary: Path, run: Path) -> Level:
    """The level now; memory that the C library only keeps for later is given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    tasks = [*Path("/proc/self/task").iterdir()]
    children = sum(len((task / "children").read_text().split()) for task in tasks)
    files = [path for path in run.rglob("*") if path.is_file()]
    return Level(
        seconds=round(time.monotonic() - started, 1),
        memory_mib=pages * os.sysconf("SC_PAGE_SIZE") / MIB,
        handles=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        threads=len(tasks),
        children=children,
        temporary=len([*temporary.iterdir()]),
        leftovers=sum(is_leftover(path) for path in files),
        disk_mib=sum(path.stat().st_size for path in files) / MIB,
    )


def call(command: Any, *expected: int, **options: Any) -> int:
    """Call a command's function with what it prints thrown away; its exit code.

    Raises:
        RuntimeError: it ends with another code than expected.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            command(**options)
        code = 0
    except typer.Exit as left:
        code = left.exit_code
    if code not in (expected or (0,)):
        raise RuntimeError(f"{command.__name__} ended with {code}:\n{printed.getvalue()}")
    return code


@contextlib.contextmanager
def stopped_after(run: Run) -> Iterator[None]:
    """Send this process SIGTERM once the student's first epoch is in the metrics."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            if run.metrics.exists() and '"student"' in run.metrics.read_text(encoding="utf-8"):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def round_here(run: Run, number: int) -> bool:
    """The whole path in this process; whether the training was stopped in the middle.

    Args:
        run: a new folder.
        number: of the round, which decides some settings.
    """
    from tser.cli.distill import distill
    from tser.cli.energy import energy
    from tser.cli.eval import evaluate
    from tser.cli.export import Format, export
    from tser.cli.report import report
    from tser.cli.validate import validate

    settings = [*SETTINGS, *VARIETY[number % len(VARIETY)]]
    with stopped_after(run):
        code = call(distill, 0, 130, source="digits", out=run.path, settings=settings)
    if code:
        call(distill, 0, out=run.path, resume=True)
    call(evaluate, run=run.path)
    call(export, source=run.path, file_format=Format.nir)
    call(export, source=run.path, file_format=Format.onnx)
    call(validate, graph=run.nir, samples=50, probes=number % 2 == 0)
    call(energy, graph=run.nir, samples=50, settings=True)
    call(report, run=run.path)
    return code == 130


def round_in_children(run: Run) -> bool:
    """The whole path in processes of their own; whether the training was killed in the middle."""
    settings = [f"--set={text}" for text in SETTINGS]
    with _child("distill", "digits", "--out", run.path, *settings) as process:
        while process.poll() is None and not run.checkpoint.exists():
            time.sleep(0.01)
        process.kill()
        process.wait()
    killed = not run.student.exists()
    rest: list[tuple[str | Path, ...]] = [
        ("eval", run.path),
        ("export", run.path, "--format", "nir"),
        ("export", run.path, "--format", "onnx"),
        ("validate", run.nir, "--samples", "50"),
        ("energy", run.nir, "--samples", "50"),
        ("report", run.path),
    ]
    if killed:
        rest.insert(0, ("distill", "--out", run.path, "--resume"))
    for line in rest:
        with _child(*line) as process:
            if process.wait():
                raise RuntimeError(f"tser {' '.join(map(str, line))} ended with another code")
    return killed


def _child(*args: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tser", *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def judge(levels: Sequence[Level]) -> dict[str, Any]:
    """What the second half of the levels says.

    A count is flat if its highest value in the last quarter is not above that in the quarter
    before; memory if a straight line rises by at most `GROWTH` over the half.
    """
    half = levels[len(levels) // 2 :]
    memory = np.array([level.memory_mib for level in half])
    slope = float(np.polyfit(np.arange(len(half)), memory, 1)[0]) if len(half) > 1 else 0.0
    growth, allowed = slope * (len(half) - 1), GROWTH * float(memory.mean())
    counts = {}
    for name in COUNTED:
        values = [getattr(level, name) for level in half]
        middle = (len(values) + 1) // 2
        counts[name] = {
            "first": values[0],
            "last": values[-1],
            "highest": max(values),
            "flat": max(values[middle:], default=0) <= max(values[:middle]),
        }
    return {
        "rounds": len(half),
        "memory_mib": {
            "mean": float(memory.mean()),
            "slope_per_round": slope,
            "growth": growth,
            "allowed": allowed,
            "flat": growth <= allowed,
        },
        **counts,
        "flat": growth <= allowed and all(one["flat"] for one in counts.values()),
    }


def soak(minutes: float, *, rounds: int | None = None, children: bool = True) -> dict[str, Any]:
    """Go round for some minutes, or for some rounds.

    Args:
        minutes: to go on for; the last round is finished.
        rounds: at most so many.
        children: whether some rounds are done by child processes.

    Returns:
        Plain values, ready for JSON.
    """
    handle_signals()
    started, levels, stopped, number = time.monotonic(), list[Level](), 0, 0
    kept = tempfile.tempdir, os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="tser-soak-") as text:
        temporary, run = Path(text) / "tmp", Run(Path(text) / "run")
        temporary.mkdir()
        tempfile.tempdir, os.environ["TMPDIR"] = str(temporary), str(temporary)
        try:
            while time.monotonic() - started < 60 * minutes and number != rounds:
                number += 1
                others = children and number % CHILDREN_EVERY == 0
                stopped += round_in_children(run) if others else round_here(run, number)
                levels.append(measure(started, temporary, run.path))
                sys.stderr.write(f"{number}: {levels[-1]}\n")
                sys.stderr.flush()
                shutil.rmtree(run.path)
        finally:
            tempfile.tempdir = kept[0]
            if kept[1] is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = kept[1]
    return {
        "schema_version": 1,
        "minutes": (time.monotonic() - started) / 60,
        "rounds": number,
        "interrupted": stopped,
        "second_half": judge(levels),
        "levels": [asdict(level) for level in levels],
    }


def main() -> None:
    """Soak, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=35.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = soak(options.minutes)
    if options.out is not None:
        write_json(options.out, result)
    sys.stdout.write(table(result))
    raise SystemExit(not result["second_half"]["flat"])


def table(result: dict[str, Any]) -> str:
    """The result of `soak` in words."""
    found = result["second_half"]
    memory = found["memory_mib"]
    lines = [
        f"{result['rounds']} rounds in {result['minutes']:.1f} min, {result['interrupted']} "
        f"interrupted; of the last {found['rounds']} rounds:",
        f"memory     {memory['mean']:8.1f} MiB, {memory['slope_per_round']:+.3f} a round, "
        f"{memory['growth']:+.1f} in all ({memory['allowed']:.1f} allowed): {_word(memory)}",
    ]
    for name in COUNTED:
        one = found[name]
        lines.append(
            f"{name:11}{one['first']:8} first, {one['last']} last, {one['highest']} highest: "
            f"{_word(one)}"
        )
    return "\n".join(lines) + "\n"


def _word(found: dict[str, Any]) -> str:
    return "flat" if found["flat"] else "GROWS"


if __name__ == "__main__":
    main()
