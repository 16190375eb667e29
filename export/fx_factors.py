"""Constant factors that a user's ``forward`` multiplies with, as a Scale of NIR has them."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray
from torch import fx

from tser.export.fx_functions import name_of, path_of
from tser.export.fx_values import Constant, Value
from tser.export.layer_rules import Builder, ExportError, Place, Signal
from tser.export.shapes import Shape

_PRODUCTS = ("mul", "multiply")
_QUOTIENTS = ("truediv", "div", "divide", "true_divide")
SCALING = (*_PRODUCTS, *_QUOTIENTS, "neg", "negative")
"""Functions that are a Scale where one side is constant."""


def scaled(node: fx.Node, args: Any, kwargs: Any, site: str) -> tuple[Value, NDArray[np.float32]]:
    """What a function scales, and by how much for each of (C, H, W).

    Raises:
        ExportError: not a value of a layer and a finite constant that fits it.
    """
    name = name_of(node)
    given = [*args, *kwargs.values()]
    values = [value for value in given if isinstance(value, Value)]
    if len(values) == 2:
        raise ExportError(
            f"{site} cannot be exported: {name} takes two values of the network; NIR sums currents "
            "and scales them by constants, nothing else"
        )
    divided = name in _QUOTIENTS
    if not values or (divided and given[0] is not values[0]) or len(given) > 2:
        raise ExportError(
            f"{site} cannot be exported: {name} does not multiply what a layer put out with a "
            "constant, nor divide it by one"
        )
    constants = [value for value in given if not isinstance(value, Value)] or [-1.0]
    factor = _array(constants[0], values[0].place.shape)
    if factor is not None and divided:
        with np.errstate(divide="ignore", over="ignore"):
            factor = np.float32(1) / factor
    if factor is None or not np.isfinite(factor).all():
        raise ExportError(
            f"{site} cannot be exported: the factor of {name} is not a finite number, or a tensor "
            f"that fits {values[0].place.shape} without batch and time"
        )
    return values[0], factor


def _array(constant: Any, shape: Shape) -> NDArray[np.float32] | None:
    """A factor for every value of ``shape``; None where it is none."""
    if isinstance(constant, Constant):
        constant = constant.value.detach().cpu().numpy()
    elif isinstance(constant, bool) or not isinstance(constant, int | float):
        return None
    with np.errstate(over="ignore"):
        array = np.asarray(constant, np.float32)
    while array.ndim > len(shape) and len(array) == 1:
        array = array[0]
    try:
        return np.broadcast_to(array, shape).copy()
    except ValueError:
        return None


def scale(name: str, place: Place, factor: NDArray[np.float32], builder: Builder) -> Place:
    """A node that scales; spikes are none any more, but what a synapse may receive."""
    signals: dict[Signal, Signal] = {"spikes": "rates"}
    return builder.add(name, nir.Scale(factor), place, signals.get(place.signal, place.signal))


def scale_path(node: fx.Node) -> str:
    """For the node in NIR."""
    return path_of(node, "scale")
