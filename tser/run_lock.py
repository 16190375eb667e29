"""One process at a time trains in a run folder: a lock that dies with its owner.

The lock is the kernel's (``flock``) on the file ``.lock`` in the folder, so it ends with the
process however that ends; what the file says only tells others who holds it. A file that a killed
process left there locks nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tser.errors import TserError, UsageError
from tser.interrupt import unfinished
from tser.printable import one_line
from tser.room import place_error

LOCK = ".lock"
_TRIES = 10
"""Times 0.02 s that a lock is asked for: who only looks at it has it for a moment too."""
_LONGEST = 1 << 14
"""Bytes of a lock's file that are read."""
_WORDS = 160
"""Characters of it that are shown at once."""

_held: set[int] = set()
"""Opened and locked files of this process."""


def _forget() -> None:
    """In a forked child: a data worker that outlives its parent must not keep the lock."""
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)


class InUse(UsageError):
    """Another process, or another thread, trains in the folder."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as far as its file says so.

    Attributes:
        pid: of the process; 0: not known.
        host: its machine.
        since: when it began, local time.
        command: its command line.
    """

    pid: int = 0
    host: str = ""
    since: str = ""
    command: str = ""

    def __str__(self) -> str:
        """As in ``process 12 on host since 2026-01-31 12:00:00 (tser distill)``."""
        if not self.pid:
            return "another process"
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


def in_use(folder: Path, holder: Holder) -> InUse:
    """The error to raise for a folder that ``holder`` trains in."""
    local = holder.host == socket.gethostname()
    stop = f"stop it with 'kill {holder.pid}'" if holder.pid and local else "stop it there"
    return InUse(f"{folder} is in use by {holder}; wait for it, {stop}, or choose another --out")


def find_holder(folder: Path) -> Holder | None:
    """Who trains in ``folder`` now; None: nobody, as far as can be told. Nothing is written."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(handle)
    except OSError:
        return None  # a file system without locks
    finally:
        os.close(handle)
    return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder`` for the length of the block.

    The folder is made where it is missing, and removed at the end where nothing else is in it. On a
    file system without locks a note on stderr says so, and nothing is locked.

    Raises:
        InUse: another process, or another thread, holds it.
        UsageError: nothing can be written there.
        TserError: the disk is full.
    """
    made: list[Path] = []
    handle: int | None = None
    with unfinished():
        try:
            handle = _acquire(folder, made)
            yield
        finally:
            _release(folder, made, handle)


def _release(folder: Path, made: list[Path], handle: int | None) -> None:
    """What `_acquire` has made goes; the lock last, so that nobody has had it until then."""
    if handle is not None:
        with suppress(OSError):
            (folder / LOCK).unlink()
    for one in reversed(made):
        with suppress(OSError):  # something is in it
            one.rmdir()
    if handle is not None:
        _close(handle)


def _acquire(folder: Path, made: list[Path]) -> int | None:
    """The opened and locked file; None on a file system without locks.

    Args:
        folder: where.
        made: is given the folders that had to be made.
    """
    path = folder / LOCK
    refused: TserError | None = None
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(0.02)
        try:
            handle = _open(path, made)
        except FileNotFoundError as error:  # who was there before has just removed the folder
            refused = place_error(path, error, "choose another --out")
            continue
        except OSError as error:
            raise place_error(path, error, "choose another --out") from error
        _held.add(handle)
        mine = False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = _is_at(handle, path)
            if mine:
                _write(handle)
                return handle
            # Else its last owner removed it between our opening and our locking it.
        except BlockingIOError:
            refused = in_use(folder, _read(handle))
        except OSError as error:
            sys.stderr.write(
                f"note: {folder} is on a file system without locks ({error.strerror}); see to it "
                "that no second run writes there\n"
            )
            with suppress(OSError):
                path.unlink()
            return None
        finally:
            if not mine:
                _close(handle)
    raise refused or in_use(folder, Holder())


def _open(path: Path, made: list[Path]) -> int:
    """The file of a lock, opened, in a folder that is made where it is missing."""
    folder = path.parent
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        with suppress(FileExistsError):
            one.mkdir()
            made.append(one)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _close(handle: int) -> None:
    _held.discard(handle)
    os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _write(handle: int) -> None:
    program = Path(sys.argv[0]).name
    command = ["tser" if program == "__main__.py" else program, *sys.argv[1:]]
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = Holder(os.getpid(), socket.gethostname(), since, shlex.join(command))
    with suppress(OSError):  # a full disk: the lock holds without a name on it
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(holder)).encode(), 0)


def _read(handle: int) -> Holder:
    """What the file says, if it is what `_write` writes; anyone may have changed it."""
    try:
        told = json.loads(os.pread(handle, _LONGEST, 0))
    except (OSError, ValueError, RecursionError):
        return Holder()
    if not isinstance(told, dict) or type(pid := told.get("pid")) is not int or pid <= 0:
        return Holder()
    texts = [told.get(key) for key in ("host", "since", "command")]
    shown = [_shown(text) for text in texts if isinstance(text, str)]
    return Holder(pid, *shown) if len(shown) == len(texts) else Holder()


def _shown(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= _WORDS else f"{text[:_WORDS]}…"
