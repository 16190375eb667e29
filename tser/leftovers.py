"""Temporary files that killed processes left behind, told from those that are being written.

A process that writes into a folder holds a shared lock on that folder, which ends with the process
however it ends. Whoever gets the lock for itself alone knows that every temporary file there is a
dead one's. The lock is of this machine: where several share a folder, each sees its own.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tser.interrupt import unfinished

try:
    import fcntl
except ImportError:  # not on Windows: nothing is locked there, and nothing removed
    fcntl = None  # type: ignore[assignment]

MARK = ".tser-tmp"
"""In the name of every temporary file; no other program's files are taken for ours."""
_LEFTOVER = re.compile(rf"\..*-[a-z0-9_]{{8}}{re.escape(MARK)}(\.[^.]+)?", re.DOTALL)
_PATIENCE = 100
"""Times 0.01 s that are waited for another process to remove leftovers."""


def is_leftover(path: Path) -> bool:
    """Whether ``path`` is named as a temporary file or folder that a killed process leaves."""
    return bool(_LEFTOVER.fullmatch(path.name))


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that were killed while writing to ``folder`` left behind.

    Nothing is deleted while any process writes there.
    """
    with writing_to(folder):
        pass


@contextmanager
def writing_to(folder: Path) -> Iterator[int | None]:
    """Hold the lock that keeps ``folder``'s temporary files, after removing those of the dead.

    Yields:
        The folder, opened; None where it cannot be.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:  # it may be one to write to but not to list
        yield None
        return
    try:
        if _lock(handle, alone=True):
            _clean(folder)
        for _ in range(_PATIENCE):
            if _lock(handle, alone=False) is not False:
                break
            time.sleep(0.01)
        with unfinished():
            yield handle
    finally:
        os.close(handle)


def sync_folder(handle: int | None) -> None:
    """Put the names in an opened folder on the disk, where it can do that.

    Raises:
        OSError: the disk failed.
    """
    if handle is None:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EROFS):
            raise


def make_folder(folder: Path) -> None:
    """Make ``folder`` with those above it, so that a power cut leaves none of them without a name.

    Raises:
        OSError: it cannot be made.
    """
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in reversed(new):
        with suppress(OSError):
            handle = os.open(one.parent, os.O_RDONLY)
            try:
                sync_folder(handle)
            finally:
                os.close(handle)


def _lock(handle: int, *, alone: bool) -> bool | None:
    """Whether the lock was got; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _clean(folder: Path) -> None:
    with suppress(OSError):
        for entry in os.scandir(folder):
            path = folder / entry.name
            if not is_leftover(path):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
