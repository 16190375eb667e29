"""``tser env``."""

from __future__ import annotations

from tser.cli.console import JsonFlag, guarded, show_json, show_table


@guarded
def env(as_json: JsonFlag = False) -> None:
    """Versions and machine, for bug reports."""
    from tser.runs import environment

    found = environment()
    if as_json:
        show_json(found)
        return
    packages = found.pop("packages")
    rows = [[key, str(value)] for key, value in found.items() if key != "command"]
    rows += [[name, version or "not installed"] for name, version in packages.items()]
    show_table("Environment", ["", ""], rows)
