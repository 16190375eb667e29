"""Where the files of a published data set are looked for, and how they get there.

They are looked for in ``root`` alone if one is given, and otherwise in ``$TSER_DATA``, the
user's cache (``$XDG_CACHE_HOME/tser`` or ``~/.cache/tser``) and the places of the set's own, in
this order; a set found nowhere is downloaded to the user's cache. Nothing is written beside
files that are found.
"""

import contextlib
import importlib
import io
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tser.errors import TserError, UsageError
from tser.files import scratch_beside
from tser.torchvision_ops import ensure_torchvision

Files = tuple[Path, ...]
_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
_may_download: ContextVar[bool] = ContextVar("may_download", default=True)


@contextlib.contextmanager
def no_download() -> Iterator[None]:
    """Look for sets on this machine only, for the length of the block."""
    token = _may_download.set(False)
    try:
        yield
    finally:
        _may_download.reset(token)


@dataclass(frozen=True)
class Source:
    """A published set: what it is called, what its files look like and where they come from."""

    title: str
    """The name people know it by."""
    find: Callable[[Path], Files | None]
    """Its files in a folder, None where they are not all there."""
    expected: str
    """What ``find`` looks for, in words."""
    torchvision_class: str
    """The class of ``torchvision.datasets`` that downloads it."""
    downloaded: tuple[str, ...]
    """The files that this class leaves behind, relative to its root."""
    get: str = ""
    """How to get it without a download, empty if there is no way to name."""
    places: tuple[Path, ...] = ()
    """Where else it may be installed."""


def locate(source: Source, root: Path | None) -> Files:
    """The files of the set, from ``root`` alone or from the usual places.

    Raises:
        UsageError: they are not there, or cannot be downloaded.
    """
    return in_root(source, root) if root is not None else in_usual_places(source)


def in_root(source: Source, root: Path) -> Files:
    """The files of the set in the folder ``root``; errors as for `locate`."""
    root = expanded(root)
    remedy = f"name the folder that has it, or leave out --data-root and {source.get}"
    if not source.get:
        remedy = "name the folder that has it, or leave out --data-root to have it downloaded"
    if not visible(root.is_dir):
        raise UsageError(f"the data folder {root} does not exist or cannot be read; {remedy}")
    found = source.find(root)
    if found is None:
        raise UsageError(
            f"the data folder {root} does not hold {source.title}: expected {source.expected}; "
            f"{remedy}"
        )
    return found


def in_usual_places(source: Source) -> Files:
    """The files of the set in the first place that has them; errors as for `locate`."""
    named, cache = os.environ.get("TSER_DATA"), user_cache()
    places = [expanded(Path(named))] if named else []
    places += [cache] if cache else []
    places += source.places
    for place in places:
        if (found := source.find(place)) is not None:
            return found
    reason = _download(source, cache) if cache else "there is no home folder to keep it in"
    found = source.find(cache) if cache else None
    if found is None:
        tried = ", ".join(map(str, places)) or "any of the usual places"
        way = f"{source.get} or " if source.get else ""
        raise UsageError(
            f"{source.title} was not found in {tried} and could not be downloaded ({reason}); "
            f"{way}name the folder that has it with --data-root"
        )
    return found


def torchvision_class(name: str) -> Any:
    """The class of ``torchvision.datasets`` called ``name``."""
    ensure_torchvision()
    return getattr(importlib.import_module("torchvision.datasets"), name)


def expanded(path: Path) -> Path:
    """``path`` with a leading ``~`` replaced, unchanged where there is no home folder."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def visible(test: Callable[[], bool]) -> bool:
    """The answer of ``path.is_file`` or ``path.is_dir``; no where it may not be asked."""
    try:
        return test()
    except OSError:
        return False


def _download(source: Source, cache: Path) -> str:
    """Download the set to ``cache`` with torchvision; returns why not, empty if it worked.

    torchvision compares the download with its MD5 before it reads it. The files move to their
    final place only when all are there and unpacked. The progress bar goes to the standard
    error, and nowhere if that is not a terminal.
    """
    if not _may_download.get():
        return "only tser distill and --data do that"
    timeout = socket.getdefaulttimeout()
    progress = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with (
            scratch_beside(cache / "download") as staging,
            contextlib.redirect_stdout(progress),
            contextlib.redirect_stderr(progress),
        ):
            socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
            torchvision_class(source.torchvision_class)(str(staging), train=False, download=True)
            for name in source.downloaded:
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                (staging / name).replace(cache / name)
    except (RuntimeError, OSError, EOFError, HTTPException, TserError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[-1]
    finally:
        socket.setdefaulttimeout(timeout)
    return ""


def user_cache() -> Path | None:
    """The user's cache folder of this program, None without a home folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        home = Path() if os.environ.get("HOME") == "" else expanded(Path("~"))
        cache = home / ".cache"
    return cache / "tser" if cache.is_absolute() else None
