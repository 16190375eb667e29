"""Predictions and right answers after every step, against loops over plain numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tser.metrics import Confidence, correct_per_step, predictions_per_step

CASES = {
    "seed": st.integers(0, 2**31),
    "shape": st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4)),
}


def some_logits(seed: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Logits ``[T, B, K]`` in sixteenths, so that every sum is exact and a tie is a tie."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-64, 64, shape, generator=generator) / 16


@settings(max_examples=80, deadline=None, derandomize=True)
@given(**CASES)
def test_a_prediction_is_the_argmax_of_the_mean_so_far(
    seed: int, shape: tuple[int, int, int]
) -> None:
    logits = some_logits(seed, shape)
    steps, batch, classes = shape
    predicted = predictions_per_step(logits)
    assert predicted.shape == (steps, batch)
    for t in range(steps):
        for b in range(batch):
            means = [
                sum(logits[s, b, k].item() for s in range(t + 1)) / (t + 1) for k in range(classes)
            ]
            assert means[int(predicted[t, b])] == max(means)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(**CASES)
def test_right_answers_are_counted_for_every_step(seed: int, shape: tuple[int, int, int]) -> None:
    logits = some_logits(seed, shape)
    labels = torch.randint(shape[2], (shape[1],), generator=torch.Generator().manual_seed(seed))
    predicted = predictions_per_step(logits).tolist()
    counts = correct_per_step(logits, labels)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [
        sum(a == b for a, b in zip(row, labels.tolist(), strict=True)) for row in predicted
    ]


def test_early_steps_are_outvoted_later() -> None:
    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 0.5]], [[0.0, 0.75]]])
    assert predictions_per_step(logits).flatten().tolist() == [0, 0, 1]
    assert correct_per_step(logits, torch.tensor([1])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_float_types(dtype: torch.dtype) -> None:
    logits = some_logits(0, (4, 3, 5))
    assert torch.equal(predictions_per_step(logits.to(dtype)), predictions_per_step(logits))


def test_an_empty_batch_has_no_right_answers() -> None:
    assert correct_per_step(torch.zeros(3, 0, 4), torch.zeros(0).long()).tolist() == [0, 0, 0]


# --- confidence ----------------------------------------------------------------------------


def _confidence(row: list[float]) -> tuple[float, int]:
    powers = [math.exp(value - max(row)) for value in row]
    best = max(range(len(row)), key=lambda k: powers[k])
    return powers[best] / math.fsum(powers), best


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(2, 4)),
    bins=st.integers(1, 7),
    parts=st.integers(1, 3),
)
def test_calibration_and_early_exit_against_loops(
    seed: int, shape: tuple[int, int, int], bins: int, parts: int
) -> None:
    steps, batch, classes = shape
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=generator)
    thresholds = (0.4, 0.6, 0.9)
    found = Confidence(steps, thresholds, bins)
    for part, answer in zip(logits.chunk(parts, 1), labels.chunk(parts), strict=True):
        found.update(part, answer)
    assert found.samples == batch
    sure = [
        [
            _confidence(
                [math.fsum(logits[: t + 1, b, k].tolist()) / (t + 1) for k in range(classes)]
            )
            for b in range(batch)
        ]
        for t in range(steps)
    ]
    for t in range(steps):
        members: dict[int, list[tuple[float, bool]]] = {}
        for b in range(batch):
            value, best = sure[t][b]
            members.setdefault(min(int(value * bins), bins - 1), []).append(
                (value, best == int(labels[b]))
            )
        error = math.fsum(
            abs(sum(right for _, right in group) - math.fsum(value for value, _ in group))
            for group in members.values()
        )
        assert found.calibration_error()[t] == pytest.approx(error / batch, abs=1e-12)
    for point in found.exits():
        stops = [
            next((t for t in range(steps) if sure[t][b][0] >= point.threshold), steps - 1)
            for b in range(batch)
        ]
        right = [sure[stops[b]][b][1] == int(labels[b]) for b in range(batch)]
        assert point.accuracy == pytest.approx(sum(right) / batch)
        assert point.mean_steps == pytest.approx(sum(stop + 1 for stop in stops) / batch)


def test_a_network_that_is_always_sure_and_right_is_calibrated_and_stops_at_once() -> None:
    logits = torch.zeros(3, 4, 2)
    logits[..., 1] = 100.0
    found = Confidence(3, (0.99,))
    found.update(logits, torch.ones(4, dtype=torch.int64))
    assert found.calibration_error() == pytest.approx([0.0] * 3, abs=1e-12)
    (point,) = found.exits()
    assert (point.accuracy, point.mean_steps) == (1.0, 1.0)
