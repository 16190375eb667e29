"""What `tests.processes` runs for tests of locks and signals."""

import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tser import loop, stopping
from tser.__main__ import main
from tser.config import RunConfig
from tser.distill import distill
from tser.interrupt import handle_signals
from tser.run_lock import locked
from tser.runs import Run, new_run
from tser.stopping import Stopped

_TIMEOUT = 60


def wait_for(path: Path) -> None:
    """Return as soon as there is such a file, with all that it is to hold."""
    end = time.monotonic() + _TIMEOUT
    while not path.exists():
        assert time.monotonic() < end, f"there is no {path}"
        time.sleep(0.005)


def tell(path: Path, text: str = "") -> None:
    """Let `wait_for` in another process return."""
    path.with_suffix(".new").write_text(text, encoding="utf-8")
    path.with_suffix(".new").rename(path)


# --- locks ---------------------------------------------------------------------------------


def hold_lock(folder: Path, ready: Path, end: Path) -> None:
    """Hold the lock of a folder; a child is forked that lives until ``end``."""
    with locked(folder):
        child = os.fork()
        if child:
            tell(ready, str(child))
        with contextlib.suppress(AssertionError):
            wait_for(end)
        if not child:
            os._exit(0)


def take_new_run(here: Path, told: Path) -> None:
    """Choose a folder for a new run at the same instant as others, and hold it until all have."""
    os.chdir(here)
    tell(told.with_suffix(".loaded"))
    wait_for(here / "go")
    with new_run(None, "digits") as run:
        tell(told, str(run.path))
        wait_for(here / "end")


# --- signals -------------------------------------------------------------------------------


def after(count: int, action: Callable[[], None], call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, with ``action`` after its ``count``-th time."""
    left = count

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal left
        result = call(*args, **named)
        left -= 1
        if left == 0:
            action()
        return result

    return counted


def send(number: int) -> None:
    """Send a signal to this process, and return when it has been handled."""
    os.kill(os.getpid(), number)


def train_together(
    config: RunConfig, run: Run, resume: bool, rank: int, step: int, interval: float, told: Path
) -> None:
    """Train; the process ``rank`` alone gets a SIGTERM in its step ``step``."""
    torch.set_num_threads(1)
    stopping.INTERVAL = interval
    if int(os.environ["RANK"]) == rank:
        loop.Reporter.step = after(step, lambda: send(signal.SIGTERM), loop.Reporter.step)
    try:
        distill(config, run, resume=resume)
    except Stopped:
        (told / os.environ["RANK"]).touch()


def command(
    arguments: list[str], here: Path, output: Path, number: int = 0, place: str = "", count: int = 1
) -> None:
    """Run ``tser ARGUMENTS`` in a folder; its stdout and stderr go to a file.

    Args:
        arguments: of the command line.
        here: the folder.
        output: the file.
        number: of a signal that this process sends to itself.
        place: when: "step", after a step of training; "file", when a temporary file is given its
            name; otherwise "MODULE.FUNCTION", when that is called.
        count: at which time.
    """
    torch.set_num_threads(1)
    os.chdir(here)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = ["tser", *arguments]
    sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
    if place == "step":
        loop.Reporter.step = after(count, lambda: send(number), loop.Reporter.step)
    elif place == "file":
        _at_rename(str(here), lambda: send(number), count)
    elif place:
        module, name = place.rsplit(".", 1)
        owner = importlib.import_module(module)
        setattr(owner, name, after(count, lambda: send(number), getattr(owner, name)))
    main()


def _at_rename(folder: str, action: Callable[[], None], count: int) -> None:
    left = count

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "os.rename" and str(args[0]).startswith(folder):
            left -= 1
            if left == 0:
                action()

    sys.addaudithook(watch)


def import_that_is_interrupted(folder: Path, output: Path, held: bool) -> None:
    """Import a module that gets a SIGTERM; with ``held``, something is to be put in order."""
    handle = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(handle, 2)
    handle_signals()
    sys.path.insert(0, str(folder))
    with locked(folder / "run") if held else contextlib.nullcontext():
        _as_command()


def _as_command() -> None:
    scope = {"__name__": "tser.cli.console", "wait": lambda: time.sleep(_TIMEOUT)}
    exec("import interrupted_module\nwait()", scope)  # noqa: S102 - as `guarded` calls a command
