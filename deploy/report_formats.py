"""The report as Markdown, as tidy CSV and as JSON: the same sections, drawn another way."""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tser.deploy.report_blocks import (
    Block,
    Bullets,
    Chart,
    Code,
    Details,
    Facts,
    Gallery,
    Group,
    Heading,
    Note,
    Picture,
    Section,
    Sources,
    Table,
    Text,
    Tiles,
)
from tser.deploy.report_fit import fit_document
from tser.deploy.report_results import Results
from tser.metrics_log import whole_lines
from tser.plain_files import read_results
from tser.printable import harmless

FENCE = "```"


def to_markdown(title: str, parts: Sequence[Section]) -> str:
    """GitHub-flavoured Markdown; drawings are named, and stand in the HTML report only.

    Args:
        title: of the page.
        parts: in reading order.
    """
    pieces = [f"# {escape(title)}"]
    for part in parts:
        pieces.append(f"## {escape(part.title)}")
        pieces += [text for block in part.blocks for text in _markdown(block)]
    return harmless("\n\n".join(pieces)) + "\n"


def one_line(text: str) -> str:
    """Text without line breaks and without what steers a terminal; names come from files."""
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))


def escape(text: str) -> str:
    r"""Text whose signs mean nothing in Markdown or HTML, wherever it stands in a line.

    >>> escape("[a](javascript:x) <b> |"), escape("1. a"), escape("- a"), escape("www.a")
    ('\\[a\\](javascript:x) \\<b\\> \\|', '1\\. a', '\\- a', 'www\\.a')
    """
    text = re.sub(r"([\\`*_\[\]<>|#~$&@])", r"\\\1", one_line(text))
    text = re.sub(r"^([-+=])", r"\\\1", text)  # a list, or a line under a heading
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)
    return re.sub(r"(?i)(www)(?=\.)|(https?|ftp)(?=:)", r"\g<0>\\", text)  # GitHub makes links


def _markdown(block: Block) -> Iterator[str]:
    if isinstance(block, Group):
        for inner in block.blocks:
            yield from _markdown(inner)
    elif isinstance(block, Details):
        yield f"#### {escape(block.summary)}"
        for inner in block.blocks:
            yield from _markdown(inner)
    else:
        yield MARKDOWN[type(block)](block)


def _note(block: Note) -> str:
    text = f"> {escape(block.text)}"
    return f"{text}\n\n{_fenced(block.command)}" if block.command else text


def _fenced(text: str) -> str:
    fence = FENCE
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def _table(block: Table) -> str:
    rules = ["---:" if letter == "r" else ":---" for letter in block.align]
    rows = [block.columns, tuple(rules), *block.rows]
    rows += [block.footer] if block.footer else []
    lines = [
        f"| {' | '.join(row if number == 1 else map(escape, row))} |"
        for number, row in enumerate(rows)
    ]
    return "\n".join([f"{escape(block.caption)}:", "", *lines])


def _sources(block: Sources) -> str:
    """A numbered list; addresses are checked where the block is made."""
    lines = []
    for number, (text, address) in enumerate(block.items, 1):
        # In angle brackets an address may hold anything but these.
        target = re.sub(r"[<>\\\s]", lambda sign: f"%{ord(sign[0]):02X}", address)
        lines.append(
            f"{number}. [{escape(text)}](<{target}>)" if address else f"{number}. {escape(text)}"
        )
    return "\n".join([escape(block.text), "", *lines])


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


MARKDOWN: dict[type, Callable[[Any], str]] = {
    Text: lambda block: escape(block.text),
    Heading: lambda block: f"### {escape(block.text)}",
    Note: _note,
    Tiles: lambda block: _list(
        [f"{escape(t.label)}: **{escape(t.value)}** ({escape(t.detail)})" for t in block.tiles]
    ),
    Facts: lambda block: _list([f"{escape(a)}: {escape(b)}" for a, b in block.pairs]),
    Table: _table,
    Bullets: lambda block: f"{escape(block.text)}\n\n{_list([escape(i) for i in block.items])}",
    Chart: lambda block: f"*Chart (in the HTML report): {escape(block.caption)}*",
    Picture: lambda block: f"*Picture (in the HTML report): {escape(block.caption)}*",
    Gallery: lambda block: _list(
        [f"*Picture (in the HTML report): {escape(p.description)}*" for p in block.pictures]
    ),
    Sources: _sources,
    Code: lambda block: f"{escape(block.caption)}:\n\n{_fenced(block.text)}",
}
"""How each block that holds no others is written."""


def to_csv(parts: Sequence[Section]) -> str:
    """Every number of every table, one a line: section, table, row, column, value.

    Cells are as printed in the report; units stand in the captions and heads. A text that a
    spreadsheet would take for a formula begins with an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["section", "table", "row", "column", "value"])
    for part in parts:
        for table in tables(part.blocks):
            for row in (*table.rows, *([table.footer] if table.footer else [])):
                for column, value in zip(table.columns[1:], row[1:], strict=True):
                    cells = (part.key, table.caption, row[0], column, value)
                    writer.writerow([_cell(cell) for cell in cells])
    return text.getvalue()


def _cell(text: str) -> str:
    """One line that no spreadsheet computes."""
    line = one_line(text)
    return f"'{line}" if re.match(r"[=+@＝＋＠－-](?![\d.]+$)", line) else line  # noqa: RUF001


def tables(blocks: Sequence[Block]) -> Iterator[Table]:
    """All tables, also those inside other blocks."""
    return (block for block in flat(blocks) if isinstance(block, Table))


def flat(blocks: Sequence[Block]) -> Iterator[Block]:
    """All blocks that hold no others, in reading order."""
    for block in blocks:
        if isinstance(block, Group | Details):
            yield from flat(block.blocks)
        else:
            yield block


def to_document(results: Results) -> dict[str, Any]:
    """All that was measured, in one document: the files of the run as they are, and the fit.

    Args:
        results: of the run, which means that the files are sound.
    """
    run = results.run
    files = {
        "environment": run.environment,
        "evaluation": run.evaluation,
        "validation": run.validation,
        "energy": run.energy,
    }
    lines = whole_lines(read_results(run.metrics)) if run.metrics.is_file() else []
    return {
        "schema_version": 1,
        "run": str(run.path),
        "config": tomllib.loads(results.config_text),
        "graph_digest": results.digest,
        **{
            name: _loaded(read_results(path)) if path.is_file() else None
            for name, path in files.items()
        },
        "fit": None if results.graph is None else fit_document(results, results.graph),
        "epochs": [_loaded(line) for line in lines if line.strip()],
    }


def _loaded(text: bytes) -> Any:
    """JSON, with null for NaN and infinities, which Python reads and JSON has not."""
    return json.loads(text, parse_constant=lambda _: None)
