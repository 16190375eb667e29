"""What Ctrl-C (SIGINT), SIGTERM and SIGHUP do to a command: they end it at once, in order.

Training notes them and stops after its step instead: `tser.stopping`. This module is imported
before all others, so it imports nothing that takes time.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEATED = 1.0
"""Seconds in which a further signal is the same request: torchrun and schedulers pass on to each
process what its process group has had already."""
_AGAIN = 0.05
"""Seconds between two looks whether an import is over."""
_COMMAND = "tser.cli.console"
"""The module through which every command is called."""


class Interrupted(KeyboardInterrupt):
    """A signal came.

    Of a class of its own: where a KeyboardInterrupt passes through ``exec`` of a text, as in every
    definition of a dataclass, Python ends the process later by SIGINT instead of its exit code.
    """


class _State:
    """Of this process.

    Attributes:
        last: when a request came, on the monotonic clock [s].
        process: whose signals are handled, and not those of processes that it forks.
        unfinished: blocks that leave something behind if they do not come to their end.
    """

    last = -REPEATED
    process = 0
    unfinished = 0


_state = _State()


def is_request() -> bool:
    """Whether the signal that has just come is a request of its own."""
    now = time.monotonic()
    if now - _state.last < REPEATED:
        return False
    _state.last = now
    return True


@contextmanager
def unfinished() -> Iterator[None]:
    """A block at whose end something is put in order; signals let it come to that."""
    _state.unfinished += 1
    try:
        yield
    finally:
        _state.unfinished -= 1


def handle_signals() -> None:
    """Let them end this command from now on, unless they are ignored."""
    _state.process = os.getpid()
    signal.signal(signal.SIGALRM, _end_after_import)
    for number in SIGNALS:
        # A shell ignores Ctrl-C for what it runs in the background, nohup SIGHUP: that is to stay.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def leave_signals() -> None:
    """Let them do nothing from now on: the command is done, and only Python is still to end."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in SIGNALS:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_IGN)


def _end(number: int, frame: FrameType | None) -> None:
    if os.getpid() == _state.process and is_request():  # not in a forked data worker
        _raise(frame)


def _end_after_import(number: int, frame: FrameType | None) -> None:
    _raise(frame)


def _raise(frame: FrameType | None) -> None:
    """Raise `Interrupted` where that is safe and somebody catches it."""
    importing = in_command = False
    while frame is not None:
        importing = importing or frame.f_code.co_filename.startswith("<frozen importlib")
        in_command = in_command or frame.f_globals.get("__name__") == _COMMAND
        frame = frame.f_back
    if in_command and not importing:
        raise Interrupted
    # What is imported may be native code that does not survive an exception (PyTorch aborts), and
    # before a command the library of the command line would take it.
    if not _state.unfinished:
        with suppress(OSError):
            os.write(2, b"interrupted\n")
        os._exit(130)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN)
