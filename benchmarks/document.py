"""Tables in the documents, made from the results that are kept beside the scripts."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tser.runs import environment

Row = dict[str, Any]


def machine() -> Row:
    """Versions and processor, for a line of results."""
    import torch  # here, so that tables are quick to make

    found = environment()
    del found["command"]  # it may name folders of the machine
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    found["processor"] = ", ".join(sorted(names)) or found["processor"]
    found["vectors"] = torch.backends.cpu.get_cpu_capability()
    found["load"] = round(os.getloadavg()[0], 2)
    return found


def read_rows(path: Path) -> list[Row]:
    """The lines of a results file, oldest first; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append_row(path: Path, row: Row) -> None:
    """Add a line to a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def with_tables(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """``text`` with what stands between ``<!-- name -->`` and ``<!-- /name -->`` made anew."""
    for name, make in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(start)
        _, found, tail = rest.partition(end)
        if not found:
            raise SystemExit(f"the document has no marks for the table {name!r}")
        text = head + start + "\n" + make() + "\n" + end + tail
    return text


def write_tables(path: Path, tables: Mapping[str, Callable[[], str]], *, check: bool) -> None:
    """Put the tables into a document, or with ``check`` end in an error if that changes it."""
    before = path.read_text(encoding="utf-8")
    after = with_tables(before, tables)
    if check:
        sys.exit(before != after and f"{path} is not what the results say")
    path.write_text(after, encoding="utf-8")


def markdown(columns: list[str], lines: Iterable[list[str]]) -> str:
    """A table."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def spread(values: list[float], digits: int = 2) -> str:
    """Median and quartiles."""
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile; all three are the value if there is only one."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
