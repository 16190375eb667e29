"""A slice of ``make fuzz``, and that the harness sees what it looks for."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import workers
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.mutations import EDITS, mutant
from tests.fuzz.slice import run
from tests.fuzz.workers import BAD, MEMORY, Verdict, judge
from tser.errors import InputFileError

ROOT = Path(__file__).parents[2]
MUTANTS = 60
BY_NAME = {kind.name: kind for kind in KINDS}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Verdict]]:
    """What became of the mutants of each kind.

    They are judged in a process that has computed nothing, since threads do not survive a fork.
    """
    folder = tmp_path_factory.mktemp("slice")
    process = multiprocessing.get_context("forkserver").Process(target=run, args=(folder, MUTANTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        process.start()
    process.join()
    assert process.exitcode == 0
    rows = [json.loads(line) for line in (folder / "verdicts").read_text().splitlines()]
    return {name: [Verdict(**one) for kind, one in rows if kind == name] for name in BY_NAME}


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_damaged_files_are_refused_or_taken_for_what_they_were(
    found: dict[str, list[Verdict]], name: str
) -> None:
    verdicts = found[name]
    assert [one.number for one in verdicts] == list(range(MUTANTS))
    assert [one for one in verdicts if one.outcome in BAD] == []
    assert max(one.peak for one in verdicts) < MEMORY
    assert sum(one.outcome == "refused" for one in verdicts) > MUTANTS // 4


def _one(content: bytes) -> Callable[[int], tuple[str, bytes]]:
    return lambda number: ("input.npy", content)


def _acts(folder: Path, act: Callable[[Path], str], count: int = 2) -> list[str]:
    """What the harness says of a reader that does ``act`` on damaged files."""

    def use(folder: Path) -> str:
        path = folder / "input.npy"
        return act(path) if path.read_bytes() == b"damaged" else "fine"

    kind = Kind("a reader", ("input.npy",), use, "")
    (folder / "input.npy").write_bytes(b"whole")
    return [one.outcome for one in judge(kind, folder, range(count), _one(b"damaged"))]


def _raises(error: Exception) -> Callable[[Path], str]:
    def act(path: Path) -> str:
        raise error

    return act


def _hoards(path: Path) -> str:
    return str(len(bytearray(2 * workers.MEMORY)))


def _dies(path: Path) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def _litters(path: Path) -> str:
    path.with_suffix(".left").write_text("behind")
    return "fine"


def _sleeps(path: Path) -> str:
    time.sleep(60)
    return "fine"


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        (_raises(InputFileError("it is damaged")), "refused"),
        (_raises(InputFileError("two\nlines")), "traceback"),
        (_raises(KeyError("x")), "traceback"),
        (lambda path: "fine", "same"),
        (lambda path: "else", "different"),
        (_dies, "crash"),
        (_hoards, "traceback"),
        (_litters, "leftover"),
    ],
)
def test_the_harness_sees(tmp_path: Path, act: Callable[[Path], str], outcome: str) -> None:
    assert _acts(tmp_path, act)[0] == outcome
    assert len(_acts(tmp_path, act)) == 2


def test_the_harness_ends_what_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SECONDS", 0.3)
    assert _acts(tmp_path, _sleeps, 1) == ["hang"]


def test_mutants_are_seeded_and_differ_from_the_original() -> None:
    data = bytes(range(48, 58)) * 400
    mutants = [mutant(data, f"1:{number}") for number in range(200)]
    assert mutants == [mutant(data, f"1:{number}") for number in range(200)]
    assert data not in mutants
    assert len(set(mutants)) > 190
    assert {len(one) - len(data) for one in mutants} >= {-1, 0, 1}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_work_on_one_byte(edit: Callable[..., None]) -> None:
    for seed in range(20):
        edit(bytearray(b"7"), random.Random(seed))
