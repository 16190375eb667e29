"""The report as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report_run import EVIL, complete_run, epochs, evaluation, make_bare, write
from tser.deploy.report import sections, write_report
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
    Tile,
    Tiles,
)
from tser.deploy.report_formats import MARKDOWN, escape, tables, to_csv, to_markdown
from tser.deploy.report_results import read_results
from tser.errors import UsageError
from tser.runs import Run

NASTY = "<b>|*a*|\n# [x](javascript:y) `z`"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return complete_run(make_bare(tmp_path / "first"))


def markdown(*blocks: Block) -> str:
    return to_markdown("title", [Section("key", "Section", blocks)])


def every_block(text: str) -> list[Block]:
    """One of each kind, all of whose words are ``text``."""
    image = Picture("data:,", text, text)
    plain: list[Block] = [
        Text(text),
        Heading(text),
        Note(text, text, "caution"),
        Tiles((Tile(text, text, text),)),
        Facts(((text, text),)),
        Table(text, (text, text), ((text, text),), "lr", (text, text)),
        Bullets(text, (text,)),
        Chart("<svg></svg>", text),
        image,
        Gallery((image,)),
        Sources(text, ((text, "https://example.org/a b<c>"), (text, ""))),
        Code(text, text),
    ]
    return [*plain, Group(tuple(plain)), Details(text, tuple(plain))]


def test_every_kind_of_block_is_written() -> None:
    assert set(MARKDOWN) | {Group, Details} == set(Block.__args__)
    assert markdown(*every_block("word")).count("word") > 40


def test_the_shape_of_markdown() -> None:
    table = Table("Caption", ("a", "b"), (("1", "2"),), "lr", ("sum", "3"))
    text = markdown(table, Note("Do", "tser eval"), Details("More", (Text("inside"),)))
    assert "| a | b |\n| :--- | ---: |\n| 1 | 2 |\n| sum | 3 |" in text
    assert "> Do\n\n```\ntser eval\n```" in text
    assert "#### More\n\ninside" in text
    assert text.startswith("# title\n\n## Section\n\n")


def test_names_are_text_in_markdown() -> None:
    text = markdown(*every_block(NASTY))
    outside, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            outside.append(line)
    words = "\n".join(outside)
    assert not inside
    assert "<b>" not in words
    assert "[x](" not in words
    assert "`z`" not in words
    assert "*a*" not in words
    assert "\n# " not in words.removeprefix("# title")
    assert "<https://example.org/a%20b%3Cc%3E>" in words


def test_a_fence_in_a_command_does_not_end_it() -> None:
    text = markdown(Code("caption", "```\n# no heading"))
    assert "````\n```\n# no heading\n````" in text


@given(st.text(max_size=30))
def test_an_escaped_text_is_one_line_without_markup(text: str) -> None:
    found = escape(text)
    assert len(found.splitlines()) <= 1
    assert found.isprintable()
    bare = found
    for sign in "\\`*_[]<>|#~$&@-+=.)(":
        bare = bare.replace(f"\\{sign}", "")
    assert not set("\\`*_[]<>|#~$&@") & set(
        bare.replace("http\\", "").replace("https\\", "").replace("ftp\\", "")
    )
    assert not found.startswith(("-", "+", "="))


def test_csv_holds_every_cell_of_every_table(run: Run) -> None:
    parts = sections(read_results(run))
    rows = list(csv.reader(io.StringIO(to_csv(parts))))
    assert rows[0] == ["section", "table", "row", "column", "value"]
    wanted = sum(
        (len(table.columns) - 1) * (len(table.rows) + bool(table.footer))
        for part in parts
        for table in tables(part.blocks)
    )
    assert len(rows) == 1 + wanted
    assert {len(row) for row in rows} == {5}
    found = [row[4] for row in rows if row[0] == "accuracy" and row[2:4] == ["t = 2", "accuracy"]]
    assert found == ["98.0 %"]


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("@a", "'@a"),
        ("-cmd", "'-cmd"),
        ("-1.5", "-1.5"),
        ("a\nb\u00a0c\x1b[1m", "a b c�[1m"),
    ],
)
def test_no_spreadsheet_computes_a_cell(cell: str, written: str) -> None:
    table = Table("caption", ("a", "b"), (("row", cell),), "lr")
    rows = list(csv.reader(io.StringIO(to_csv([Section("key", "Title", (table,))]))))
    assert rows[1] == ["key", "caption", "row", "b", written]


def test_json_holds_the_files_as_they_are(run: Run) -> None:
    found: dict[str, Any] = json.loads(write_report(run, form="json").read_text("utf-8"))
    assert found["schema_version"] == 1
    assert found["evaluation"] == evaluation()
    assert found["energy"] == json.loads(run.energy.read_text("utf-8"))
    assert found["epochs"] == epochs()
    assert found["config"]["student"]["timesteps"] == 2
    assert found["graph_digest"] == found["energy"]["graph_digest"]
    assert {chip["name"] for chip in found["fit"]["targets"]} >= {"speck2e", "loihi"}


def test_json_of_a_bare_run(tmp_path: Path) -> None:
    path = write_report(make_bare(tmp_path / "bare"), form="json")
    found = json.loads(path.read_text("utf-8"))
    for key in ("environment", "evaluation", "validation", "energy", "fit", "graph_digest"):
        assert found[key] is None
    assert found["epochs"] == []


def test_json_has_no_nan(run: Run) -> None:
    write(run.evaluation, evaluation() | {"later": float("nan")})
    found = json.loads(write_report(run, form="json").read_text("utf-8"))
    assert found["evaluation"]["later"] is None


@pytest.mark.parametrize("form", ["html", "md", "json", "csv"])
def test_every_format_has_its_file_and_its_bytes(run: Run, form: Any) -> None:
    path = write_report(run, form=form)
    assert path == run.path / f"report.{form}"
    first = path.read_bytes()
    assert write_report(run, form=form).read_bytes() == first
    assert EVIL.encode() not in first or form in ("json", "csv")  # those are no markup


@pytest.mark.parametrize("name", ["eval.json", "energy.json", "validation.json"])
def test_a_report_in_json_takes_no_place_of_a_result(run: Run, name: str) -> None:
    path = run.path / name
    path.unlink()  # also where the result is not there yet
    with pytest.raises(UsageError, match="is a file of the run"):
        write_report(run, path, form="json")
    assert not path.exists()
