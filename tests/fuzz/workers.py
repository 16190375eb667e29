"""Give damaged files to a process that may hang, crash or run out of memory; say what it did."""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tests.fuzz.kinds import CHILDREN, Kind, isolate
from tests.fuzz.mutations import mutant
from tser.errors import TserError
from tser.torchvision_ops import ensure_torchvision

SECONDS = 10.0
"""That a file may take."""
START = 120.0
"""Seconds to read the undamaged files."""
MEMORY = 1 << 30
"""Bytes that a worker may need beyond what it has at its start; its address space is limited."""
LONGEST = 700
"""Letters of a message."""
Outcome = Literal[
    "refused", "same", "undetectable", "different", "hang", "crash", "traceback", "leftover"
]
BAD: tuple[Outcome, ...] = ("different", "hang", "crash", "traceback", "leftover")


@dataclass(frozen=True)
class Verdict:
    """What became of one damaged file.

    Attributes:
        number: of the mutant.
        outcome: one of `Outcome`.
        text: the message, or the end of the traceback.
        seconds: that it took.
        peak: most memory so far beyond what the worker had at its start [bytes].
        child_peak: the same of the processes in which readers parse; these limit it themselves.
    """

    number: int
    outcome: Outcome
    text: str
    seconds: float
    peak: int
    child_peak: int


def preload() -> None:
    """Import what workers need, once."""
    ensure_torchvision()
    importlib.import_module("torchvision.datasets.mnist")
    torch.set_num_threads(1)


def damaged(kind: Kind, originals: Path, seed: int, number: int) -> tuple[str, bytes]:
    """Name and content of the mutant ``number``."""
    name = kind.files[number % len(kind.files)]
    content = mutant((originals / name).read_bytes(), f"{seed}:{kind.name}:{number}")
    return name, content if kind.finish is None else kind.finish(content)


def judge(
    kind: Kind, originals: Path, numbers: range, make: Callable[[int], tuple[str, bytes]]
) -> Iterator[Verdict]:
    """What becomes of each mutant, in one worker after another.

    Args:
        kind: of file.
        originals: the undamaged files.
        numbers: of the mutants.
        make: number -> name and content.
    """
    left, again = list(numbers), -1
    while left:
        # Made and removed here: a worker that is killed removes nothing.
        with tempfile.TemporaryDirectory(prefix="tser-fuzz-") as place:
            reading, writing = os.pipe()
            worker = os.fork()
            if worker == 0:
                os.close(reading)
                _work(Path(place), kind, originals, left, make, writing)
            os.close(writing)
            for verdict in _watched(worker, reading, left):
                if verdict.outcome == "hang" and again != verdict.number:
                    again = verdict.number  # the machine may have been busy
                    break
                left = left[1:]
                yield verdict


def _watched(worker: int, reading: int, numbers: list[int]) -> Iterator[Verdict]:
    """Verdicts of one worker, until it ends."""
    begun, pending, text = time.monotonic(), -1, b""
    done = 0
    while True:
        # The first line comes when the worker is ready, which is not counted.
        limit = SECONDS if pending >= 0 else START
        ready, _, _ = select.select([reading], [], [], max(0.0, begun + limit - time.monotonic()))
        data = os.read(reading, 1 << 16) if ready else b""
        text += data
        *lines, text = text.split(b"\n")
        for line in lines:
            message = json.loads(line)
            begun, pending = time.monotonic(), message.pop("next")
            if message:
                done += 1
                yield Verdict(**message)
        if data:
            continue
        if not ready:
            os.kill(worker, signal.SIGKILL)
        _, status = os.waitpid(worker, 0)
        os.close(reading)
        if pending < 0 and done == 0:
            raise RuntimeError("a worker cannot read the undamaged files")
        if done < len(numbers):
            outcome: Outcome = "crash" if ready else "hang"
            text_ = f"the worker ended with status {os.waitstatus_to_exitcode(status)}"
            yield Verdict(numbers[done], outcome, text_, time.monotonic() - begun, 0, 0)
        return


def _work(
    place: Path,
    kind: Kind,
    originals: Path,
    numbers: list[int],
    make: Callable[[int], tuple[str, bytes]],
    writing: int,
) -> None:
    status = 1
    try:
        _quiet(place)
        _work_in(place, kind, originals, numbers, make, writing)
        status = 0
    except BaseException:  # noqa: BLE001 - the parent sees the status
        traceback.print_exc()
    finally:
        os._exit(status)


def _quiet(place: Path) -> None:
    """What libraries print goes nowhere; temporary files go to a folder that is watched."""
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    warnings.simplefilter("ignore")
    (place / "tmp").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(place / "tmp")
    torch.set_num_threads(1)


def _work_in(
    place: Path,
    kind: Kind,
    originals: Path,
    numbers: list[int],
    make: Callable[[int], tuple[str, bytes]],
    writing: int,
) -> None:
    folder = place / "files"
    shutil.copytree(originals, folder)
    isolate()
    wanted = kind.use(folder)
    kept = kind.undetectable(folder) if kind.undetectable else None
    before, start = _files(place), _limit()
    _send(writing, {}, numbers[0])
    for number, following in zip(numbers, [*numbers[1:], -1], strict=True):
        name, content = make(number)
        (folder / name).write_bytes(content)
        begun = time.monotonic()
        outcome, text = _outcome(kind, folder, folder / name, wanted, kept)
        seconds = time.monotonic() - begun
        (folder / name).write_bytes((originals / name).read_bytes())
        if _files(place) != before:
            outcome, text = "leftover", str(sorted(_files(place) ^ before))
            before = _files(place)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start
        verdict = {"number": number, "outcome": outcome, "text": text, "seconds": seconds}
        _send(writing, verdict | {"peak": peak, "child_peak": CHILDREN.peak}, following)
    CHILDREN.close()


def _send(writing: int, message: dict[str, Any], following: int) -> None:
    os.write(writing, json.dumps(message | {"next": following}).encode() + b"\n")


def _limit() -> int:
    """Limit the address space; returns the memory in use."""
    page = os.sysconf("SC_PAGE_SIZE")
    size, resident = Path("/proc/self/statm").read_text(encoding="ascii").split()[:2]
    resource.setrlimit(resource.RLIMIT_AS, (int(size) * page + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return max(int(resident) * page, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _files(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


def _outcome(
    kind: Kind, folder: Path, path: Path, wanted: str, kept: str | None
) -> tuple[Outcome, str]:
    try:
        found = kind.use(folder)
        if found == wanted:
            return "same", ""
        if kind.agrees is not None:
            return ("same", "") if kind.agrees(path, found) else ("different", "another reader")
        if kind.undetectable is not None and kind.undetectable(folder) == kept:
            return "undetectable", ""
    except TserError as error:
        text = str(error)
        if not text or "\n" in text or len(text) > LONGEST:
            return "traceback", f"not one sentence: {text[:2000]!r}"
        return "refused", text
    except BaseException:  # noqa: BLE001 - that is what is looked for
        return "traceback", traceback.format_exc()[-3000:]
    return "different", ""
