"""The table of chips in docs/fit.md, made from the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tser.deploy.fit_limits import ELSEWHERE, Chip, Limits, chip_names, load_chip

BEGIN = "<!-- chips: made by tser.deploy.fit_docs -->"
END = "<!-- chips end -->"
PAGE = Path("docs/fit.md")
"""Of a checkout, from its root: `python -m tser.deploy.fit_docs` writes the table anew."""


def chips_markdown() -> str:
    """Every limit of every chip that ships with tser, as one table between `BEGIN` and `END`."""
    lines = [BEGIN, "| chip | limits | no limit | unchecked | sources |", "|---|---|---|---|---|"]
    lines += [_chip(load_chip(name)) for name in chip_names()]
    return "\n".join([*lines, END]) + "\n"


def with_chips(text: str) -> str:
    """``text`` with the table between `BEGIN` and `END` made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + chips_markdown() + after.removeprefix("\n")


def _chip(chip: Chip) -> str:
    stated = {kind: getattr(chip.limits, kind) for kind in Limits.model_fields}
    limits = [_limit(kind, limit) for kind, limit in stated.items() if limit is not None]
    blank = [f"{_spaced(kind)} ({text})" for kind, text in chip.unchecked.items()]
    elsewhere = ELSEWHERE[chip.placement] | chip.unlimited.keys() | chip.unchecked.keys()
    silent = [k for k, limit in stated.items() if limit is None and k not in elsewhere]
    blank += [f"not published: {', '.join(map(_spaced, silent))}"] if silent else []
    known = "rules as published" if chip.exact else "as far as published"
    cells = [
        f"{chip.title}, `{chip.name}`: {known}",
        "; ".join(limits) or "none",
        ", ".join(map(_spaced, chip.unlimited)),
        "; ".join(blank),
        "; ".join(f"*{key}*: {text}" for key, text in chip.sources.items()),
    ]
    return "| " + " | ".join(cells) + " |"


def _limit(kind: str, limit: Any) -> str:
    mark = "†" if limit.second_hand else ""
    note = f", {limit.note}" if limit.note else ""
    return f"**{_spaced(kind)}** {_value(limit.value)} (*{limit.source}*{mark}{note})"


def _spaced(kind: str) -> str:
    return kind.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    values = value if isinstance(value, tuple) else (value,)
    whole = [v for v in values if isinstance(v, int)]
    if len(whole) > 2 and whole == list(range(whole[0], whole[-1] + 1)):
        return f"{whole[0]}..{whole[-1]}"
    return ", ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in values) or "none"


if __name__ == "__main__":
    PAGE.write_text(with_chips(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
