"""Ctrl-C and SIGTERM in every command: it ends with 130, says so, and leaves nothing half-done."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import interrupts, processes
from tests.tser.test_stopping import FILES, TINY, outcome
from tser.config_file import load_config
from tser.distill import distill
from tser.runs import Run

ROOT = Path(__file__).parents[2]
SETTINGS = [f"--set={text}" for text in TINY]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run ``a run``; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("trained")
    distill(load_config("digits", TINY), Run(folder / "a run"))
    return folder


def tser(here: Path, *arguments: str, number: int = 0, place: str = "", count: int = 1) -> str:
    """What a command says that gets a signal (`tests.interrupts.command`), which ends with 130."""
    output = here.parent / "output"
    output.unlink(missing_ok=True)
    process = processes.start(interrupts.command, [*arguments], here, output, number, place, count)
    (code,) = processes.finish(process)
    text = output.read_text(encoding="utf-8")
    assert code == (130 if number else 0), text
    assert "Traceback" not in text
    return text


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


# --- distill -------------------------------------------------------------------------------


def test_training_says_how_to_continue_and_does(trained: Path, here: Path) -> None:
    start = ("distill", "digits", *SETTINGS, "--out", "a run")
    text = tser(here, *start, number=signal.SIGINT, place="step", count=2)
    assert text.splitlines() == [
        "run folder: a run",
        "stopping after this step; a second time stops at once",
        "to continue: tser distill --out 'a run' --resume",
        "interrupted",
    ]
    run = Run(here / "a run")
    assert {path.name for path in run.path.iterdir()} < FILES
    go_on = ("distill", "--out", "a run", "--resume")
    text = tser(here, *go_on)
    assert "Test accuracy" in text
    assert {path.name for path in run.path.iterdir()} == FILES | {"eval.json"}
    assert outcome(run) == outcome(Run(trained / "a run"))


@pytest.mark.parametrize(
    ("place", "said", "left"),
    [
        ("tser.distill.load_configured", "nothing has been trained yet", set()),
        ("tser.distill.truncate_metrics", "to continue", {"config.toml", "environment.json"}),
    ],
)
def test_it_is_said_what_there_is_to_continue(
    place: str, said: str, left: set[str], here: Path
) -> None:
    text = tser(here, "distill", "digits", *SETTINGS, number=signal.SIGTERM, place=place)
    assert text.splitlines()[-1] == "interrupted"
    assert text.splitlines()[-2].startswith(said)
    run = here / "runs" / "digits"
    assert ({path.name for path in run.iterdir()} if run.exists() else set()) == left
    assert left or not list(here.iterdir())


def test_a_finished_training_is_not_to_be_continued(trained: Path, here: Path) -> None:
    """Interrupted while its accuracy is measured: `--resume` would be refused."""
    shutil.copytree(trained / "a run", here / "a run")
    (here / "a run" / "student.safetensors").unlink()
    arguments = ("distill", "--resume", "--out", "a run")
    text = tser(here, *arguments, number=signal.SIGINT, place="tser.evaluate.load_student")
    assert text.splitlines()[-2:] == [
        "the training is finished; to measure the student: tser eval 'a run'",
        "interrupted",
    ]
    assert {path.name for path in (here / "a run").iterdir()} == FILES
    assert "wrote a run/eval.json" in tser(here, "eval", "a run")


# --- other commands ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (("export", "a run", "--format", "nir"), signal.SIGTERM),
        (("eval", "a run"), signal.SIGINT),
        (("eval", "a run"), signal.SIGHUP),
    ],
)
def test_a_file_being_written_is_not_left(
    arguments: tuple[str, ...], number: int, trained: Path, here: Path
) -> None:
    shutil.copytree(trained / "a run", here / "a run")
    text = tser(here, *arguments, number=number, place="file")
    assert text.splitlines()[-1] == "interrupted"
    assert {path.name for path in (here / "a run").iterdir()} == FILES


# --- imports -------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True])
def test_an_import_is_not_torn_apart(held: bool, tmp_path: Path) -> None:
    """An exception within it can abort PyTorch; what is held is put in order when it is over."""
    (tmp_path / "interrupted_module.py").write_text(
        "import os, pathlib, signal, time\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        f"time.sleep({0.3 if held else 60})\n"
        "pathlib.Path(__file__).with_name('imported').touch()\n",
        encoding="utf-8",
    )
    output = tmp_path / "output"
    target = interrupts.import_that_is_interrupted
    (code,) = processes.finish(processes.start(target, tmp_path, output, held))
    assert (tmp_path / "imported").exists() == held
    assert not (tmp_path / "run").exists()
    text = output.read_text(encoding="utf-8")
    if held:  # raised, and told by multiprocessing
        assert code == 1
        assert text.splitlines()[-1] == "tser.interrupt.Interrupted"
    else:
        assert (code, text) == (130, "interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fresh_command_is_interrupted_at_any_instant(number: int, tmp_path: Path) -> None:
    """From when Python has started until it has ended."""
    for tenth in (1, 2, 4, 8, 16, 32, 64):
        with subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "tser", "distill", *SETTINGS],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:  # our own first module has been imported
                if "tser.interrupt" in line:
                    break
            time.sleep(tenth / 10)
            process.send_signal(number)
            said = [line for line in process.stderr if not line.startswith("import time:")]
        if process.returncode == 0:  # it had finished
            break
        assert process.returncode == 130, said
        assert said[-1] == "interrupted\n"
        assert not re.search("Traceback|terminate", "".join(said))
