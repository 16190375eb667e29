"""Training: first the teacher (unless one is given), then the student from it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tser.checkpoints import load_checkpoint, load_weights, save_weights
from tser.compilation import compile_neurons
from tser.config import RunConfig, TrainConfig
from tser.config_file import dump_config
from tser.data import ImageData, load_configured
from tser.data.feed import check_fits, check_timesteps
from tser.data.images import static
from tser.determinism import deterministic
from tser.distributed import check_share, first, own_device, parallel, process_group, spread
from tser.errors import UsageError
from tser.files import remove_leftovers, write_json, write_text
from tser.layers import Student
from tser.loop import fit
from tser.loss import tser_loss
from tser.metrics_log import check_tensorboard, truncate_metrics
from tser.models import make_run_student, make_run_teacher
from tser.runs import Run, environment
from tser.step import Phase
from tser.user_models import UserStudent, check_learns


def distill(config: RunConfig, run: Run, *, resume: bool = False) -> None:
    """Train as configured and leave a complete run folder.

    Started by torchrun, all processes train together and the first one writes.

    Args:
        config: every value of the run.
        run: the folder; new, or that of an interrupted run with ``resume``.
        resume: continue from the last checkpoint.

    Raises:
        UsageError: an unusable device, data set or augmentation.
        InputFileError: a damaged teacher, checkpoint or data file.
        TserError: the loss is no longer finite, memory has run out, or an operation has no
            deterministic form.
    """
    with deterministic(config.train.deterministic), process_group() as share:
        check_share(config.train, share)
        if config.train.tensorboard:
            check_tensorboard()
        _distill(config, run, resume)


def _distill(config: RunConfig, run: Run, resume: bool) -> None:
    device = pick_device(own_device(config.train.device))
    check_device(config.train, device)
    data = load_configured(config.data)
    check_fits(data, config.data)
    check_timesteps(data, config.student.timesteps)
    fresh = not run.teacher.exists()
    teacher, student = make_networks(config, data, device, run.factories, published=fresh)
    given = Path(config.teacher.path) if config.teacher.path else None

    def begin() -> tuple[dict[str, Any] | None, bool, bool]:
        if given and not run.teacher.exists():
            load_weights(teacher, given)
        state = _begin(config, run, resume)
        return state, run.teacher.exists(), run.student.exists()

    state, taught, finished = first(begin)
    if config.teacher.train and not given and not taught:
        fit(teacher_phase(config, teacher), data, config, run, state)
    first(lambda: _keep_teacher(teacher, run))
    spread(teacher)
    teacher.eval().requires_grad_(False)
    if not finished:
        fit(student_phase(config, student, teacher), data, config, run, state)


def make_networks(
    config: RunConfig,
    data: ImageData,
    device: torch.device,
    factories: tuple[str, ...],
    *,
    published: bool = True,
) -> tuple[nn.Module, Student | UserStudent]:
    """Teacher and student as they start training.

    Args:
        config: of the run.
        data: its image shape and classes.
        device: to train on.
        factories: factories that the command line named.
        published: read ``teacher.weights``; not needed where other weights are loaded next.

    Raises:
        UsageError: as for `distill`.
    """
    torch.manual_seed(config.train.seed)
    teacher = make_run_teacher(config, data, factories, published=published).to(device)
    student = make_run_student(config, data, factories)
    if isinstance(student, UserStudent):
        check_learns(student)
    student = student.to(device)
    if config.train.channels_last:
        for model in (teacher, student):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.train.compile == "neuron":
        compile_neurons(student)
    return teacher, student


def _begin(config: RunConfig, run: Run, resume: bool) -> dict[str, Any] | None:
    """Make the folder of a new run, or clean up that of an interrupted one; its checkpoint."""
    state = load_checkpoint(run.checkpoint) if resume and run.checkpoint.exists() else None
    if resume:
        remove_leftovers(run.path)
    elif run.config_file.exists():
        raise UsageError(f"another run has just started in {run.path}; choose another --out")
    else:
        write_text(run.config_file, dump_config(config))
    if not run.environment.exists():
        write_json(run.environment, environment())
    truncate_metrics(run, state)
    return state


def _keep_teacher(teacher: nn.Module, run: Run) -> None:
    if run.teacher.exists():
        load_weights(teacher, run.teacher)
    else:
        save_weights(teacher, run.teacher)


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
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # NCCL talks over the current one
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used here; use --device cpu") from error
    return device


def check_device(train: TrainConfig, device: torch.device) -> None:
    """Refuse settings that this device cannot carry out.

    Raises:
        UsageError: naming the setting and the device.
    """
    if train.sync_bn and device.type != "cuda":
        raise UsageError(
            f"train.sync_bn works on GPUs only, and this run is on {device}; "
            "use --set train.sync_bn=false"
        )
    works = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    if train.precision == "bf16" and not works:
        raise UsageError(
            f"train.precision = 'bf16' does not work on {device}; use --set train.precision=float32"
        )


def _precision(train: TrainConfig, images: Tensor) -> AbstractContextManager[Any]:
    if train.precision == "bf16":
        return torch.autocast(images.device.type, torch.bfloat16)
    return nullcontext()


def teacher_phase(config: RunConfig, teacher: nn.Module) -> Phase:
    """Training of the teacher, on its device, by cross-entropy."""
    network = parallel(teacher, config.train)

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float], Tensor]:
        with _precision(config.train, images):
            logits = network(static(images))
        logits = logits.float()
        loss = F.cross_entropy(logits, labels)
        return loss, {"loss": float(loss.detach())}, logits.unsqueeze(0)

    return Phase(
        "teacher", teacher, step, config.teacher.epochs, config.teacher.lr, network=network
    )


def student_phase(config: RunConfig, student: nn.Module, teacher: nn.Module) -> Phase:
    """Training of the student from the teacher, both on one device, by the TSER loss."""
    network = parallel(student, config.train)

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float], Tensor]:
        target = None
        if config.loss.kl != "none":
            with torch.no_grad(), _precision(config.train, images):
                target = teacher(static(images)).float()
        with _precision(config.train, images):
            logits = network(images)
        logits = logits.float()
        if len(logits) != student.timesteps:
            raise UsageError(
                f"the student gives logits of {len(logits)} steps when asked for "
                f"{student.timesteps}; use --set train.curriculum_epochs=0"
            )
        parts = tser_loss(logits, labels, target, config.loss)
        named = parts.as_floats()
        return parts.total, {"loss": named.pop("total"), **named}, logits

    train, timesteps = config.train, config.student.timesteps
    return Phase("student", student, step, train.epochs, train.lr, timesteps, network)
