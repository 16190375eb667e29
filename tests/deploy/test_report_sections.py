"""Sections of the report that draw on single answers, the graph, its costs and chips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from tests.graphs import conv, full, lif, view
from tests.report_run import (
    EVIL,
    complete_run,
    confusion,
    energy,
    evaluation,
    make_bare,
    settings,
    write,
)
from tser.config_file import dump_config, parse_config
from tser.deploy.network_chart import Box, network_chart, places
from tser.deploy.report_answers import answers
from tser.deploy.report_blocks import (
    Block,
    Chart,
    Gallery,
    Note,
    Section,
    Sources,
    Table,
    Text,
    span,
)
from tser.deploy.report_charts import confusion_chart, tradeoff_chart
from tser.deploy.report_energy import energy as energy_section
from tser.deploy.report_fit import CHIPS, fitting
from tser.deploy.report_formats import flat
from tser.deploy.report_network import network
from tser.deploy.report_reproduce import reproduce
from tser.deploy.report_results import Results, read_results
from tser.deploy.report_time import over_time
from tser.deploy.report_tradeoff import tradeoff
from tser.errors import InputFileError
from tser.runs import Run

Change = Callable[..., Results]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return complete_run(make_bare(tmp_path / "first"))


@pytest.fixture
def changed(run: Run) -> Change:
    """The results of the run with other values in eval.json or energy.json."""

    def change(file: str = "", **values: Any) -> Results:
        if file == "eval":
            write(run.evaluation, evaluation() | values)
        if file == "energy":
            digest = read_results(run).digest
            write(run.energy, energy(digest) | values)
        return read_results(run)

    return change


def blocks(section: Section, kind: type[Block]) -> list[Any]:
    return [block for block in flat(section.blocks) if isinstance(block, kind)]


def cells(section: Section) -> str:
    """All words of the tables of a section."""
    tables = blocks(section, Table)
    return "\n".join(" ".join(row) for table in tables for row in (*table.rows, table.footer))


def notes(section: Section) -> str:
    return " ".join(f"{note.text} {note.command}" for note in blocks(section, Note))


# --- answers ---------------------------------------------------------------------------------


def test_mistakes_are_drawn_from_the_test_images(changed: Change) -> None:
    section = answers(changed())
    (gallery,) = blocks(section, Gallery)
    (image,) = gallery.pictures
    assert image.address.startswith("data:image/png;base64,")
    assert image.description == f"Test image 1, of class {EVIL}9, taken for {EVIL}8"
    assert "87.5" in image.caption
    found = cells(section)
    assert f"{EVIL}9 → {EVIL}8 1 20.0" in found
    assert f"{EVIL}9 5 4 80.0" in found  # recall: four of five
    assert f"{EVIL}8 6" not in found  # a row counts true images, not answers
    assert f"{EVIL}8 5 5 100.0 % 83.3 %".replace(" %", "\u00a0%") in found


def test_a_data_set_that_is_not_there(run: Run) -> None:
    other = {"data": {"name": "fashion-mnist", "root": "nowhere"}, "student": {"timesteps": 2}}
    run.config_file.write_text(dump_config(parse_config(other, "test")), encoding="utf-8")
    section = answers(read_results(run))
    assert "Not drawn: " in notes(section)
    assert "nowhere" in notes(section)
    assert not blocks(section, Gallery)
    assert "1 " + EVIL + "9" in cells(section)  # the list is still there


@pytest.mark.parametrize("mistake", [{"index": 10**6, "true": 9}, {"index": 0, "true": 9}])
def test_other_images_than_were_evaluated(changed: Change, mistake: dict[str, int]) -> None:
    found = [{"predicted": 8, "confidence": 0.5, **mistake}]
    section = answers(changed("eval", mistakes=found))
    assert "not those that eval.json was made from" in notes(section)
    assert not blocks(section, Gallery)


def test_answers_without_mistakes_and_with_too_many_classes(changed: Change) -> None:
    right = [[5 * (i == j) for j in range(10)] for i in range(10)]
    section = answers(changed("eval", confusion=right, mistakes=[]))
    assert "Every image is given its class." in [text.text for text in blocks(section, Text)]
    section = answers(changed("eval", confusion=None))
    assert "too many classes" in notes(section)
    old = evaluation()
    for key in ("confusion", "mistakes", "class_names"):
        old[key] = None
    assert "earlier version" in notes(answers(changed("eval", **old)))


def test_many_classes_are_drawn_without_numbers(changed: Change) -> None:
    rows = [[50 * (i == j == 0) for j in range(120)] for i in range(120)]
    section = answers(changed("eval", confusion=rows, class_names=None))
    assert not blocks(section, Chart)
    rows = [row[:30] for row in rows[:30]]
    drawing = confusion_chart("c", "matrix", rows, [f"class {k}" for k in range(30)])
    assert "class 0" in drawing
    assert ">50<" not in drawing


@pytest.mark.parametrize(
    ("matrix", "said"),
    [([[50, 0]], "is not square"), ([[49]], "does not hold 50 samples"), ([[-1]], "confusion.0.0")],
)
def test_a_damaged_matrix(changed: Change, matrix: list[list[int]], said: str) -> None:
    with pytest.raises(InputFileError, match=said):
        changed("eval", confusion=matrix)


# --- the graph -------------------------------------------------------------------------------


def test_the_graph_is_drawn_and_listed(changed: Change) -> None:
    section = network(changed())
    (chart,) = blocks(section, Chart)
    for name in ("input", "flat", "hidden", "neurons", "readout", "output", "LIF → 70"):
        assert f">{name}</text>" in chart.svg
    assert "hidden Affine – flat 64 70 4,550" in cells(section)
    assert "neurons LIF tau " in cells(section)


def test_a_long_graph_is_listed_alone(changed: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tser.deploy.report_network.MOST_DRAWN", 5)
    section = network(changed())
    assert not blocks(section, Chart)
    assert "6 nodes are more than can be read" in notes(section)
    assert "hidden Affine" in cells(section)


def residual() -> dict[str, tuple[int, int]]:
    return places(
        [
            Box("input", "", "other", ()),
            Box("shortcut", "", "synapse", (("input", False),)),
            Box("one", "", "synapse", (("input", False),)),
            Box("two", "", "neuron", (("one", False), ("sum", True))),
            Box("sum", "", "neuron", (("two", False), ("shortcut", False))),
        ]
    )


def test_the_main_path_is_one_column() -> None:
    assert residual() == {
        "input": (0, 0),
        "one": (1, 0),
        "shortcut": (1, 1),
        "two": (2, 0),
        "sum": (3, 0),
    }


def test_recurrent_and_wide_graphs_are_drawn() -> None:
    boxes = [Box("in", EVIL, "other", ())]
    boxes += [Box(f"b{k}", "text", "neuron", (("in", False), (f"b{k}", True))) for k in range(6)]
    boxes.append(Box("out", "text", "other", tuple((f"b{k}", False) for k in range(6))))
    boxes.append(Box("late", "text", "other", (("out", False), ("in", False))))
    drawing = network_chart("n", "wide", boxes)
    assert EVIL not in drawing
    assert drawing.count("stroke-dasharray") >= 6  # an arrow back to itself for each
    assert drawing.count("<text") == 2 * len(boxes)


def test_settings_of_convolutions_and_pools(
    changed: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.ones((3, 2, 3, 3), np.float32)
    nodes = {
        "conv": conv(weights, (4, 4), padding=1),
        "cells": lif((3, 4, 4)),
        "pool": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "flat": nir.Flatten({"input": np.array([3, 2, 2])}, start_dim=-3, end_dim=-1),
        "out": nir.Linear(full((2, 12), 1)),
    }
    monkeypatch.setattr(Results, "graph", view((2, 4, 4), nodes), raising=False)
    results = changed()
    object.__setattr__(results, "graph", view((2, 4, 4), nodes))
    found = cells(network(results))
    assert "conv Conv2d kernel 3×3, stride 1, padding 1 input 2×4×4 3×4×4 57" in found
    assert "pool AvgPool2d kernel 2, stride 2 cells 3×4×4 3×2×2" in found


# --- costs -----------------------------------------------------------------------------------


def test_energy_states_figures_ranges_twin_and_rules(changed: Change) -> None:
    section = energy_section(changed())
    found = cells(section).replace("\u00a0", " ")
    for expected in (
        "A chip unpriced (≥ 23.6 nJ) multiply accumulate",
        "A process 23.6 nJ",
        "ANN twin, A process 47.2 nJ",
        "hop of a spike 5 3..4 pJ simulated, second hand unpriced",
        "multiply-accumulate (MAC) 5 none published – unpriced",
        "0.75 V per operation: one synaptic operation simulated a work that cites it 1",
        "firing rate spikes per neuron and step 0.25 0.057 above 5.7 % 1",
    ):
        assert expected in found, expected
    words = " ".join(text.text for text in blocks(section, Text))
    assert "the twin takes 2 times the energy of the student" in words
    assert "Not stated for a run such as this one: firing rate" in notes(section)
    sources = {item for block in blocks(section, Sources) for item in block.items}
    assert ("A. Author, A chip, 2018", "https://doi.org/10.1000/chip") in sources


def test_an_address_that_is_not_https_is_refused(changed: Change) -> None:
    rule = energy(None)["break_even"][0] | {"url": "javascript:alert(1)"}
    with pytest.raises(InputFileError, match=r"break_even\.0\.url"):
        changed("energy", break_even=[rule])
    with pytest.raises(ValueError, match="not an https address"):
        Sources("Sources:", (("a", "javascript:alert(1)"),))


def test_assumptions_are_repeated_in_the_commands(changed: Change) -> None:
    model = {"name": "memory", "options": {"ram": "word64", "taps": "exact"}}
    results = changed("energy", model=model, hops=2.0, latency_seconds=0.01, first_layer="once")
    code = str(reproduce(results).blocks)
    expected = "--model memory --memory ram=word64 --first-layer once --hops 2 --latency 0.01"
    assert expected in code
    assert "taps" not in code


def test_costs_over_time(changed: Change) -> None:
    section = over_time(changed())
    assert len(blocks(section, Chart)) == 2
    assert "Not drawn, as there is no total: A chip." in notes(section)
    found = cells(section).replace("\u00a0", " ")
    assert "t = 1 90.0 % 400 unpriced 10 nJ (5 nJ – 10 nJ)" in found
    assert "t = 2 98.0 % 1 k unpriced 23.6 nJ (10 nJ – 23.6 nJ)" in found


def test_costs_of_another_t_stand_without_accuracy(changed: Change, run: Run) -> None:
    layer = evaluation()["layers"][0] | {"firing_rate_per_step": [0.2]}
    other = {"timesteps": 1, "accuracy": [0.9], "calibration_error": [0.1], "layers": [layer]}
    results = changed("eval", early_exit=[], **other)
    (table,) = blocks(over_time(results), Table)
    assert table.columns[:2] == ("after", "SOP")


def test_an_energy_file_of_an_earlier_version(changed: Change) -> None:
    with pytest.raises(InputFileError, match=r"schema_version 1, .* reads 2; .*tser energy"):
        changed("energy", schema_version=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": [settings()[0] | {"t": None}]}, "does not say which"),
        ({"settings": [settings()[0] | {"accuracy": 2}]}, r"settings\.0\.accuracy"),
        ({"timesteps": 3}, "2 values for 3 timesteps"),
    ],
)
def test_a_damaged_energy_file(changed: Change, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputFileError, match=said):
        changed("energy", **change)


# --- settings --------------------------------------------------------------------------------


def test_settings_and_their_front(changed: Change) -> None:
    assert "--settings" in notes(tradeoff(changed()))
    chosen = {"target": "process", "max_drop": 0.5, "setting": 2, "text": "confidence 0.9 will do"}
    results = changed("energy", settings=settings(), choices=[chosen])
    section = tradeoff(results)
    assert "test images: choose by those for validation" in str(section)
    assert "at most 0.5 percentage points" in str(section)
    assert "confidence 0.9 will do" in str(section)
    assert "--max-drop 0.5" in str(reproduce(results))
    found = cells(section).replace("\u00a0", " ")
    assert "t = 1 1.00 90.00 % 500 unpriced 10 nJ ●" in found
    assert "t = 2 2.00 98.00 % 1 k unpriced 23.6 nJ\n" in found
    assert "confidence 0.9 1.50 98.00 % 750 unpriced 17 nJ ●" in found
    assert "confidence 0.5 1.50 80.00 % 750 unpriced 12 nJ\n" in found
    assert len(blocks(section, Chart)) == 1
    assert "Not drawn, as there is no total: A chip." in notes(section)


def test_settings_on_validation_images(changed: Change) -> None:
    results = changed("energy", settings=settings(), split="val")
    assert "50 validation images" in str(tradeoff(results))
    assert "choose by" not in str(tradeoff(results))
    (table,) = blocks(over_time(results), Table)
    assert table.columns[1] == "SOP"  # the accuracy that is known is of test images
    assert "--settings --split val" in str(reproduce(results))


def test_a_front_of_one_point() -> None:
    drawing = tradeoff_chart("t", "one", [("always", [("t = 1", 1e-6, 0.5)])], [(1e-6, 0.5)], "J")
    assert "<title>t = 1</title>" in drawing


# --- fit -------------------------------------------------------------------------------------


def test_every_chip_has_a_verdict_and_its_limits(changed: Change) -> None:
    section = fitting(changed())
    overview, *limits = blocks(section, Table)
    assert len(overview.rows) == len(limits) == len(CHIPS)
    loihi = next(row for row in overview.rows if row[0] == "Intel Loihi")
    assert loihi[1] == "✗ does not fit"  # it takes spikes only, and sums cannot be read
    assert not loihi[2].startswith("✗")
    (found,) = [table for table in limits if "Intel Loihi" in table.caption]
    assert found.rows[0][1] == "✗ does not fit"
    assert {row[1] for row in found.rows} <= {"✗ does not fit", "✓ fits", "? unchecked"}
    assert "tser fit" in notes(section)


def test_a_range_in_words() -> None:
    assert span(None, None, None) == "unpriced"
    assert span(2e-9, 1e-9, 2e-9).replace("\u00a0", " ") == "2 nJ (1 nJ – 2 nJ)"
    assert span(2e-9, 2e-9, 2e-9).replace("\u00a0", " ") == "2 nJ"
    assert sum(map(sum, confusion())) == 50
