"""The soak of benchmarks/soak.py, three rounds of it, and that it sees what piles up."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import soak

LEVEL = soak.Level(
    seconds=1.0,
    memory_mib=400.0,
    handles=11,
    threads=2,
    children=0,
    temporary=1,
    leftovers=0,
    disk_mib=1.0,
)


def _children() -> int:
    tasks = Path("/proc/self/task").iterdir()
    return sum(len((task / "children").read_text().split()) for task in tasks)


@pytest.mark.slow
def test_rounds_in_one_process_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = ("data.limit_train=64", "teacher.epochs=1", "student.timesteps=2", "train.epochs=3")
    monkeypatch.setattr(soak, "SETTINGS", (*soak.SETTINGS, *tiny))
    before = _children()  # other tests' servers
    result = soak.soak(10, rounds=3, children=False)
    assert result["rounds"] == 3
    _, *later = result["levels"]
    assert len({tuple(level[name] for name in soak.COUNTED) for level in later}) == 1
    assert later[0]["children"] == before
    assert later[0]["leftovers"] == 0
    assert later[-1]["memory_mib"] - later[0]["memory_mib"] < 50
    assert result["interrupted"] >= 1
    assert soak.table(result).count("\n") == 2 + len(soak.COUNTED)


@pytest.mark.parametrize("rounds", [1, 2, 3, 40])
def test_what_stays_the_same_is_flat(rounds: int) -> None:
    found = soak.judge([LEVEL] * rounds)
    assert found["flat"]
    assert found["rounds"] == rounds - rounds // 2


def test_memory_may_wobble_but_not_climb() -> None:
    wobbling = [replace(LEVEL, memory_mib=400 + 10 * (k % 2)) for k in range(40)]
    assert soak.judge(wobbling)["flat"]
    climbing = [replace(LEVEL, memory_mib=400 + k) for k in range(40)]
    found = soak.judge(climbing)
    assert not found["flat"]
    assert found["memory_mib"]["growth"] == pytest.approx(19)
    # What is filled once, such as a cache, is over by the second half.
    filled = [replace(LEVEL, memory_mib=400 + 10 * min(k, 20)) for k in range(40)]
    assert soak.judge(filled)["flat"]


@pytest.mark.parametrize("name", soak.COUNTED)
def test_one_more_now_and_then_is_seen(name: str) -> None:
    before = getattr(LEVEL, name)
    levels = [replace(LEVEL, **{name: before + k // 8}) for k in range(40)]
    found = soak.judge(levels)
    assert not found["flat"]
    assert [key for key in soak.COUNTED if not found[key]["flat"]] == [name]
