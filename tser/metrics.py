"""Measures of logits and spikes over time; every tensor is time-first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def confidence_per_step(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and answer after each step.

    Args:
        logits: ``[T, B, K]``.

    Returns:
        The largest softmax of the mean logits over steps 1..t, float64 ``[T, B]``, and its class.
    """
    steps = torch.arange(1, len(logits) + 1, device=logits.device).view(-1, 1, 1)
    confidence, answer = torch.softmax(logits.double().cumsum(0) / steps, -1).max(-1)
    return confidence, answer


def exit_step(confidence: Tensor, threshold: float) -> Tensor:
    """The step at which each sample stops, 0..T-1.

    Args:
        confidence: ``[T, B]``.
        threshold: at which it stops; the last step stops all.

    Returns:
        ``[B]``, int64.
    """
    sure = confidence >= threshold
    sure[-1] = True  # there are no more steps to wait for
    return sure.int().argmax(0)


@dataclass(frozen=True)
class ExitPoint:
    """What happens when the network stops as soon as it is confident enough.

    Attributes:
        threshold: confidence (largest softmax of the mean logits so far) at which it stops.
        accuracy: share of right answers, 0..1.
        mean_steps: steps used on average, 1..T.
    """

    threshold: float
    accuracy: float
    mean_steps: float


class Confidence:
    """Calibration after every step and early exit, accumulated over batches.

    The confidence after t steps is the largest entry of the softmax of the mean logits over steps
    1..t. Expected calibration error: the mean over samples of |accuracy - confidence| of their
    bin, with bins of equal width (Guo et al., On calibration of modern neural networks, ICML
    2017, equation 3). Memory does not grow with the number of samples.

    Args:
        timesteps: T.
        thresholds: for the early exit.
        bins: of confidence.
    """

    def __init__(self, timesteps: int, thresholds: Sequence[float], bins: int = 15) -> None:
        self._bins, self._thresholds = bins, tuple(thresholds)
        self._count = torch.zeros(timesteps, bins, dtype=torch.float64)
        self._right = torch.zeros_like(self._count)
        self._sum = torch.zeros_like(self._count)
        self._exits = torch.zeros(len(self._thresholds), 2, dtype=torch.int64)
        self.samples = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add one batch.

        Args:
            logits: ``[T, B, K]``.
            labels: ``[B]``.
        """
        confidence, answer = confidence_per_step(logits)
        right = answer == labels
        place = (confidence * self._bins).long().clamp(max=self._bins - 1).cpu()
        for total, value in (
            (self._count, torch.ones_like(confidence)),
            (self._right, right.double()),
            (self._sum, confidence),
        ):
            total.scatter_add_(1, place, value.cpu())
        for row, threshold in enumerate(self._thresholds):
            stop = exit_step(confidence, threshold)
            correct = right.gather(0, stop.unsqueeze(0)).sum()
            self._exits[row] += torch.stack([correct, (stop + 1).sum()]).cpu()
        self.samples += len(labels)

    def calibration_error(self) -> list[float]:
        """Expected calibration error after each step, 0..1."""
        gap = (self._right - self._sum).abs().sum(1) / max(1, self.samples)
        return [float(value) for value in gap]

    def exits(self) -> list[ExitPoint]:
        """One point a threshold."""
        return [
            ExitPoint(threshold, int(right) / self.samples, int(steps) / self.samples)
            for threshold, (right, steps) in zip(self._thresholds, self._exits, strict=True)
        ]
