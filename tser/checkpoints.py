"""Weights and training state on disk; reading them never runs code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tser.data import ImageData, load_configured
from tser.errors import InputFileError
from tser.files import atomic_path
from tser.layers import Student
from tser.models import make_run_student
from tser.neurons import LIF
from tser.runs import Run
from tser.user_models import UserStudent


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the module's state as safetensors, whole or not at all."""
    # Cloned: safetensors refuses tensors that share memory, as tied weights do.
    state = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in module.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def load_weights(module: nn.Module, path: Path) -> None:
    """Read safetensors into ``module``; names, shapes and finiteness are checked first.

    Raises:
        InputFileError: missing, damaged or of another network.
    """
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise InputFileError(f"there is no weight file {path}") from error
    except (SafetensorError, OSError) as error:
        raise InputFileError(
            f"{path} is not a readable safetensors file ({error}); restore it or train again"
        ) from error
    wanted = module.state_dict()
    for name, value in wanted.items():
        if name not in state:
            raise InputFileError(
                f"{path} has no {name!r}: it holds the weights of another network than the "
                "configuration describes"
            )
        if state[name].shape != value.shape:
            raise InputFileError(
                f"{path}: {name!r} has shape {tuple(state[name].shape)}, the configured network "
                f"needs {tuple(value.shape)}; use the configuration it was trained with"
            )
        if not torch.isfinite(state[name].double()).all():
            raise InputFileError(f"{path}: {name!r} holds NaN or infinite values; train again")
    extra = sorted(set(state) - set(wanted))
    if extra:
        raise InputFileError(
            f"{path} holds {extra[0]!r}, which the configured network does not have; "
            "use the configuration it was trained with"
        )
    module.load_state_dict(state)


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write training state, whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read training state with ``weights_only=True``.

    Raises:
        InputFileError: missing, damaged, or holding anything but plain values and tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputFileError(f"there is no checkpoint {path} to resume from") from error
    except Exception as error:  # torch raises many types on damaged bytes
        raise InputFileError(
            f"{path} is not a readable checkpoint; delete it to train this run from the start"
        ) from error
    if (
        not isinstance(state, dict)
        or not {"phase", "epoch", "model", "optimizer"} <= set(state)
        or not isinstance(state["epoch"], int)
        or not isinstance(state.get("step", 0), int)
    ):
        raise InputFileError(f"{path} is not a checkpoint of tser; delete it to start over")
    return state


def load_run_data(run: Run, root: Path | None = None) -> ImageData:
    """The data set that a run was trained on, from ``root`` or where its configuration says."""
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
    load_weights(student, run.student)
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
