"""Target files: schema, what ships, a user's own, and what `tser targets` shows of them."""

import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import ValidationError
from typer.testing import CliRunner

from tser.cli.main import app
from tser.deploy.target_files import (
    Figure,
    Target,
    choose_targets,
    load_target,
    read_target,
    target_names,
)
from tser.errors import InputFileError, UsageError

CHIPS = [
    "truenorth",
    "loihi",
    "loihi2",
    "spinnaker",
    "spinnaker2",
    "brainscales2",
    "odin",
    "reckon",
    "tianjic",
    "darwin3",
    "seneca",
    "mubrain",
    "speck",
    "xylo",
    "akida",
]
CMOS = {"cmos45": (0.9, 4.6), "cmos45-fp16": (0.4, 1.5), "cmos45-int8": (0.03, 0.23)}
CMOS |= {"cmos45-int32": (0.1, 3.2)}


def _values(name: str = "cmos45") -> dict[str, Any]:
    text = (resources.files("tser.deploy") / "targets" / f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def test_all_chips_ship() -> None:
    assert set(target_names()) == {*CHIPS, *CMOS}


@pytest.mark.parametrize("name", target_names())
def test_every_figure_says_where_it_comes_from(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    for label, figure in target.figures.items():
        assert len(figure.source) > 20, label
        assert figure.operating_point.strip()
        charged = label in target.charges.values()
        shown = "not charged" in figure.covers or label.startswith("sram")
        assert charged or shown, f"{label} is neither charged nor said not to be"


@pytest.mark.parametrize("name", CMOS)
def test_the_arithmetic_figures(name: str) -> None:
    target = load_target(name)
    accumulate, multiply = CMOS[name]
    for charge, value in (("accumulate", accumulate), ("multiply_accumulate", multiply)):
        figure = target.figure(charge)
        assert figure is not None
        assert figure.value == value
        assert figure.second_hand
    sram = [target.figures[key].value for key in ("sram_8k", "sram_32k", "sram_1m")]
    assert sram == [10, 20, 100]


PUBLISHED = {
    ("loihi", "accumulate"): "23.6 pJ",
    ("loihi", "neuron_update_driven"): "81 pJ",
    ("loihi", "neuron_update_idle"): "52 pJ",
    ("loihi", "spike"): "1.7 pJ",
    ("loihi", "spike_hop"): "3..4 pJ",
    ("loihi", "static"): "104 mW",
    ("truenorth", "accumulate"): "26 pJ (2.5..26)",
    ("odin", "accumulate"): "12.7 pJ (12.7..54)",
    ("spinnaker", "accumulate"): "13300 pJ",
    ("spinnaker2", "accumulate"): "10..450 pJ",
    ("spinnaker2", "neuron_update_idle"): "2190 pJ",
    ("darwin3", "accumulate"): "5.47 pJ",
    ("reckon", "accumulate"): "5.3 pJ",
    ("tianjic", "accumulate"): "1.54 pJ",
    ("mubrain", "accumulate"): "26 pJ",
    ("seneca", "accumulate"): "2.8 pJ",
    ("seneca", "spike"): "2 pJ",
    ("speck", "static"): "0.42 mW",
    ("xylo", "static"): "0.219 mW",
}


@pytest.mark.parametrize(("name", "charge"), PUBLISHED)
def test_the_published_figures(name: str, charge: Any) -> None:
    figure = load_target(name).figure(charge)
    assert figure is not None
    assert figure.text == PUBLISHED[name, charge]


def test_nothing_is_made_up() -> None:
    """A chip has no figure per operation beside those above."""
    priced = {(name, c) for name in CHIPS for c in load_target(name).charges}
    priced = {(name, c) for name, c in priced if load_target(name).figure(c) is not None}
    same = {("loihi", "neuron_update_idle"), ("spinnaker", "neuron_update_driven")}
    same |= {("spinnaker", "neuron_update_idle"), ("spinnaker2", "neuron_update_driven")}
    assert priced == set(PUBLISHED) | same


@pytest.mark.parametrize("name", ["truenorth", "odin"])
def test_all_in_figures_hold_the_neurons(name: str) -> None:
    target = load_target(name)
    assert target.inside["neuron_update_driven"] == "accumulate"
    assert target.inside["static"] == "accumulate"


# --- strictness ----------------------------------------------------------------------------

FIGURE = _values()["figures"]["ac_fp32"]
ALL_IN = FIGURE | {"scope": "all-in"}


def _figures(**changes: Any) -> dict[str, Any]:
    return {"figures": {"ac_fp32": FIGURE | changes}}


STRICT: dict[str, dict[str, Any]] = {
    "unknown key": {"voltage": 0.9},
    "unknown charge": {"charges": {"multiply": "mac_fp32"}},
    "figure missing": {"charges": {"accumulate": "ac_fp16"}},
    "unknown key of a figure": _figures(note=""),
    "figure without source": {
        "figures": {"ac_fp32": {k: v for k, v in FIGURE.items() if k != "source"}}
    },
    "no energy": _figures(value=0),
    "not a number": _figures(value=float("nan")),
    "value outside its range": _figures(low=1.0, high=2.0),
    "half a range": {
        "figures": {"ac_fp32": {k: v for k, v in FIGURE.items() if k != "value"} | {"low": 1.0}}
    },
    "unknown evidence": _figures(evidence="guessed"),
    "unknown unit": _figures(unit="nJ"),
    "power per operation": _figures(unit="mW"),
    "a source without a link": _figures(url="on my desk"),
    "another version": {"schema_version": 1},
    "a name nobody can type": {"name": "45 nm"},
    "charged and inside": {"inside": {"accumulate": "accumulate"}},
    "inside what has no figure": {"inside": {"static": "spike"}},
    "inside and omitted": {"inside": {"static": "accumulate"}, "omitted": {"static": "small"}},
    "all-in, and neurons apart": {"figures": {"ac_fp32": ALL_IN}},
    "a process without bits": {"word_bits": None},
    "nothing left out": {"left_out": [], "notes": []},
}


@pytest.mark.parametrize("case", STRICT)
def test_target_files_are_strict(case: str) -> None:
    values = _values() | {"charges": {"accumulate": "ac_fp32"}, "omitted": {}}
    Target.model_validate(values)
    with pytest.raises(ValidationError):
        Target.model_validate(values | STRICT[case])


def test_a_figure_in_words() -> None:
    def text(**changes: Any) -> str:
        return Figure.model_validate(FIGURE | changes).text

    assert text() == "0.9 pJ"
    assert text(low=0.5) == "0.9 pJ (0.5..0.9)"
    assert text(value=None, low=0.5, high=2) == "0.5..2 pJ"


def test_an_unknown_target_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match="there is no target 'lohi', did you mean 'loihi'"):
        load_target("lohi")


@pytest.mark.parametrize("text", ["schema_version = ", "schema_version = 2"])
def test_a_broken_target_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "loihi.toml").write_text(text)
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(InputFileError, match=r"the target file loihi.toml is not") as caught:
        load_target("loihi")
    assert "\n" not in str(caught.value)


