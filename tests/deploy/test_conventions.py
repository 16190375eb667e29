"""Conventions of LIF neurons: ours is the interpreter's, and a recording names its own."""

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from tests.graphs import DT, Array, dyadic, full, lif, view
from tests.nodes import cuba
from tser.deploy.backends import Trace
from tser.deploy.certificate import Audit
from tser.deploy.conventions import (
    DEPARTURES,
    IN_WORDS,
    Departure,
    compatible,
    emulate,
    explain,
    follow,
    relevant,
)
from tser.deploy.importers import load_importers
from tser.deploy.interpreter import run
from tser.export.nir_file import read_nir

PAPER = Path(__file__).parent.parent / "data" / "nir-paper"
STEP = 1e-4


def _recorded(simulator: str) -> Array:
    return np.loadtxt(PAPER / f"lif_{simulator}.csv", delimiter=",")


def _neuron() -> nir.LIF:
    (op,) = [n for n in read_nir(PAPER / "lif_norse.nir").nodes.values() if isinstance(n, nir.LIF)]
    return op


def _explain(simulator: str, *, membrane: bool = False) -> list[tuple[Departure, ...]]:
    recorded = _recorded(simulator)
    current = _recorded("norse")[:, :1]  # others scale what they record as input
    v = recorded[:, 1:2] if membrane else None
    return explain(_neuron(), STEP, current, recorded[:, 2:], v)


@pytest.mark.parametrize("simulator", ["norse", "snntorch", "exact"])
def test_recordings_that_keep_to_the_equations(simulator: str) -> None:
    assert _explain(simulator) == [()]


def test_what_sinabs_does() -> None:
    assert _explain("sinabs") == [("exponential_decay",)]
    # The membrane shows how it is reset, which these spikes alone do not.
    assert ("exponential_decay", "subtractive_reset") in _explain("sinabs", membrane=True)
    (table,) = [entry for entry in load_importers() if entry.name == "Sinabs"]
    assert {"exponential_decay", "subtractive_reset"} <= set(table.conventions)


def test_what_nothing_explains() -> None:
    noise = (np.random.default_rng(0).random((1000, 1)) < 0.01).astype(float)
    assert explain(_neuron(), STEP, _recorded("norse")[:, :1], noise) == []


NEURONS = {
    "LIF": lif(3, v_leak=0.125, v_reset=-0.25, r=1.5),
    "IF": nir.IF(full(3, 0.5 / DT), full(3, 1), full(3, -0.25)),
    "CubaLIF": cuba(nir.CubaLIF, v_leak=0.25, v_reset=-0.5, w_in=1.5),
}


@pytest.mark.parametrize("op", NEURONS.values(), ids=NEURONS)
def test_no_departure_is_the_interpreter(op: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (40, 3, 3))
    out, _ = run(view((3,), {"cell": op}), x, dtype=np.float64)
    np.testing.assert_array_equal(emulate(op, DT, x)[0], out)
    assert 0 < out.mean() < 1


@pytest.mark.parametrize("op", NEURONS.values(), ids=NEURONS)
@pytest.mark.parametrize("exact", [True, False])
def test_the_membrane_is_the_certificates_and_the_bound_covers_float32(
    op: Any, exact: bool
) -> None:
    rng = np.random.default_rng(1)
    x = dyadic(rng, (12, 5, 3)) if exact else rng.normal(1, 2, (12, 5, 3)).astype(np.float32)
    graph = view((3,), {"cell": op})
    out, _ = run(graph, x)
    audit = Audit(graph, x, Trace(out, {"cell": out > 0}), {})
    margins, drive = audit.margins(graph.nodes["cell"]), audit.current(graph.nodes["cell"])
    course = follow(op, DT, drive.value, error=drive.error, forced=out > 0)
    np.testing.assert_allclose(course.membrane - op.v_threshold, margins.value, atol=1e-12)
    # Neuron by neuron some are exact where the certificate has one answer for the layer.
    assert ((course.error >= margins.error) | (course.error == 0)).all()
    if exact and not isinstance(op, nir.CubaLIF):
        assert not course.error.any()


