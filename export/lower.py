"""Lower a student to NIR: batch norm folded, shapes inferred, residual sums as fan-in edges."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import nir
import numpy as np
from norse.torch.module.lift import Lift
from norse.torch.module.sequential import SequentialState
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from numpy.typing import NDArray
from torch import Tensor, nn

from tser import __version__
from tser.data import ImageData
from tser.errors import TserError
from tser.export.graph import SPIKING
from tser.export.norse_cells import is_cell, time_constant, to_nir
from tser.export.shapes import SHAPE_RULES, Shape
from tser.layers import Residual, Spiking, Student, sublayers
from tser.neurons import LIF
from tser.recording import spiking_layers
from tser.user_models import UserStudent

Signal = Literal["image", "spikes", "current"]


class ExportError(TserError):
    """A layer that cannot be expressed in NIR or not be deployed."""

    exit_code = 2


@dataclass
class Lowered:
    """A student as a NIR graph, and what the equivalence check must know of the original.

    Attributes:
        graph: the NIR graph.
        modules: student module path of every spiking layer, by NIR node name.
        bias_magnitude: per node with a folded batch norm, ``[C]``: the sum of the absolute terms
            whose rounded sum is the bias; it bounds what folding changed.
    """

    graph: nir.NIRGraph
    modules: dict[str, str] = field(default_factory=dict)
    bias_magnitude: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Place:
    """Where the walk stands: the nodes whose sum is the current value, and what it is."""

    sources: tuple[str, ...]
    shape: Shape
    signal: Signal


class _Builder:
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

    def add(self, path: str, op: Any, place: _Place, signal: Signal) -> _Place:
        name = path.replace(".", "_")
        if name in self.nodes:
            raise ExportError(f"two layers would be called {name!r} in NIR; rename {path!r}")
        if name == "output" or not re.fullmatch("[A-Za-z0-9_]+", name):
            raise ExportError(
                f"a NIR node cannot be called {name!r}; rename the layer, with letters and digits"
            )
        shape = SHAPE_RULES[type(op)](op, place.shape)
        self.nodes[name] = op
        self.edges += [(source, name) for source in place.sources]
        return _Place((name,), shape, signal)


def lower(student: Student | UserStudent, data: ImageData | None = None) -> Lowered:
    """The NIR graph of a trained student.

    Nodes follow the portable profile: per-neuron parameter arrays of the feature map's shape,
    conv bias and ``input_shape`` always present, groups as in the student, names from
    ``[A-Za-z0-9_]``. The metadata state dt [s], reset, T, input scaling and class names.

    Args:
        student: in eval mode; its weights are copied.
        data: source of the input scaling and the class names.

    Raises:
        ExportError: a layer that NIR cannot express or a chip cannot run, by its name.
    """
    if isinstance(student, UserStudent):
        builder = _Builder("model.", 2 if student.form == "sequence" else 1)
        layers = [("", student.model)]
    else:
        builder = _Builder()
        layers = sublayers(student.layers)
    builder.nodes["input"] = nir.Input(input_type={"input": np.array(student.input_shape)})
    start = _Place(("input",), student.input_shape, "image")
    end = _walk(layers, "", start, builder)
    _check_all_lowered(student, builder)
    builder.nodes["output"] = nir.Output(output_type={"output": np.array(end.shape)})
    builder.edges += [(source, "output") for source in end.sources]
    metadata: dict[str, Any] = {
        "producer": f"tser {__version__}",
        "reset": "to_value",
        "v_init": "v_leak",
        "timesteps": student.timesteps,
        "encoding": "direct" if data is None or data.frames is None else "frames",
    }
    if builder.dt is not None:
        metadata["dt"] = builder.dt
    if data is not None:
        metadata |= {
            "data": data.name,
            "class_names": json.dumps(list(data.class_names)),
            "input_max_value": data.max_value,
            "input_mean": json.dumps(list(data.mean)),
            "input_std": json.dumps(list(data.std)),
        }
    graph = nir.NIRGraph(builder.nodes, builder.edges, metadata=metadata, type_check=False)
    return Lowered(graph, builder.modules, builder.bias_magnitude)


# Compared by what they do, so that a subclass with a forward of its own is not taken for one.
_CONTAINERS = (Spiking.forward, nn.Sequential.forward, SequentialState.forward)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def _walk(
    layers: list[tuple[str, nn.Module]], prefix: str, place: _Place, builder: _Builder
) -> _Place:
    children = [(name, *_unwrapped(layer)) for name, layer in layers]
    for position, (name, inner, layer) in enumerate(children):
        path = prefix + name + inner
        following = children[position + 1][2] if position + 1 < len(children) else None
        builder.leading -= bool(inner)  # inside a Lift there is no time
        if type(layer).forward in _CONTAINERS:
            within = f"{path}." if path else ""
            place = _walk(sublayers(layer), within, place, builder)
        elif type(layer).forward is Residual.forward:
            place = _residual(layer, path, place, builder)  # type: ignore[arg-type]
        elif type(layer) in (nn.Identity, nn.Dropout, nn.Dropout2d):
            pass  # nothing in eval mode
        elif type(layer) in _NORMS:
            previous = children[position - 1][2] if position else None
            if type(previous) not in (nn.Conv2d, nn.Linear):
                raise ExportError(
                    f"layer {path!r} (batch norm) does not follow a convolution or linear layer "
                    "it could be folded into; put it right after one"
                )
        elif is_cell(layer):
            place = _norse_cell(layer, path, place, builder)
        elif type(layer) in _RULES:
            norm = following if type(following) in _NORMS else None
            place = _RULES[type(layer)](layer, path, place, builder, norm)
        else:
            kind = type(layer).__name__
            where = f"layer {path!r} ({kind})" if path else f"the model ({kind})"
            raise ExportError(f"{where} cannot be exported: {_why(layer)}")
        builder.leading += bool(inner)
    return place


def _unwrapped(layer: nn.Module) -> tuple[str, nn.Module]:
    """What Norse's ``Lift`` applies at every step, and how its path goes on."""
    return (".lifted_module", layer.lifted_module) if isinstance(layer, Lift) else ("", layer)


