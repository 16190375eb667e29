"""The conventional twin and the published break-even rules."""

import numpy as np
import pytest

from tests.energy_cases import residual_counts, row
from tser.deploy.ann_twin import ann_twin, twin_bill
from tser.deploy.break_even import break_even, firing_rate, spikes_per_synapse
from tser.deploy.counting import OperationCount
from tser.deploy.energy import load_target
from tser.errors import UsageError

CMOS = load_target("cmos45")


def test_the_twin_multiplies_every_connection_once() -> None:
    counts = residual_counts()
    twin = ann_twin(counts, CMOS)
    assert twin["macs"] == 200 + 400 + 96  # stem, conv, fc; a sum of currents is none
    bias = counts.total("bias_adds") // 15
    assert bias >= 3
    assert twin["energy_joules"] == pytest.approx((4.6 * 696 + 0.9 * bias) * 1e-12, rel=1e-12)
    assert twin["figure"]["value"] == 4.6
    assert any("memory" in line for line in twin["left_out"])


def test_the_twin_by_layer() -> None:
    bill = twin_bill(residual_counts(), CMOS)
    layers = {layer.name: layer.energy for layer in bill.layers}
    assert layers["fc"] is not None
    assert layers["fc"].value == pytest.approx((4.6 * 96 + 0.9 * 3) * 1e-12)
    known = [energy.low for energy in layers.values() if energy is not None]
    assert sum(known) == pytest.approx(bill.priced.low)


def test_the_twin_has_the_precision_of_its_target() -> None:
    twin = ann_twin(residual_counts(), load_target("cmos45-int8"))
    assert twin["figure"]["value"] == 0.23
    assert twin["target"] == "cmos45-int8"


def test_a_folded_pool_does_not_swell_the_twin() -> None:
    rows = [row("readout", dense=10_240, ann_macs=640)]
    assert ann_twin(OperationCount(rows, 1, 2), CMOS)["macs"] == 640


def test_a_chip_has_no_twin() -> None:
    with pytest.raises(UsageError, match="chip"):
        twin_bill(residual_counts(), load_target("loihi"))


# --- break-even ----------------------------------------------------------------------------


def _spiking(sops: int, spikes: int, steps: int = 5) -> OperationCount:
    """100 connections, 40 of an identity shortcut that do not count, 20 neurons, 2 samples."""
    events = np.zeros(steps, np.int64)
    carried, sent = events.copy(), events.copy()
    carried[0], sent[-1] = sops, spikes
    rows = [
        row("stem", operation="MAC", macs=999, dense=10**6),
        row("lif", kind="neuron", source="lif", operation="", events=sent, neurons=20),
        row("conv", source="lif", sop_structural=carried, dense=100 * steps * 2),
        row("skip", kind="identity", source="lif", sop_structural=carried, dense=40 * steps * 2),
        row("last", kind="neuron", source="last", operation="", events=events + 99, neurons=7),
    ]
    rows = [
        row(
            r.name,
            **{
                **{k: getattr(r, k) for k in ("kind", "source", "operation", "events", "dense")},
                "sop_structural": r.sop_structural,
                "neurons": r.neurons,
                "neuron_updates": r.neurons * steps * 2,
            },
        )
        for r in rows
    ]
    return OperationCount(rows, 2, steps)


def test_spikes_a_synapse() -> None:
    assert spikes_per_synapse(_spiking(sops=60, spikes=0)) == pytest.approx(60 / 200)
    assert spikes_per_synapse(OperationCount([], 1, 1)) is None


def test_the_firing_rate_of_neurons_that_are_read() -> None:
    assert firing_rate(_spiking(sops=0, spikes=10)) == pytest.approx(10 / 200)
    assert firing_rate(OperationCount([], 1, 1)) is None


@pytest.mark.parametrize(
    ("sops", "verdict"), [(29, "below"), (30, "between"), (276, "between"), (277, "above")]
)
def test_the_rule_of_dampfhoffer(sops: int, verdict: str) -> None:
    rule = break_even(_spiking(sops, 0))[0]
    assert (rule["low"], rule["high"], rule["verdict"]) == (0.15, 1.38, verdict)
    assert rule["url"] == "https://doi.org/10.1109/TETCI.2022.3214509"


@pytest.mark.parametrize(("spikes", "verdict"), [(11, "below"), (12, "above")])
def test_the_rule_of_yan(spikes: int, verdict: str) -> None:
    rule = break_even(_spiking(0, spikes))[1]
    assert (rule["low"], rule["verdict"], rule["applies"]) == (0.057, verdict, True)
    assert "3-bit" in rule["quantity"]


def test_the_rule_of_yan_is_of_five_steps() -> None:
    rule = break_even(_spiking(0, 1, steps=8))[1]
    assert not rule["applies"]
    assert "T = 8" in rule["text"]
    assert "4-bit" in rule["quantity"]


def test_rules_without_spikes_say_so() -> None:
    assert [rule["verdict"] for rule in break_even(OperationCount([], 1, 5))] == ["not known"] * 2
