"""Lower a student to NIR: batch norm folded, shapes inferred, residual sums as fan-in edges."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from norse.torch.module.lift import Lift
from norse.torch.module.sequential import SequentialState
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from numpy.typing import NDArray
from torch import nn

from tser import __version__
from tser.data import ImageData
from tser.export.fx_lower import lower_traced
from tser.export.layer_rules import (
    NORMS,
    WITHOUT_EFFECT,
    Builder,
    ExportError,
    Place,
    add_up,
    rule_for,
    why_not,
)
from tser.layers import Residual, Spiking, Student, sublayers
from tser.recording import spiking_layers
from tser.user_models import UserStudent

__all__ = ["ExportError", "Lowered", "lower"]


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
        builder = Builder("model.", 2 if student.form == "sequence" else 1)
        layers = [("", student.model)]
    else:
        builder = Builder()
        layers = sublayers(student.layers)
    builder.nodes["input"] = nir.Input(input_type={"input": np.array(student.input_shape)})
    start = Place(("input",), student.input_shape, "image")
    if isinstance(student, UserStudent) and not _by_rule(student.model):
        end = lower_traced(student, start, builder)
    else:
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
_NEURONS = (SNN, SNNCell, SNNRecurrent, SNNRecurrentCell)


def _by_rule(module: nn.Module) -> bool:
    """Whether all that ``module`` does is known from its kind and its layers' kinds.

    Otherwise the code of some forward must be followed.
    """
    if "forward" in vars(module):
        return False
    forward = type(module).forward
    if forward in _CONTAINERS or forward in (Residual.forward, Lift.forward):
        return all(_by_rule(child) for child in module.children())
    library = type(module).__module__.partition(".")[0] in ("torch", "norse")
    return library or rule_for(module) is not None or isinstance(module, _NEURONS)


def _walk(
    layers: list[tuple[str, nn.Module]], prefix: str, place: Place, builder: Builder
) -> Place:
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
        elif type(layer) in WITHOUT_EFFECT:
            pass
        elif type(layer) in NORMS:
            previous = children[position - 1][2] if position else None
            if type(previous) not in (nn.Conv2d, nn.Linear):
                raise ExportError(
                    f"layer {path!r} (batch norm) does not follow a convolution or linear layer "
                    "it could be folded into; put it right after one"
                )
        elif rule := rule_for(layer):
            norm = following if type(following) in NORMS else None
            place = rule(layer, path, place, builder, norm)
        else:
            kind = type(layer).__name__
            where = f"layer {path!r} ({kind})" if path else f"the model ({kind})"
            raise ExportError(f"{where} cannot be exported: {why_not(layer)}")
        builder.leading += bool(inner)
    return place


def _unwrapped(layer: nn.Module) -> tuple[str, nn.Module]:
    """What Norse's ``Lift`` applies at every step, and how its path goes on."""
    return (".lifted_module", layer.lifted_module) if isinstance(layer, Lift) else ("", layer)


def _check_all_lowered(student: nn.Module, builder: Builder) -> None:
    """A layer that fires must be in the graph, or nobody would notice that it is not."""
    firing, lowered = set(spiking_layers(student)), set(builder.modules.values())
    if missing := firing - lowered:
        raise ExportError(
            f"layer {min(missing)!r} fires but is not on a way from the input to the output; "
            "remove it from the model"
        )
    if again := lowered - firing:
        raise ExportError(f"layer {min(again)!r} is in two places; make one layer for each")


def _residual(layer: Residual, path: str, place: Place, builder: Builder) -> Place:
    main = _walk(sublayers(layer.main), f"{path}.main.", place, builder)
    shortcut = _walk(sublayers(layer.shortcut), f"{path}.shortcut.", place, builder)
    total = add_up([main, shortcut], f"layer {path!r}")
    return _walk([("neuron", layer.neuron)], f"{path}.", total, builder)
