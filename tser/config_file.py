"""Configurations from presets, files and the command line.

Values come in layers, later ones winning: defaults < preset < file < command line. A file starts
from a preset when it says ``preset = "NAME"``.
"""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from tser.config import RunConfig
from tser.errors import UsageError
from tser.methods import METHODS
from tser.plain_files import check_plain
from tser.toml_text import parse_toml, read_toml_text


def preset_names() -> list[str]:
    """Names of the presets that ship with tser."""
    folder = resources.files("tser") / "presets"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def preset_text(name: str) -> str:
    """TOML text of a preset.

    Raises:
        UsageError: no such preset.
    """
    if name not in preset_names():
        raise UsageError(
            f"there is no preset or file {name!r}{nearest(name, preset_names())}; "
            f"presets are {', '.join(preset_names())}"
        )
    return (resources.files("tser") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def nearest(word: str, choices: list[str]) -> str:
    """``", did you mean X?"`` for the closest choice, or an empty string."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def load_config(source: str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Resolve a configuration from a preset name or a ``.toml`` path, then overrides.

    Args:
        source: a preset name, or the path of a TOML file.
        overrides: ``section.key=value`` strings; values are TOML, bare words are strings.

    Raises:
        UsageError: an unknown preset, unreadable TOML, an unknown key or a bad value.
    """
    if source.endswith(".toml"):
        values = _with_method(_read_toml(Path(source)), source)
        base = values.get("preset")
        if isinstance(base, str) and base:
            values = _merged(_preset_values(base), values)
    else:
        values = _preset_values(source)
    for override in sorted(overrides, key=lambda text: not text.startswith("loss.method=")):
        _apply(values, override)
        if override.startswith("loss.method="):
            values["loss"] |= _method_settings(values["loss"]["method"], "--set")
    return parse_config(values, origin=source)


def parse_config(values: dict[str, Any], origin: str) -> RunConfig:
    """Validate ``values``; every complaint names the key and ``origin``.

    Raises:
        UsageError: an unknown key (the nearest name is offered) or a bad value.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(_explain(error.errors()[0], origin)) from error


def dump_config(config: RunConfig) -> str:
    """TOML text of the whole configuration, defaults filled in."""
    return tomli_w.dumps(config.model_dump())


def _read_toml(path: Path) -> dict[str, Any]:
    check_plain(path)
    try:
        return parse_toml(read_toml_text(path))
    except FileNotFoundError as error:
        raise UsageError(f"there is no configuration file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the configuration file {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def _preset_values(name: str) -> dict[str, Any]:
    return _with_method(tomllib.loads(preset_text(name)), name) | {"preset": name}


def _with_method(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """``values`` with what its ``loss.method`` stands for; keys beside the method win over it."""
    loss = values.get("loss")
    if not isinstance(loss, dict) or not loss.get("method"):
        return values
    return values | {"loss": _method_settings(loss["method"], origin) | loss}


def _method_settings(name: Any, origin: str) -> dict[str, Any]:
    if not isinstance(name, str) or name not in METHODS:
        raise UsageError(
            f"unknown loss.method {name!r} in {origin}{nearest(str(name), list(METHODS))}; "
            f"methods are {', '.join(METHODS)}"
        )
    return METHODS[name]()


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, section by section."""
    result = dict(below)
    for key, value in above.items():
        lower = result.get(key)
        both = isinstance(value, dict) and isinstance(lower, dict)
        result[key] = _merged(lower, value) if both else value  # type: ignore[arg-type]
    return result


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(
            f"--set takes section.key=value, for example train.epochs=5; got {override!r}"
        )
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for part in parts[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {override!r}: {part} is a value, not a section")
    values[parts[-1]] = value


def _explain(problem: Any, origin: str) -> str:
    where = [str(part) for part in problem["loc"]]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        model: Any = RunConfig
        for part in where[:-1]:
            model = model.model_fields[part].annotation
        names = list(model.model_fields)
        return (
            f"unknown configuration key {key!r} in {origin}{nearest(where[-1], names)}; "
            f"known here: {', '.join(names)}"
        )
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem["input"], dict | BaseModel) else f", got {problem['input']!r}"
    return f"bad value for {key or 'the configuration'} in {origin}: {message}{given}"
