"""Energy: published figures times exact counts, and no total while a charge has no figure."""

from dataclasses import replace
from typing import Any

import nir
import numpy as np
import pytest

from tests.energy_cases import counts_of, residual_counts, row
from tests.graphs import full, lif, spikes, view
from tser.deploy.bills import NOTHING, Bill, first_steps
from tser.deploy.counting import OperationCount, count_operations
from tser.deploy.energy import Assumptions, charges, load_target, price
from tser.deploy.target_files import Target

CMOS, LOIHI = load_target("cmos45"), load_target("loihi")


def binary() -> OperationCount:
    """Counts of binary images: nothing analog."""
    return residual_counts(spikes(np.random.default_rng(0), (3, 5, 1, 4, 4)))


def _lines(bill: Bill) -> dict[str, float | None]:
    return {item.charge: None if item.energy is None else item.energy.value for item in bill.items}


# --- what is charged -----------------------------------------------------------------------


def test_cmos45_by_hand() -> None:
    counts = residual_counts()
    rows = {row.name: row for row in counts.layers}
    macs = 5 * 3 * 2 * 100  # 5 samples, 3 steps, 1 -> 2 channels, 10 x 10 in-bounds taps
    assert rows["stem"].macs == macs
    names = ("conv", "lif1->lif2", "fc")
    accumulates = sum(int(rows[name].sop_structural.sum()) for name in names)
    assert accumulates > 0
    updates = 5 * 3 * (32 + 32)
    bias = sum(row.bias_adds for row in counts.layers)
    assert bias >= 5 * 3 * 3  # of the readout alone
    expected = (4.6 * macs + 0.9 * (accumulates + bias) + 4.6 * updates) * 1e-12 / 5
    bill = price(counts, CMOS)
    assert bill.energy_joules == pytest.approx(expected, rel=1e-12)
    assert bill.energy == bill.priced
    assert bill.unpriced == []
    items = {item.charge: item for item in bill.items}
    assert items["accumulate"].count == accumulates / 5
    assert items["multiply_accumulate"].count == macs / 5
    neurons = [item.count for name, item in items.items() if name.startswith("neuron")]
    assert sum(neurons) == updates / 5
    layers = {layer.name: layer.energy for layer in bill.layers}
    assert sum(e.value or 0 for e in layers.values() if e) == pytest.approx(expected, rel=1e-12)
    assert any("memory" in line for line in bill.left_out)


def test_an_analog_layer_is_charged_its_multiplications_alone() -> None:
    analog = row(
        "analog", operation="MAC", macs=8, macs_once=4, bias_adds=6, sop_structural=np.array([5, 6])
    )
    none = {"accumulate": 0, "neuron_update_driven": 0, "neuron_update_idle": 0}
    assert charges(analog) == {**none, "multiply_accumulate": 8, "bias_add": 6}
    assert charges(analog, "once") == {**none, "multiply_accumulate": 4, "bias_add": 3}
    assert charges(analog, "host") == {**none, "multiply_accumulate": 0, "bias_add": 0}


def test_an_analog_layer_can_be_charged_once() -> None:
    counts = residual_counts()
    always, once = _lines(price(counts, CMOS)), price(counts, CMOS, Assumptions("once"))
    assert always["multiply_accumulate"] == pytest.approx(3 * 200 * 4.6e-12)
    assert _lines(once)["multiply_accumulate"] == pytest.approx(200 * 4.6e-12)
    assert "stem: analog input, computed once an inference and held" in once.left_out


def test_loihi_by_hand() -> None:
    counts = binary()
    accumulates = counts.total("sop_structural")
    driven = counts.total("neuron_updates_driven")
    idle = counts.total("neuron_updates") - driven
    sent = sum(int(row.events.sum()) for row in counts.layers if row.kind == "neuron")
    assert min(accumulates, driven, idle, sent) > 0
    bill = price(counts, LOIHI, Assumptions(hops=2.5))
    common = 23.6 * accumulates + 81 * driven + 52 * idle + 1.7 * sent
    assert bill.energy is not None
    assert bill.energy.low == pytest.approx((common + 3 * 2.5 * sent) * 1e-12 / 5, rel=1e-12)
    assert bill.energy.high == pytest.approx((common + 4 * 2.5 * sent) * 1e-12 / 5, rel=1e-12)
    assert bill.energy.value is None  # a hop is published as a range
    assert bill.inside == ["bias add: inside the figure of neuron update driven"]
    rows = [layer.energy for layer in bill.layers]
    assert sum(e.high for e in rows if e) == pytest.approx(bill.energy.high, rel=1e-12)


