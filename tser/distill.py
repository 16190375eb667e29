"""Training: first the teacher (unless one is given), then the student from it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tser.checkpoints import (
    check_continues,
    check_teacher,
    describe_teacher,
    load_checkpoint,
    load_teacher,
    load_weights,
    save_weights,
)
from tser.compilation import (
    Compilation,
    batch_sizes,
    compile_neurons,
    compiled_network,
    measure_workload,
    plan_compilation,
)
from tser.config import RunConfig, TrainConfig
from tser.config_file import dump_config
from tser.data import ImageData, load_configured
from tser.data.batch import Batch
from tser.data.feed import check_fits, check_timesteps
from tser.data.images import static, time_first
from tser.data.resident import placed
from tser.determinism import deterministic
from tser.distributed import (
    check_share,
    current_share,
    first,
    own_device,
    parallel,
    process_group,
    spread,
)
from tser.errors import UsageError
from tser.files import write_json, write_text
from tser.integrity import digest
from tser.layers import Student
from tser.leftovers import remove_leftovers
from tser.logit_cache import LogitCache, check_cache_file, check_cacheable, open_cache
from tser.loop import fit
from tser.loss import tser_loss
from tser.metrics_log import check_tensorboard, truncate_metrics
from tser.models import make_run_student, make_run_teacher
from tser.run_lock import locked
from tser.runs import Run, environment
from tser.step import Phase
from tser.user_models import UserStudent, check_learns

Foresee = Callable[[Student | UserStudent, ImageData], str]
"""What will be refused of a student after its training, empty for nothing."""


def distill(
    config: RunConfig,
    run: Run,
    *,
    resume: bool = False,
    held: bool = False,
    foresee: Foresee | None = None,
) -> None:
    """Train as configured and leave a complete run folder.

    Started by torchrun, all processes train together and the first one writes.

    Args:
        config: every value of the run.
        run: the folder; new, or that of an interrupted run with ``resume``.
        resume: continue from the last checkpoint.
        held: the caller holds the lock of the folder (`tser.run_lock.locked`).
        foresee: asked of a user's own student before it is trained; what it says is a warning.

    Raises:
        UsageError: an unusable device, data set or augmentation, or another process trains there.
        InputFileError: a damaged teacher, checkpoint or data file.
        TserError: the loss is no longer finite, memory has run out, or an operation has no
            deterministic form.
        KeyboardInterrupt: SIGINT or SIGTERM came; what has been learnt is in the checkpoint.
    """
    with (
        ExitStack() as lock,
        deterministic(config.train.deterministic, config.train.threads),
        process_group() as share,
    ):
        check_share(config.train, share)
        if config.train.tensorboard:
            check_tensorboard()
        if not held:
            first(lambda: lock.enter_context(locked(run.path)))
        _distill(config, run, resume, foresee)


def _distill(config: RunConfig, run: Run, resume: bool, foresee: Foresee | None) -> None:
    device = pick_device(own_device(config.train.device))
    check_device(config.train, device, config.teacher.precision)
    data = placed(load_configured(config.data), config.data, device)
    check_fits(data, config.data)
    check_timesteps(data, config.student.timesteps)
    check_cacheable(config, data)
    check_cache_file(config, data)
    fresh = not run.teacher.exists()
    teacher, student = make_networks(config, data, device, run.factories, published=fresh)
    plan = plan_student(config, student, data, device, len(data.train))
    if config.train.low_memory and not plan.low_memory and isinstance(student, Student):
        student.layers.recompute = True
    given = Path(config.teacher.path) if config.teacher.path else None

    def begin() -> tuple[dict[str, Any] | None, bool, bool]:
        if given and not run.teacher.exists():
            load_weights(teacher, given)
        state = _begin(config, data, run, resume)
        return state, run.teacher.exists(), run.student.exists()

    state, taught, finished = first(begin)
    own = isinstance(student, UserStudent) and current_share().rank == 0
    if own and foresee and (reason := foresee(student, data)):
        sys.stderr.write(f"warning: this student can be trained, not exported: {reason}\n")
    if config.teacher.train and not given and not taught:
        fit(teacher_phase(config, teacher), data, config, run, state)
    taught_by = first(lambda: _keep_teacher(teacher, config, run, state))
    spread(teacher)
    teacher.eval().requires_grad_(False)
    if not finished:
        cache = open_cache(config, data, teacher) if config.teacher.cache else None
        phase = student_phase(config, student, teacher, cache, plan)
        phase = replace(phase, taught_by=taught_by)
        if plan.mode != "off" and current_share().rank == 0:
            what = "neurons" if plan.mode == "neuron" else "step"
            sys.stderr.write(
                f"compiling the student's {what}: about {plan.wait:.0f} s more in the first steps, "
                "a tenth of it once it is in the cache\n"
            )
        fit(phase, data, config, run, state)
        if cache is not None:
            sys.stderr.write(f"{cache.summary()}\n")


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
    return teacher, student


def plan_student(
    config: RunConfig,
    student: Student | UserStudent,
    data: ImageData,
    device: torch.device,
    samples: int,
) -> Compilation:
    """What is to be compiled for the training of the student.

    Args:
        config: of the run.
        student: on its device.
        data: what it trains on.
        device: of the student.
        samples: of an epoch.

    Raises:
        UsageError: compilation or ``train.low_memory`` is not possible here.
    """
    train = config.train
    zeros = torch.zeros(2, *data.train.shape, device=device)
    steps = config.student.timesteps
    work = measure_workload(student, time_first(zeros), steps, samples * train.epochs)
    sizes = batch_sizes(train, samples, current_share().world)
    plan = plan_compilation(train, work, device, sizes)
    if train.low_memory and not plan.low_memory and isinstance(student, UserStudent):
        raise UsageError(
            "train.low_memory needs the step of a model of your own to be compiled, with "
            "--compile step and a compiler that PyTorch can use; leave it out"
        )
    return plan


def _begin(config: RunConfig, data: ImageData, run: Run, resume: bool) -> dict[str, Any] | None:
    """Make the folder of a new run, or clean up that of an interrupted one; its checkpoint."""
    state = load_checkpoint(run.checkpoint) if resume and run.checkpoint.exists() else None
    if state is not None:
        check_continues(state, config, data, run)
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


def _keep_teacher(
    teacher: nn.Module, config: RunConfig, run: Run, state: dict[str, Any] | None
) -> str:
    """See to it that the run has its teacher, and that it is the one of its checkpoint.

    Returns:
        The digest of its weights.
    """
    if run.teacher.exists():
        load_teacher(teacher, config, run)
    else:
        save_weights(teacher, run.teacher, describe_teacher(config))
    taught_by = digest(teacher.state_dict())
    check_teacher(state, taught_by, run)
    return taught_by


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


def check_device(train: TrainConfig, device: torch.device, teacher: str = "same") -> None:
    """Refuse settings that this device cannot carry out.

    Args:
        train: how to train.
        device: on what.
        teacher: its precision.

    Raises:
        UsageError: naming the setting and the device.
    """
    if train.sync_bn and device.type != "cuda":
        raise UsageError(
            f"train.sync_bn works on GPUs only, and this run is on {device}; "
            "use --set train.sync_bn=false"
        )
    works = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    for key, precision in (("train", train.precision), ("teacher", teacher)):
        if precision == "bf16" and not works:
            raise UsageError(
                f"{key}.precision = 'bf16' does not work on {device}; "
                f"use --set {key}.precision=float32"
            )


def _precision(name: str, images: Tensor) -> AbstractContextManager[Any]:
    if name == "bf16":
        return torch.autocast(images.device.type, torch.bfloat16)
    return nullcontext()


def teacher_phase(config: RunConfig, teacher: nn.Module) -> Phase:
    """Training of the teacher, on its device, by cross-entropy."""
    network = parallel(teacher, config.train)

    def step(batch: Batch) -> tuple[Tensor, dict[str, float], Tensor]:
        with _precision(config.train.precision, batch.images):
            logits = network(static(batch.images))
        logits = logits.float()
        loss = F.cross_entropy(logits, batch.labels)
        return loss, {"loss": float(loss.detach())}, logits.unsqueeze(0)

    return Phase(
        "teacher", teacher, step, config.teacher.epochs, config.teacher.lr, network=network
    )


def student_phase(
    config: RunConfig,
    student: nn.Module,
    teacher: nn.Module,
    cache: LogitCache | None = None,
    compilation: Compilation | None = None,
) -> Phase:
    """Training of the student from the teacher, both on one device, by the TSER loss.

    Args:
        config: of the run.
        student: to train.
        teacher: as it teaches.
        cache: of its logits.
        compilation: what of the student is compiled; None: nothing.
    """
    network, own = parallel(student, config.train), config.teacher.precision
    teaching = config.train.precision if own == "same" else own
    run, teach = _compiled(network, student, teacher, compilation or Compilation())

    def ask(images: Tensor) -> Tensor:
        # Not inference_mode: the loss keeps these logits for its backward pass.
        with torch.no_grad(), _precision(teaching, images):
            logits = teach(images)
        return logits.float()

    def step(batch: Batch) -> tuple[Tensor, dict[str, float], Tensor]:
        target = None
        if config.loss.kl != "none":
            images = static(batch.images)
            if cache is None or batch.views is None:
                target = ask(images)
            else:
                target = cache.logits(batch.views, images, ask)
        with _precision(config.train.precision, batch.images):
            logits = run(batch.images)
        logits = logits.float()
        if len(logits) != student.timesteps:
            raise UsageError(
                f"the student gives logits of {len(logits)} steps when asked for "
                f"{student.timesteps}; use --set train.curriculum_epochs=0"
            )
        parts = tser_loss(logits, batch.labels, target, config.loss)
        named = parts.as_floats()
        return parts.total, {"loss": named.pop("total"), **named}, logits

    train, timesteps = config.train, config.student.timesteps
    save = None if cache is None else cache.save
    return Phase("student", student, step, train.epochs, train.lr, timesteps, network, save)


def _compiled(
    network: nn.Module, student: nn.Module, teacher: nn.Module, plan: Compilation
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The student's network and the teacher as they run in training."""
    if plan.mode == "neuron":
        compile_neurons(student, plan.sizes)
    if plan.mode != "step":
        return network, teacher
    return (
        compiled_network(network, plan.sizes, low_memory=plan.low_memory),
        compiled_network(teacher, plan.sizes),
    )
