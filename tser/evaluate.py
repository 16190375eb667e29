"""How good a trained student is after every step, and how much it fires."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tser.checkpoints import load_run_data, load_student, load_weights
from tser.data import ImageData
from tser.layers import Student
from tser.metrics import Confidence, correct_per_step
from tser.neurons import LIF
from tser.runs import Run
from tser.teachers import build_teacher

BATCH = 256
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Confidences at which the early exit is tried."""


def evaluate(run: Run, root: Path | None = None, batch_size: int = BATCH) -> dict[str, Any]:
    """Test accuracy after t = 1..T of the last epoch's student, and its firing rates.

    Args:
        run: a finished run.
        root: folder of the data set; None: where the run's configuration says.
        batch_size: images at a time.

    Returns:
        Plain values, ready for JSON: ``accuracy`` and ``calibration_error`` (one entry a step),
        ``early_exit`` (threshold, accuracy, mean steps), ``teacher_accuracy``, ``layers``
        (firing rate [spikes a neuron and step], overall and per step).
    """
    data = load_run_data(run, root)
    student = load_student(run, data)
    correct = torch.zeros(student.timesteps, dtype=torch.int64)
    rates = _FiringRates(student)
    confidence = Confidence(student.timesteps, THRESHOLDS)
    for images, labels in _batches(data, batch_size):
        logits = student(images)
        correct += correct_per_step(logits, labels)
        confidence.update(logits, labels)
    return {
        "schema_version": 1,
        "run": str(run.path),
        "data": data.name,
        "split": "test",
        "samples": len(data.test),
        "timesteps": student.timesteps,
        "accuracy": [int(n) / len(data.test) for n in correct],
        "calibration_error": confidence.calibration_error(),
        "early_exit": [asdict(point) for point in confidence.exits()],
        "teacher_accuracy": _teacher_accuracy(run, data, batch_size),
        "layers": rates.result(),
    }


def _batches(data: ImageData, batch_size: int) -> Any:
    with torch.inference_mode():
        for images, labels in zip(
            data.test.images.split(batch_size), data.test.labels.split(batch_size), strict=True
        ):
            yield data.normalise(images), labels


def _teacher_accuracy(run: Run, data: ImageData, batch_size: int) -> float | None:
    if not run.teacher.exists():
        return None
    teacher = build_teacher(run.config().teacher, data.image_shape, data.num_classes)
    load_weights(teacher, run.teacher)
    teacher.eval()
    right = sum(
        int(correct_per_step(teacher(images).unsqueeze(0), labels)[0])
        for images, labels in _batches(data, batch_size)
    )
    return right / len(data.test)


class _FiringRates:
    """Accumulates the spikes of every LIF layer while a student runs."""

    def __init__(self, student: Student) -> None:
        self._spikes: dict[str, Tensor] = {}
        self._neurons: dict[str, int] = {}
        self._samples: dict[str, int] = {}
        for name, module in student.named_modules():
            if isinstance(module, LIF):
                module.register_forward_hook(self._hook(name.removeprefix("layers.")))

    def _hook(self, name: str) -> Any:
        def add(module: nn.Module, args: Any, out: Tensor) -> None:
            per_step = out.double().sum(tuple(range(1, out.ndim)))
            self._spikes[name] = self._spikes.get(name, torch.zeros_like(per_step)) + per_step
            self._neurons[name] = out[0, 0].numel()
            self._samples[name] = self._samples.get(name, 0) + out.shape[1]

        return add

    def result(self) -> list[dict[str, Any]]:
        """Rates by layer, in execution order."""
        rows = []
        for name, spikes in self._spikes.items():
            rate = spikes / (self._neurons[name] * self._samples[name])
            rows.append(
                {
                    "name": name.replace(".", "_"),
                    "neurons": self._neurons[name],
                    "firing_rate": float(rate.mean()),
                    "firing_rate_per_step": rate.tolist(),
                }
            )
        return rows
