"""The memory-aware model against sums by hand, and its options."""

from typing import Any

import nir
import numpy as np
import pytest

from tests.energy_cases import residual, residual_counts
from tests.graphs import conv, full, lif, spikes, view
from tser.deploy.ann_twin import twin_bill
from tser.deploy.bills import Bill
from tser.deploy.counting import OperationCount, count_operations
from tser.deploy.energy import Assumptions, load_target
from tser.deploy.memory_bills import access_joules, price_memory
from tser.deploy.memory_model import MemoryOptions, layer_shapes, memory_options
from tser.errors import UsageError
from tser.export.graph import Graph

INT32, INT8 = load_target("cmos45-int32"), load_target("cmos45-int8")
PAPER = MemoryOptions(taps="formula")


def _counts(bill: Bill) -> dict[str, float]:
    return {item.charge: item.count for item in bill.items}


def _line(bits: int) -> float:
    return 1.09e-5 * bits + 13.2


def _conv() -> tuple[Graph, OperationCount]:
    """Stride 2, 2 -> 4 channels on 6 x 6, T = 3, one image; 3 x 3 outputs."""
    weight, bias = np.ones((4, 2, 3, 3)), np.full(4, 0.25)
    op = nir.Conv2d((6, 6), weight, 2, 1, 1, 1, bias)
    graph = view((2, 6, 6), {"conv": op, "lif": lif((4, 3, 3), v_th=4.0)})
    return graph, count_operations(graph, [spikes(np.random.default_rng(3), (3, 1, 2, 6, 6))], 3)


def test_the_formulas_of_the_paper_on_a_convolution() -> None:
    graph, counts = _conv()
    theta, out = (int(row.events.sum()) for row in counts.layers)
    assert min(theta, out) > 0
    bill = price_memory(counts, INT32, layer_shapes(graph), PAPER)
    o = 4 * 3 * 3
    expected = {
        "accumulate": theta * 2 * 2 * 4,  # ceil(3 / 2) squared
        "bias_add": 3 * o,
        "reset": out,
        "leak": 3 * o,
        "read_input": theta,
        "read_weight": theta * 4 * 9,
        "read_bias": 3 * o,
        "read_potential": theta * 4 * 9 + 3 * o,
        "write_potential": theta * 4 * 9 + 3 * o,
        "write_output": out,
        "address_accumulate": theta * 4 * 9,
        "address_multiply": 2 * theta,
    }
    assert _counts(bill) == expected
    arithmetic = expected["accumulate"] + expected["bias_add"] + expected["reset"]
    arithmetic += expected["address_accumulate"]
    multiplied = expected["leak"] + expected["address_multiply"]
    weights, potentials, queue = 4 * 2 * 9 + 4, o, 1000
    picojoules = 0.1 * arithmetic + 3.2 * multiplied
    picojoules += _line(32 * weights) * (expected["read_weight"] + expected["read_bias"])
    picojoules += _line(32 * potentials) * 2 * expected["read_potential"]
    picojoules += _line(32 * queue) * (theta + out)
    assert bill.energy_joules == pytest.approx(picojoules * 1e-12, rel=1e-12)


def test_the_formulas_of_the_paper_on_a_linear_layer() -> None:
    nodes = {"fc": nir.Affine(full((7, 5), 1), full(7, 1)), "lif": lif(7, v_th=1.0)}
    graph = view((5,), nodes)
    counts = count_operations(graph, [spikes(np.random.default_rng(0), (4, 2, 5))], 4)
    theta, out = (int(row.events.sum()) / 2 for row in counts.layers)
    assert min(theta, out) > 0
    for options in (PAPER, MemoryOptions()):  # a linear layer has no border
        bill = price_memory(counts, INT32, layer_shapes(graph), options)
        assert _counts(bill) == {
            "accumulate": theta * 7,
            "bias_add": 4 * 7,
            "reset": out,
            "leak": 4 * 7,
            "read_input": theta,
            "read_weight": theta * 7,
            "read_bias": 4 * 7,
            "read_potential": theta * 7 + 4 * 7,
            "write_potential": theta * 7 + 4 * 7,
            "write_output": out,
            "address_accumulate": theta * 7,
        }


