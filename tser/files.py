"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tser.errors import TserError, UsageError
from tser.leftovers import MARK, make_folder, sync_folder, writing_to
from tser.printable import escaped_json
from tser.room import SCRATCH, disk_error, disk_fault, place_error

_LONGEST = 60
"""Bytes of a file's name that the name of its temporary file repeats."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block succeeds.

    The temporary file keeps the final suffix because some writers (h5py, numpy) look at it.
    It is removed when the block fails, and whatever stood at ``path`` before stays untouched. When
    this returns, the file is on the disk under its name, also after a power cut.

    Raises:
        UsageError: the folder cannot be created or written, or ``path`` is not a name for a file.
        TserError: the disk is full, a quota or limit is reached, or the disk failed; whatever
            type the writer raised.
    """
    check_place(path)
    try:
        make_folder(path.parent)
    except OSError as error:
        raise place_error(path, error) from error
    with writing_to(path.parent) as folder:
        before, after = _around(path)
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=before, suffix=after)
        except OSError as error:
            raise place_error(path, error) from error
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _give_name(temporary, path, folder)
        except TserError:
            raise
        except Exception as error:
            number = disk_fault(error, temporary)
            if number is None:
                raise
            temporary.unlink(missing_ok=True)  # first: what is free is told as it is without it
            raise disk_error(path, number) from error
        finally:
            temporary.unlink(missing_ok=True)


def _give_name(temporary: Path, path: Path, folder: int | None) -> None:
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    try:
        temporary.replace(path)
    except OSError as error:
        raise place_error(path, error, "choose another name") from error
    sync_folder(folder)


def _around(path: Path) -> tuple[str, str]:
    """Beginning and end of the name of a temporary file for ``path``, short enough for any disk."""
    stem = os.fsdecode(os.fsencode(path.stem)[:_LONGEST])
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST else ""
    return f".{stem}-", MARK + suffix


def check_place(path: Path) -> None:
    """Refuse a name under which no file can be written.

    Raises:
        UsageError: a folder's, a device's, or one that the disk does not allow.
    """
    if "\0" in str(path):
        raise UsageError("a file's name cannot hold a zero byte; choose another name")
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        mode = stat.S_IFREG
    except OSError as error:
        raise place_error(path, error, "choose another name") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"cannot write {path}: it is a folder; choose another name for a file")
    # /dev/stdout may lead to a plain file, and would itself be replaced.
    folder = os.path.realpath(path.parent)
    if not stat.S_ISREG(mode) or folder == "/dev" or folder.startswith("/proc"):
        raise UsageError(
            f"cannot write {path}: it is a device or a pipe, and files are replaced as a whole; "
            "choose another name"
        )


def check_json_target(path: Path) -> None:
    """Refuse, before hours of work, a place where its result could not be written.

    Raises:
        UsageError: not named like JSON (it may be a run's configuration), a folder, or a folder
            in which nothing can be written.
    """
    if path.suffix != ".json":
        raise UsageError(f"the result is JSON, so it is not written to {path}; name a .json file")
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name a .json file in it")
        check_place(path)
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"cannot write {path}: {folder} is not a folder you may write to")
    except OSError as error:
        raise place_error(path, error, "choose another name") from error


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, deleted at the end of the block.

    Where the process is killed before, the next one that writes there deletes it.

    Raises:
        UsageError: the folder cannot be created or written.
        TserError: the disk is full.
    """
    try:
        make_folder(path.parent)
    except OSError as error:
        raise place_error(path, error) from error
    with writing_to(path.parent):
        before, _ = _around(path)
        try:
            folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=before, suffix=MARK))
        except OSError as error:
            raise place_error(path, error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder where temporary files go (``TMPDIR``), deleted at the end of the block.

    Raises:
        UsageError: there is no such place.
        TserError: the disk is full.
    """
    try:
        place = tempfile.gettempdir()
    except OSError as error:  # no folder that it tried can be written
        raise UsageError(
            "there is no folder for temporary files with room for one; make room, or set TMPDIR "
            "to a folder you may write to"
        ) from error
    with scratch_beside(Path(place) / SCRATCH) as folder:
        yield folder


def append_line(path: Path, line: str) -> None:
    """Add ``line`` to the file at ``path``; it is on the disk when this returns.

    Where it cannot be written, the file is as long as before. A process that is killed, or a
    power cut, can leave a part of it, which readers tell by its missing end of line.

    Args:
        path: the file; it may be new.
        line: without its end.

    Raises:
        UsageError: the file cannot be written.
        TserError: the disk is full.
    """
    new = not path.exists()
    try:
        with path.open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            left = line.encode() + b"\n"
            try:
                while left:
                    left = left[file.write(left) or 0 :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), before)
                raise
        if new:
            with writing_to(path.parent) as folder:
                sync_folder(folder)
    except OSError as error:
        raise place_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    r"""Write ``text`` as UTF-8 to ``path``, whole or not at all.

    What is no text, as bytes of a file's name can be, is written as an escape such as ``\udcff``.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def to_json(value: Any) -> str:
    """JSON text of ``value``; refuses NaN and infinities, which are not JSON.

    What would steer a terminal is written as its number, whatever a name from a file holds.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return escaped_json(text) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path``, whole or not at all."""
    write_text(path, to_json(value))
