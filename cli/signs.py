"""Signs beyond an encoding: shown by others, so that no table ends in a UnicodeEncodeError."""

from __future__ import annotations

import codecs
import sys

PLAIN = {
    "✓": "+",
    "✗": "x",
    "µ": "u",
    "–": "-",
    "−": "-",
    "…": "...",
    "×": "x",
    "≠": "!=",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "\xa0": " ",
}
"""What stands for a sign that an encoding has not; any other becomes a question mark."""


def spell_out_signs() -> None:
    """Let standard output and error take every text, whatever their encoding."""
    codecs.register_error("tser", plain)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # None: closed, or a test's own
        if reconfigure is not None:
            reconfigure(errors="tser")


def plain(error: UnicodeError) -> tuple[str, int]:
    """The error handler ``tser`` of `codecs`.

    >>> plain(UnicodeEncodeError("ascii", "1 µJ ✓ ü", 2, 3, ""))
    ('u', 3)
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign, "?") for sign in wrong), error.end
