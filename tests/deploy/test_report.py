"""The report, made from a small synthetic run."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.report_run import EVIL, URL, complete_run, energy, evaluation, make_bare, write
from tests.validation_files import validation
from tser.checkpoints import save_weights, weights_digest
from tser.config_file import dump_config, parse_config
from tser.deploy.charts import Line, exit_chart, line_chart, raster_chart, rate_chart
from tser.deploy.report import write_report
from tser.deploy.report_blocks import Table
from tser.deploy.report_raster import evenly
from tser.deploy.report_results import read_results
from tser.errors import InputFileError, UsageError
from tser.runs import Run

SECTIONS = {
    "summary",
    "accuracy",
    "early-exit",
    "calibration",
    "answers",
    "learning",
    "network",
    "firing",
    "raster",
    "operations",
    "time",
    "energy",
    "settings",
    "fit",
    "validation",
    "reproduce",
}


class Page(HTMLParser):
    """What a browser would see: text, ids, and every address that could be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if tag == "a" and name == "href" and not (value or "").startswith("#"):
                self.links.append(value or "")
            elif name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.addresses.append(value or "")
            if name == "aria-labelledby":
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self.words += " " * (tag in ("td", "th"))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def bare(tmp_path: Path) -> Run:
    """A run that has been trained and nothing else."""
    return make_bare(tmp_path / "first")


@pytest.fixture
def complete(bare: Run) -> Run:
    """A run with everything in it."""
    return complete_run(bare)


def html(run: Run) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_a_complete_report(complete: Run) -> None:
    text = html(complete)
    page = Page(text)
    assert set(page.ids) >= SECTIONS
    assert len(page.ids) == len(set(page.ids))
    assert set(page.references) <= set(page.ids)
    assert text.count('role="img"') == 16
    words = " ".join(page.words.split())
    for expected in (
        "98.0 %",
        "teacher 96.0 %",
        "E1",
        "equal up to certified rounding ties",
        "23.6 nJ",
        "unpriced (≥ 23.6 nJ)",
        "second hand",
        "A. Author, A chip, 2018",
        "odd (Scale): not on spikes",
        "2 of 2",  # the epoch
        "neuron (5), which is number 5 of the layer, t = 2: the reference fires",
        "tser distill 'a b'",
        "--samples 50 --target-file chip.toml --target-file process.toml",
    ):
        assert expected in words, expected
    assert "Out of date" not in words
    assert "cannot be told" not in words


def test_early_exit_and_calibration(complete: Run) -> None:
    text = html(complete)
    words = " ".join(Page(text).words.split())
    for expected in (
        "At the threshold 0.9, 1.50 steps on average give 98.0 %; all 2 steps give 98.0 %",
        "0.5 1.10 94.0 %",  # a row of the table: threshold, mean steps, accuracy
        "1.50 98.0 % 89.5 – 99.6 % 25.0 %",  # interval and steps saved
        "none 2.00 98.0 %",
        f"tser eval {complete.path} --split val",
        "t = 1 90.0 % 7.12 %",
        "t = 2 98.0 % 3.45 %",
    ):
        assert expected in words, expected
    assert "<title>confidence 0.9: 98.0 % with 1.50 steps</title>" in text


def test_no_exit_that_keeps_the_accuracy(complete: Run) -> None:
    worse = [{"threshold": 0.5, "accuracy": 0.94, "mean_steps": 1.1}]
    write(complete.evaluation, evaluation() | {"early_exit": worse})
    words = " ".join(Page(html(complete)).words.split())
    assert "None of the thresholds keeps the 98.0 % of all steps" in words


def test_an_evaluation_of_an_earlier_version(complete: Run) -> None:
    old = evaluation()
    del old["calibration_error"], old["early_exit"]
    write(complete.evaluation, old)
    text = html(complete)
    words = " ".join(Page(text).words.split())
    again = f"from an earlier version of tser. To add it, runtser eval {complete.path} "
    assert words.count(again) == 2
    assert "98.0 %" in words
    assert text.count('role="img"') == 14


