"""How good a trained student is after every step, and how much it fires."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from tser.checkpoints import (
    check_taught_by,
    load_run_data,
    load_student,
    load_weights,
    weights_digest,
)
from tser.data import ImageData, Split
from tser.data.feed import batches_in_order
from tser.metrics import Confidence, correct_per_step, predictions_per_step
from tser.models import make_run_teacher
from tser.recording import Recorder, spiking_layers
from tser.runs import Run

BATCH = 256
MOST_CLASSES = 256
"""The largest confusion matrix that is kept: it has the square of so many entries."""
MISTAKES = 12
"""The most confident mistakes that are kept."""
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Confidences at which the early exit is tried."""


@torch.inference_mode()
def evaluate(
    run: Run,
    root: Path | None = None,
    batch_size: int = BATCH,
    split: Literal["val", "test"] = "test",
) -> dict[str, Any]:
    """Accuracy after t = 1..T of the last epoch's student, and its firing rates.

    Args:
        run: a finished run.
        root: folder of the data set; None: where the run's configuration says.
        batch_size: images at a time.
        split: which images.

    Returns:
        Plain values, ready for JSON: ``accuracy`` and ``calibration_error`` (one entry a step),
        ``early_exit`` (threshold, accuracy, mean steps), ``teacher_accuracy``, ``layers``
        (firing rate [spikes a neuron and step], overall and per step), ``class_names``,
        ``confusion`` (images of class i taken for class j after all steps; None for more than
        `MOST_CLASSES` classes) and ``mistakes`` (index among the images, true, predicted,
        confidence; the most confident first).
    """
    data = load_run_data(run, root)
    images_of = data.val if split == "val" else data.test
    student = load_student(run, data)
    correct = torch.zeros(student.timesteps, dtype=torch.int64)
    rates = _FiringRates()
    layers = {
        path.removeprefix("layers.").removeprefix("model."): layer
        for path, layer in spiking_layers(student).items()
    }
    confidence, answers = Confidence(student.timesteps, THRESHOLDS), _Answers()
    for images, labels in batches_in_order(data, images_of, batch_size):
        with Recorder(layers) as recorder:
            logits = student(images)
        rates.update(recorder.spikes)
        correct += correct_per_step(logits, labels)
        confidence.update(logits, labels)
        answers.update(logits, labels)
    return {
        "schema_version": 1,
        "run": str(run.path),
        "data": data.name,
        "split": split,
        "samples": len(images_of),
        "timesteps": student.timesteps,
        "student_weights": weights_digest(run.student),
        "accuracy": [int(n) / len(images_of) for n in correct],
        "calibration_error": confidence.calibration_error(),
        "early_exit": [asdict(point) for point in confidence.exits()],
        "teacher_accuracy": _teacher_accuracy(run, data, images_of, batch_size),
        "layers": rates.result(),
        "class_names": list(data.class_names),
        "confusion": answers.confusion(),
        "mistakes": answers.mistakes,
    }


def _teacher_accuracy(run: Run, data: ImageData, split: Split, batch_size: int) -> float | None:
    factory = run.config().teacher.factory
    if not run.teacher.exists() or (factory and factory not in run.factories):
        return None
    teacher = make_run_teacher(run.config(), data, run.factories, published=False)
    load_weights(teacher, run.teacher)
    check_taught_by(teacher, run)
    teacher.eval()
    right = sum(
        int(correct_per_step(teacher(images).unsqueeze(0), labels)[0])
        for images, labels in batches_in_order(data, split, batch_size)
    )
    return right / len(split)


class _Answers:
    """Accumulates what is taken for what after all steps, and the most confident mistakes."""

    def __init__(self) -> None:
        self.mistakes: list[dict[str, Any]] = []
        self._counts: Tensor | None = None
        self._samples = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add one batch.

        Args:
            logits: ``[T, B, K]``.
            labels: ``[B]``.
        """
        classes = logits.shape[-1]
        given = predictions_per_step(logits)[-1]
        likely = torch.softmax(logits.double().mean(0), -1)
        sure = likely.gather(1, given.unsqueeze(1)).squeeze(1)
        if classes <= MOST_CLASSES:
            pairs = torch.bincount(labels * classes + given, minlength=classes * classes)
            counts = pairs.cpu().view(classes, classes)
            self._counts = counts if self._counts is None else self._counts + counts
        wrong = (given != labels).nonzero().flatten()
        for at in wrong[sure[wrong].topk(min(MISTAKES, len(wrong))).indices].tolist():
            self.mistakes.append(
                {
                    "index": self._samples + at,
                    "true": int(labels[at]),
                    "predicted": int(given[at]),
                    "confidence": float(sure[at]),
                }
            )
        self.mistakes.sort(key=lambda mistake: -float(mistake["confidence"]))
        del self.mistakes[MISTAKES:]
        self._samples += len(labels)

    def confusion(self) -> list[list[int]] | None:
        """Row: true class; column: what it is taken for."""
        return None if self._counts is None else cast(list[list[int]], self._counts.tolist())


class _FiringRates:
    """Accumulates the spikes of every layer that fires."""

    def __init__(self) -> None:
        self._spikes: dict[str, Tensor] = {}
        self._neurons: dict[str, int] = {}
        self._samples = 0

    def update(self, spikes: dict[str, Tensor]) -> None:
        """Add one batch of spikes ``[T, B, ...]`` by layer."""
        for name, value in spikes.items():
            per_step = value.double().sum(tuple(range(1, value.ndim)))
            self._spikes[name] = self._spikes.get(name, torch.zeros_like(per_step)) + per_step
            self._neurons[name] = value[0, 0].numel()
        self._samples += next(iter(spikes.values())).shape[1] if spikes else 0

    def result(self) -> list[dict[str, Any]]:
        """Rates by layer, in execution order."""
        rows = []
        for name, spikes in self._spikes.items():
            rate = spikes / (self._neurons[name] * self._samples)
            rows.append(
                {
                    "name": name.replace(".", "_"),
                    "neurons": self._neurons[name],
                    "firing_rate": float(rate.mean()),
                    "firing_rate_per_step": rate.tolist(),
                }
            )
        return rows
