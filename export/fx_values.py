"""What the tensors of a followed model stand for, and what moving their numbers makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tser.export.fx_trace import BATCH
from tser.export.layer_rules import ExportError, Place

Form = Literal["step", "one", "sequence", "folded"]
"""Leading dimensions of a tensor: [B], [1, B], [T, B] or [T * B]."""
Time = int | Literal["all"] | None
"""The step that a tensor belongs to; "all" of them; None where it is the same at every step."""


@dataclass(frozen=True)
class Value:
    """A tensor of the model.

    Attributes:
        place: the NIR nodes whose sum it is.
        form: its leading dimensions.
        time: its step.
    """

    place: Place
    form: Form
    time: Time


@dataclass(frozen=True)
class State:
    """What a layer of neurons returned beside its spikes, or (with ``part``) a tensor of it."""

    path: str
    step: int
    part: int | None = None


@dataclass(frozen=True)
class Constant:
    """A tensor that does not come from the input: a parameter, or a state to start from."""

    value: Tensor
    name: str = ""


@dataclass(frozen=True)
class Move:
    """What a tensor has become.

    Attributes:
        form: its leading dimensions now.
        time: its step now; see `Value`.
        flat: (C, H, W) is one dimension now, and was more.
    """

    form: Form
    time: Time
    flat: bool


@dataclass(frozen=True)
class Moved:
    """All that a function made of one tensor; None for what is not understood.

    Attributes:
        moves: one for each tensor.
        several: whether it returned a tuple of tensors.
    """

    moves: tuple[Move | None, ...]
    several: bool


def moved(function: Any, args: Any, kwargs: Any, steps: int) -> Moved:
    """Find out what a function does that moves numbers, from where it puts them.

    Args:
        function: of torch.
        args: the first is a `Value`.
        kwargs: of the function.
        steps: T.
    """
    value: Value = args[0]
    lead = {
        "step": (BATCH,),
        "one": (1, BATCH),
        "sequence": (steps, BATCH),
        "folded": (steps * BATCH,),
    }[value.form]
    shape = (*lead, *value.place.shape)
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    result = function(numbers, *args[1:], **kwargs)
    several = isinstance(result, tuple | list)
    views = _views(numbers, value, steps)
    parts = result if several else [result]
    return Moved(tuple(_found(part, views, value) for part in parts), several)


def _found(result: Any, views: list[tuple[Tensor, Form, Time]], value: Value) -> Move | None:
    for tensor, form, time in views:
        if torch.equal(result, tensor):
            return Move(form, time, flat=False)
        if torch.equal(result, tensor.flatten(tensor.ndim - len(value.place.shape))):
            return Move(form, time, flat=True)
    return None


def _views(numbers: Tensor, value: Value, steps: int) -> list[tuple[Tensor, Form, Time]]:
    """What the tensor may be taken for, with T and B told apart."""
    time = value.time
    views: list[tuple[Tensor, Form, Time]] = [(numbers, value.form, time)]
    if value.form == "one":
        views.append((numbers[0], "step", time))
    if value.form == "step":
        views.append((numbers[None], "one", time))
    if value.form == "sequence":
        views.append((numbers.flatten(0, 1), "folded", time))
        views += [(numbers[t], "step", None if time is None else t) for t in range(steps)]
    if value.form == "folded":
        views.append((numbers.unflatten(0, (steps, BATCH)), "sequence", time))
    if time is None and value.form in ("step", "one"):
        single = numbers if value.form == "one" else numbers[None]
        views.append((single.expand(steps, *single.shape[1:]), "sequence", None))
    return views


def leaves(value: Any) -> list[Any]:
    """What a structure of tuples, lists and dictionaries holds."""
    if isinstance(value, tuple | list):
        return [leaf for part in value for leaf in leaves(part)]
    return leaves(tuple(value.values())) if isinstance(value, dict) else [value]


def values_in(result: Any) -> list[Value]:
    """The tensors in a structure that come from layers."""
    return [leaf for leaf in leaves(result) if isinstance(leaf, Value)]


def in_words(value: Any) -> str:
    """What is not a `Value`, for messages."""
    return "a state" if isinstance(value, State) else "a constant"


def part_of(value: Any, index: Any, site: str) -> Any:
    """``value[index]`` of a structure."""
    if isinstance(value, State):
        return replace(value, part=index)
    if isinstance(value, tuple | list):
        return value[index]
    raise ExportError(f"{site} takes a part of a constant, which is not followed")


def rebuilt(parts: tuple[Any, ...]) -> Any:
    """A state put together from its tensors again, or one that the model makes."""
    if all(isinstance(part, State) for part in parts):
        wholes = {replace(part, part=None) for part in parts}
        if len(wholes) == 1 and [part.part for part in parts] == list(range(len(parts))):
            return wholes.pop()
    return parts