def test_a_constant_current_is_held() -> None:
    op, drive = NEURONS["LIF"], np.random.default_rng(0).normal(1, 1, (1, 4, 3))
    held = follow(op, DT, drive, steps=9)
    np.testing.assert_array_equal(held.spikes, emulate(op, DT, np.repeat(drive, 9, 0))[0])
    late = follow(op, DT, drive, ["one_step_delay"], steps=9)
    np.testing.assert_array_equal(late.spikes[1:], held.spikes[:-1])


def test_only_what_can_matter_is_tried() -> None:
    plain = relevant(lif(3))
    assert "reset_to_zero" not in plain
    assert "no_synaptic_gain" not in plain
    assert {"no_leak_value", "no_resistance"}.isdisjoint(plain)
    assert {"reset_to_zero", "no_leak_value", "no_resistance"} <= {*relevant(NEURONS["LIF"])}
    assert "exponential_decay" not in relevant(NEURONS["IF"])
    assert "no_synaptic_gain" in relevant(NEURONS["CubaLIF"])
    readout = relevant(nir.LI(full(3, 1e-3), full(3, 1), full(3, 0)))
    assert set(readout) == {"exponential_decay", "exponential_gain", "no_gain", "one_step_delay"}
    assert not compatible(["no_reset", "reset_to_zero"])
    assert compatible(["no_reset", "no_gain"])


def test_several_spikes_in_a_step_and_a_reset_a_step_late() -> None:
    op = lif(1, tau=DT)  # v is the input
    counts, after = emulate(op, DT, full((2, 1), 3.5), ["multi_spike", "subtractive_reset"])
    assert (counts[:, 0].tolist(), after[:, 0].tolist()) == ([3, 3], [0.5, 0.5])
    slow = lif(1, tau=2 * DT)
    # 3/2 fires; 9/4 less 1 fires; 17/8 less 1 fires.
    late = follow(slow, DT, full((3, 1), 3), ["subtractive_reset", "late_reset"])
    assert late.membrane[:, 0].tolist() == [1.5, 1.25, 1.125]
    # 3/2 fires; what is set to 0 a step later cannot; 3/2 fires.
    late = follow(slow, DT, full((3, 1), 3), ["late_reset"])
    assert late.spikes[:, 0].tolist() == [1, 0, 1]


def _drive(departure: str) -> tuple[Any, Array]:
    """A neuron and input on which a departure shows."""
    if departure == "at_threshold":
        return lif(1, tau=2 * DT), full((1, 1), 2)  # dt/tau = 1/2: v is 1 exactly
    own = {
        "reset_to_zero": lif(1, tau=3 * DT, v_reset=-0.5),
        "no_leak_value": lif(1, tau=3 * DT, v_leak=0.25),
        "no_resistance": lif(1, tau=3 * DT, r=0.5),
        "no_synaptic_gain": cuba(nir.CubaLIF, tau_syn=3 * DT),
    }
    if departure in own:
        size = len(own[departure].r)
        return own[departure], np.random.default_rng(1).normal(1, 3, (60, size))
    drive = np.abs(np.random.default_rng(1).normal(3, 4, (60, 1)))
    return lif(1, tau=3 * DT), drive


@pytest.mark.parametrize("departure", DEPARTURES)
def test_a_convention_is_recognised(departure: Departure) -> None:
    op, drive = _drive(departure)
    chosen: tuple[Departure, ...] = (departure,)
    spikes, _ = emulate(op, DT, drive, chosen)
    assert departure in relevant(op)
    assert not np.array_equal(spikes, emulate(op, DT, drive)[0])
    assert chosen in explain(op, DT, drive, spikes)
    assert IN_WORDS[departure]


def test_every_departure_in_the_table_has_words() -> None:
    assert IN_WORDS.keys() == set(DEPARTURES)
