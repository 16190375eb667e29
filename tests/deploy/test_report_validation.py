"""The validation section of a report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.validation_files import backend, divergence, layer, probe, validation
from tser.config_file import dump_config, parse_config
from tser.deploy import report_flips
from tser.deploy.report import write_report
from tser.deploy.report_flip_charts import (
    MOST_CELLS,
    STEPS_AROUND,
    Divergence,
    divergence_chart,
    flip_chart,
    membrane_chart,
    seed_chart,
)
from tser.deploy.report_svg import INK
from tser.errors import InputFileError
from tser.runs import Run

EVIL = "<script>alert(1)</script>"
FIGURES = ("raster", "membrane", "flips", "seeds")


class Words(HTMLParser):
    """The text of a page and the names of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        self.text += " " * (tag in ("td", "th", "dt", "dd", "p", "li", "h3"))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has been trained and nothing else."""
    run = Run(tmp_path / "first")
    run.path.mkdir()
    config = parse_config({"student": {"timesteps": 2}}, "test")
    run.config_file.write_text(dump_config(config), encoding="utf-8")
    run.student.touch()
    return run


def report(run: Run, found: dict[str, Any]) -> str:
    """The page, of which the section is all that has a chart."""
    run.validation.write_text(json.dumps(found), encoding="utf-8")
    return write_report(run).read_text(encoding="utf-8")


def figures(text: str) -> list[str]:
    """Keys of the drawings in the page."""
    return re.findall(r'<svg [^>]*aria-labelledby="validation-(\S+)-title"', text)


def same() -> dict[str, Any]:
    """An executor without a flip."""
    return backend("onnx", layer(flips=(0, 0)))


def wrong() -> dict[str, Any]:
    """An executor that follows another rule."""
    bad = {"violations": 9, "uncertified_seeds": 1, "certified_bound": 0.0, "best_lag": 1}
    known = {"layer": "neurons", "rules": ["subtractive_reset"], "text": "a reset that subtracts"}
    return backend(
        "snntorch",
        layer("neurons", (4, 30), **bad),
        layer("late", (0, 12), seeds=0, seeds_per_step=[0, 0]),
        layer("quiet", (0, 0)),
        verdict="E3",
        reason="46 flips; 9 spikes that rounding cannot explain",
        diagnosis=[known],
        remark="snnTorch subtracts the threshold",
        not_replayed="loops are not replayed",
        first_divergence=divergence(v_minus_threshold=0.25),
    )


def test_a_tie_is_shown_from_its_seed_to_what_followed(run: Run) -> None:
    text = report(run, validation("", backend()))
    assert figures(text) == [f"1-{name}" for name in FIGURES]
    words = Words(text).text
    for expected in (
        "neuron (5), which is number 5 of the layer, t = 2: the reference fires and the "
        "candidate, ONNX Runtime, is silent",
        "The membrane is 1e-07 above the threshold, and rounding can move it by 1e-05: a tie",
        "There it touches the threshold.",
        "neurons ✓ 70 1 1 of 1 1e-07 of 1e-05 0 0.013 0 1 1",  # the row of the layer
        "neurons 0 1 (1)",  # flips of each step, seeds in brackets
        "25.00 % → 26.00 %",
    ):
        assert expected in words, expected
    assert "1 layer has no flip" not in words


@pytest.mark.parametrize(("flips", "words"), [(1, "at most 1 flip in"), (2, "at most 2 flips in")])
def test_flips_are_counted_in_words(run: Run, flips: int, words: str) -> None:
    found = backend("onnx", layer(flips=(flips, 0)), flips=flips)
    assert words in Words(report(run, validation("", found))).text


def test_another_rule_is_named(run: Run) -> None:
    text = report(run, validation("", same(), wrong()))
    assert figures(text) == [f"2-{name}" for name in FIGURES]
    words = Words(text).text
    for expected in (
        "not equivalent: snnTorch; at most 46 flips",  # in the summary
        "ONNX Runtime ✓ E0: every spike is the same 0 7,000 0 0 of 50",
        "snnTorch ✗ E3: not equivalent 46 7,000 1 0 of 50",
        "a reset that subtracts",
        "Known beforehand: snnTorch subtracts the threshold",
        "not replayed loops are not replayed",
        "The membrane is 0.25 above the threshold, and rounding can move it by 1e-05: no tie",
        "A filled mark below the threshold, or a hollow one above it",
        "neurons ✗ 70 34 0 of 1 – 9 0.013 +1 1 1",
        "late ✓ 70 12 –",
        "1 layer has no flip and is not drawn",
    ):
        assert expected in words, expected
    assert "most, 30, in neurons at step 2</title>" in text


def test_equal_spikes_need_one_sentence(run: Run) -> None:
    text = report(run, validation("", same()))
    assert figures(text) == []
    words = Words(text).text
    assert "All 7,000 spikes and silences are the same, so there is no divergence" in words
    assert "where flips begin" not in words
    assert "Probes" not in words


def test_an_executor_that_cannot_run(run: Run) -> None:
    reason = "layer 'x' has neurons of shape (1,), the student has (2,)"
    broken = {"flips": 0, "seeds": 0, "neuron_steps": 0, "layers": []}
    none = backend("norse", reason=reason, verdict="E3", first_divergence=None) | broken
    text = report(run, validation("", none, samples=0, accuracy={}))
    assert figures(text) == []
    words = Words(text).text
    assert f"finding {reason}" in words
    assert "Nothing could be compared; the finding says why." in words
    assert "Norse ✗ E3: not equivalent – – – –" in words
    assert "All 0 spikes" not in words
    assert "not equivalent: Norse" in words  # in the summary
    assert "--backend norse" in words
    assert "--samples 0" not in words  # which tser validate refuses
    assert "No spike was compared on a data set." in words


def test_flips_that_nothing_could_be_held_against(run: Run) -> None:
    """Two ONNX models: there is no graph to bound rounding on."""
    bare = {"seeds": 0, "seeds_per_step": [0, 0], "certified_bound": 0.0}
    window = {name: divergence()["window"][name] for name in ("first_neuron", "position")}
    window |= {"reference": [[1, 0], [1, 1]], "candidate": [[1, 0], [1, 0]]}
    first = divergence(v_minus_threshold=None, bound=None, window=window, reference=False)
    layers = layer(flips=(0, 3), replayed_flips=None, one_step_flips=None, **bare)
    text = report(
        run,
        validation(
            "",
            backend("onnx", layers, verdict="E2", first_divergence=first, uncertifiable="no graph"),
        ),
    )
    assert figures(text) == ["1-raster", "1-flips"]
    words = Words(text).text
    assert "the reference is silent and the candidate, ONNX Runtime, fires" in words
    assert "could not be bounded" in words
    assert "neurons – 70 3 – – – 0.013 0 – –" in words  # neither right nor wrong
    assert "frames mark cells" not in words
    assert "seeds among them" not in labels(text)


def test_two_graphs_on_inputs_without_answers(run: Run) -> None:
    found = validation("", same(), reference="the reference", split="", data="x.npy", accuracy={})
    differ = {"static": {"identical": False, "differences": ["n.tau differs"]}}
    words = Words(report(run, found | differ | {"student_digest": None})).text
    assert "with that of the reference, on 50 inputs of x.npy" in words
    assert "The checked graph differs from the reference." in words
    assert "n.tau differs" in words
    assert "Accuracy of every executor" not in words
    assert "student is" not in words


def test_probes(run: Run) -> None:
    said = [{"layer": "a", "rules": [], "text": "a delay of one step"}]
    probes = [
        probe("onnx"),
        probe("snntorch", "E3", flips=12, diagnosis=said),
        probe("all", None, network="dyadic twin, v_leak", reason="a threshold of 0", counts=False),
        probe("onnx", network="known by hand", probe="tie", counts=False),
        probe("snntorch", "E3", network="known by hand", probe="tie", counts=False),
        probe("onnx", network="known by hand", probe="delay", counts=False),
    ]
    words = Words(report(run, validation("", same(), probes=probes))).text
    for expected in (
        "network: input ONNX Runtime snnTorch given: zero ✓ E0 ✗ E3",
        "dyadic twin, v_leak: zero not run not run",
        "known by hand: delay ✓ E0 –",
        "given: zero snnTorch 12 yes a delay of one step",
        "dyadic twin, v_leak: zero all 0 no a threshold of 0",
        "What went wrong in 3 of 6 probes",
        "has no say in the verdict",
        "--backend onnx --samples 50 --probes",
    ):
        assert expected in words, expected
    passed = Words(report(run, validation("", same(), probes=[probe("onnx")]))).text
    assert "given: zero ✓ E0" in passed
    assert "What went wrong" not in passed
    assert "no say in the verdict" not in passed
    assert "No probe could be run" in Words(report(run, validation("", same(), probes=[]))).text


def test_a_verdict_that_only_a_probe_gives(run: Run) -> None:
    found = validation("", same(), probes=[probe("onnx", "E3")], verdict="E3")
    assert "not equivalent: on a probe" in Words(report(run, found)).text
    contradiction = found | {"contradictions": ["T is 4"]}
    assert "not equivalent: the file contradicts itself" in Words(report(run, contradiction)).text


def test_names_from_the_file_are_text(run: Run) -> None:
    names = [EVIL, "$x_1$ <b>"]
    evil = backend(
        EVIL,
        *(layer(name, (5, 5)) for name in names),
        source=EVIL,
        reason=EVIL,
        remark=EVIL,
        not_replayed=EVIL,
        diagnosis=[{"layer": EVIL, "rules": [], "text": EVIL}],
        first_divergence=divergence(layer=EVIL),
    )
    said = probe(EVIL, "E3", network=EVIL, probe=EVIL, reason=EVIL)
    text = report(run, validation("", evil, probes=[said], accuracy={EVIL: [0.5, 0.5]}))
    assert figures(text) == [f"1-{name}" for name in FIGURES]
    page = Words(text)
    assert not page.tags & {"script", "b"}
    assert EVIL not in text
    assert page.text.count(EVIL) > 15
    assert "$x_1$ <b>" in page.text


def test_an_older_file_is_to_be_made_again(run: Run) -> None:
    with pytest.raises(InputFileError) as caught:
        report(run, validation("") | {"schema_version": 1})
    assert "has schema_version 1, this version of tser reads 2; make it again" in str(caught.value)
    assert "tser validate" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"membrane_reference": [0.5]}, "1 values for 2 timesteps"),
        ({"reference": [[0], [0, 1], [1, 0]]}, "1 values for 2 timesteps"),
        ({"candidate": [[0, 1]]}, "other numbers of neurons"),
        ({"reference": [[0, 2]] * 3}, "reference.0.1: "),
        ({"position": 3}, "position 3 of 3 neurons"),
        ({"threshold": "high"}, "threshold: "),
    ],
)
def test_a_damaged_window(run: Run, change: dict[str, Any], said: str) -> None:
    window = divergence()["window"] | change
    damaged = backend(first_divergence=divergence(window=window))
    with pytest.raises(InputFileError, match=r"validation\.json is damaged: ") as caught:
        report(run, validation("", damaged))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "found",
    [
        backend("onnx", layer(flips=(1,))),
        backend("onnx", layer(seeds_per_step=[1])),
        backend("onnx", layer(firing_rate_candidate=[0.5] * 3)),
        backend(first_divergence=divergence(t=2)),
    ],
)
def test_lists_must_have_an_entry_a_step(run: Run, found: dict[str, Any]) -> None:
    with pytest.raises(InputFileError, match="2 timesteps"):
        report(run, validation("", found))


def labels(svg: str) -> list[str]:
    """The words of a drawing, in order."""
    return re.findall("<text[^>]*>([^<]*)</text>", svg)


def around(t: int, steps: int) -> Divergence:
    reference = np.zeros((3, steps), bool)
    reference[1, t] = True
    return Divergence(t, 1, 10, reference, np.zeros((3, steps), bool))


@pytest.mark.parametrize(
    ("t", "steps", "shown"),
    [
        (0, 1, slice(0, 1)),
        (0, 200, slice(0, 40)),
        (100, 200, slice(80, 120)),
        (199, 200, slice(160, 200)),
    ],
)
def test_steps_around_a_divergence(t: int, steps: int, shown: slice) -> None:
    found = around(t, steps)
    assert STEPS_AROUND == 40
    assert found.shown == shown
    assert divergence_chart("a", EVIL, found, ("reference", "candidate")).count("<svg") == 1
    membrane = [0.1] * steps
    drawing = membrane_chart("b", "m", found, (membrane, membrane), 1.0)
    assert "currentColor" in drawing
    assert INK not in drawing


def paths(svg: str, paint: str) -> list[str]:
    """The outlines that are drawn with ``paint``."""
    drawn = re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg)
    return [outline for outline, style in drawn if paint in style]


def test_only_what_one_run_has_is_coloured() -> None:
    reference = np.array([[1, 1, 0], [0, 1, 1]], bool)
    candidate = np.array([[1, 0, 0], [0, 1, 0]], bool)
    found = Divergence(1, 0, 0, reference, candidate)
    drawing = divergence_chart("f", "spikes", found, ("reference", "candidate"))
    dashes = [
        sum(path.count("M") for path in paths(drawing, f"stroke: {colour}; stroke-width: 3.4"))
        for colour in ("currentColor", "var(--series-1)", "var(--series-2)")
    ]
    assert dashes == [2 + 2 + 1, 2 + 1, 0 + 1]  # and one of each in the legend


def test_cells_are_where_their_counts_are() -> None:
    drawing = flip_chart("g", "flips", [("a", [0, 0, 7], [0] * 3), ("b", [0, 0, 0], [0] * 3)])
    found = re.search(r'<text [^>]*x="([0-9.]+)" y="([0-9.]+)"[^>]*>7</text>', drawing)
    assert found is not None
    cell, *_ = (path for path in paths(drawing, "fill: var(--series-1)") if path.count("L") == 3)
    places = np.array(re.findall(r"[ML] ([0-9.]+) ([0-9.]+)", cell), float)
    at = np.array(found.groups(), float)
    assert (places.min(0) < at).all()
    assert (at < places.max(0)).all()


def test_many_steps_share_a_column() -> None:
    flips = [1] * 1000
    drawing = flip_chart("c", "flips", [("a", flips, [0] * 1000)])
    assert f"step (columns of {-(-1000 // MOST_CELLS)})" in labels(drawing)
    assert "10–99" in labels(drawing)  # 16 flips a column
    assert "1–9" in labels(drawing)  # of which the last has 8 steps


def test_a_heat_map_shades_powers_of_ten() -> None:
    drawing = flip_chart(
        "d", "flips", [("a", [0, 7, 9999], [0, 1, 0]), ("b", [0, 0, 123456], [0] * 3)]
    )
    words = labels(drawing)
    assert {"7", "9.9k", "120k", "1–9", "from 1k", "from 100k", "seeds among them"} <= set(words)
    assert "0" not in words
    shades = re.findall(r"fill: var\(--series-1\)[^\"]*(?:fill-)?opacity: ([0-9.]+)", drawing)
    assert len(set(shades)) == 3


def test_propagated_flips_are_those_that_are_no_seeds(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def draw(key: str, title: str, layers: Any) -> str:
        drawn.extend(layers)
        return "<svg></svg>"

    monkeypatch.setattr(report_flips, "seed_chart", draw)
    report(run, validation("", wrong()))
    assert drawn == [("neurons", 1, 33), ("late", 0, 12)]


def test_seeds_against_propagated() -> None:
    layers = [("stem", 1, 0), ("L" * 300, 0, 16236), ("none", 0, 0)]
    words = labels(seed_chart("e", "seeds", layers))
    assert {"stem", "seeds", "propagated", "10k"} <= set(words)
    assert all(len(word) < 40 for word in words)
