"""The table of all figures in docs/energy.md, made from the target files.

``python -m tser.deploy.target_table docs/energy.md`` writes it anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tser.deploy.target_files import Target, load_target, target_names

BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
COLUMNS = (
    "target",
    "figure",
    "value",
    "per",
    "operating point",
    "scope",
    "evidence",
    "read in",
    "source",
)


def figures_table() -> str:
    """All figures of all targets as a Markdown table, and the targets that have none."""
    targets = [load_target(name) for name in target_names()]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for target in targets:
        lines += _rows(target)
    empty = ", ".join(target.title for target in targets if not target.figures)
    unpriced = ", ".join(t.title for t in targets if t.figure("accumulate") is None)
    lines += [
        "",
        f"Nothing at all that could be charged is published for {empty}; no figure per synaptic "
        f"operation for {unpriced}.",
    ]
    return "\n".join(lines)


def _rows(target: Target) -> list[str]:
    rows = []
    for label, figure in target.figures.items():
        charged = label in target.charges.values()
        cells = (
            f"`{target.name}`",
            f"`{label}`" + ("" if charged else " (not charged)"),
            figure.text,
            figure.per,
            figure.operating_point,
            f"{figure.scope}: {figure.covers}",
            figure.evidence,
            "a work that cites it" if figure.second_hand else "the source",
            f"[{figure.source}]({figure.url})",
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def with_figures(text: str) -> str:
    """``text`` with the table between its marks made anew."""
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{figures_table()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_figures(path.read_text("utf-8")), "utf-8")
