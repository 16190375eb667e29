"""Conventions of LIF neurons: ours is the interpreter's, and a recording names its own."""

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from tests.graphs import DT, Array, full, lif, view
from tser.deploy.conventions import DEPARTURES, IN_WORDS, Departure, emulate, explain
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


def test_no_departure_is_the_interpreter() -> None:
    rng = np.random.default_rng(0)
    op = lif(5, v_leak=0.125, v_reset=-0.25, r=1.5)
    x = rng.normal(1, 2, (40, 3, 5))
    out, _ = run(view((5,), {"lif": op}), x, dtype=np.float64)
    np.testing.assert_array_equal(emulate(op, DT, x)[0], out)
    assert 0 < out.mean() < 1


def _drive(departure: str) -> tuple[Any, Array]:
    """A neuron and input on which a departure shows."""
    if departure == "at_threshold":
        return lif(1, tau=2 * DT), full((1, 1), 2)  # dt/tau = 1/2: v is 1 exactly
    drive = np.abs(np.random.default_rng(1).normal(3, 4, (60, 1)))
    return lif(1, tau=3 * DT), drive


@pytest.mark.parametrize("departure", DEPARTURES)
def test_a_convention_is_recognised(departure: Departure) -> None:
    op, drive = _drive(departure)
    chosen: tuple[Departure, ...] = (departure,)
    spikes, _ = emulate(op, DT, drive, chosen)
    assert not np.array_equal(spikes, emulate(op, DT, drive)[0])
    assert chosen in explain(op, DT, drive, spikes)
    assert IN_WORDS[departure]


def test_every_departure_in_the_table_has_words() -> None:
    assert IN_WORDS.keys() == set(DEPARTURES)
