"""TOML from files that nobody vouches for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from tser.limits import MOST_PARTS, MOST_TEXT

_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(
    rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MOST_PARTS}}}", flags=re.ASCII
)


def read_toml_text(path: Path) -> str:
    """The text of a file, or so much of it that `parse_toml` refuses it.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    with path.open(encoding="utf-8") as file:
        return file.read(MOST_TEXT + 1)


def parse_toml(text: str) -> dict[str, Any]:
    """What ``text`` holds.

    Raises:
        tomllib.TOMLDecodeError: not TOML, or beyond the limits of `tser.limits`; tomllib itself
            would take memory in the square of a key's parts, and end in other errors where
            values are nested deeply or numbers have thousands of digits.
    """
    if len(text) > MOST_TEXT:
        raise tomllib.TOMLDecodeError(f"it has more than the {MOST_TEXT:,} letters that are read")
    if _LONG_KEY.search(text):
        raise tomllib.TOMLDecodeError(f"a key has more than {MOST_PARTS} parts")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise tomllib.TOMLDecodeError("its values are nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits, a day that is none
        reason = " ".join(str(error).split())[:100]
        raise tomllib.TOMLDecodeError(f"a value cannot be read ({reason})") from error
