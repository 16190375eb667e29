"""Training: first the teacher (unless one is given), then the student from it."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tser.augment import random_shift_flip
from tser.checkpoints import load_checkpoint, load_weights, save_checkpoint, save_weights
from tser.config import RunConfig, dump_config
from tser.data import ImageData, Split, load_data
from tser.errors import InputFileError, TserError, UsageError
from tser.files import write_json, write_text
from tser.loss import tser_loss
from tser.metrics import correct_per_step
from tser.progress import Reporter
from tser.runs import Run, environment
from tser.students import build_student
from tser.teachers import build_teacher

Step = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, float], Tensor]]
"""(images, labels) -> loss to minimise, its parts for the log, logits ``[T, B, K]``."""


@dataclass(frozen=True)
class Phase:
    """One model being trained.

    Attributes:
        name: "teacher" or "student".
        model: on its device.
        step: the loss of one batch.
        epochs: how many.
        lr: peak learning rate.
    """

    name: str
    model: nn.Module
    step: Step
    epochs: int
    lr: float


def distill(config: RunConfig, run: Run, *, resume: bool = False) -> None:
    """Train as configured and leave a complete run folder.

    Args:
        config: every value of the run.
        run: the folder; new, or that of an interrupted run with ``resume``.
        resume: continue from the last finished epoch.

    Raises:
        UsageError: an unusable device, data set or augmentation.
        InputFileError: a damaged teacher, checkpoint or data file.
        TserError: the loss is no longer finite.
    """
    device = pick_device(config.train.device)
    root = Path(config.data.root) if config.data.root else None
    data = load_data(config.data.name, root, limit_train=config.data.limit_train or None)
    if config.data.shift >= min(data.image_shape[1:]):
        height, width = data.image_shape[1:]
        raise UsageError(
            f"data.shift = {config.data.shift} moves a {height}x{width} image out of itself; "
            "use a smaller shift"
        )
    torch.manual_seed(config.train.seed)
    teacher = build_teacher(config.teacher, data.image_shape, data.num_classes).to(device)
    student = build_student(config.student, config.neuron, data.image_shape, data.num_classes)
    student = student.to(device)
    if config.teacher.path and not run.teacher.exists():
        load_weights(teacher, Path(config.teacher.path))

    state = load_checkpoint(run.checkpoint) if resume and run.checkpoint.exists() else None
    if not resume:
        if run.config_file.exists():
            raise UsageError(f"another run has just started in {run.path}; choose another --out")
        write_text(run.config_file, dump_config(config))
        write_json(run.environment, environment())
    _truncate_metrics(run, state)

    if not config.teacher.path and not run.teacher.exists():
        _fit(_teacher_phase(config, teacher), data, config, run, state)
    if run.teacher.exists():
        load_weights(teacher, run.teacher)
    else:
        save_weights(teacher, run.teacher)
    teacher.eval().requires_grad_(False)

    if not run.student.exists():
        _fit(_student_phase(config, student, teacher), data, config, run, state)


def pick_device(name: str) -> torch.device:
    """The device to train on; "auto" takes a GPU if there is one.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used here; use --device cpu") from error
    return device


def _teacher_phase(config: RunConfig, teacher: nn.Module) -> Phase:
    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float], Tensor]:
        logits = teacher(images)
        loss = F.cross_entropy(logits, labels)
        return loss, {"loss": float(loss.detach())}, logits.unsqueeze(0)

    return Phase("teacher", teacher, step, config.teacher.epochs, config.teacher.lr)


def _student_phase(config: RunConfig, student: nn.Module, teacher: nn.Module) -> Phase:
    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float], Tensor]:
        with torch.no_grad():
            target = teacher(images) if config.loss.kl != "none" else None
        logits = student(images)
        parts = tser_loss(logits, labels, target, config.loss)
        named = parts.as_floats()
        return parts.total, {"loss": named.pop("total"), **named}, logits

    return Phase("student", student, step, config.train.epochs, config.train.lr)


