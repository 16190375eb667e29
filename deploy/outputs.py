"""Outputs that answer nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser.errors import InputFileError


def check_finite(out: NDArray[Any], before: int, origin: str) -> None:
    """Refuse outputs that are no numbers: what was computed on the way means nothing.

    Args:
        out: outputs of a graph, ``[T, B, ...]``.
        before: samples before these, to name the first wrong one.
        origin: what to call the graph in messages.

    Raises:
        InputFileError: naming step and sample.
    """
    wrong = np.argwhere(~np.isfinite(out))
    if len(wrong):
        step, sample = wrong[0][:2]
        raise InputFileError(
            f"{origin} gives NaN or infinite outputs, first at step {step + 1} of sample "
            f"{before + sample}: its weights or these inputs are too large for float32; "
            "train or export it again"
        )
