"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tser.errors import UsageError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block succeeds.

    The temporary file keeps the final suffix because some writers (h5py, numpy) look at it.
    It is removed when the block fails, and whatever stood at ``path`` before stays untouched.

    Raises:
        UsageError: the folder cannot be created or written, or ``path`` is a folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}"
        )
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; choose a folder you may write to"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        try:
            temporary.replace(path)
        except OSError as error:
            raise UsageError(
                f"cannot write {path}: {error.strerror}; choose another name"
            ) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_json_target(path: Path) -> None:
    """Refuse, before hours of work, a place where its result could not be written.

    Raises:
        UsageError: not named like JSON (it may be a run's configuration), a folder, or a folder
            in which nothing can be written.
    """
    if path.suffix != ".json":
        raise UsageError(f"the result is JSON, so it is not written to {path}; name a .json file")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a .json file in it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write {path}: {folder} is not a folder you may write to")


def is_leftover(path: Path) -> bool:
    """Whether ``path`` is a temporary file of `atomic_path`, as a killed process leaves behind."""
    return bool(re.fullmatch(r"\..*-[a-z0-9_]{8}\.tmp(\.[^.]+)?", path.name))


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that were killed while writing to ``folder`` left behind."""
    for path in folder.iterdir():
        if is_leftover(path):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any) -> str:
    """JSON text of ``value``; refuses NaN and infinities, which are not JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path``, whole or not at all."""
    write_text(path, to_json(value))
