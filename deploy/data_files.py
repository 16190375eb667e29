"""Data files in TOML, ours and a user's own, checked against a strict model."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tser.config_file import nearest
from tser.errors import InputFileError, UsageError
from tser.plain_files import check_plain
from tser.toml_text import parse_toml, read_toml_text

M = TypeVar("M", bound=BaseModel)


def shipped_names(folder: str) -> list[str]:
    """Names of the files in a folder of this package, without their suffix."""
    found = resources.files("tser.deploy") / folder
    return sorted(item.name[:-5] for item in found.iterdir() if item.name.endswith(".toml"))


def load_shipped(folder: str, name: str, model: type[M], what: str, remedy: str = "") -> M:
    """One of the files that ship with tser.

    Args:
        folder: in this package.
        name: of the file.
        model: what it holds.
        what: what it describes, for messages.
        remedy: what else to do when there is none, for the message.

    Raises:
        UsageError: there is none of this name.
        InputFileError: it is not valid.
    """
    names = shipped_names(folder)
    if name not in names:
        raise UsageError(
            f"there is no {what} {name!r}{nearest(name, names)}; "
            f"{what}s are {', '.join(names)}{remedy}"
        )
    text = (resources.files("tser.deploy") / folder / f"{name}.toml").read_text("utf-8")
    return parse(text, model, f"the {what} file {name}.toml")


def read_own(path: Path, model: type[M], what: str) -> M:
    """A user's own file.

    Raises:
        InputFileError: it cannot be read or is not valid.
    """
    check_plain(path)
    try:
        text = read_toml_text(path)
    except FileNotFoundError as error:
        raise InputFileError(f"there is no {what} file {path}") from error
    except UnicodeDecodeError as error:
        raise InputFileError(f"the {what} file {path} is not UTF-8 text") from error
    except OSError as error:
        raise InputFileError(f"cannot read the {what} file {path}: {error.strerror}") from error
    return parse(text, model, f"the {what} file {path}")


def parse(text: str, model: type[M], origin: str) -> M:
    """The content of a file.

    Args:
        text: TOML.
        model: what it holds.
        origin: what to call the file in messages.

    Raises:
        InputFileError: not TOML, or not what ``model`` asks for.
    """
    try:
        return model.model_validate(parse_toml(text))
    except tomllib.TOMLDecodeError as error:
        raise InputFileError(f"{origin} is not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        words = " ".join(f"{where + ': ' if where else ''}{reason}{more}".split())
        raise InputFileError(f"{origin} is not valid: {words}") from error