def _fit(
    phase: Phase, data: ImageData, config: RunConfig, run: Run, state: dict[str, Any] | None
) -> None:
    train = config.train
    model = phase.model
    optimizer = torch.optim.SGD(
        _weight_groups(model, train.weight_decay), lr=phase.lr, momentum=train.momentum
    )
    first = 0
    if state is not None and state["phase"] == phase.name:
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputFileError(
                f"{run.checkpoint} is of another network than the configured {phase.name}; "
                "delete it to train this phase from its start"
            ) from error
        first = state["epoch"]
    per_epoch = -(-len(data.train) // train.batch_size)
    with Reporter(phase.name, phase.epochs * per_epoch, first * per_epoch) as reporter:
        for epoch in range(first, phase.epochs):
            started = time.monotonic()
            row = _train_epoch(phase, optimizer, data, config, epoch, reporter)
            row["val_accuracy"] = _accuracy(model, data, data.val, train.batch_size)
            row |= {"phase": phase.name, "epoch": epoch + 1, "seconds": time.monotonic() - started}
            with run.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            shown = {key: value for key, value in row.items() if isinstance(value, float)}
            shown["val_accuracy"] = row["val_accuracy"][-1]
            del shown["seconds"], shown["lr"]
            reporter.epoch(epoch + 1, phase.epochs, shown)
            save_checkpoint(
                {
                    "phase": phase.name,
                    "epoch": epoch + 1,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
                run.checkpoint,
            )
    save_weights(model, run.teacher if phase.name == "teacher" else run.student)


def _train_epoch(
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    data: ImageData,
    config: RunConfig,
    epoch: int,
    reporter: Reporter,
) -> dict[str, Any]:
    device = next(phase.model.parameters()).device
    # Order and augmentation depend on the epoch's number alone, so a resumed run repeats them.
    generator = torch.Generator().manual_seed(
        config.train.seed * 1_000_003 + epoch * 2 + (phase.name == "student")
    )
    phase.model.train()
    totals: dict[str, float] = {}
    seen = correct = 0
    size = len(data.train)
    batches = list(_batches(size, config.train.batch_size, generator))
    for number, index in enumerate(batches):
        images = random_shift_flip(
            data.train.images[index],
            pad=config.data.shift,
            flip=config.data.flip,
            generator=generator,
        )
        labels = data.train.labels[index].to(device)
        lr = _learning_rate(phase, config, epoch + number / len(batches))
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss, parts, logits = phase.step(data.normalise(images).to(device), labels)
        _check_finite(parts, phase, epoch, number)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + value * len(index)
        seen += len(index)
        correct += int(correct_per_step(logits.detach(), labels)[-1])
        reporter.step()
    # The last step has no next loss to show what it did, and its weights are what is saved.
    finite = all(bool(value.isfinite().all()) for value in phase.model.state_dict().values())
    _check_finite({"weights": 0.0 if finite else math.nan}, phase, epoch, number)
    row: dict[str, Any] = {name: value / seen for name, value in totals.items()}
    return row | {"train_accuracy": correct / seen, "lr": lr}


def _batches(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    for index in torch.randperm(size, generator=generator).split(batch_size):
        if len(index) > 1 or size == 1:  # batch norm cannot train on a single pixel column
            yield index


def _learning_rate(phase: Phase, config: RunConfig, progress: float) -> float:
    """Linear warm-up, then one cosine to zero; ``progress`` in epochs."""
    warmup = min(config.train.warmup_epochs, phase.epochs / 2)
    if progress < warmup:
        return phase.lr * (0.05 + 0.95 * progress / warmup)
    fraction = (progress - warmup) / (phase.epochs - warmup)
    return phase.lr * 0.5 * (1 + math.cos(math.pi * fraction))


def _weight_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _check_finite(parts: dict[str, float], phase: Phase, epoch: int, number: int) -> None:
    broken = [name for name, value in parts.items() if not math.isfinite(value)]
    if broken:
        cause = next((name for name in broken if name != "loss"), broken[0])
        key = "teacher.lr" if phase.name == "teacher" else "train.lr"
        raise TserError(
            f"training the {phase.name} broke in epoch {epoch + 1}, step {number + 1}: {cause!r} "
            f"is not finite; lower the learning rate (--set {key}=…) and train again"
        )


def _accuracy(model: nn.Module, data: ImageData, split: Split, batch_size: int) -> list[float]:
    """Accuracy after each step (one entry for a teacher)."""
    device = next(model.parameters()).device
    model.eval()
    correct: Tensor | int = 0
    with torch.inference_mode():
        for images, labels in zip(
            split.images.split(4 * batch_size), split.labels.split(4 * batch_size), strict=True
        ):
            logits = model(data.normalise(images).to(device))
            logits = logits if logits.ndim == 3 else logits.unsqueeze(0)
            correct = correct + correct_per_step(logits, labels.to(device)).cpu()
    return [int(n) / len(split) for n in torch.as_tensor(correct)]


def _truncate_metrics(run: Run, state: dict[str, Any] | None) -> None:
    """Drop rows after the checkpoint: an epoch that is repeated must not be logged twice."""
    if not run.metrics.exists():
        return
    kept = []
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # the last line of a killed run
        finished = run.teacher.exists() and row["phase"] == "teacher"
        reached = state and row["phase"] == state["phase"] and row["epoch"] <= state["epoch"]
        if finished or reached or run.student.exists():
            kept.append(line)
        else:
            sys.stderr.write(f"repeating {row['phase']} epoch {row['epoch']}\n")
    write_text(run.metrics, "".join(line + "\n" for line in kept))
