r"""Text from files as a terminal or a page may show it: it steers neither.

Names of files, nodes and classes may hold escape sequences, line breaks and signs that turn the
direction of what follows; shown as they are, they would recolour, overwrite or reorder what we say.
"""

from __future__ import annotations

import re

_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Controls but tab and line feed, signs of direction and of no width, halves of letters."""
_BREAKS = re.compile("\\s*[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]\\s*")


def harmless(text: str) -> str:
    r"""``text`` with a mark in place of every sign that steers; line feeds and tabs stay.

    >>> harmless("a\x1b[2J\u202eb\nc")
    'a�[2J�b\nc'
    """
    return _STEERING.sub("\ufffd", text)


def one_line(text: str) -> str:
    r"""The same on one line.

    >>> one_line("  a\r\nerror: b")
    '  a error: b'
    """
    return harmless(_BREAKS.sub(" ", text))


def escaped_json(text: str) -> str:
    r"""JSON text with its steering signs escaped, which leaves what it says as it is.

    Halves of letters, which no JSON reader need take, become marks.

    >>> escaped_json('"a\u202e"'), escaped_json('"\udcff"')
    ('"a\\u202e"', '"�"')
    """
    return _STEERING.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    sign = found[0]
    if "\ud800" <= sign <= "\udfff":
        return "\ufffd"
    units = sign.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