def test_one_step_leaves_nothing_to_exit_from(complete: Run) -> None:
    one = parse_config({"student": {"timesteps": 1}}, "test")
    complete.config_file.write_text(dump_config(one), encoding="utf-8")
    layer = evaluation()["layers"][0] | {"firing_rate_per_step": [0.2]}
    point = {"threshold": 0.5, "accuracy": 0.9, "mean_steps": 1.0}
    short = {"timesteps": 1, "accuracy": [0.9], "calibration_error": [0.0], "layers": [layer]}
    write(complete.evaluation, evaluation() | short | {"early_exit": [point]})
    words = Page(html(complete)).words
    assert "With T = 1 there is no step to leave out." in words
    assert "calibration error" in words


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"calibration_error": [0.1]}, "1 values for 2 timesteps"),
        ({"calibration_error": [0.1, 2.0]}, r"calibration_error\.1: "),
        ({"early_exit": [{"threshold": 0.5, "accuracy": 0.9}]}, r"early_exit\.0\.mean_steps: "),
        (
            {"early_exit": [{"threshold": 0.5, "accuracy": 0.9, "mean_steps": 2.5}]},
            "2.5 mean steps of 2 timesteps",
        ),
        ({"early_exit": {"0.5": 1}}, "early_exit: "),
        ({"split": "val"}, "split: "),  # the report says "test images" throughout
    ],
)
def test_a_damaged_evaluation(complete: Run, change: dict[str, Any], said: str) -> None:
    write(complete.evaluation, evaluation() | change)
    with pytest.raises(InputFileError, match=said) as caught:
        write_report(complete)
    assert "tser eval" in str(caught.value)


def test_names_from_files_are_text(complete: Run) -> None:
    text = html(complete)
    page = Page(text)
    assert "script" not in page.tags
    assert EVIL in page.words
    assert EVIL not in text
    assert "$x_1$ <b>" in page.words  # also in the charts, where it is no formula
    assert "b" not in page.tags


