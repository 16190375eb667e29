"""The JSON Schemas that ship with tser, by name; nothing but their text is needed."""

from __future__ import annotations

from importlib import resources

from tser.config_file import nearest
from tser.errors import UsageError

FOLDER = "schemas"
SUFFIX = ".schema.json"


def schema_names() -> list[str]:
    """Names, sorted."""
    found = (resources.files("tser.deploy") / FOLDER).iterdir()
    return sorted(item.name.removesuffix(SUFFIX) for item in found if item.name.endswith(SUFFIX))


def schema_text(name: str) -> str:
    """A schema as JSON text.

    Raises:
        UsageError: no such schema.
    """
    names = schema_names()
    if name not in names:
        raise UsageError(
            f"there is no schema {name!r}{nearest(name, names)}; schemas are {', '.join(names)}"
        )
    return (resources.files("tser.deploy") / FOLDER / f"{name}{SUFFIX}").read_text("utf-8")
