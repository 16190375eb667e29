"""The two networks of a run: built by name, or by a factory that the command line named."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from tser.config import RunConfig, TeacherConfig
from tser.data import ImageData
from tser.data.feed import check_timesteps
from tser.data.images import static
from tser.errors import UsageError
from tser.layers import Student
from tser.students import build_student
from tser.teachers import build_teacher
from tser.user_models import UserStudent, make_module, make_student


def make_run_student(
    config: RunConfig, data: ImageData, factories: Collection[str] = ()
) -> Student | UserStudent:
    """The student as configured, with fresh weights, on the CPU.

    Args:
        config: of the run.
        data: its image shape and classes.
        factories: those that the command line named; no other is imported.

    Raises:
        UsageError: a factory that was not named, or a network that does not fit or holds NaN.
    """
    check_timesteps(data, config.student.timesteps)
    factory = config.student.factory
    if not factory:
        return build_student(config.student, config.neuron, data.image_shape, data.num_classes)
    _check_named(factory, "student", factories)
    student = make_student(factory, config.student.timesteps, data.image_shape, data.num_classes)
    _check_finite(student, "student", factory)
    if data.frames is not None and isinstance(student, UserStudent) and student.form == "static":
        raise UsageError(
            f"the student {factory} takes one image for all steps and {data.name} has a frame for "
            "each; let it take [T, B, C, H, W]"
        )
    return student


def make_run_teacher(
    config: RunConfig, data: ImageData, factories: Collection[str] = (), *, published: bool = True
) -> nn.Module:
    """The teacher as configured, on the CPU; its weights are fresh or those it comes with.

    Of frames ``[T, B, C, H, W]`` it sees the mean over T.

    Args:
        config: of the run.
        data: its image shape and classes.
        factories: those that the command line named; no other is imported.
        published: read ``teacher.weights``; not needed where other weights are loaded next.

    Raises:
        UsageError: a factory that was not named, or a network that does not fit or holds NaN.
    """
    teacher = _teacher(config.teacher, data, factories, published)
    if data.frames is not None:
        teacher.register_forward_pre_hook(lambda _, images: (static(images[0]),))
    return teacher


def _teacher(
    config: TeacherConfig, data: ImageData, factories: Collection[str], published: bool
) -> nn.Module:
    factory = config.factory
    if not factory:
        wanted = config if published else config.model_copy(update={"weights": ""})
        return build_teacher(wanted, data.image_shape, data.num_classes)
    _check_named(factory, "teacher", factories)
    shape, classes = data.image_shape, data.num_classes
    teacher = make_module(factory, input_shape=shape, num_classes=classes)
    _check_finite(teacher, "teacher", factory)
    training = teacher.training
    try:
        with torch.no_grad():
            logits: object = teacher.eval()(torch.zeros(2, *shape))
    except Exception as error:  # it is the user's code
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"the teacher {factory} fails on images {shape}: {reason[:120]!r}"
        ) from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, classes):
        raise UsageError(
            f"the teacher {factory} maps two images {shape} to {found}; it must give "
            f"(2, {classes}), one logit a class"
        )
    if config.train and not any(value.requires_grad for value in teacher.parameters()):
        raise UsageError(
            f"the teacher {factory} has no parameters to train; use --set teacher.train=false"
        )
    return teacher.train(training)


def _check_finite(model: nn.Module, role: str, factory: str) -> None:
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise UsageError(
                f"the {role} {factory} comes with NaN or infinite values in "
                f"{name.removeprefix('model.')!r}; look for where it fills it"
            )


def _check_named(factory: str, role: str, factories: Collection[str]) -> None:
    if factory not in factories:
        raise UsageError(
            f"the {role} of this run is made by {factory}, which is only imported when the "
            f"command line names it: add --{role} {factory} if you trust it"
        )
