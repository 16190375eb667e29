"""How good a trained student is after every step, and how much it fires."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tser.checkpoints import load_run_data, load_student, load_weights
from tser.data import ImageData, Split
from tser.data.feed import batches_in_order
from tser.metrics import Confidence, correct_per_step
from tser.models import make_run_teacher
from tser.recording import Recorder, spiking_layers
from tser.runs import Run

BATCH = 256
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
        (firing rate [spikes a neuron and step], overall and per step).
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
    confidence = Confidence(student.timesteps, THRESHOLDS)
    for images, labels in batches_in_order(data, images_of, batch_size):
        with Recorder(layers) as recorder:
            logits = student(images)
        rates.update(recorder.spikes)
        correct += correct_per_step(logits, labels)
        confidence.update(logits, labels)
    return {
        "schema_version": 1,
        "run": str(run.path),
        "data": data.name,
        "split": split,
        "samples": len(images_of),
        "timesteps": student.timesteps,
        "accuracy": [int(n) / len(images_of) for n in correct],
        "calibration_error": confidence.calibration_error(),
        "early_exit": [asdict(point) for point in confidence.exits()],
        "teacher_accuracy": _teacher_accuracy(run, data, images_of, batch_size),
        "layers": rates.result(),
    }


def _teacher_accuracy(run: Run, data: ImageData, split: Split, batch_size: int) -> float | None:
    factory = run.config().teacher.factory
    if not run.teacher.exists() or (factory and factory not in run.factories):
        return None
    teacher = make_run_teacher(run.config(), data, run.factories, published=False)
    load_weights(teacher, run.teacher)
    teacher.eval()
    right = sum(
        int(correct_per_step(teacher(images).unsqueeze(0), labels)[0])
        for images, labels in batches_in_order(data, split, batch_size)
    )
    return right / len(split)


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
