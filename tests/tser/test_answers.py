"""What `tser.evaluate` keeps of single answers."""

from __future__ import annotations

import torch

from tser.evaluate import MISTAKES, MOST_CLASSES, _Answers
from tser.metrics import predictions_per_step


def test_confusion_and_mistakes_against_a_loop_over_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 90, 5, generator=generator)
    labels = torch.randint(5, (90,), generator=generator)
    answers = _Answers()
    for batch in torch.arange(90).split(32):
        answers.update(logits[:, batch], labels[batch])

    given = predictions_per_step(logits)[-1].tolist()
    sure = torch.softmax(logits.double().mean(0), -1).max(-1).values.tolist()
    counts = [[0] * 5 for _ in range(5)]
    wrong = []
    for index, (label, answer, confidence) in enumerate(
        zip(labels.tolist(), given, sure, strict=True)
    ):
        counts[label][answer] += 1
        if label != answer:
            wrong.append((confidence, index, label, answer))
    wrong.sort(reverse=True)

    assert answers.confusion() == counts
    found = [(m["confidence"], m["index"], m["true"], m["predicted"]) for m in answers.mistakes]
    assert found == wrong[:MISTAKES]
    assert len(wrong) > 2 * MISTAKES


def test_an_answer_that_is_always_right_is_no_mistake() -> None:
    labels = torch.arange(4)
    answers = _Answers()
    answers.update(torch.eye(4).expand(2, 4, 4), labels)
    assert answers.mistakes == []
    assert answers.confusion() == torch.eye(4, dtype=torch.int64).tolist()


def test_too_many_classes_for_a_matrix() -> None:
    answers = _Answers()
    answers.update(torch.zeros(1, 2, MOST_CLASSES + 1), torch.tensor([0, 7]))
    assert answers.confusion() is None
    assert [mistake["index"] for mistake in answers.mistakes] == [1]