def _check_all_lowered(student: nn.Module, builder: _Builder) -> None:
    """A layer that fires must be in the graph, or nobody would notice that it is not."""
    firing, lowered = set(spiking_layers(student)), set(builder.modules.values())
    if missing := firing - lowered:
        raise ExportError(f"layer {min(missing)!r} fires but is not reached from the input")
    if again := lowered - firing:
        raise ExportError(f"layer {min(again)!r} is in two places; make one layer for each")


def _why(layer: nn.Module) -> str:
    kind = type(layer).__name__
    if isinstance(layer, SNN | SNNCell | SNNRecurrent | SNNRecurrentCell):
        return (
            "of Norse's neurons there are rules for LIFBoxCell, LIFCell, LIBoxCell, LICell and "
            "IAFCell, without recurrence"
        )
    if any(layer.children()) or any(isinstance(layer, kind) for kind in _RULES):
        return (
            "what it does is in the Python code of its forward; build it of nn.Sequential, "
            "Norse's SequentialState, or the layers of tser.layers"
        )
    if "MaxPool" in kind:
        return "NIR has no max-pool; use average pooling, which folds into the next synapse"
    if kind in ("ReLU", "Sigmoid", "Tanh", "GELU", "SiLU", "Softmax"):
        return "its output is not a spike; use LIF neurons"
    return (
        "NIR has no such node; use conv, linear, batch norm, average pool, flatten and LIF layers"
    )


def _residual(layer: Residual, path: str, place: _Place, builder: _Builder) -> _Place:
    main = _walk(sublayers(layer.main), f"{path}.main.", place, builder)
    shortcut = _walk(sublayers(layer.shortcut), f"{path}.shortcut.", place, builder)
    if main.shape != shortcut.shape:
        raise ExportError(f"layer {path!r} sums the shapes {main.shape} and {shortcut.shape}")
    sources = main.sources + shortcut.sources
    if len(set(sources)) != len(sources):
        raise ExportError(
            f"layer {path!r} adds a value to itself, which NIR cannot express; scale it instead"
        )
    return _lif(layer.neuron, f"{path}.neuron", _Place(sources, main.shape, "current"), builder)


def _synapse_input(path: str, place: _Place) -> None:
    if place.signal == "current":
        raise ExportError(
            f"layer {path!r} receives an analog value, not spikes; put a LIF layer before it"
        )


def _conv(
    layer: nn.Conv2d, path: str, place: _Place, builder: _Builder, norm: nn.Module | None
) -> _Place:
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
    layer: nn.Linear, path: str, place: _Place, builder: _Builder, norm: nn.Module | None
) -> _Place:
    _synapse_input(path, place)
    weight, bias = _folded(layer, path, norm, builder)
    return builder.add(path, nir.Affine(weight=weight, bias=bias), place, "current")


def _folded(
    layer: nn.Conv2d | nn.Linear, path: str, norm: Any, builder: _Builder
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


def _lif_rule(
    layer: LIF, path: str, place: _Place, builder: _Builder, norm: nn.Module | None
) -> _Place:
    return _lif(layer, path, place, builder)


def _lif(layer: LIF, path: str, place: _Place, builder: _Builder) -> _Place:
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


def _norse_cell(layer: Any, path: str, place: _Place, builder: _Builder) -> _Place:
    try:
        op = to_nir(layer, place.shape)
    except ValueError as error:
        raise ExportError(f"layer {path!r} ({type(layer).__name__}) {error}") from error
    return _neuron(op, float(layer.dt), path, place, builder)


def _neuron(op: Any, dt: float, path: str, place: _Place, builder: _Builder) -> _Place:
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
    layer: nn.AvgPool2d, path: str, place: _Place, builder: _Builder, norm: nn.Module | None
) -> _Place:
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
    return builder.add(path, op, place, place.signal)


def _adaptive_pool(
    layer: nn.AdaptiveAvgPool2d, path: str, place: _Place, builder: _Builder, norm: nn.Module | None
) -> _Place:
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
    return builder.add(path, op, place, place.signal)


def _flatten(
    layer: nn.Flatten, path: str, place: _Place, builder: _Builder, norm: nn.Module | None
) -> _Place:
    rank = builder.leading + len(place.shape)
    if (layer.start_dim % rank, layer.end_dim % rank) != (builder.leading, rank - 1):
        raise ExportError(f"layer {path!r} must flatten all of (C, H, W)")
    # Counted from the end, the dimensions are right with and without a batch in front.
    op = nir.Flatten({"input": np.array(place.shape)}, start_dim=-len(place.shape), end_dim=-1)
    return builder.add(path, op, place, place.signal)


def _pair(value: int | tuple[int, int]) -> NDArray[np.int64]:
    return np.array(value if isinstance(value, tuple) else (value, value), dtype=np.int64)


_RULES: dict[type, Callable[[Any, str, _Place, _Builder, nn.Module | None], _Place]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    LIF: _lif_rule,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.Flatten: _flatten,
}
