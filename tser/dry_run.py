"""What a run would be: shapes, parameters, memory and time, from one step that changes nothing.

Nothing is read, downloaded or written for the published data sets: the step is taken on random
images of their shape. Memory and time are measured with as many images as are quick, and scaled
to the batch.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from tser.config import RunConfig
from tser.data import ArraySplit, ImageData, load_configured
from tser.data.batch import Batch
from tser.data.feed import batches_in_order, check_fits, check_timesteps
from tser.data.images import make_image_data
from tser.distill import (
    make_networks,
    pick_device,
    plan_student,
    student_phase,
    teacher_phase,
)
from tser.logit_cache import check_cacheable
from tser.optim import make_optimizer
from tser.recording import spiking_layers
from tser.step import Phase, Tally, accumulate_gradients, is_out_of_memory, out_of_memory

Shape = tuple[int, int, int]

PUBLISHED: dict[str, tuple[Shape, int, int]] = {
    "digits": ((1, 8, 8), 10, 1097),
    "mnist": ((1, 28, 28), 10, 55_000),
    "fashion-mnist": ((1, 28, 28), 10, 55_000),
    "cifar10": ((3, 32, 32), 10, 45_000),
    "cifar100": ((3, 32, 32), 100, 45_000),
    "imagenet": ((3, 224, 224), 1000, 1_271_167),
}
"""Shape of an image, classes and training images of the sets that are never loaded for this.

"imagenet" is the folder that the preset names; 10,000 images of its train/ are for validation.
"""

SECONDS = 4.0
"""A step is measured with as many images as take about this long."""


@dataclass(frozen=True)
class Layer:
    """One layer that has parameters or neurons.

    Attributes:
        name: path in the student.
        kind: class.
        shape: of its output, ``[T or 1, B, ...]`` for neurons and ``[T * B or B, ...]`` else.
        parameters: number.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Cost:
    """One training step of a model, scaled to the configured batch.

    Attributes:
        parameters: number of them.
        state_bytes: parameters, their gradients and the optimiser's state.
        kept_bytes: activations kept for the backward pass of one micro-batch.
        step_seconds: of one step.
        epoch_seconds: of the steps of one epoch, without waiting for data.
        measured_on: images of the step that was measured.
        epochs: configured.
    """

    parameters: int
    state_bytes: int
    kept_bytes: int
    step_seconds: float
    epoch_seconds: float
    measured_on: int
    epochs: int


@dataclass(frozen=True)
class Outlook:
    """What a run would be.

    Attributes:
        data: name of the data set.
        image_shape: (C, H, W).
        num_classes: K.
        training_images: in an epoch.
        loaded: whether the data set was read; otherwise the step saw random images.
        timesteps: T.
        batch_size: images a step.
        steps_per_epoch: optimisation steps.
        layers: of the student, in execution order.
        student: its cost.
        teacher: its cost; None if it is not trained.
        device: where the step was taken.
        loss: of the step, by part.
        compile: what of the student would be compiled, which the step was not.
        low_memory: whether less would be kept for the backward pass than the step kept.
    """

    data: str
    image_shape: Shape
    num_classes: int
    training_images: int
    loaded: bool
    timesteps: int
    batch_size: int
    steps_per_epoch: int
    layers: list[Layer]
    student: Cost
    teacher: Cost | None
    device: str
    loss: dict[str, float]
    compile: str
    low_memory: bool


