"""Compile a NIR graph to ONNX, and read ONNX files without trusting them.

The whole-sequence form: stateless nodes run once over ``[T*B, ...]`` (over ``[B, ...]`` for as
long as nothing depends on time), neurons are unrolled over T. Tensors are named after the NIR
nodes that make them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tser import __version__
from tser.errors import InputFileError, UsageError
from tser.export.graph import SPIKING, Graph, Node
from tser.export.lower import ExportError
from tser.export.onnx_ops import NEURON_EMITTERS, STATELESS_EMITTERS, Emitter
from tser.files import atomic_path

OPSET = 18
"""Split with num_outputs needs 18; ONNX Runtime has it since 1.14."""
IR_VERSION = 8

Array = NDArray[Any]
Encoding = Literal["direct", "sequence"]


def compile_onnx(
    graph: Graph, timesteps: int | None = None, encoding: Encoding | None = None
) -> onnx.ModelProto:
    """Compile a feed-forward NIR graph to a whole-sequence ONNX model.

    Args:
        graph: the resolved view.
        timesteps: T; default: what the graph states.
        encoding: "direct" takes ``[B, *input_shape]`` and repeats it over T, "sequence" takes
            ``[T, B, *input_shape]``; None: what the graph states, else "direct".

    Returns:
        A model from ``input`` to ``logits`` ``[T, B, *output_shape]``; B is dynamic. Every NIR
        node's output is a tensor of that node's name, ``[T*B, ...]`` (``[B, ...]`` before time).

    Raises:
        ExportError: a recurrent graph, a node that has no ONNX form yet, or an unknown T.
        UsageError: T < 1, or "direct" for a graph that takes a frame for each step.
    """
    frames = graph.metadata.get("encoding") == "frames"
    if frames and encoding == "direct":
        raise UsageError(
            "the graph takes a frame for each step, so its input cannot be one image; "
            "use --encoding sequence"
        )
    if encoding is None:
        encoding = "sequence" if frames else "direct"
    steps = graph.timesteps if timesteps is None else timesteps
    if steps is not None and steps < 1:
        raise UsageError(f"the number of time steps must be at least 1, got {steps}")
    if steps is None:
        raise ExportError("the graph does not say how many time steps to unroll; pass --timesteps")
    if graph.recurrent:
        node = next(n for n in graph.nodes.values() if any(e.delayed for e in n.inputs))
        raise ExportError(
            f"node {node.name!r} closes a cycle; recurrent graphs cannot be exported to ONNX's "
            "sequence form"
        )
    emitter = Emitter(graph, steps)
    shape = graph.input.output_shape
    folded: dict[str, tuple[str, bool]] = {}
    for node in graph.nodes.values():
        if isinstance(node.op, nir.Input):
            folded[node.name] = _input(emitter, shape, encoding, steps)
            continue
        value, constant = _sum(emitter, node, [folded[edge.source] for edge in node.inputs])
        if type(node.op) in NEURON_EMITTERS:
            value = NEURON_EMITTERS[type(node.op)](emitter, node, value, constant)
            constant = False
        elif type(node.op) in STATELESS_EMITTERS:
            value = STATELESS_EMITTERS[type(node.op)](emitter, node, value)
        else:
            raise ExportError(f"node {node.name!r} ({node.kind}) has no ONNX form yet")
        folded[node.name] = value, constant
        if isinstance(node.op, SPIKING) and value != node.name:
            raise ExportError(f"the name of node {node.name!r} is taken in ONNX; rename the layer")
    _logits(emitter, *folded[graph.output.name], graph.output.output_shape)
    leading = [steps, "B"] if encoding == "sequence" else ["B"]
    nodes, initialisers = emitter.live("logits")
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tser",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [*leading, *shape])],
            [
                helper.make_tensor_value_info(
                    "logits", TensorProto.FLOAT, [steps, "B", *graph.output.output_shape]
                )
            ],
            initialisers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tser",
        producer_version=__version__,
    )
    metadata = {
        **{key: value for key, value in graph.metadata.items() if key != "sha256"},
        "nir_sha256": graph.metadata.get("sha256", ""),
        "dt": graph.dt,
        "timesteps": steps,
        "encoding": encoding,
    }
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    return model


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        onnx.save_model(model, temporary)


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ``.onnx`` file; external data are refused.

    Raises:
        InputFileError: missing, damaged, not ONNX, or with data outside the file.
    """
    try:
        model = onnx.load_model(path, load_external_data=False)
        if any(t.data_location == TensorProto.EXTERNAL for t in _tensors(model)):
            raise InputFileError(
                f"{path} keeps its weights in another file, which is not supported"
            )
        onnx.checker.check_model(model)
    except InputFileError:
        raise
    except FileNotFoundError as error:
        raise InputFileError(f"there is no file {path}") from error
    except Exception as error:  # protobuf and the checker raise many types
        reason = " ".join(str(error).split())[:160]
        raise InputFileError(f"{path} is not a valid ONNX model: {reason}") from error
    return model


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor anywhere in a protobuf message: initialisers, attributes, subgraphs."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Sequence) else [value]:
                yield from _tensors(part)


def model_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """Key-value metadata of a model."""
    return {prop.key: prop.value for prop in model.metadata_props}


def _input(
    emitter: Emitter, shape: tuple[int, ...], encoding: Encoding, steps: int
) -> tuple[str, bool]:
    if encoding == "direct":
        return "input", True
    target = emitter.constant("input.shape", np.array([-1, *shape], np.int64))
    return emitter.emit("Reshape", ["input", target], "input.folded"), steps == 1


def _sum(emitter: Emitter, node: Node, values: list[tuple[str, bool]]) -> tuple[str, bool]:
    constant = all(is_constant for _, is_constant in values)
    names = [
        name if is_constant == constant else _repeat(emitter, name) for name, is_constant in values
    ]
    total = names[0]
    for name in names[1:]:
        total = emitter.emit("Add", [total, name], f"{node.name}.sum")
    return total, constant


def _repeat(emitter: Emitter, name: str) -> str:
    if emitter.timesteps == 1:
        return name
    return emitter.emit("Concat", [name] * emitter.timesteps, f"{name}.repeated", axis=0)


def _logits(emitter: Emitter, value: str, constant: bool, shape: tuple[int, ...]) -> None:
    if constant:
        value = _repeat(emitter, value)
    target = emitter.constant("logits.shape", np.array([emitter.timesteps, -1, *shape], np.int64))
    emitter.nodes.append(helper.make_node("Reshape", [value, target], ["logits"], name="logits"))
