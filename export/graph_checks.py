"""What no NIR file may hold: parameters that are no numbers, and steps beyond all use."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import nir
import numpy as np

from tser.errors import InputFileError

MOST_STEPS = 10_000
"""T that a file may state, and steps that it may delay by; far more than any network uses."""
_MAY_BE_INFINITE = ("tau", "tau_mem", "tau_syn", "v_threshold")
"""No leak, and a neuron that never fires."""
_NOT_NUMBERS = ("metadata", "padding", "input_type", "output_type")
"""Checked by the rules of shapes, or not used."""


def check_numbers(ops: dict[str, Any], origin: str) -> None:
    """Refuse parameters that are not finite numbers."""
    for name, op in ops.items():
        for key, value in vars(op).items():
            if key in _NOT_NUMBERS or value is None or isinstance(value, dict):
                continue
            value = np.asarray(value)
            if value.dtype.kind not in "fiub":
                raise InputFileError(f"{origin}: {key} of node {name!r} does not hold numbers")
            if value.dtype.kind != "f":
                continue
            wrong = ~np.isfinite(value)
            if key in _MAY_BE_INFINITE:
                wrong &= value != np.inf
            if wrong.any():
                raise InputFileError(
                    f"{origin}: {key} of node {name!r} holds NaN or infinite values; "
                    "export it again from sound weights"
                )


def brief(value: Any) -> str:
    """A value from a file, on one line and not too long."""
    return " ".join(repr(value).split())[:80]


def check_metadata(metadata: dict[str, Any], origin: str) -> None:
    """Refuse what the properties of `Graph` could not read."""
    steps, names = metadata.get("timesteps", 1), metadata.get("class_names", "[]")
    try:
        valid = int(steps) == float(steps) and int(steps) >= 1
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise InputFileError(f"{origin}: timesteps {brief(steps)} is not a number of steps")
    if int(steps) > MOST_STEPS:
        raise InputFileError(f"{origin}: it states {steps} time steps; at most {MOST_STEPS} can be")
    try:
        valid = isinstance(json.loads(names), list)
    except (TypeError, ValueError, RecursionError):
        valid = False
    if not valid:
        raise InputFileError(f"{origin}: its class_names are not a JSON list")
    encoding = metadata.get("encoding", "")
    if not isinstance(encoding, str):
        raise InputFileError(f"{origin}: encoding {brief(encoding)} is not text")
    for key in ("input_mean", "input_std"):
        with suppress(TypeError, ValueError, OverflowError, RecursionError):  # not ours, then
            if not np.isfinite(np.asarray(json.loads(metadata.get(key, "0")), float)).all():
                raise InputFileError(f"{origin}: its input scaling holds NaN or infinite values")
    reset = metadata.get("reset", "to_value")
    if not isinstance(reset, str) or reset != "to_value":
        raise InputFileError(f"{origin}: reset {brief(reset)} is not one NIR can express")


def check_delays(ops: dict[str, Any], dt: float, origin: str) -> None:
    """Refuse delays that nothing can keep; those of a NaN dt are not looked at."""
    for name, op in ops.items():
        if isinstance(op, nir.Delay):
            steps = np.asarray(op.delay, np.float64) / dt
            if (steps < 0).any():
                raise InputFileError(f"{origin}: node {name!r} has a negative delay")
            if (steps > MOST_STEPS).any():
                raise InputFileError(
                    f"{origin}: node {name!r} delays by {steps.max():.3g} steps of "
                    f"{dt:g} s; at most {MOST_STEPS} can be"
                )
