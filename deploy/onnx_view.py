"""What an ONNX model of ours says of itself: how it is run, and what its layers are called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
from onnx import numpy_helper

from tser.errors import InputFileError
from tser.export.graph import Graph, Node
from tser.export.graph_checks import MOST_STEPS
from tser.export.onnx_file import model_metadata, options_of
from tser.export.shapes import Shape


@dataclass(frozen=True)
class OnnxView:
    """A model as far as its metadata tell.

    Attributes:
        graph: its input, its spiking layers without their parameters, and its metadata.
        layers: names of the spiking layers, and their shapes without batch and time.
        fixed: T, where the model allows no other.
    """

    graph: Graph
    layers: dict[str, Shape]
    fixed: int | None


def onnx_view(model: onnx.ModelProto, path: Path) -> OnnxView:
    """Read what a model states.

    Raises:
        InputFileError: another tool's model, metadata that do not say how it is run, or weights
            that are not finite.
    """
    stated, form = model_metadata(model), options_of(model).form
    if model.producer_name != "tser":
        raise InputFileError(
            f"{path} was not compiled by tser; run the .nir file that it was made from"
        )
    frames = stated.get("encoding") == "sequence"
    try:
        layers = {
            str(name): tuple(int(size) for size in shape)
            for name, shape in json.loads(stated["layers"]).items()
        }
        dims = next(one for one in model.graph.input if one.name == "input")
        sizes = [dim.dim_value for dim in dims.type.tensor_type.shape.dim]
        shape = tuple(sizes[2 if frames and form != "step" else 1 :])
        fixed = int(stated["timesteps"]) if form == "sequence" else None
        # What takes frames may take repeated images too, and so may a single step.
        left_out = {"encoding"} if frames or form == "step" else set()
        metadata = {key: value for key, value in stated.items() if key not in left_out}
        graph = Graph(_nodes(layers, shape), float(stated["dt"]), "stated", metadata)
        whole = [1, *shape, *(size for layer in layers.values() for size in layer)]
        if not 1 <= (graph.timesteps or 1) <= MOST_STEPS or min(whole) < 1:
            raise ValueError("out of range")
        _ = graph.class_names
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
        StopIteration,
    ) as error:
        raise InputFileError(
            f"{path}: its metadata do not say how it is to be run; export it again"
        ) from error
    _check_numbers(model, path)
    return OnnxView(graph, layers, fixed)


def _check_numbers(model: onnx.ModelProto, path: Path) -> None:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        # A threshold may be infinite: such a neuron never fires.
        if values.dtype.kind == "f" and (np.isnan(values) | (values == -np.inf)).any():
            raise InputFileError(
                f"{path}: {tensor.name!r} holds NaN or infinite values; export it again from "
                "sound weights"
            )


def _nodes(layers: dict[str, Shape], shape: Shape) -> dict[str, Node]:
    """The input and the layers; the numbers of their neurons are not known, and stand as zeros."""
    nodes: dict[str, Node] = {}
    for name, size in layers.items():
        zero: Any = np.broadcast_to(np.float32(0), size)
        op = nir.LIF(tau=zero, r=zero, v_leak=zero, v_threshold=zero, v_reset=zero)
        nodes[name] = Node(name, op, (), size, size)
    name = next(n for n in ("input", "input of the model") if n not in nodes)
    given = nir.Input({"input": np.array(shape, int)})
    return {name: Node(name, given, (), shape, shape), **nodes}
