"""The usual other ways to discretise a LIF neuron, to name the one that a tool follows.

The reference is `tser.deploy.interpreter`: ``v += (dt/tau) ((r i + v_leak) - v)``, a spike where
``v > v_threshold``, then ``v = v_reset``. A convention departs from it in one or more points.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Departure = Literal[
    "exponential_decay",
    "exponential_gain",
    "no_gain",
    "subtractive_reset",
    "at_threshold",
    "one_step_delay",
    "multi_spike",
]
DEPARTURES: tuple[Departure, ...] = get_args(Departure)
IN_WORDS: dict[Departure, str] = {
    "exponential_decay": "v decays by exp(-dt/tau) a step, not by 1 - dt/tau",
    "exponential_gain": "input counts 1 - exp(-dt/tau) times, not dt/tau times",
    "no_gain": "input counts once, not dt/tau times",
    "subtractive_reset": "a spike takes v_threshold off v instead of setting v_reset",
    "at_threshold": "a spike where v >= v_threshold, not where v > v_threshold",
    "one_step_delay": "input arrives one step late",
    "multi_spike": "v / v_threshold spikes in one step, not one at most",
}
_EXCLUSIVE = {"exponential_gain", "no_gain"}
Array = NDArray[np.float64]


def emulate(
    op: Any, dt: float, current: NDArray[Any], departures: Collection[Departure] = ()
) -> tuple[Array, Array]:
    """Run LIF neurons under a convention, in float64.

    Args:
        op: a ``nir.LIF``.
        dt: time step [s].
        current: ``[T, ...]``.
        departures: in which points the convention is not ours.

    Returns:
        Spikes ``[T, ...]``, and the membrane after each step ``[T, ...]``.
    """
    rate = np.float64(dt) / np.asarray(op.tau, np.float64)
    keep = np.exp(-rate) if "exponential_decay" in departures else 1 - rate
    gain = 1 - np.exp(-rate) if "exponential_gain" in departures else rate
    gain = np.ones_like(rate) if "no_gain" in departures else gain
    threshold, reset = (np.asarray(v, np.float64) for v in (op.v_threshold, op.v_reset))
    drive = gain * np.asarray(op.r, np.float64) * np.asarray(current, np.float64)
    if "one_step_delay" in departures:
        drive = np.concatenate([np.zeros_like(drive[:1]), drive[:-1]])
    leak = np.asarray(op.v_leak, np.float64)
    v = np.broadcast_to(leak, drive.shape[1:])
    spikes, membrane = np.empty(drive.shape), np.empty(drive.shape)
    for t in range(len(drive)):
        v = leak + keep * (v - leak) + drive[t]
        fired = v >= threshold if "at_threshold" in departures else v > threshold
        count = np.where(fired, 1.0, 0.0)
        if "multi_spike" in departures:
            count = np.where(fired, np.maximum(1, np.floor(v / threshold)), 0.0)
        lower = v - count * threshold if "subtractive_reset" in departures else reset
        v = np.where(fired, lower, v)
        spikes[t], membrane[t] = count, v
    return spikes, membrane


def explain(
    op: Any,
    dt: float,
    current: NDArray[Any],
    spikes: NDArray[Any],
    membrane: NDArray[Any] | None = None,
    tolerance: float = 1e-6,
) -> list[tuple[Departure, ...]]:
    """The conventions with the fewest departures that give recorded spikes exactly.

    Args:
        op: a ``nir.LIF``.
        dt: time step [s].
        current: ``[T, ...]``.
        spikes: as recorded, ``[T, ...]``.
        membrane: as recorded after each step, ``[T, ...]``, if it was.
        tolerance: of the membrane; recordings are float32.

    Returns:
        ``[()]`` when the reference itself gives them, ``[]`` when no convention does.
    """
    for size in range(len(DEPARTURES) + 1):
        found = []
        for chosen in itertools.combinations(DEPARTURES, size):
            if len(_EXCLUSIVE.intersection(chosen)) > 1:
                continue
            given, v = emulate(op, dt, current, chosen)
            same = np.array_equal(given, spikes)
            if same and (membrane is None or np.abs(v - membrane).max() <= tolerance):
                found.append(chosen)
        if found:
            return found
    return []
