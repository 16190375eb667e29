r"""The usual other ways to discretise a neuron, to name the one that a tool follows.

The reference is `tser.deploy.interpreter`: ``v += (dt/tau) ((r i + v_leak) - v)``, a spike where
``v > v_threshold``, then ``v = v_reset``. A convention departs from it in one or more points.

`follow` computes the membrane in float64 together with a bound on what a float32 program of the
same convention could have had instead, in the same way as ``certificate``: a step adds
:math:`|keep| e + |gain| e_i + 16u (...)`, and nothing where every intermediate value of the usual
ways to write a step is a float32 number. The bound serves to compare conventions; a verdict rests
on ``certificate`` alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import nir
import numpy as np
from numpy.typing import NDArray

from tser.export.graph import decay

Departure = Literal[
    "exponential_decay",
    "exponential_gain",
    "no_gain",
    "subtractive_reset",
    "at_threshold",
    "one_step_delay",
    "multi_spike",
    "reset_to_zero",
    "no_reset",
    "late_reset",
    "no_leak_value",
    "no_resistance",
    "no_synaptic_gain",
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
    "reset_to_zero": "a spike sets v to 0, not to v_reset",
    "no_reset": "a spike leaves v as it is instead of setting v_reset",
    "late_reset": "the reset comes one step after the spike",
    "no_leak_value": "v starts at 0 and decays to 0, not to v_leak",
    "no_resistance": "r is taken to be 1",
    "no_synaptic_gain": "input counts w_in times in the synapse, not dt/tau_syn w_in times",
}
EXCLUSIVE: tuple[frozenset[str], ...] = (
    frozenset({"exponential_gain", "no_gain"}),
    frozenset({"subtractive_reset", "reset_to_zero", "no_reset"}),
    frozenset({"late_reset", "no_reset"}),
)
"""Departures of which a convention has one at most."""
MOST = 3
"""Departures that `explain` combines."""
_CURRENT_BASED = (nir.CubaLIF, nir.CubaLI)
_INTEGRATING = (nir.IF, nir.I)
_UNIT = 2.0**-24
_EXTRA = 16
"""Roundings a step; more than the certificate allows, since a convention has more forms."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Course:
    """How a layer goes under a convention, ``[T, ...]`` each.

    Attributes:
        membrane: as compared with the threshold.
        error: bound on what float32 does to it.
        after: after the step.
        spikes: how many.
    """

    membrane: Array
    error: Array
    after: Array
    spikes: Array


def relevant(op: Any) -> tuple[Departure, ...]:
    """The departures that can make a difference to a neuron of these parameters."""
    fires = hasattr(op, "v_threshold")
    off: set[str] = set()
    if isinstance(op, _INTEGRATING):
        off |= {"exponential_decay", "exponential_gain"}
    if not isinstance(op, _CURRENT_BASED):
        off.add("no_synaptic_gain")
    if not np.any(getattr(op, "v_leak", 0.0)):
        off.add("no_leak_value")
    if not np.any(np.asarray(op.r) != 1):
        off.add("no_resistance")
    if not fires:
        off |= {"subtractive_reset", "at_threshold", "multi_spike", "no_reset", "late_reset"}
    if not fires or not np.any(op.v_reset):
        off.add("reset_to_zero")
    return tuple(name for name in DEPARTURES if name not in off)


def compatible(names: Collection[str]) -> bool:
    """Whether departures can go together."""
    return all(len(group.intersection(names)) < 2 for group in EXCLUSIVE)


