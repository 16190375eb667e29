"""The standard streams, such that a full disk or a closed stream ends no command in a traceback.

Talk that nobody can take must not end a training: what cannot be written to stderr is dropped. Data
that cannot be written to stdout are a failure, which is told in one sentence.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import IO, NoReturn

from tser.errors import TserError


class _Talk(io.TextIOWrapper):
    """Takes every text; what the stream below does not take is dropped."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


class _Data(io.TextIOWrapper):
    """Says in one sentence why a text is not taken; what comes after it is dropped.

    A reader that has left, as in ``tser env | head -1``, stays a BrokenPipeError.
    """

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            return self._fail(error)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> NoReturn:
        drop_output(self.fileno())
        if isinstance(error, BrokenPipeError):
            raise error
        known = {errno.ENOSPC: "the disk that it goes to is full", errno.EBADF: "it is closed"}
        why = known.get(error.errno or 0, error.strerror)
        raise TserError(
            f"cannot write to the standard output: {why}; send it elsewhere and run the command "
            "again"
        ) from error


def drop_output(number: int) -> None:
    """Let what is still to be written to a stream go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def steady_streams() -> None:
    """Put streams in place of the standard ones that fail as described above."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Closed: else the next file to be opened, such as a result, would stand in its place.
            os.open(os.devnull, os.O_RDONLY)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(_Data, 1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(_Talk, 2, sys.stderr)


def _stream(kind: type[io.TextIOWrapper], number: int, old: IO[str] | None) -> io.TextIOWrapper:
    errors = getattr(old, "errors", None) or "strict"
    return kind(
        open(number, "wb", closefd=False),
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors="backslashreplace" if errors == "strict" else errors,
        line_buffering=number == 2 or os.isatty(number),
    )
