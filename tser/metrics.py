"""Measures of logits and spikes over time; every tensor is time-first."""

from __future__ import annotations

import torch
from torch import Tensor


def predictions_per_step(logits: Tensor) -> Tensor:
    """Class after t steps: argmax of the mean logits over steps 1..t.

    Args:
        logits: ``[T, B, K]``.

    Returns:
        ``[T, B]`` class indices; row t-1 uses steps 1..t.
    """
    return logits.cumsum(0).argmax(-1)  # the sum has the argmax of the mean


def correct_per_step(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of right answers after each step.

    Args:
        logits: ``[T, B, K]``.
        labels: ``[B]``.

    Returns:
        ``[T]``, int64.
    """
    return (predictions_per_step(logits) == labels).sum(1, dtype=torch.int64)
