"""What is in an ``.onnx`` file."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from tser.export.onnx_digest import damage
from tser.export.onnx_file import model_metadata, read_unverified

_ABOVE = re.compile(r"(.+)\.above(?:\.\d+)?\Z")
"""Our name of a comparison with the threshold: the neurons' node, then the step if any."""


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Everything that `tser inspect` says about an ``.onnx`` file; nothing is run.

    A file whose digest is wrong is described too; the caller has to say that it is damaged, in
    the words of ``"problem"``.

    Returns:
        A JSON document. ``neurons`` is None where the model is not one of ours, whose names say
        which tensors are spikes, or not what its digest says.

    Raises:
        InputFileError: missing, damaged, not ONNX, or with data outside the file.
    """
    model, state = read_unverified(path)
    metadata = model_metadata(model)
    ours = model.producer_name == "tser"
    operators = Counter(_kind(node) for graph in _graphs(model.graph) for node in graph.node)
    weights = [t for graph in _graphs(model.graph) for t in graph.initializer]
    return {
        "schema_version": 1,
        "file": str(path),
        "format": "onnx",
        "ours": ours,
        "manifest": state,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opsets": {opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        "ir_version": model.ir_version,
        "inputs": _ports(_given(model.graph)),
        "outputs": _ports(model.graph.output),
        "operators": dict(sorted(operators.items())),
        "constants": sum(math.prod(tensor.dims) for tensor in weights),
        "neurons": _neurons(model) if ours and state == "ok" else None,
        "metadata": metadata,
        "problem": damage(path, model) if state == "wrong" else "",
    }


def _kind(node: Any) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _graphs(graph: Any) -> Iterator[Any]:
    """``graph`` and the bodies of its loops and branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _given(graph: Any) -> list[Any]:
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def _ports(values: Any) -> list[dict[str, Any]]:
    found = []
    for value in values:
        tensor = value.type.tensor_type
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        found.append({"name": value.name, "type": kind.lower(), "shape": _shape(tensor)})
    return found


def _shape(tensor: Any) -> list[int | str] | None:
    if not tensor.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    ]


def _neurons(model: Any) -> int | None:
    """Elements of every layer of spikes for one sample, None where a shape is not known."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 - it raises many types; the count is then not known
        return None
    layers: dict[str, int | None] = {}
    for graph in _graphs(inferred.graph):
        shapes = {info.name: _shape(info.type.tensor_type) for info in graph.value_info}
        for node in graph.node:
            named = _ABOVE.match(node.output[0]) if node.op_type == "Greater" else None
            if named:
                layers[named[1]] = _elements(shapes.get(node.output[0]))
    if not layers or any(count is None for count in layers.values()):
        return None
    return sum(count or 0 for count in layers.values())


def _elements(shape: list[int | str] | None) -> int | None:
    """Product of the sizes after the batch."""
    if not shape or any(isinstance(size, str) for size in shape[1:]):
        return None
    return math.prod(int(size) for size in shape[1:])