def test_nothing_is_loaded_from_elsewhere(complete: Run) -> None:
    text = html(complete)
    page = Page(text)
    # Sources may be followed by who clicks on them; nothing else names a place elsewhere.
    assert set(page.links) >= {URL, "https://doi.org/10.1000/rule"}
    assert all(link.startswith("https://") for link in page.links)
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    assert page.addresses
    assert all(address.startswith(("#", "data:image/png")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address[0] == "#"} <= set(page.ids)
    assert "default-src 'none'" in text
    assert not page.tags & {"link", "iframe", "script", "object", "embed"}


def test_the_same_files_give_the_same_bytes(complete: Run, tmp_path: Path) -> None:
    first = write_report(complete).read_bytes()
    second = write_report(complete, tmp_path / "else" / "where.html")
    assert second == tmp_path / "else" / "where.html"
    assert second.read_bytes() == first


def test_what_is_missing_is_said_with_the_command(bare: Run) -> None:
    page = Page(html(bare))
    assert set(page.ids) >= SECTIONS
    for command in (
        f"tser eval {bare.path}",
        f"tser export {bare.path} --format nir",
        f"tser validate {bare.nir} --against {bare.path}",
        f"tser energy {bare.nir} --against {bare.path}",
    ):
        assert command in page.words
    assert "Not checked yet, and there is no model.nir" in page.words
    assert "no log of the training" in page.words


def test_numbers_of_another_graph_are_flagged(complete: Run) -> None:
    write(complete.validation, validation("0" * 64))
    write(complete.energy, energy("0" * 64))
    words = Page(html(complete)).words
    assert words.count("Out of date: validation.json") == 2  # in the summary and the section
    assert words.count("Out of date: energy.json") == 4
    assert "out of date; equal up to" in words


def test_numbers_of_an_unknown_graph_are_flagged(complete: Run) -> None:
    write(complete.energy, {**energy(""), "graph_digest": None})
    words = Page(html(complete)).words
    assert "Whether energy.json was made from the model.nir" in words
    assert "Out of date" not in words


def test_an_evaluation_of_another_length_is_flagged(complete: Run) -> None:
    other = parse_config({"student": {"timesteps": 3}}, "test")
    complete.config_file.write_text(dump_config(other), encoding="utf-8")
    assert "Out of date: eval.json" in Page(html(complete)).words


def test_numbers_of_another_student_are_flagged(complete: Run) -> None:
    """It was trained again, or copied here from another run."""
    torch.manual_seed(0)
    save_weights(nn.Linear(2, 2), complete.student)
    own = weights_digest(complete.student)
    assert own is not None
    then = {"student_weights": own}
    digest = read_results(complete).digest
    write(complete.evaluation, evaluation() | then)
    write(complete.validation, validation(str(digest)) | then)
    assert "Out of date" not in Page(html(complete)).words
    save_weights(nn.Linear(2, 2), complete.student)
    words = Page(html(complete)).words
    assert words.count("Out of date: validation.json was made from another graph or student") == 2
    assert "Out of date: eval.json is of other weights" in words
    assert "out of date; equal up to" in words


@pytest.mark.parametrize(
    "content",
    [b"", b"nothing", b"\xff" * 64, "{", "{}", "[]", '{"sha256": 3}', "[" * 100_000],
    ids=range(8),
)
def test_weights_that_carry_no_digest_say_nothing(complete: Run, content: bytes | str) -> None:
    complete.student.unlink()
    if isinstance(content, str):
        save_file({"a": torch.zeros(1)}, complete.student, {"tser": content})
    else:
        complete.student.write_bytes(content)
    assert weights_digest(complete.student) is None
    write(complete.evaluation, evaluation() | {"student_weights": "0" * 64})
    assert "Out of date" not in Page(html(complete)).words


@pytest.mark.parametrize("name", ["eval.json", "validation.json", "energy.json"])
def test_a_damaged_file_is_named(complete: Run, name: str) -> None:
    path = complete.path / name
    good = json.loads(path.read_text(encoding="utf-8"))
    command = f"tser {name.removesuffix('.json').replace('validation', 'validate')}"
    for content, said in (
        ('{"schema_version": 1, "data', "is damaged: it is not JSON"),
        (json.dumps({**good, "schema_version": 3}), "has schema_version 3, this version"),
        (json.dumps({"data": "digits"}), "states no schema_version"),
        (json.dumps({**good, "samples": "many"}), "is damaged: samples: "),
        (json.dumps({**good, "samples": float("nan")}), "is damaged: samples: "),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputFileError) as caught:
            write_report(complete)
        assert f"{path} {said}" in str(caught.value)
        assert command in str(caught.value)
    assert not complete.report.exists()


def test_lists_must_have_an_entry_a_step(complete: Run) -> None:
    write(complete.evaluation, evaluation() | {"accuracy": [0.5]})
    with pytest.raises(InputFileError, match="1 values for 2 timesteps"):
        write_report(complete)


def test_a_damaged_log_is_named_with_its_line(complete: Run) -> None:
    with complete.metrics.open("a", encoding="utf-8") as file:
        file.write('{"phase": "stud\n{"phase": "student"}\n')
    with pytest.raises(InputFileError, match=r"metrics\.jsonl, line 4, is damaged"):
        write_report(complete)


def test_a_last_line_that_was_not_finished_is_left_out(complete: Run) -> None:
    files = [write_report(complete), write_report(complete, form="json")]
    whole = [file.read_bytes() for file in files]
    with complete.metrics.open("a", encoding="utf-8") as file:
        file.write('{"phase": "stud')
    files = [write_report(complete), write_report(complete, form="json")]
    assert [file.read_bytes() for file in files] == whole


@pytest.mark.parametrize("epoch", [0, 2**63, 10**400])
def test_an_epoch_that_cannot_be_is_damage(complete: Run, epoch: int) -> None:
    rows = complete.metrics.read_text(encoding="utf-8").splitlines()
    last = json.loads(rows[-1]) | {"epoch": epoch}
    complete.metrics.write_text("\n".join([*rows[:-1], json.dumps(last), ""]), encoding="utf-8")
    with pytest.raises(InputFileError, match=r"metrics\.jsonl, line 3, is damaged: epoch"):
        write_report(complete)


@pytest.mark.parametrize("name", ["metrics", "evaluation", "environment", "validation", "energy"])
def test_results_larger_than_results_are_not_read(complete: Run, name: str) -> None:
    path = getattr(complete, name)
    path.touch()
    os.truncate(path, 30 << 30)  # takes no room on the disk
    with pytest.raises(InputFileError, match="more than 64 MiB"):
        write_report(complete)


def test_a_damaged_graph_is_named(complete: Run) -> None:
    complete.nir.write_bytes(b"not HDF5")
    with pytest.raises(InputFileError, match=r"model\.nir"):
        write_report(complete)


def test_an_unfinished_run_is_refused(bare: Run) -> None:
    bare.student.unlink()
    with pytest.raises(UsageError, match="incomplete"):
        write_report(bare)
    with pytest.raises(UsageError, match="is a folder"):
        write_report(bare, bare.path)


def test_the_files_of_the_run_are_not_written_over(complete: Run) -> None:
    before = complete.config_file.read_bytes()
    with pytest.raises(UsageError, match=r"config\.toml is a file of the run"):
        write_report(complete, complete.config_file)
    assert complete.config_file.read_bytes() == before
    other = complete.path / "other.html"
    assert write_report(complete, other).read_bytes() == write_report(complete, other).read_bytes()


@pytest.mark.parametrize("name", ["eval.json", "metrics.jsonl"])
def test_a_folder_in_place_of_a_file(complete: Run, name: str) -> None:
    path = complete.path / name
    path.unlink()
    path.mkdir()
    with pytest.raises(InputFileError, match=r"cannot read .*; (make it again|delete it)"):
        write_report(complete)


def test_images_that_are_not_there_leave_out_the_raster_alone(complete: Run) -> None:
    other = parse_config(
        {"student": {"timesteps": 2}, "data": {"name": "fashion-mnist", "root": "nowhere"}}, "test"
    )
    complete.config_file.write_text(dump_config(other), encoding="utf-8")
    words = Page(html(complete)).words
    assert "Not drawn: " in words
    assert "nowhere" in words


def test_rows_fit_their_table() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Table("c", ("a", "b"), (("1", "2", "3"),), "lr")


def test_neurons_are_thinned_evenly() -> None:
    spikes = np.zeros((3, 601), bool)
    spikes[:, [0, 600]] = True
    thinned = evenly(spikes, 61)
    assert thinned.shape == (3, 61)
    assert thinned[:, [0, -1]].all()
    assert evenly(spikes, 601) is spikes


def drawn(svg: str) -> set[str]:
    """The words of a drawing."""
    return set(re.findall("<text[^>]*>([^<]*)</text>", svg))


def test_thresholds_are_shown_where_they_have_room() -> None:
    """Four exits at one place and one far off: a label each place, a hint each exit."""
    exits = [(0.5, 1.2, 0.7), (0.9, 3.0, 0.9), (0.95, 3.01, 0.9), (0.99, 3.02, 0.9)]
    drawing = exit_chart("e", "exits", exits, [0.6, 0.8, 0.9, 0.9])
    labels = drawn(drawing)
    assert labels >= {"0.5", "0.9"}
    assert not labels & {"0.95", "0.99"}
    hints = re.findall("<title>(confidence [^:]*)", drawing)
    assert hints == [f"confidence {threshold:g}" for threshold, _, _ in exits]


def test_shares_have_the_digits_they_need() -> None:
    wide = Line("student", [1, 2], [0.2, 0.9], "#0072b2")
    narrow = Line("student", [1, 2], [0.981, 0.983], "#0072b2")
    for line, expected in ((wide, "45 %"), (narrow, "98.2 %")):
        text = line_chart("a", "t", [line], x_label="t", y_label="accuracy", percentages=True)
        assert expected in drawn(text)


def test_charts_stand_extremes() -> None:
    assert exit_chart("x", "exits", [(0.5, 1.0, 0.0)] * 2, [0.0, 0.0])
    one = Line("student", [1], [1.0], "#0072b2", low=[0.9], high=[1.0])
    assert "currentColor" in line_chart(
        "a", EVIL, [one], x_label="t", y_label="accuracy", percentages=True, level=("teacher", 1.0)
    )
    silent = rate_chart("b", "rates", [("\x00 字 &<", 0.0, [0.0])], "rate")
    assert "&amp;&lt;" in silent
    assert "\x00" not in silent
    names = ("L" * 300, "", "m")
    rasters = raster_chart("c", "spikes", [(name, np.ones((40, 2), bool)) for name in names])
    assert "L" * 40 not in rasters
    assert raster_chart("d", "spikes", [("silent", np.zeros((1, 1), bool))])
