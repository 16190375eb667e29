"""Weights and training state on disk; reading them never runs code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tser import __version__
from tser.checkpoint_file import read_archive
from tser.config import RunConfig
from tser.data import ImageData, load_configured
from tser.data.places import no_download
from tser.errors import InputFileError
from tser.files import atomic_path
from tser.integrity import (
    brief,
    describe_data,
    describe_student,
    describe_training,
    difference,
    digest,
)
from tser.layers import Student
from tser.models import make_run_student
from tser.neurons import LIF
from tser.plain_files import check_plain
from tser.printable import one_line
from tser.runs import Run
from tser.user_models import UserStudent

_KEY: Final = "tser"
_MARK: Final = '"producer": "tser '
"""Stands in the metadata of every weight file of ours, whatever became of their key."""


def save_weights(
    module: nn.Module, path: Path, trained_as: Mapping[str, Any] | None = None
) -> None:
    """Write the module's state as safetensors, whole or not at all, with its digest.

    Args:
        module: whose.
        path: where to.
        trained_as: what defines the model beside its weights, plain values; see `describe`.
    """
    # Cloned: safetensors refuses tensors that share memory, as tied weights do.
    state = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in module.state_dict().items()
    }
    about: dict[str, Any] = {"producer": f"tser {__version__}", "trained_as": trained_as or {}}
    about["sha256"] = digest([about, state])
    # One entry: safetensors writes several in any order.
    metadata = {_KEY: json.dumps(about, ensure_ascii=False)}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata)


def describe(config: RunConfig, data: ImageData) -> dict[str, Any]:
    """What defines the student of a run beside its weights."""
    return {"settings": describe_student(config), "data": describe_data(data)}


def describe_teacher(config: RunConfig) -> dict[str, Any]:
    """How the teacher of a run came to be."""
    settings = describe_training(config)
    settings.pop("teacher.precision")  # in which it teaches
    return {"settings": {key: settings[key] for key in settings if key.startswith("teacher.")}}


def load_weights(module: nn.Module, path: Path) -> None:
    """Read safetensors into ``module``; digest, names, shapes, types and finiteness come first.

    Files of other tools, and of earlier versions of tser, have no digest.

    Raises:
        InputFileError: missing, damaged or of another network.
    """
    _put(module, read_weights(path)[0], path)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a weight file by name, and ``trained_as``, empty where it does not say.

    Raises:
        InputFileError: missing or damaged.
    """
    check_plain(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputFileError(f"there is no weight file {path}") from error
    except (SafetensorError, OSError) as error:
        raise InputFileError(
            f"{path} is not a readable safetensors file ({one_line(str(error))[:160]}); restore it "
            "or train again"
        ) from error
    return state, _verified(metadata, state, path)


def weights_digest(path: Path) -> str | None:
    """The digest that a weight file carries; None: unreadable, or a file of others.

    Whether it is right is for `read_weights` to say.
    """
    try:
        check_plain(path)
        with safe_open(path, "pt") as file:
            stated = json.loads((file.metadata() or {})[_KEY])["sha256"]
    except (InputFileError, SafetensorError, OSError, RecursionError):
        return None
    except (ValueError, KeyError, TypeError):  # metadata of others
        return None
    return stated if isinstance(stated, str) else None


def _put(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load ``state``, which was read from ``path``, if it is of this network."""
    wanted = module.state_dict()
    for name, value in wanted.items():
        if name not in state:
            raise InputFileError(
                f"{path} has no {name!r}: it holds the weights of another network than the "
                "configuration describes"
            )
        _check_tensor(state[name], value, name, path)
    extra = sorted(set(state) - set(wanted))
    if extra:
        raise InputFileError(
            f"{path} holds {extra[0]!r}, which the configured network does not have; "
            "use the configuration it was trained with"
        )
    module.load_state_dict(state)


def _verified(metadata: dict[str, str], state: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """``trained_as`` of a file of ours that is what its digest says, of others nothing."""
    if _KEY not in metadata:
        if any(_MARK in text for text in metadata.values()):
            raise InputFileError(_damage(path))
        return {}
    try:
        about = json.loads(metadata[_KEY])
        stated, trained_as = about.pop("sha256"), dict(about["trained_as"])
        if stated != digest([about, state]):
            raise ValueError("another digest")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputFileError(_damage(path)) from error
    return trained_as


def _damage(path: Path) -> str:
    return (
        f"{path} is damaged or was edited: its contents do not match the digest it carries; "
        "restore it or train again"
    )


def _check_tensor(found: Tensor, wanted: Tensor, name: str, path: Path) -> None:
    if found.shape != wanted.shape:
        raise InputFileError(
            f"{path}: {name!r} has shape {tuple(found.shape)}, the configured network "
            f"needs {tuple(wanted.shape)}; use the configuration it was trained with"
        )
    if not _widens(found.dtype, wanted.dtype):
        types = [str(dtype).removeprefix("torch.") for dtype in (found.dtype, wanted.dtype)]
        raise InputFileError(
            f"{path}: {name!r} is of type {types[0]}, which the configured network's {types[1]} "
            "does not hold exactly; convert it"
        )
    if not torch.isfinite(found).all():
        raise InputFileError(f"{path}: {name!r} holds NaN or infinite values; train again")


def _widens(found: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether every value of the one type is the same in the other."""
    if found.is_floating_point != wanted.is_floating_point or found.is_complex != wanted.is_complex:
        return False
    try:
        return torch.promote_types(found, wanted) == wanted
    except RuntimeError:  # types of eight bits have no such rule
        return found == wanted


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write training state, whole or not at all, with its digest."""
    signed = state | {"sha256": digest(state)}
    # Opened here, as torch would write the temporary name into the file.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(signed, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read training state; nothing in it is run, and no size that it states is believed.

    Checkpoints of earlier versions have no digest, but sums over all their parts.

    Raises:
        InputFileError: missing, damaged, holding anything but plain values and tensors, or weights
            that are not finite.
    """
    check_plain(path)
    try:
        state = read_archive(path)
    except FileNotFoundError as error:
        raise InputFileError(f"there is no checkpoint {path} to resume from") from error
    except (OSError, ValueError) as error:
        raise InputFileError(
            f"{path} is not a readable checkpoint; delete it to train this run from the start"
        ) from error
    if (
        not isinstance(state, dict)
        or not {"phase", "epoch", "model", "optimizer"} <= set(state)
        or not isinstance(state["epoch"], int)
        or not isinstance(state.get("step", 0), int)
        or not isinstance(state["model"], dict)
    ):
        raise InputFileError(f"{path} is not a checkpoint of tser; delete it to start over")
    stated = state.pop("sha256", None)
    if stated is not None and stated != digest(state):
        raise InputFileError(
            f"{path} is damaged: its contents do not match the digest it carries; delete it to "
            "train this phase from its start"
        )
    for name, value in state["model"].items():
        if isinstance(value, Tensor) and not torch.isfinite(value).all():
            raise InputFileError(
                f"{path}: {name!r} holds NaN or infinite values; delete it to train this phase "
                "from its start"
            )
    return state


def training_facts(config: RunConfig, data: ImageData) -> dict[str, Any]:
    """What a checkpoint says of the run it belongs to, plain values."""
    return {
        "settings": describe_training(config),
        "data": describe_data(data) | {"number of training images": len(data.train)},
    }


def check_continues(state: dict[str, Any], config: RunConfig, data: ImageData, run: Run) -> None:
    """Refuse to continue a checkpoint with other settings or data than it was begun with.

    Args:
        state: as loaded; one of an earlier version does not say.
        config: of the run as it is now.
        data: likewise.
        run: whose.

    Raises:
        InputFileError: naming what has changed.
    """
    then, now = state.get("run", {}), training_facts(config, data)
    instead = "or start a new run with another --out"
    if found := difference(then.get("settings", {}), now["settings"]):
        raise InputFileError(
            f"{run.config_file} says {found[0]} = {brief(found[2])}, and {run.checkpoint.name} was "
            f"begun with {brief(found[1])}; restore it, {instead}"
        )
    if found := difference(then.get("data", {}), now["data"]):
        raise InputFileError(
            f"the data set has another {found[0]} ({brief(found[2])}) than {run.checkpoint} was "
            f"begun with ({brief(found[1])}); restore it, {instead}"
        )


def check_teacher(state: dict[str, Any] | None, taught_by: str, run: Run) -> None:
    """Refuse to continue a student's checkpoint with another teacher than it was begun with.

    Args:
        state: as loaded; None: there is none. One of an earlier version does not say.
        taught_by: digest of the weights of the teacher as it is now.
        run: whose.

    Raises:
        InputFileError: it is another one.
    """
    then = (state or {}).get("run", {}).get("teacher", "")
    if then and then != taught_by:
        raise InputFileError(
            f"{run.teacher} holds another teacher than {run.checkpoint.name} was begun "
            "with; restore it, or start a new run with another --out"
        )


def check_taught_by(teacher: nn.Module, run: Run) -> None:
    """Refuse a teacher other than the one that the student of a finished run learnt from.

    Args:
        teacher: with its weights; students of earlier versions do not say whose they are.
        run: whose.

    Raises:
        InputFileError: it is another one.
    """
    then = read_weights(run.student)[1].get("teacher", "")
    if then and then != digest(teacher.state_dict()):
        raise InputFileError(
            f"{run.teacher} holds another teacher than the one that {run.student.name} learnt "
            "from; restore it, or delete it to go without its accuracy"
        )


def load_teacher(teacher: nn.Module, config: RunConfig, run: Run) -> None:
    """Read the teacher of a run, if it was trained as the run is configured now.

    Raises:
        InputFileError: missing, damaged, of another network or trained otherwise.
    """
    state, trained_as = read_weights(run.teacher)
    now = describe_teacher(config)["settings"]
    if found := difference(trained_as.get("settings", {}), now):
        raise InputFileError(
            f"{run.config_file} says {found[0]} = {brief(found[2])}, {run.teacher.name} was made "
            f"with {brief(found[1])}; restore it, or start a new run with another --out"
        )
    _put(teacher, state, run.teacher)


def load_run_data(run: Run, root: Path | None = None) -> ImageData:
    """The data set that a run was trained on, from ``root`` or where its configuration says.

    It is not downloaded: a run from elsewhere may name any.
    """
    with no_download():
        return load_configured(run.config().data, root)


def load_student(run: Run, data: ImageData) -> Student | UserStudent:
    """The trained student of a run, on the CPU, in eval mode.

    Raises:
        InputFileError: its weights are missing, damaged or do not match its configuration.
        UsageError: it is made by a factory that the command line did not name.
    """
    config = run.config()
    student = make_run_student(config, data, run.factories)
    configured = {name: value.clone() for name, value in student.named_buffers()}
    state, trained_as = read_weights(run.student)
    _check_trained_as(trained_as, config, data, run)
    _put(student, state, run.student)
    for path, module in student.named_modules():
        if isinstance(module, LIF):
            for name, value in module.named_buffers():
                if not torch.equal(value, configured[f"{path}.{name}"]):
                    raise InputFileError(
                        f"{run.student}: {path}.{name} is {value.item():g}, {run.config_file} says "
                        f"{configured[f'{path}.{name}'].item():g}; restore the configuration it "
                        "was trained with"
                    )
    return student.eval()


def _check_trained_as(then: dict[str, Any], config: RunConfig, data: ImageData, run: Run) -> None:
    """The same weights under other settings would be another model."""
    now = describe(config, data)
    if found := difference(then.get("settings", {}), now["settings"]):
        raise InputFileError(
            f"{run.config_file} says {found[0]} = {brief(found[2])}, and the weights in "
            f"{run.student.name} were trained with {brief(found[1])}; restore it"
        )
    if found := difference(then.get("data", {}), now["data"]):
        raise InputFileError(
            f"the data set has another {found[0]} ({brief(found[2])}) than the one that "
            f"{run.student} was trained on ({brief(found[1])}); use that one"
        )
