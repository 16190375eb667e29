"""``tser report`` and ``tser compare`` from the command line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.acceptance.conftest import Cli, load

RUN = "runs/digits"


def test_a_run_from_evaluation_to_every_format(here: Cli, tiny: Path) -> None:
    run = tiny / RUN
    for args in (
        ["eval", RUN],
        ["energy", f"{RUN}/model.nir", "--samples", "20"],
    ):
        done = here(*args, cwd=tiny)
        assert done.returncode == 0, done.stderr
    found = json.loads((run / "eval.json").read_text("utf-8"))
    right = sum(row[k] for k, row in enumerate(found["confusion"]))
    assert right == round(found["accuracy"][-1] * found["samples"])
    wrong = [m for m in found["mistakes"] if m["true"] == m["predicted"]]
    assert found["mistakes"]
    assert not wrong

    done = here("report", RUN, "--json", cwd=tiny)
    assert done.returncode == 0, done.stderr
    assert load(done.stdout) == {
        "schema_version": 1,
        "format": "html",
        "file": f"{RUN}/report.html",
    }
    page = (run / "report.html").read_text("utf-8")
    assert page.count('<figure class="picture">') == 1 + len(found["mistakes"])
    assert "Not evaluated yet" not in page
    assert "Not priced yet" not in page

    done = here("report", RUN, "--format", "csv", cwd=tiny)
    assert f"wrote {RUN}/report.csv" in done.stderr
    with (run / "report.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.reader(file))) > 100
    done = here("report", RUN, "--out", "here.md", cwd=tiny)
    assert (tiny / "here.md").read_text("utf-8").startswith("# digits\n")
    done = here("report", RUN, "--out", "here.json", cwd=tiny)
    assert json.loads((tiny / "here.json").read_text("utf-8"))["evaluation"] == found


def test_reports_that_cannot_be_written(here: Cli, tiny: Path) -> None:
    for args, code, said in (
        (["--format", "pdf"], 2, "pdf"),
        (["--out", f"{RUN}/config.toml"], 2, "is a file of the run"),
        (["--format", "json", "--out", f"{RUN}/energy.json"], 2, "is a file of the run"),
        (["--out", RUN], 2, "is a folder"),
    ):
        done = here("report", RUN, *args, cwd=tiny)
        assert done.returncode == code
        assert said in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture
def two(tiny: Path) -> Path:
    """A folder with two runs, the second of which has no exports."""
    shutil.copytree(tiny / RUN, tiny / "runs/second")
    (tiny / "runs/second/model.nir").unlink()
    return tiny


def test_compare(here: Cli, two: Path) -> None:
    done = here("compare", RUN, "runs/second", cwd=two)
    assert done.returncode == 0, done.stderr
    assert "Accuracy: Test accuracy" in done.stdout
    assert "digits ┃" in done.stdout
    assert "No energy is priced yet" in done.stderr

    done = here("compare", RUN, "runs/second", "--format", "json", cwd=two)
    assert [run["run"] for run in load(done.stdout)["runs"]] == [RUN, "runs/second"]
    done = here("compare", RUN, "runs/second", "--out", "both.html", cwd=two)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "tser comparison" in (two / "both.html").read_text("utf-8")


def test_comparisons_that_are_refused(here: Cli, two: Path) -> None:
    for args, said in (
        ([RUN], "at least two"),
        ([RUN, RUN], "named twice"),
        ([RUN, "runs/none"], "runs/none"),
        ([RUN, "runs/second", "--out", "both.txt"], "add --format"),
        ([RUN, "runs/second", "--format", "text", "--out", "both.html"], "add --format"),
    ):
        done = here("compare", *args, cwd=two)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