def follow(
    op: Any,
    dt: float,
    current: NDArray[Any],
    departures: Collection[Departure] = (),
    *,
    error: NDArray[Any] | None = None,
    steps: int | None = None,
    forced: NDArray[np.bool_] | None = None,
) -> Course:
    """Run neurons under a convention, in float64.

    Args:
        op: a LIF, IF or CubaLIF, or one of their kind that does not fire.
        dt: time step [s].
        current: ``[T, ...]``, or ``[1, ...]`` for one that is constant.
        departures: in which points the convention is not ours.
        error: bound on the current, of its shape; default: it is exact.
        steps: T of a constant current.
        forced: recorded spikes, bool ``[T, ...]``, that reset the membrane in place of its own.
    """
    chosen = frozenset(departures)
    shape = (len(current) if steps is None else steps, *current.shape[1:])
    drive = np.broadcast_to(np.asarray(current, np.float64), shape)
    spread = np.broadcast_to(np.float64(0) if error is None else error, shape)
    if "one_step_delay" in chosen:
        drive, spread = (np.concatenate([np.zeros_like(v[:1]), v[:-1]]) for v in (drive, spread))
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(op, _CURRENT_BASED):
            drive, spread = _synapse(op, dt, drive, spread, chosen)
        return _membrane(op, dt, drive, spread, chosen, forced)


def _rates(dt: float, tau: Any, chosen: frozenset[Departure]) -> tuple[Array, Array, Array]:
    """(dt / tau, what a step keeps, how often the input counts)."""
    rate = decay(dt, tau)
    keep = np.exp(-rate) if "exponential_decay" in chosen else 1 - rate
    gain = 1 - np.exp(-rate) if "exponential_gain" in chosen else rate
    return rate, keep, np.ones_like(rate) if "no_gain" in chosen else gain


def _synapse(
    op: Any, dt: float, drive: Array, spread: Array, chosen: frozenset[Departure]
) -> tuple[Array, Array]:
    """The synaptic current in every step, and its bound; a reset leaves it."""
    _, keep, gain = _rates(dt, op.tau_syn, chosen - {"no_gain"})
    if "no_synaptic_gain" in chosen:
        gain = np.ones_like(gain)
    gain = gain * np.asarray(op.w_in, np.float64)
    current, error = np.zeros(drive.shape[1:]), np.zeros(drive.shape[1:])
    values, bounds = np.empty(drive.shape), np.empty(drive.shape)
    for t in range(len(drive)):
        driven = gain * drive[t]
        size = np.abs(current) + np.abs(driven)
        current = current + driven
        error = error + np.abs(gain) * spread[t]
        error = error + _EXTRA * _UNIT * (size + error)
        values[t], bounds[t] = current, error
        error = np.abs(keep) * error + _EXTRA * _UNIT * (1 + np.abs(keep)) * np.abs(current)
        current = keep * current
    return values, bounds


def _membrane(
    op: Any,
    dt: float,
    drive: Array,
    spread: Array,
    chosen: frozenset[Departure],
    forced: NDArray[np.bool_] | None,
) -> Course:
    r = np.asarray(1.0 if "no_resistance" in chosen else op.r, np.float64)
    if isinstance(op, _INTEGRATING):
        rate, keep = np.zeros_like(r), np.ones_like(r)
        gain = r if "no_gain" in chosen else np.asarray(dt * r)
    else:
        tau = op.tau_mem if isinstance(op, _CURRENT_BASED) else op.tau
        rate, keep, gain = _rates(dt, tau, chosen)
        gain = gain * r
    leak = 0.0 if "no_leak_value" in chosen else getattr(op, "v_leak", 0.0)
    rest = np.asarray(leak, np.float64)
    fires = hasattr(op, "v_threshold")
    threshold = np.asarray(op.v_threshold if fires else np.inf, np.float64)
    reset = np.asarray(op.v_reset if fires else 0.0, np.float64)
    if "reset_to_zero" in chosen:
        reset = np.zeros_like(reset)
    steady = _are_float32(rate, keep, gain, r, rest, reset) & (
        _are_float32(threshold) | ~np.isfinite(threshold)
    )
    v = np.broadcast_to(rest, drive.shape[1:]).astype(np.float64)
    error, due = np.zeros_like(v), np.zeros_like(v)
    membrane, bound, after, spikes = (np.empty(drive.shape) for _ in range(4))
    for t in range(len(drive)):
        i, e = drive[t], spread[t]
        before, pulled, pushed = v, keep * (v - rest), gain * i
        v = rest + pulled + pushed
        size = np.abs(pushed) + np.abs(rate) * np.abs(rest) + np.abs(before) + np.abs(v)
        precise = steady & (error == 0) & (e == 0)
        if precise.any():
            ri, kept = r * i, keep * before
            parts = (before, ri, ri + rest, ri + rest - before, pulled, pushed, kept, v - pushed, v)
            precise = precise & _are_float32(*parts, np.asarray(rate * rest), rate * before)
        error = np.abs(keep) * error + np.abs(gain) * e
        # 1 - exp(-dt/tau) cancels: its rounding is that of 1, not its own.
        fine = np.abs(r * i) if "exponential_gain" in chosen else 0.0
        rounding = _EXTRA * _UNIT * (size + error + fine)
        error = np.where(precise, 0.0, error + rounding)
        if "late_reset" in chosen:
            v, error = _lowered(v, error, due, threshold, reset, chosen)
        membrane[t], bound[t] = v, error
        fired = (v >= threshold if "at_threshold" in chosen else v > threshold) & (v < np.inf)
        if forced is not None:
            fired = forced[t]
        count = np.where(fired, 1.0, 0.0)
        if "multi_spike" in chosen:
            count = np.where(fired, np.maximum(1, np.floor(v / threshold)), 0.0)
            unsure = np.floor((v + error) / threshold) - np.floor((v - error) / threshold)
            if "subtractive_reset" in chosen:
                error = error + np.where(fired, unsure * threshold, 0.0)
        if "late_reset" in chosen:
            due = count
        else:
            v, error = _lowered(v, error, count, threshold, reset, chosen)
        after[t], spikes[t] = v, count
    return Course(membrane, bound, after, spikes)