def dry_run(config: RunConfig, factories: tuple[str, ...] = ()) -> Outlook:
    """Build the networks of a run and take one step with each.

    Args:
        config: of the run.
        factories: factories that the command line named.

    Raises:
        UsageError: what `tser.distill.distill` would refuse before training.
        TserError: even two images do not fit into memory.
    """
    device = pick_device(config.train.device)
    data, images, loaded = _data(config)
    check_fits(data, config.data)
    check_timesteps(data, config.student.timesteps)
    check_cacheable(config, data)
    # Published weights would be downloaded, and their values change no shape.
    teacher, student = make_networks(config, data, device, factories, published=False)
    steps = -(-images // config.train.batch_size)
    plan = plan_student(config, student, data, device, images)

    cost = None
    if config.teacher.train and not config.teacher.path:
        cost = _measured(teacher_phase(config, teacher), config, data, steps)[0]
    teacher.eval().requires_grad_(False)
    layers: dict[str, Layer] = {}
    handles = _watch(student, layers)
    phase = student_phase(config, student, teacher)
    student_cost, loss = _measured(phase, config, data, steps)
    for handle in handles:
        handle.remove()
    return Outlook(
        data=config.data.name,
        image_shape=data.image_shape,
        num_classes=data.num_classes,
        training_images=images,
        loaded=loaded,
        timesteps=config.student.timesteps,
        batch_size=config.train.batch_size,
        steps_per_epoch=steps,
        layers=list(layers.values()),
        student=student_cost,
        teacher=cost,
        device=str(device),
        loss=loss,
        compile=plan.mode,
        low_memory=config.train.low_memory,
    )


def _data(config: RunConfig) -> tuple[ImageData, int, bool]:
    """Images to take a step on, the number of training images, and whether they are real."""
    name = config.data.name
    if name not in PUBLISHED or Path(name).is_dir():
        data = load_configured(config.data)
        return data, len(data.train), True
    shape, classes, count = PUBLISHED[name]
    if name == "imagenet":
        shape = (shape[0], config.data.size, config.data.size)
    samples = max(2, min(config.train.batch_size, config.data.limit_train or count))
    generator = torch.Generator().manual_seed(config.train.seed)
    split = ArraySplit(
        torch.randint(256, (samples, *shape), dtype=torch.uint8, generator=generator),
        torch.arange(samples) % classes,
    )
    names = tuple(map(str, range(classes)))
    data = make_image_data(name, names, train=split, val=split, test=split, max_value=255)
    return data, min(count, config.data.limit_train or count), False


def _watch(student: nn.Module, layers: dict[str, Layer]) -> list[RemovableHandle]:
    """Note every layer with parameters or neurons when it runs for the first time."""

    def hook(name: str) -> Any:
        def note(module: nn.Module, args: Any, out: Any) -> None:
            value = out[0] if isinstance(out, tuple) else out
            own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            shape = tuple(value.shape)
            layers.setdefault(name, Layer(name, type(module).__name__, shape, own))

        return note

    firing = spiking_layers(student)
    return [
        module.register_forward_hook(hook(name))
        for name, module in student.named_modules()
        if name in firing or any(True for _ in module.parameters(recurse=False))
    ]


def _measured(
    phase: Phase, config: RunConfig, data: ImageData, steps: int
) -> tuple[Cost, dict[str, float]]:
    """The cost of a step and its loss, first with two images, then with as many as are quick."""
    train = config.train
    device = next(phase.model.parameters()).device
    phase.model.train()
    optimizer = make_optimizer(phase.model, train, phase.lr)

    def step(count: int) -> tuple[float, int, Tally]:
        images, labels = next(batches_in_order(data, data.train, count))
        batch = Batch(images, labels).to(device)
        if train.channels_last:
            batch = batch.channels_last()
        kept = _Kept(phase.model)
        started = time.perf_counter()
        tally = None
        try:
            with kept.counting():
                tally = accumulate_gradients(phase, batch, parts=1)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if tally is None:  # behind the handler, which keeps the tensors of the failed step alive
            raise out_of_memory(phase, train, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started, kept.bytes, tally

    step(2)  # the first one also waits for libraries to load
    seconds, kept, tally = step(2)
    piece = max(2, -(-train.batch_size // train.accumulate))
    count = int(min(piece, len(data.train), 2 * SECONDS / seconds, _affordable(kept / 2)))
    if count > 2:
        seconds, kept, tally = step(count)
    else:
        count = 2
    state = [*phase.model.parameters(), *phase.model.buffers()]
    sizes = [value.numel() * value.element_size() for value in state]
    sizes += [value.numel() * value.element_size() for value in phase.model.parameters()]
    sizes += [
        value.numel() * value.element_size()
        for values in optimizer.state.values()
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    step_seconds = seconds / count * train.batch_size
    cost = Cost(
        parameters=sum(value.numel() for value in phase.model.parameters()),
        state_bytes=sum(sizes),
        kept_bytes=round(kept / count * piece),
        step_seconds=step_seconds,
        epoch_seconds=step_seconds * steps,
        measured_on=count,
        epochs=phase.epochs,
    )
    return cost, {name: value / tally.seen for name, value in tally.totals.items()}


class _Kept:
    """Bytes of the activations that autograd keeps for the backward pass, each storage once."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {value.untyped_storage().data_ptr() for value in model.parameters()}
        self.bytes = 0

    def counting(self) -> saved_tensors_hooks:
        """A context in which what is kept is counted."""

        def keep(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.bytes += storage.nbytes()
            return value

        return saved_tensors_hooks(keep, lambda value: value)


def _affordable(bytes_per_image: float) -> float:
    """Images whose activations fit into a quarter of the free memory."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return math.inf
    return free / 4 / max(bytes_per_image, 1)