def test_the_formulas_of_the_paper_on_the_conventional_twin() -> None:
    graph, counts = _conv()
    bill = twin_bill(counts, INT32, layer_shapes(graph), MemoryOptions())
    macs, o = counts.layers[0].ann_macs, 36
    assert macs == 4 * 2 * 8 * 8  # 3 windows of 3 taps a side, one of them outside
    assert _counts(bill) == {
        "multiply_accumulate": macs,
        "read_input": macs,
        "read_weight": macs,
        "address_accumulate": 72 + o + 4 * 9,
        "bias_add": o,
        "read_bias": o,
        "write_output": o,
    }
    picojoules = 3.2 * macs + 0.1 * (72 + o + 36 + o)
    picojoules += _line(32 * 72) * macs + _line(32 * 76) * (macs + o) + _line(32 * o) * o
    assert bill.energy_joules == pytest.approx(picojoules * 1e-12, rel=1e-12)
    reused = twin_bill(counts, INT32, layer_shapes(graph), MemoryOptions(reuse="full"))
    assert _counts(reused)["read_input"] == 72
    assert _counts(reused)["read_weight"] == 76


def test_exact_targets_are_the_counted_ones() -> None:
    graph, counts = _conv()
    bill = price_memory(counts, INT32, layer_shapes(graph))
    sops = counts.total("sop_structural")
    assert _counts(bill)["accumulate"] == _counts(bill)["read_weight"] == sops
    assert sops < _counts(price_memory(counts, INT32, layer_shapes(graph), PAPER))["accumulate"]


def test_layers_add_up_to_the_total() -> None:
    counts = residual_counts()
    bill = price_memory(counts, INT32, layer_shapes(residual()))
    assert bill.energy is not None
    parts = [layer.energy.low for layer in bill.layers if layer.energy is not None]
    assert len(parts) == len(counts.layers)
    assert sum(parts) == pytest.approx(bill.energy.low, rel=1e-12)
    assert sum(item.energy.low for item in bill.items if item.energy) == pytest.approx(sum(parts))
    for item in bill.items:
        assert item.figure is not None
        assert item.energy is not None
        mean = item.count * (item.figure.value or 0) * 1e-12
        assert mean == pytest.approx(item.energy.value, rel=1e-12)


@pytest.mark.parametrize(("first_layer", "passes"), [("charge", 3), ("once", 1), ("host", 0)])
def test_an_analog_layer_computes_like_the_twin(first_layer: Any, passes: int) -> None:
    counts = residual_counts()
    known = Assumptions(first_layer)
    bill = price_memory(counts, INT32, layer_shapes(residual()), None, known)
    assert _counts(bill).get("multiply_accumulate", 0) == passes * 200
    full_reuse = MemoryOptions(reuse="full")
    reused = price_memory(counts, INT32, layer_shapes(residual()), full_reuse, known)
    saved = _counts(bill)["read_weight"] - _counts(reused)["read_weight"]
    assert saved == pytest.approx(passes * (200 - 18))


def test_shortcuts_have_no_weights() -> None:
    counts = residual_counts()
    shapes = layer_shapes(residual())
    assert shapes["lif1->lif2"].weights == 0
    bill = price_memory(counts, INT32, shapes)
    spiking = [row for row in counts.layers if row.operation == "AC"]
    weighted = sum(int(row.sop_structural.sum()) for row in spiking if row.kind != "identity")
    assert _counts(bill)["read_weight"] == pytest.approx(weighted / 5 + 600)
    assert _counts(bill)["accumulate"] > weighted / 5