# --- a user's own --------------------------------------------------------------------------


def _own(folder: Path, **changes: Any) -> Path:
    path = folder / "own.toml"
    path.write_bytes(tomli_w.dumps(_values() | {"name": "own"} | changes).encode())
    return path


def test_a_users_own_target(tmp_path: Path) -> None:
    path = _own(tmp_path, title="Mine")
    assert [t.name for t in choose_targets(["loihi", "loihi"], [path])] == ["loihi", "own"]
    assert read_target(path).title == "Mine"
    with pytest.raises(UsageError, match="already a target 'own'"):
        choose_targets([], [path, path])


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"[charges", b"voltage = 1"])
def test_a_users_broken_target_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputFileError, match=r"bad\.toml") as caught:
        read_target(path)
    assert "\n" not in str(caught.value)


def test_the_example_of_the_docs_is_a_target(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "energy.md").read_text("utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    path = tmp_path / "mine.toml"
    path.write_text(example, "utf-8")
    assert read_target(path).name == "mine"


# --- tser targets --------------------------------------------------------------------------


def test_targets_are_listed() -> None:
    done = CliRunner().invoke(app, ["targets"])
    assert done.exit_code == 0
    rows = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("│")}
    assert {*CHIPS, *CMOS} <= set(rows)
    assert "12.7 pJ (12.7..54)" in rows["odin"]
    assert rows["odin"].count("inside") == 2
    assert rows["akida"].count("–") == 4


def test_figures_are_shown_with_their_source(tmp_path: Path) -> None:
    args = ["targets", "loihi", "odin", "--target-file", str(_own(tmp_path))]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0
    loihi, odin, own = re.split(r"^(?=\w+: )", done.stdout, flags=re.M)[1:]
    assert "3..4 pJ per hop of a spike between tiles" in loihi
    assert "https://doi.org/10.1109/MM.2018.112130359" in loihi
    assert "multiply accumulate: unpriced: nothing published" in loihi
    assert "neuron update idle: inside the figure of accumulate" in odin
    assert own.startswith("own: ")


def test_targets_as_json() -> None:
    done = CliRunner().invoke(app, ["targets", "speck", "--json"])
    (speck,) = json.loads(done.stdout)["targets"]
    assert Target.model_validate(speck) == load_target("speck")
