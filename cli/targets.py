"""``tser targets``."""

from __future__ import annotations

from typing import Annotated

import typer

from tser.cli.console import JsonFlag, guarded, say, show_json, show_table


@guarded
def targets(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show one with its figures.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the chips that energy can be priced for, or the figures of one."""
    from tser.deploy.energy import load_target, target_names

    chosen = [load_target(n) for n in ([name] if name else target_names())]
    if as_json:
        show_json({"schema_version": 1, "targets": [t.model_dump(mode="json") for t in chosen]})
        return
    if name is None:
        rows = [[t.name, t.title, str(t.process_nm), str(len(t.figures))] for t in chosen]
        show_table("Targets", ["name", "title", "process [nm]", "figures"], rows)
        say("one with its figures and sources: tser targets NAME")
        return
    target = chosen[0]
    show_table(
        target.title,
        ["operation", "charged with"],
        [[charge, figure or "unpriced"] for charge, figure in target.charges.items()],
    )
    for label, figure in target.figures.items():
        show_table(
            label,
            ["", f"{figure.value_pj:g} {figure.unit}"],
            [
                ["operating point", figure.operating_point],
                ["scope", figure.scope],
                ["evidence", figure.evidence + (", second hand" if figure.second_hand else "")],
                ["source", figure.source],
            ],
        )
    for line in target.left_out:
        say(f"left out: {line}")
