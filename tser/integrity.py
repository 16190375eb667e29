"""Digests of weights and training state, and what of a configuration belongs to them.

A file can be damaged where it still reads well: a digest of its values tells. And the same weights
under another configuration are another model: what defines a student beside its weights is kept
with them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from tser.config import RunConfig
from tser.data import ImageData

_STUDENT: Final = ("arch", "stem", "width", "stages", "timesteps")
_NEURON: Final = ("dt", "tau_mem", "learn_tau", "v_th", "v_leak", "v_reset")
_MAY_CHANGE: Final = frozenset(
    [
        "preset",
        "data.name",  # it may be a path; the images themselves are compared
        "data.root",
        "data.workers",
        "teacher.path",  # the run has its own copy
        "teacher.cache",
        "train.device",
        "train.compile",
        "train.low_memory",
        "train.accumulate",
        "train.channels_last",
        "train.deterministic",
        "train.sync_bn",
        "train.tensorboard",
        "train.checkpoint_steps",
    ]
)
"""What a machine with another device or less memory needs changed; none changes the loss."""
_CLOSE = 1e-6
"""Relative; statistics of the same images may differ in their last bits between machines."""


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any dtype, shape, layout and device, row by row."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def digest(value: Any) -> str:
    """sha256 over plain values and tensors: dictionaries, lists, numbers, text, None.

    The order in which a dictionary or a tensor is stored does not matter; every bit does.
    """
    total = hashlib.sha256()
    _feed(total, value)
    return total.hexdigest()


def _feed(total: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        total.update(f"tensor {value.dtype} {tuple(value.shape)}:".encode())
        total.update(tensor_bytes(value))
    elif isinstance(value, Mapping):
        total.update(b"dict %d:" % len(value))
        for key in sorted(value, key=repr):
            _feed(total, key)
            _feed(total, value[key])
    elif isinstance(value, list | tuple):
        total.update(b"list %d:" % len(value))
        for one in value:
            _feed(total, one)
    else:
        text = repr(value).encode()
        total.update(b"%s %d:" % (type(value).__name__.encode(), len(text)))
        total.update(text)


def describe_data(data: ImageData) -> dict[str, Any]:
    """What a data set decides of a model that was trained on it, as plain values."""
    return {
        "image shape": list(data.image_shape),
        "frames": data.frames,
        "classes": list(data.class_names),
        "full scale": data.max_value,
        "mean": list(data.mean),
        "standard deviation": list(data.std),
    }


def describe_student(config: RunConfig) -> dict[str, Any]:
    """The settings that define a student and that its weights do not tell, by key."""
    student, neuron = config.student, config.neuron
    if student.factory:
        return {"student.factory": student.factory, "student.timesteps": student.timesteps}
    # Where it is learned, tau_mem is only the start.
    neurons = [key for key in _NEURON if key != "tau_mem" or not neuron.learn_tau]
    return {
        **{f"student.{key}": getattr(student, key) for key in _STUDENT},
        **{f"neuron.{key}": getattr(neuron, key) for key in neurons},
    }


def describe_training(config: RunConfig) -> dict[str, Any]:
    """The settings that must stay the same for training to go on, by key."""
    return {
        f"{section}.{key}": value
        for section, values in config.model_dump().items()
        if isinstance(values, dict)
        for key, value in values.items()
        if f"{section}.{key}" not in _MAY_CHANGE
    }


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key of both that has another value, its value then and its value now."""
    for key in now:
        if key in then and not _same(then[key], now[key]):
            return key, then[key], now[key]
    return None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=_CLOSE)
    return bool(a == b)


def brief(value: Any) -> str:
    """A value in a sentence, as TOML has it and not longer than a line."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
