"""Runs side by side."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.report_run import (
    EVIL,
    complete_run,
    energy,
    evaluation,
    make_bare,
    settings,
    write,
)
from tests.validation_files import validation
from tser.deploy.comparison import compare_runs, comparison, titles
from tser.deploy.report_blocks import Chart, Note, Section, Table
from tser.deploy.report_formats import flat
from tser.deploy.report_results import read_results
from tser.errors import InputFileError, UsageError
from tser.runs import Run


@pytest.fixture
def full(tmp_path: Path) -> Run:
    """A run with every file, T = 2."""
    return complete_run(make_bare(tmp_path / "full"))


@pytest.fixture
def other(tmp_path: Path) -> Run:
    """A run that is evaluated alone, T = 3."""
    run = make_bare(tmp_path / "other", student={"timesteps": 3})
    layer = evaluation()["layers"][0] | {"name": "more", "firing_rate_per_step": [0.1, 0.2, 0.3]}
    longer = {"timesteps": 3, "accuracy": [0.8, 0.85, 0.9], "layers": [layer]}
    write(run.evaluation, evaluation() | longer | {"calibration_error": [0.1, 0.1, 0.2]})
    return run


def section(runs: list[Run], key: str) -> Section:
    parts = comparison([read_results(run) for run in runs])
    return next(part for part in parts if part.key == key)


def rows(runs: list[Run], key: str) -> dict[str, tuple[str, ...]]:
    """Rows of all tables of a section by their names."""
    tables = [block for block in flat(section(runs, key).blocks) if isinstance(block, Table)]
    return {
        row[0].replace("\u00a0", " "): tuple(cell.replace("\u00a0", " ") for cell in row[1:])
        for table in tables
        for row in table.rows
    }


def notes(runs: list[Run], key: str) -> str:
    blocks = flat(section(runs, key).blocks)
    return " ".join(f"{n.text} {n.command}" for n in blocks if isinstance(n, Note))


def test_what_one_run_lacks_is_a_dash(full: Run, other: Run) -> None:
    both = [full, other]
    found = rows(both, "accuracy")
    assert found["after t = 2"] == ("98.00 %", "85.00 %")
    assert found["after t = 3"] == ("–", "90.00 %")
    assert found["calibration error after all steps"] == ("3.45 %", "20.00 %")
    assert found["images"] == ("50", "50")
    assert rows(both, "settings") == {"student.timesteps": ("2", "3")}
    assert rows(both, "operations")["synaptic operations (SOP)"] == ("1 k", "–")
    assert rows(both, "operations")["hidden"] == ("1 k", "–")
    found = rows(both, "energy")
    assert found["A chip"] == ("unpriced (≥ 23.6 nJ)", "–")
    assert found["A process"] == ("23.6 nJ", "–")
    assert found["ANN twin, A process"] == ("47.2 nJ", "–")
    assert rows(both, "firing")["more"] == ("–", "25.0 %")
    assert rows(both, "fit")["Intel Loihi"] == ("✗ does not fit", "–")
    found = rows(both, "validation")
    assert found["verdict"] == ("E1", "–")
    assert any("flips" in cells[0] for cells in found.values())
    found = rows(both, "learning")
    assert found["last epoch"] == ("2", "–")
    assert found["CE"] == ("0.5", "–")


def test_the_order_of_runs_is_kept(full: Run, other: Run) -> None:
    assert rows([other, full], "accuracy")["after t = 3"] == ("90.00 %", "–")
    charts = [b for b in section([other, full], "accuracy").blocks if isinstance(b, Chart)]
    assert len(charts) == 1
    assert charts[0].svg.index(">other<") < charts[0].svg.index(">full<")


def test_runs_that_hold_nothing_say_what_to_run(tmp_path: Path) -> None:
    runs = [make_bare(tmp_path / name) for name in ("a", "b")]
    for key, command in (
        ("accuracy", "tser eval RUN"),
        ("operations", "tser energy RUN/model.nir"),
        ("energy", "tser energy RUN/model.nir"),
        ("fit", "tser export RUN --format nir"),
        ("validation", "tser validate RUN/model.nir"),
    ):
        assert command in notes(runs, key)
    assert "No run has a log" in notes(runs, "learning")
    assert "No firing rates" in notes(runs, "firing")
    text, _ = compare_runs([run.path for run in runs], "md")
    assert "All settings are the same" in text


def test_numbers_that_are_out_of_date_are_flagged(full: Run, other: Run) -> None:
    write(full.energy, energy("0" * 64))
    write(full.validation, validation("0" * 64))
    assert "energy.json of full" in notes([full, other], "operations")
    assert "energy.json of full" in notes([full, other], "energy")
    assert "validation.json of full" in notes([full, other], "validation")
    assert "Out of date" not in notes([full, other], "accuracy")


def test_other_data_are_flagged(full: Run, tmp_path: Path) -> None:
    run = make_bare(tmp_path / "fashion", data={"name": "fashion-mnist"})
    assert "different data sets" in notes([full, run], "settings")


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_bare(tmp_path / name / "run") for name in ("a", "b")]
    found = titles([read_results(run) for run in runs])
    assert found == [str(run.path) for run in runs]


def test_three_runs_make_three_columns(full: Run, other: Run, tmp_path: Path) -> None:
    third = make_bare(tmp_path / "third")
    found = rows([full, other, third], "accuracy")
    assert found["after t = 1"] == ("90.00 %", "80.00 %", "–")


@pytest.mark.parametrize("form", ["html", "md", "csv", "json"])
def test_every_format(full: Run, other: Run, tmp_path: Path, form: Any) -> None:
    out = tmp_path / f"both.{form}"
    text, _ = compare_runs([full.path, other.path], form, out)
    assert out.read_text("utf-8") == text
    if form == "html":
        assert "<title>full and other – tser comparison</title>" in text
        assert text.count('role="img"') == 1
        assert EVIL not in text
    elif form == "md":
        assert text.startswith("# Comparison of full and other\n")
        assert "| after t = 3 | – | 90.00 % |" in text
    elif form == "csv":
        found = list(csv.reader(io.StringIO(text)))
        assert ["accuracy", "Test accuracy", "after t = 3", "other", "90.00 %"] in found
    else:
        found = json.loads(text)
        assert [run["evaluation"]["timesteps"] for run in found["runs"]] == [2, 3]
        assert found["runs"][1]["energy"] is None


def test_what_cannot_be_compared_is_refused(full: Run, other: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least two"):
        compare_runs([full.path], "md")
    with pytest.raises(UsageError, match="named twice"):
        compare_runs([full.path, full.path / "."], "md")
    with pytest.raises(UsageError, match="is a folder"):
        compare_runs([full.path, other.path], "md", tmp_path)
    with pytest.raises(UsageError, match=r"eval\.json is a file of the run"):
        compare_runs([full.path, other.path], "json", other.evaluation)
    with pytest.raises(UsageError, match="nowhere"):
        compare_runs([full.path, tmp_path / "nowhere"], "md")
    write(full.energy, energy(None) | {"settings": [settings()[0] | {"sop": "many"}]})
    with pytest.raises(InputFileError, match=r"energy\.json is damaged"):
        compare_runs([full.path, other.path], "md")
