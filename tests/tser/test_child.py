"""Children that never end are ended; waiting for a turn is not computing."""

import subprocess
from pathlib import Path

import pytest

import tser.child
from tser.child import run_child


def script(folder: Path, text: str) -> Path:
    path = folder / "child.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_it_wrote_and_its_status(tmp_path: Path) -> None:
    text = "import sys\nprint(sys.argv[1])\nsys.exit(3)"
    done = run_child(script(tmp_path, text), ["é"], 20)
    assert (done.returncode, done.stdout) == (3, "é\n")


def test_a_child_that_waits_longer_than_it_may_compute_is_not_ended(tmp_path: Path) -> None:
    done = run_child(script(tmp_path, "import time\ntime.sleep(1.2)\nprint(1)"), [], 1)
    assert (done.returncode, done.stdout) == (0, "1\n")


@pytest.mark.parametrize(
    ("text", "waiting"), [("while True: pass", 60), ("import time\ntime.sleep(600)", 1)]
)
def test_a_child_that_does_not_end(
    text: str, waiting: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tser.child, "WAITING", waiting)
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run_child(script(tmp_path, text), [], 1)
    assert caught.value.timeout == 1


def test_a_limit_on_computing_is_of_the_child_alone(tmp_path: Path) -> None:
    text = "import resource\nprint(resource.getrlimit(resource.RLIMIT_CPU))"
    assert run_child(script(tmp_path, f"import time\ntime.sleep(.5)\n{text}"), [], 7).stdout == (
        "(7, 8)\n"
    )
    resource = pytest.importorskip("resource")
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] != 7