def _lowered(
    v: Array,
    error: Array,
    count: Array,
    threshold: Array,
    reset: Array,
    chosen: frozenset[Departure],
) -> tuple[Array, Array]:
    """The membrane and its bound after ``count`` spikes."""
    if "no_reset" in chosen:
        return v, error
    fired = count > 0
    if "subtractive_reset" in chosen:
        return np.where(fired, v - count * threshold, v), error
    return np.where(fired, reset, v), np.where(fired, 0.0, error)


def _are_float32(*values: Array) -> NDArray[np.bool_]:
    """Where all of ``values`` are float32 numbers."""
    same: Any = True
    for value in values:
        same = same & (value == np.asarray(value, np.float32))
    return np.asarray(same, bool)


def emulate(
    op: Any, dt: float, current: NDArray[Any], departures: Collection[Departure] = ()
) -> tuple[Array, Array]:
    """Run neurons under a convention, in float64.

    Args:
        op: a LIF, IF or CubaLIF.
        dt: time step [s].
        current: ``[T, ...]``.
        departures: in which points the convention is not ours.

    Returns:
        Spikes ``[T, ...]``, and the membrane after each step ``[T, ...]``.
    """
    course = follow(op, dt, current, departures)
    return course.spikes, course.after


def explain(
    op: Any,
    dt: float,
    current: NDArray[Any],
    spikes: NDArray[Any],
    membrane: NDArray[Any] | None = None,
    tolerance: float = 1e-6,
) -> list[tuple[Departure, ...]]:
    """The conventions with the fewest departures that give recorded spikes exactly.

    For a recording of one neuron or layer whose input current is known; `diagnosis.diagnose` does
    more for a layer of a graph.

    Args:
        op: a LIF, IF or CubaLIF.
        dt: time step [s].
        current: ``[T, ...]``.
        spikes: as recorded, ``[T, ...]``.
        membrane: as recorded after each step, ``[T, ...]``, if it was.
        tolerance: of the membrane; recordings are float32.

    Returns:
        ``[()]`` when the reference itself gives them, ``[]`` when no convention of at most
        `MOST` departures does.
    """
    for size in range(MOST + 1):
        found = []
        for chosen in itertools.combinations(relevant(op), size):
            if not compatible(chosen):
                continue
            given, v = emulate(op, dt, current, chosen)
            same = np.array_equal(given, spikes)
            if same and (membrane is None or np.abs(v - membrane).max() <= tolerance):
                found.append(chosen)
        if found:
            return found
    return []
