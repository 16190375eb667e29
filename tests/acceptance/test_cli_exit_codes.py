"""Every line of the table of exit codes in docs/cli.md, run as it stands there."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import ROOT
from tests.command_line import fill, run
from tser.cli.main import app

ROW = re.compile(r"\| ([^|]+) \| `tser ?([^`]*)` \| (\d+) \|")
TABLE = ROW.findall((ROOT / "docs" / "cli.md").read_text(encoding="utf-8"))
STREAMS = {"stdout closed", "disk behind stdout full", "reader of stdout gone", "stderr closed"}
RAISED = {"Ctrl-C": KeyboardInterrupt(), "defect of tser": RuntimeError("a defect")}


@pytest.fixture(scope="module")
def folder(_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that docs/cli.md describes."""
    folder = tmp_path_factory.mktemp("table")
    fill(folder, _tiny / "runs")
    return folder


def check(code: int, wanted: int, out: str, err: str) -> None:
    """The code, and that nothing is printed but what belongs to it."""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == wanted, err
    assert "Traceback" not in err
    if code in (1, 2, 4) and not err.startswith("Usage: tser "):
        assert not out
        assert len(errors) == 1
        assert err.splitlines()[-1] == errors[0]
        assert ("unexpected failure" in errors[0]) == (code == 1)
    else:
        assert not errors


@pytest.mark.parametrize(
    ("situation", "command", "code"),
    [row for row in TABLE if row[0] not in STREAMS],
    ids=[row[0] for row in TABLE if row[0] not in STREAMS],
)
def test_the_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, situation: str, command: str, code: str
) -> None:
    if situation in RAISED:

        def fail(*_: object) -> None:
            raise RAISED[situation]

        monkeypatch.setattr("tser.deploy.inspection.inspect_nir", fail)
    before = sorted(folder.rglob("*"))
    found, out, err = run(folder, command)
    check(found, int(code), out, err)
    if code in ("0", "3"):
        assert out or "wrote" in err
    else:
        assert sorted(folder.rglob("*")) == before  # what is refused leaves nothing behind


@contextlib.contextmanager
def _full() -> Iterator[int]:
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


@contextlib.contextmanager
def _gone() -> Iterator[int]:
    read, write = os.pipe()
    os.close(read)
    try:
        yield write
    finally:
        os.close(write)


STDOUT: dict[str, Callable[[], contextlib.AbstractContextManager[int]]] = {
    "disk behind stdout full": _full,
    "reader of stdout gone": _gone,
}


@pytest.mark.parametrize(
    ("situation", "command", "code"),
    [row for row in TABLE if row[0] in STREAMS],
    ids=[row[0] for row in TABLE if row[0] in STREAMS],
)
def test_streams_that_take_nothing(tmp_path: Path, situation: str, command: str, code: str) -> None:
    closed = {"stdout closed": ">&-", "stderr closed": "2>&-"}.get(situation, "")
    with STDOUT.get(situation, lambda: contextlib.nullcontext(subprocess.PIPE))() as stdout:
        done = subprocess.run(
            ["sh", "-c", f'exec "$0" -m tser {command} {closed}', sys.executable],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == int(code)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    said = situation in ("stdout closed", "disk behind stdout full")
    assert ("error: cannot write to the standard output" in done.stderr) == said
    assert bool(done.stdout) == (situation == "stderr closed")


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 40
    assert STREAMS | RAISED.keys() <= {row[0] for row in TABLE}
    names = {command.name for command in app.registered_commands}
    assert names <= {row[1].partition(" ")[0] for row in TABLE}
