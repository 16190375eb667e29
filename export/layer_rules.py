"""What each kind of layer becomes in NIR: the rules, and the graph that they build."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import nir
import numpy as np
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from numpy.typing import NDArray
from torch import Tensor, nn

from tser.errors import TserError
from tser.export.graph import SPIKING
from tser.export.norse_cells import is_cell, synapses, time_constant, to_nir
from tser.export.shapes import SHAPE_RULES, Shape
from tser.neurons import LIF

Signal = Literal["image", "spikes", "rates", "sum", "current"]
"""What a value is: the analog input, binary spikes, averages of spikes over a window, a sum of
spikes (and so no longer binary), or anything else that only a neuron may receive."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
WITHOUT_EFFECT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""Layers that do nothing in eval mode."""


class ExportError(TserError):
    """A layer that cannot be expressed in NIR or not be deployed."""

    exit_code = 2


@dataclass(frozen=True)
class Place:
    """Where the walk stands: the nodes whose sum is the current value, and what it is."""

    sources: tuple[str, ...]
    shape: Shape
    signal: Signal


class Builder:
    """The graph so far.

    Attributes:
        root: path of the walked module in the student.
        leading: dimensions before (C, H, W) where layers see them: 1 batch, and 1 more for time.
    """

    def __init__(self, root: str = "layers.", leading: int = 1) -> None:
        self.root, self.leading = root, leading
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.modules: dict[str, str] = {}
        self.bias_magnitude: dict[str, NDArray[np.float64]] = {}
        self.dt: float | None = None

    def add(self, path: str, op: Any, place: Place, signal: Signal) -> Place:
        """A node behind ``place``, called as its layer; what it puts out is a ``signal``."""
        name = path.replace(".", "_")
        if name in self.nodes:
            raise ExportError(f"two layers would be called {name!r} in NIR; rename {path!r}")
        if name == "output" or not re.fullmatch("[A-Za-z0-9_]+", name):
            raise ExportError(
                f"a NIR node cannot be called {name!r}; rename the layer, with letters and digits"
            )
        try:
            shape = SHAPE_RULES[type(op)](op, place.shape)
        except ValueError as error:
            raise ExportError(f"layer {path!r} does not fit: {error}") from error
        self.nodes[name] = op
        self.edges += [(source, name) for source in place.sources]
        return Place((name,), shape, signal)


def rule_for(layer: nn.Module) -> Rule | None:
    """How ``layer`` is lowered; None where no rule is known.

    A rule takes the layer, its path, what it receives, the graph so far, and the batch norm that
    is to be folded into it.
    """
    if type(layer).forward is LIF.forward or is_cell(layer):
        return neuron_rule
    return _RULES.get(type(layer))


def why_not(layer: nn.Module) -> str:
    """Why no rule is known for ``layer``, and what to do."""
    kind = type(layer).__name__
    if isinstance(layer, SNN | SNNCell | SNNRecurrent | SNNRecurrentCell):
        return (
            "of Norse's neurons there are rules for LIFBoxCell, LIFCell, LIBoxCell, LICell, "
            "LILinearCell, IAFCell and LIFRecurrentCell"
        )
    if kind.startswith("Parametrized"):
        return (
            "its weights are computed anew at every call; make them plain with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    if "MaxPool" in kind:
        return "NIR has no such max-pool; use MaxPool2d on spikes, or average pooling"
    if kind in ("Softmax", "LogSoftmax"):
        return "its output is not a spike; return the logits without it"
    if kind in ("ReLU", "Sigmoid", "Tanh", "GELU", "SiLU"):
        return "its output is not a spike; use LIF neurons"
    return (
        "NIR has no such node; use conv, linear, batch norm, average pool, flatten and LIF layers"
    )


def add_up(places: list[Place], what: str) -> Place:
    """The sum of several values, which in NIR is nothing but several edges to one node.

    Args:
        places: at least one.
        what: makes the sum, for messages.

    Raises:
        ExportError: they have different shapes, or one is there twice.
    """
    first = places[0]
    for place in places[1:]:
        if place.shape != first.shape:
            raise ExportError(f"{what} sums the shapes {first.shape} and {place.shape}")
    sources = tuple(source for place in places for source in place.sources)
    if len(set(sources)) != len(sources):
        raise ExportError(
            f"{what} adds a value to itself, which NIR cannot express; scale it instead"
        )
    of_spikes = all(place.signal in ("spikes", "rates", "sum") for place in places)
    return Place(sources, first.shape, "sum" if of_spikes else "current")


def _no_sum(path: str, place: Place) -> None:
    if place.signal == "sum":
        raise ExportError(
            f"layer {path!r} receives a sum of spikes, which may be 2 and is no spike; add the "
            "currents before the neurons, not the spikes after them"
        )


def _synapse_input(path: str, place: Place) -> None:
    _no_sum(path, place)
    if place.signal == "current":
        raise ExportError(
            f"layer {path!r} receives an analog value, not spikes; put a LIF layer before it"
        )


def _conv(
    layer: nn.Conv2d, path: str, place: Place, builder: Builder, norm: nn.Module | None
) -> Place:
    _synapse_input(path, place)
    if layer.padding_mode != "zeros":
        raise ExportError(f"layer {path!r} pads with {layer.padding_mode!r}; NIR pads with zeros")
    weight, bias = _folded(layer, path, norm, builder)
    op = nir.Conv2d(
        input_shape=place.shape[1:],
        weight=weight,
        stride=tuple(layer.stride),
        padding=layer.padding if isinstance(layer.padding, str) else tuple(layer.padding),
        dilation=tuple(layer.dilation),
        groups=layer.groups,
        bias=bias,
    )
    return builder.add(path, op, place, "current")


def _linear(
    layer: nn.Linear, path: str, place: Place, builder: Builder, norm: nn.Module | None
) -> Place:
    _synapse_input(path, place)
    weight, bias = _folded(layer, path, norm, builder)
    return builder.add(path, nir.Affine(weight=weight, bias=bias), place, "current")


def _folded(
    layer: nn.Conv2d | nn.Linear, path: str, norm: Any, builder: Builder
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias with the batch norm that follows folded in, computed in float64."""
    weight = _float64(layer.weight)
    bias = np.zeros(len(weight)) if layer.bias is None else _float64(layer.bias)
    if norm is not None:
        if norm.running_mean is None:
            raise ExportError(f"the batch norm after {path!r} has no running statistics to fold")
        scale = 1 / np.sqrt(_float64(norm.running_var) + norm.eps)
        shift = np.zeros(len(weight))
        if norm.affine:
            scale, shift = scale * _float64(norm.weight), _float64(norm.bias)
        mean = _float64(norm.running_mean)
        builder.bias_magnitude[path.replace(".", "_")] = (
            np.abs(bias * scale) + np.abs(mean * scale) + np.abs(shift)
        )
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        bias = (bias - mean) * scale + shift
    return weight.astype(np.float32), bias.astype(np.float32)


