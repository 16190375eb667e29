"""Stopping a training after a step, where Ctrl-C, SIGTERM or a closed terminal asks for it.

With several processes all of them stop after the same step: about once a second they ask each
other whether anyone was told to, which costs one exchange of two numbers.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

from tser.distributed import current_share, largest
from tser.interrupt import SIGNALS, Interrupted, is_request

INTERVAL = 1.0
"""Seconds between two questions to the other processes."""


class Stopped(KeyboardInterrupt):
    """Training has stopped, as it was asked to; what it has learnt is in the checkpoint."""


class Watch:
    """Whether training is to stop.

    Attributes:
        signal: the one that this process was sent; None: none yet.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._together = current_share().world > 1
        self.restart()

    def restart(self) -> None:
        """A loop begins, whose steps may take another time than those before."""
        self._calls, self._due, self._since = 0, 1, time.monotonic()

    def poll(self) -> bool:
        """Whether to stop now: the same answer in all processes, which call this equally often."""
        if not self._together:
            return self.signal is not None
        self._calls += 1
        return self._calls >= self._due and self.agree()

    def agree(self) -> bool:
        """Ask the other processes, whenever that was done last."""
        if not self._together:
            return self.signal is not None
        step = (time.monotonic() - self._since) / max(self._calls, 1)
        stop, slowest = largest(float(self.signal is not None), step)
        self.restart()
        # From the same two numbers in every process, so all ask again after the same step.
        self._due = max(1, int(INTERVAL / max(slowest, 1e-6)))
        return stop > 0


@contextmanager
def stopping() -> Iterator[Watch]:
    """Note SIGINT, SIGTERM and SIGHUP for the length of the block instead of letting them end it.

    The block polls, and raises `Stopped`. Then, or where a signal came after its last poll, the
    handlers of before are there again and the one of the signal is called; if it returns, `Stopped`
    is raised. A second request, a second or more after the first, raises `Interrupted` at once.

    In a thread other than the main one, which has no signals, nothing is noted.
    """
    watch, process, loud = Watch(), os.getpid(), current_share().rank == 0

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a data worker that has just been forked
            return
        new = is_request()
        if watch.signal is None:
            watch.signal = number
            if loud:
                with suppress(OSError):  # not by sys.stderr, which may be in the middle of a line
                    os.write(2, b"stopping after this step; a second time stops at once\n")
        elif new:
            raise Interrupted

    before: dict[int, Any] = {}
    stopped = False
    with ExitStack() as handlers:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before[number] = signal.getsignal(number)
                # Left as they are: a signal that is ignored, and a handler that is not Python's.
                if before[number] not in (signal.SIG_IGN, None):
                    handlers.callback(signal.signal, number, before[number])
                    signal.signal(number, note)
        try:
            yield watch
            stopped = watch.signal is not None
        except Stopped:
            stopped = True
    if stopped:
        if watch.signal is not None and callable(before[watch.signal]):
            before[watch.signal](watch.signal, None)
        is_request()  # what torchrun sends to the last one when the others have ended is none
        raise Stopped