def test_hops_are_unpriced_until_they_are_known() -> None:
    bill = price(binary(), LOIHI)
    assert bill.energy is None
    assert [line.split(":")[0] for line in bill.unpriced] == ["spike hop"]
    assert "--hops" in bill.unpriced[0]
    local = price(binary(), LOIHI, Assumptions(hops=0))
    assert local.energy is not None
    assert local.energy.value == pytest.approx(bill.priced.value, rel=1e-12)
    assert {layer.name: layer.energy for layer in bill.layers}["lif1"] is None


def test_static_power_needs_a_time() -> None:
    bill = price(binary(), LOIHI, Assumptions(hops=0))
    assert any("--latency" in line for line in bill.left_out)
    timed = price(binary(), LOIHI, Assumptions(hops=0, latency=0.01))
    assert not any("--latency" in line for line in timed.left_out)
    assert _lines(timed)["static"] == pytest.approx(0.104 * 0.01)
    assert (timed.energy_joules or 0) - (bill.energy_joules or 0) == pytest.approx(0.00104)


def test_loihi_has_no_total_while_the_analog_layer_has_no_price() -> None:
    bill = price(residual_counts(), LOIHI, Assumptions(hops=0))
    assert bill.energy is None
    assert bill.unpriced == ["multiply accumulate: no published figure for Intel Loihi"]
    assert bill.priced.low > 0
    assert bill.layers[0].energy is None
    hosted = price(residual_counts(), LOIHI, Assumptions("host", 0))
    assert hosted.energy == bill.priced
    assert hosted.unpriced == []
    assert "stem: analog input, computed on a host" in hosted.left_out
    assert hosted.layers[0].energy == NOTHING
    assert not any("stem" in text for text in bill.left_out)


@pytest.mark.parametrize(("name", "low", "value"), [("truenorth", 2.5, 26), ("odin", 12.7, 12.7)])
def test_all_in_figures_are_not_charged_twice(name: str, low: float, value: float) -> None:
    counts = binary()
    bill = price(counts, load_target(name), Assumptions(latency=1.0))
    assert [item.charge for item in bill.items] == ["accumulate"]
    sops = counts.total("sop_structural") / 5
    assert bill.energy is not None
    assert bill.energy.low == pytest.approx(sops * low * 1e-12)
    assert bill.energy.value == pytest.approx(sops * value * 1e-12)
    inside = {line.split(":")[0] for line in bill.inside}
    assert {"neuron update driven", "neuron update idle", "static"} <= inside


def test_a_chip_without_figures_lists_what_is_missing() -> None:
    bill = price(binary(), load_target("speck"), Assumptions(latency=2.0))
    assert bill.energy is None
    assert bill.priced.value == pytest.approx(0.84e-3)  # static power alone
    missing = {line.split(":")[0] for line in bill.unpriced}
    assert missing == {"accumulate", "bias add", "neuron update driven", "neuron update idle"}
    assert "spike: no published figure" in bill.left_out


def test_a_spike_that_nothing_reads_is_not_sent() -> None:
    nodes = {"fc": nir.Linear(full((2, 3), 1)), "lif": lif(2, v_th=0.1)}
    counts = count_operations(view((3,), nodes), [np.ones((1, 3))], 2)
    assert counts.layers[-1].events.sum() > 0
    assert "spike" not in _lines(price(counts, LOIHI))


def test_what_is_not_counted_has_no_total() -> None:
    gap = {"name": "pool", "kind": "AvgPool2d", "reason": "it works on currents"}
    bill = price(replace(counts_of(0, 10), gaps=[gap]), CMOS)
    assert bill.energy is None
    assert bill.unpriced == ["pool (AvgPool2d): not counted, it works on currents"]
    assert bill.priced.value == pytest.approx(9e-12)


def test_a_charge_that_a_target_does_not_name_is_unpriced() -> None:
    values = CMOS.model_dump() | {"charges": {"accumulate": "ac_fp32"}}
    bare = Target.model_validate(values)
    assert price(counts_of(0, 10), bare).energy_joules == pytest.approx(9e-12)
    assert price(counts_of(1, 10), bare).energy is None


def test_a_run_that_stops_early() -> None:
    """Steps 1..t of counts are the counts of a run of t steps."""
    x = spikes(np.random.default_rng(0), (3, 5, 1, 4, 4))
    counts = residual_counts(x)
    for steps in (1, 2, 3):
        short = price(residual_counts(x[:steps]), CMOS)
        assert price(first_steps(counts, steps), CMOS).items == short.items
    analog = first_steps(residual_counts(), 2)
    assert analog.layers[0].macs == 5 * 2 * 200
    assert analog.layers[0].macs_once == 5 * 200


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
    bill = price(counts_of(int(macs), int(accumulates)), CMOS)
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