OPTIONS: dict[str, tuple[str, float]] = {
    "leak=never": ("leak", 0),
    "reset=none": ("reset", 0),
    "addressing=none": ("address_accumulate", 0),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_disputed_lines_can_be_left_out(option: str) -> None:
    graph, counts = _conv()
    line, left = OPTIONS[option]
    full_bill = price_memory(counts, INT32, layer_shapes(graph))
    bill = price_memory(counts, INT32, layer_shapes(graph), memory_options([option]))
    assert _counts(full_bill)[line] > 0
    assert _counts(bill).get(line, 0) == left
    assert (bill.energy_joules or 0) < (full_bill.energy_joules or 0)


def test_potentials_of_driven_neurons_alone() -> None:
    graph, _ = _conv()
    x = np.zeros((3, 1, 2, 6, 6))
    x[1, 0, 0, 2, 2] = 1
    counts = count_operations(graph, [x], 3)
    bill = price_memory(counts, INT32, layer_shapes(graph), memory_options(["state=driven"]))
    driven = counts.total("neuron_updates_driven")
    assert 0 < driven < counts.total("neuron_updates")
    assert _counts(bill)["leak"] == driven


def test_a_neuron_without_leak_multiplies_nothing() -> None:
    op = nir.IF(full((1, 3, 3), 1), full((1, 3, 3), 1), full((1, 3, 3), 0))
    graph = view((1, 3, 3), {"conv": conv(np.ones((1, 1, 3, 3)), (3, 3), padding=1), "if": op})
    counts = count_operations(graph, [np.ones((1, 1, 3, 3))], 2)
    bill = price_memory(counts, INT32, layer_shapes(graph))
    assert "leak" not in _counts(bill)
    always = price_memory(counts, INT32, layer_shapes(graph), memory_options(["leak=always"]))
    assert _counts(always)["leak"] == 18


def test_a_synaptic_current_is_a_second_state() -> None:
    one = full(2, 0.1)
    op = nir.CubaLIF(tau_syn=one, tau_mem=one, r=one, v_leak=one, v_threshold=one)
    graph = view((3,), {"fc": nir.Linear(full((2, 3), 1)), "cuba": op})
    counts = count_operations(graph, [np.ones((1, 3))], 2)
    bill = price_memory(counts, INT32, layer_shapes(graph))
    assert _counts(bill)["leak"] == 2 * 2 * 2
    assert _counts(bill)["read_potential"] == 2 * 6 + 8


@pytest.mark.parametrize(
    ("ram", "kibibytes", "picojoules"),
    [
        ("linear", 8, 13.9143424),
        ("interpolated", 0, 0),
        ("interpolated", 4, 5),
        ("interpolated", 8, 10),
        ("interpolated", 20, 15),
        ("interpolated", 32, 20),
        ("interpolated", 1024, 100),
        ("interpolated", 4096, 100),
        ("word64", 1024, 5),
    ],
)
def test_one_access(ram: str, kibibytes: int, picojoules: float) -> None:
    bits = kibibytes * 1024 * 8
    assert access_joules(bits, INT32, ram) == pytest.approx(picojoules * 1e-12, rel=1e-12)


def test_short_words_share_an_access() -> None:
    assert access_joules(1, INT8, "word64") == pytest.approx(10 / 8 * 1e-12)


def test_a_target_without_memory_figures() -> None:
    bare = INT32.model_copy(
        update={"figures": {k: v for k, v in INT32.figures.items() if "sram" not in k}}
    )
    assert access_joules(0, bare, "linear") == pytest.approx(13.2e-12)
    with pytest.raises(UsageError, match="sram_8k"):
        access_joules(0, bare, "word64")


def test_an_operation_without_a_figure_is_unpriced() -> None:
    graph, counts = _conv()
    bare = INT32.model_copy(update={"charges": INT32.charges | {"multiply_accumulate": ""}})
    bill = price_memory(counts, bare, layer_shapes(graph))
    assert bill.energy is None
    assert bill.unpriced == [f"leak: no published figure for {INT32.title}"]
    assert [layer.energy is None for layer in bill.layers] == [False, True]
    assert bill.priced.low > 0


def test_a_chip_has_its_memory_already() -> None:
    graph, counts = _conv()
    with pytest.raises(UsageError, match="'loihi' are of a chip"):
        price_memory(counts, load_target("loihi"), layer_shapes(graph))


@pytest.mark.parametrize(
    ("pair", "words"),
    [("rom=linear", "did you mean 'ram'"), ("ram=dram", "ram is one of linear"), ("ram", "one of")],
)
def test_unknown_choices_are_named(pair: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        memory_options([pair])
