"""Predictions and right answers after every step, against loops over plain numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tser.metrics import correct_per_step, predictions_per_step

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