def _float64(value: Tensor) -> NDArray[np.float64]:
    return np.asarray(value.detach().cpu().double().numpy())


def neuron_rule(
    layer: Any, path: str, place: Place, builder: Builder, norm: nn.Module | None
) -> Place:
    """The rule of our neurons and of Norse's."""
    return (
        _lif(layer, path, place, builder)
        if isinstance(layer, LIF)
        else _norse_cell(layer, path, place, builder)
    )


def _lif(layer: LIF, path: str, place: Place, builder: Builder) -> Place:
    if any(value.numel() != 1 for value in layer.buffers()):
        raise ExportError(f"layer {path!r} has a parameter for each neuron; use one for all")

    def full(value: Any) -> NDArray[np.float32]:
        return np.full(place.shape, value, dtype=np.float32)

    op = nir.LIF(
        tau=full(time_constant(layer.rate().item(), layer.dt)),
        r=full(1.0),
        v_leak=full(layer.v_leak.item()),
        v_threshold=full(layer.v_th.item()),
        v_reset=full(layer.v_reset.item()),
    )
    return _neuron(op, layer.dt, path, place, builder)


def _norse_cell(layer: Any, path: str, place: Place, builder: Builder) -> Place:
    """A cell's node, and its own synapses where it has them.

    Recurrent weights are a cycle from the neurons back to themselves, and see the spikes of the
    step before, as in Norse.
    """
    weights = synapses(layer)
    if "input" in weights:
        _synapse_input(path, place)
        linear = nir.Linear(weight=_copied(weights["input"]))
        place = builder.add(f"{path}.input", linear, place, "current")
    if "recurrent" in weights:
        back = f"{path}.recurrent"
        place = Place((*place.sources, back.replace(".", "_")), place.shape, "current")
    try:
        op = to_nir(layer, place.shape)
    except ValueError as error:
        raise ExportError(f"layer {path!r} ({type(layer).__name__}) {error}") from error
    place = _neuron(op, float(layer.dt), path, place, builder)
    if "recurrent" in weights:
        builder.add(back, nir.Linear(weight=_copied(weights["recurrent"])), place, "current")
    return place


