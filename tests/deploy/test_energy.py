"""Energy: published figures times exact counts, and no total while a charge has no figure."""

import itertools
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from pydantic import ValidationError

from tests.graphs import Array, conv, flatten, full, lif, network, pool, spikes, view
from tser.data import load_data
from tser.deploy.counting import LayerCount, OperationCount, count_operations
from tser.deploy.energy import (
    Target,
    ann_twin,
    charges,
    layer_joules,
    load_target,
    price,
    target_names,
)
from tser.deploy.measure import COLUMNS, measure
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph, resolve

CMOS, LOIHI = load_target("cmos45"), load_target("loihi")
NONE = np.zeros(1, np.int64)


def _row(name: str, **values: Any) -> LayerCount:
    known: dict[str, Any] = {"kind": "conv", "source": "", "operation": "AC"}
    counts = {"events": NONE, "sop_structural": NONE, "sop_effective": NONE}
    return LayerCount(name, **(known | counts | values))


def _counts(macs: int, accumulates: int, samples: int = 1) -> OperationCount:
    rows = [
        _row("analog", operation="MAC", macs=macs, sop_structural=np.array([10**15])),
        _row("spiking", sop_structural=np.array([accumulates // 2, accumulates // 2])),
    ]
    return OperationCount(rows, samples, 2)


def _network(rng: np.random.Generator) -> Graph:
    nodes = {
        "stem": conv(rng.normal(size=(2, 1, 3, 3)), (4, 4), padding=1),
        "lif1": lif((2, 4, 4), v_th=0.2),
        "conv": conv(rng.normal(size=(2, 2, 3, 3)), (4, 4), padding=1),
        "lif2": lif((2, 4, 4), v_th=0.2),
        "flatten": flatten(),
        "fc": nir.Affine(rng.normal(size=(3, 32)).astype(np.float32), full(3, 0)),
    }
    edges = [*itertools.pairwise(["input", *nodes, "output"]), ("lif1", "lif2")]
    return resolve(network((1, 4, 4), nodes, edges, (3,)))


def _measured(x: Array | None = None) -> OperationCount:
    rng = np.random.default_rng(0)
    graph = _network(rng)
    return count_operations(graph, [rng.normal(size=(5, 1, 4, 4)) if x is None else x], 3)


# --- what is charged -----------------------------------------------------------------------


def test_cmos45_by_hand() -> None:
    counts = _measured()
    rows = {row.name: row for row in counts.layers}
    macs = 5 * 3 * 2 * 100  # 5 samples, 3 steps, 1 -> 2 channels, 10 x 10 in-bounds taps
    assert rows["stem"].macs == macs
    names = ("conv", "lif1->lif2", "fc")
    accumulates = sum(int(rows[name].sop_structural.sum()) for name in names)
    assert accumulates > 0
    updates = 5 * 3 * (32 + 32)
    expected = (4.6 * macs + 0.9 * accumulates + 4.6 * updates) * 1e-12 / 5
    bill = price(counts, CMOS)
    assert bill.energy_joules == pytest.approx(expected, rel=1e-12)
    assert bill.energy_joules == bill.priced_joules
    assert bill.unpriced == []
    items = {item.charge: item for item in bill.items}
    assert items["accumulate"].count == accumulates / 5
    assert items["multiply_accumulate"].count == macs / 5
    neurons = [item.count for name, item in items.items() if name.startswith("neuron")]
    assert sum(neurons) == updates / 5
    layers = [layer_joules(row, 5, CMOS) for row in counts.layers]
    assert sum(layer or 0 for layer in layers) == pytest.approx(expected, rel=1e-12)
    assert layers[0] == pytest.approx(4.6e-12 * macs / 5)


def test_an_analog_layer_is_charged_its_multiplications_alone() -> None:
    row = _row("analog", operation="MAC", macs=7, sop_structural=np.array([5, 6]))
    assert charges(row) == {
        "accumulate": 0,
        "multiply_accumulate": 7,
        "neuron_update_driven": 0,
        "neuron_update_idle": 0,
    }
    assert charges(row, "host")["multiply_accumulate"] == 0


def test_loihi_by_hand() -> None:
    rng = np.random.default_rng(0)
    counts = _measured(spikes(rng, (3, 5, 1, 4, 4)))  # binary images: nothing analog
    accumulates = counts.total("sop_structural")
    driven = counts.total("neuron_updates_driven")
    idle = counts.total("neuron_updates") - driven
    assert min(accumulates, driven, idle) > 0
    expected = (23.6 * accumulates + 81 * driven + 52 * idle) * 1e-12 / 5
    assert price(counts, LOIHI).energy_joules == pytest.approx(expected, rel=1e-12)


def test_loihi_has_no_total_while_the_analog_layer_has_no_price() -> None:
    counts = _measured()
    bill = price(counts, LOIHI)
    assert bill.energy_joules is None
    assert bill.unpriced == ["multiply accumulate: no published figure for Intel Loihi"]
    assert bill.priced_joules > 0
    assert layer_joules(counts.layers[0], 5, LOIHI) is None
    hosted = price(counts, LOIHI, "host")
    assert hosted.energy_joules == pytest.approx(bill.priced_joules, rel=1e-12)
    assert hosted.unpriced == []
    assert "stem: analog input, computed on a host" in hosted.left_out
    assert layer_joules(counts.layers[0], 5, LOIHI, "host") == 0
    assert not any("stem" in text for text in bill.left_out)


def test_what_is_not_counted_has_no_total() -> None:
    gap = {"name": "pool", "kind": "AvgPool2d", "reason": "it works on currents"}
    counts = OperationCount(_counts(0, 10).layers, 1, 2, [gap])
    bill = price(counts, CMOS)
    assert bill.energy_joules is None
    assert bill.unpriced == ["pool (AvgPool2d): not counted, it works on currents"]
    assert bill.priced_joules == pytest.approx(9e-12)


def test_a_charge_that_a_target_does_not_name_is_unpriced() -> None:
    bare = Target.model_validate(_values() | {"charges": {"accumulate": "ac_fp32"}})
    assert price(_counts(0, 10), bare).energy_joules == pytest.approx(9e-12)
    assert price(_counts(1, 10), bare).energy_joules is None


# --- published totals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accumulates", "macs", "millijoules"),
    [
        (0.10e9, 0.14e9, 0.734),  # syops README: Spiking-ResNet-18
        (0.50e9, 2.75e9, 13.10),  # SEW-ResNet-18
        (1.69e9, 0.20e9, 2.44),  # DSNN-18
        (0, 1.82e9, 8.372),  # ResNet-18
        (11.09e9, 4 * 86.7e6, 11.58),  # Spikformer-8-512, T = 4
    ],
)
def test_published_energies(accumulates: float, macs: float, millijoules: float) -> None:
    bill = price(_counts(int(macs), int(accumulates)), CMOS)
    assert bill.energy_joules == pytest.approx(millijoules * 1e-3, rel=1e-3)


def _dense(op: Any, shape: tuple[int, ...]) -> int:
    counts = count_operations(view(shape, {"layer": op}), [np.zeros((1, *shape))], 1)
    return counts.layers[0].dense


def test_published_dense_operations_of_a_keyword_spotter() -> None:
    """NeuroBench: 1,880,256 for M5 on 8,000 samples; pools of 4 between the convolutions."""
    total, length, inputs = 0, 8000, 1
    for outputs, kernel, stride in ((32, 80, 16), (32, 3, 1), (64, 3, 1), (64, 3, 1)):
        weight, bias = np.ones((outputs, inputs, kernel)), np.zeros(outputs)
        op = nir.Conv1d(None, weight, stride, 0, 1, 1, bias)
        total += _dense(op, (inputs, length))
        length, inputs = ((length - kernel) // stride + 1) // 4, outputs
    total += _dense(nir.Linear(full((35, 64), 1)), (64,))
    assert (length, total) == (1, 1_880_256)


@pytest.mark.parametrize(("channels", "dense"), [(96, 4_900), (192, 9_700)])
def test_published_dense_operations_of_a_motor_decoder(channels: int, dense: int) -> None:
    """NeuroBench: the two-layer network that decodes movements of non-human primates."""
    nodes = {"fc1": nir.Linear(full((50, channels), 1)), "lif": lif(50)}
    graph = view((channels,), nodes | {"fc2": nir.Linear(full((2, 50), 1))})
    counts = count_operations(graph, [np.zeros((1, channels))], 1)
    assert counts.total("dense") == dense


# --- the conventional twin -----------------------------------------------------------------


def test_the_twin_multiplies_every_connection_once() -> None:
    twin = ann_twin(_measured())
    assert twin["macs"] == 200 + 400 + 96  # stem, conv, fc; a sum of currents is none
    assert twin["energy_joules"] == pytest.approx(4.6e-12 * 696, rel=1e-12)
    assert twin["figure"]["value_pj"] == 4.6


def test_a_folded_pool_does_not_swell_the_twin() -> None:
    rows = [_row("readout", dense=10_240, ann_macs=640)]
    assert ann_twin(OperationCount(rows, 1, 1))["macs"] == 640


# --- target files --------------------------------------------------------------------------


def _values(name: str = "cmos45") -> dict[str, Any]:
    text = (resources.files("tser.deploy") / "targets" / f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


@pytest.mark.parametrize("name", target_names())
def test_every_figure_says_where_it_comes_from(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.left_out
    for figure in target.figures.values():
        for text in (figure.unit, figure.operating_point, figure.scope, figure.source):
            assert text.strip()
        assert figure.unit.startswith("pJ")


def test_the_published_figures() -> None:
    cmos = {name: figure.value_pj for name, figure in CMOS.figures.items()}
    assert cmos == {"ac_fp32": 0.9, "mac_fp32": 4.6}
    assert {figure.evidence for figure in CMOS.figures.values()} == {"measured"}
    loihi = {name: figure.value_pj for name, figure in LOIHI.figures.items()}
    assert loihi == {
        "synaptic_operation": 23.6,
        "neuron_update_active": 81,
        "neuron_update_inactive": 52,
    }
    for figure in LOIHI.figures.values():
        assert (figure.evidence, figure.second_hand) == ("simulated", True)
    assert any("static power" in text for text in LOIHI.left_out)


FIGURE = _values()["figures"]["ac_fp32"]
STRICT: dict[str, dict[str, Any]] = {
    "unknown key": {"voltage": 0.9},
    "unknown charge": {"charges": {"multiply": "mac_fp32"}},
    "figure missing": {"charges": {"accumulate": "ac_fp16"}},
    "unknown key of a figure": {"figures": {"ac_fp32": FIGURE | {"note": ""}}},
    "figure without source": {
        "figures": {"ac_fp32": {k: v for k, v in FIGURE.items() if k != "source"}}
    },
    "no energy": {"figures": {"ac_fp32": FIGURE | {"value_pj": 0}}},
    "unknown evidence": {"figures": {"ac_fp32": FIGURE | {"evidence": "guessed"}}},
    "another version": {"schema_version": 2},
    "a name nobody can type": {"name": "45 nm"},
}


@pytest.mark.parametrize("case", STRICT)
def test_target_files_are_strict(case: str) -> None:
    values = _values() | {"charges": {"accumulate": "ac_fp32"}}
    Target.model_validate(values)
    with pytest.raises(ValidationError):
        Target.model_validate(values | STRICT[case])


def test_an_unknown_target_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match="there is no target 'lohi', did you mean 'loihi'"):
        load_target("lohi")


@pytest.mark.parametrize("text", ["schema_version = ", "schema_version = 1"])
def test_a_broken_target_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "loihi.toml").write_text(text)
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(InputFileError, match=r"the target file loihi.toml is not") as caught:
        load_target("loihi")
    assert "\n" not in str(caught.value)


# --- the document --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    nodes = {
        "stem": conv(rng.normal(size=(2, 1, 3, 3)), (8, 8), padding=1),
        "lif": lif((2, 8, 8), v_th=0.2),
        "pool": pool(nir.AvgPool2d, 8),
        "flatten": flatten(),
        "fc": nir.Affine(rng.normal(size=(10, 2)).astype(np.float32), full(10, 0)),
    }
    graph = view((1, 8, 8), nodes, timesteps=3, sha256="ab")
    digits, targets = load_data("digits"), [CMOS, LOIHI]
    return measure(graph, digits, targets, origin="net.nir", samples=150)


def test_the_document_says_what_was_measured(document: dict[str, Any]) -> None:
    assert {key: document[key] for key in ("schema_version", "graph", "data", "split")} == {
        "schema_version": 1,
        "graph": "net.nir",
        "data": "digits",
        "split": "test",
    }
    assert (document["samples"], document["timesteps"]) == (150, 3)
    assert (document["graph_digest"], document["first_layer"]) == ("ab", "charge")


def test_the_document_is_per_inference(document: dict[str, Any]) -> None:
    layers = {layer["name"]: layer for layer in document["layers"]}
    assert list(layers) == ["stem", "lif", "fc"]
    stem, neurons, head = layers.values()
    assert (stem["kind"], stem["operation"], stem["macs"]) == ("conv", "MAC", 3 * 2 * 22**2)
    assert stem["macs_once"] == 2 * 22**2
    assert stem["dense_padded"] == 3 * 2 * 9 * 64
    assert (neurons["neurons"], neurons["neuron_updates"]) == (128, 3 * 128)
    assert neurons["firing_rate"] == pytest.approx(neurons["events"] / (3 * 128))
    assert head["sop_structural"] == pytest.approx(10 * neurons["events"])
    for layer in layers.values():
        assert sum(layer["events_per_step"]) == pytest.approx(layer["events"])
        assert sum(layer["sop_structural_per_step"]) == pytest.approx(layer["sop_structural"])
    totals = document["totals"]
    for column in set(COLUMNS) - {"events"}:
        assert totals[column] == pytest.approx(sum(layer[column] for layer in layers.values()))
    assert totals["spikes"] == neurons["events"]
    assert totals["events"] == pytest.approx(stem["events"] + head["events"])
    assert totals["accumulates"] == head["sop_structural"]


def test_the_document_has_the_bills(document: dict[str, Any]) -> None:
    cmos, loihi = document["targets"]
    assert (cmos["name"], loihi["name"]) == ("cmos45", "loihi")
    assert cmos["energy_joules"] == pytest.approx(sum(i["joules"] for i in cmos["items"]))
    assert cmos["energy_joules"] == pytest.approx(sum(i["joules"] for i in cmos["layers"]))
    assert loihi["energy_joules"] is None
    assert loihi["unpriced"]
    assert [layer["joules"] is None for layer in loihi["layers"]] == [True, False, False]
    assert all(item["figure"]["source"] for item in cmos["items"])
    assert document["gaps"] == []
