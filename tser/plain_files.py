"""What may be opened: reading somebody's folder must not hang on what lies in it."""

from __future__ import annotations

import stat
from pathlib import Path

from tser.errors import InputFileError

MOST_RESULTS = 1 << 26
"""Bytes of a JSON file; those of tser have some hundred thousand."""
_ENDLESS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_plain(path: Path) -> None:
    """Refuse, before it is opened, a pipe, a socket or a device, itself or through a link.

    Opening a pipe waits for who writes to it, and a device may have no end. What is a folder or
    not there at all is left to the reader, who says so in its own words.

    Raises:
        InputFileError: it is one.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    for matches, what in _ENDLESS:
        if matches(mode):
            raise InputFileError(
                f"{path} is {what}, which is not read; put a plain file in its place"
            )


def read_results(path: Path) -> bytes:
    """The content of a file of results, such as ``eval.json`` and ``metrics.jsonl``.

    Raises:
        InputFileError: it is no plain file, or larger than results can be.
        OSError: it cannot be read.
    """
    check_plain(path)
    if path.stat().st_size > MOST_RESULTS:
        raise InputFileError(
            f"{path} is damaged: it has more than {MOST_RESULTS // 2**20} MiB; delete it and make "
            "it again"
        )
    return path.read_bytes()