def _copied(weight: Tensor) -> NDArray[np.float32]:
    return np.array(weight.detach().cpu().numpy(), np.float32)


def _neuron(op: Any, dt: float, path: str, place: Place, builder: Builder) -> Place:
    if builder.dt not in (None, dt):
        raise ExportError(
            f"layer {path!r} has dt = {dt:g} s, earlier layers {builder.dt:g} s; "
            "a NIR graph has one dt"
        )
    builder.dt = dt
    fires = isinstance(op, SPIKING)
    if fires:
        builder.modules[path.replace(".", "_")] = f"{builder.root}{path}".rstrip(".")
    return builder.add(path, op, place, "spikes" if fires else "current")


def _pool(
    layer: nn.AvgPool2d, path: str, place: Place, builder: Builder, norm: nn.Module | None
) -> Place:
    padded = np.any(np.asarray(layer.padding))
    if layer.ceil_mode or layer.divisor_override or (padded and not layer.count_include_pad):
        raise ExportError(
            f"layer {path!r} uses ceil_mode, divisor_override or uncounted padding, "
            "which NIR's AvgPool2d does not have"
        )
    op = nir.AvgPool2d(
        kernel_size=_pair(layer.kernel_size),
        stride=_pair(layer.stride),
        padding=_pair(layer.padding),
    )
    return builder.add(path, op, place, _averaged(place))


def _averaged(place: Place) -> Signal:
    return "rates" if place.signal == "spikes" else place.signal


def _max_pool(
    layer: nn.MaxPool2d, path: str, place: Place, builder: Builder, norm: nn.Module | None
) -> Place:
    """Of binary spikes, the largest in a window is 1 where their sum is above 0."""
    _no_sum(path, place)
    if place.signal != "spikes":
        raise ExportError(
            f"layer {path!r} (MaxPool2d) takes the largest of values that are no spikes, which NIR "
            "cannot express; put it right behind neurons, or use average pooling"
        )
    if layer.ceil_mode or layer.return_indices or np.any(np.asarray(layer.dilation) != 1):
        raise ExportError(
            f"layer {path!r} (MaxPool2d) uses ceil_mode, dilation or return_indices, "
            "which NIR does not have; leave them out"
        )
    op = nir.SumPool2d(
        kernel_size=_pair(layer.kernel_size),
        stride=_pair(layer.stride),
        padding=_pair(layer.padding),
    )
    place = builder.add(path, op, place, "current")
    threshold = nir.Threshold(np.full(place.shape, 0.5, np.float32))
    return builder.add(f"{path}.threshold", threshold, place, "spikes")


def _adaptive_pool(
    layer: nn.AdaptiveAvgPool2d, path: str, place: Place, builder: Builder, norm: nn.Module | None
) -> Place:
    """The plain pool that it is for maps of this size, where its windows are equal."""
    size = np.array(place.shape[-2:])
    wanted = layer.output_size
    pair = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    output = np.array([side or whole for side, whole in zip(pair, size, strict=True)])
    if (size % output).any():
        raise ExportError(
            f"layer {path!r} pools maps of {size[0]}x{size[1]} to {output[0]}x{output[1]} with "
            "windows of unequal size, which NIR does not have; use AvgPool2d"
        )
    op = nir.AvgPool2d(kernel_size=size // output, stride=size // output, padding=_pair(0))
    return builder.add(path, op, place, _averaged(place))


def _flatten(
    layer: nn.Flatten, path: str, place: Place, builder: Builder, norm: nn.Module | None
) -> Place:
    rank = builder.leading + len(place.shape)
    if (layer.start_dim % rank, layer.end_dim % rank) != (builder.leading, rank - 1):
        raise ExportError(f"layer {path!r} must flatten all of (C, H, W)")
    return flattened(path, place, builder)


def flattened(path: str, place: Place, builder: Builder) -> Place:
    """A node that makes one dimension of all but batch and time."""
    # Counted from the end, the dimensions are right with and without a batch in front.
    op = nir.Flatten({"input": np.array(place.shape)}, start_dim=-len(place.shape), end_dim=-1)
    return builder.add(path, op, place, place.signal)


def _pair(value: int | tuple[int, int]) -> NDArray[np.int64]:
    return np.array(value if isinstance(value, tuple) else (value, value), dtype=np.int64)


Rule = Callable[[Any, str, Place, Builder, nn.Module | None], Place]
_RULES: dict[type, Rule] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.MaxPool2d: _max_pool,
    nn.Flatten: _flatten,
}
