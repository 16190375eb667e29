"""Settle shapes that a file declares one way and means another."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np

from tser.errors import InputFileError
from tser.export.graph import ContradictionError, Graph, resolve

_MOST = 10_000
"""Repairs of one graph; a graph in need of more is none."""


def repair(
    graph: nir.NIRGraph, dt: float | None = None, origin: str = "the graph"
) -> tuple[Graph, list[str]]:
    """Change declared shapes of ``graph`` to those that arrive, where that is all that is wrong.

    What arrives follows from the input and the weights, which stay as they are: a declared output,
    the ``input_shape`` of a convolution, the input of a flattening, and axes of length 1 in the
    parameters of neurons give way. The time step becomes part of the metadata where only ``dt``
    states it.

    Args:
        graph: changed in place.
        dt: time step [s] of a graph whose metadata state none.
        origin: what to call the graph in messages.

    Returns:
        The view, and one sentence for each change.

    Raises:
        InputFileError: something else is wrong.
    """
    changes: list[str] = []
    while True:
        try:
            view = resolve(graph, dt, origin, timeless=True)
            break
        except ContradictionError as error:
            if len(changes) == _MOST:
                raise InputFileError(f"{origin} cannot be repaired: {error}") from error
            changes += _apply(error)
    if dt is not None and "dt" not in graph.metadata:
        graph.metadata["dt"] = dt
        changes.append(f"the metadata state dt = {dt:g} s")
    if changes:
        changes += _state_inputs(view)
    return view, changes


def _state_inputs(view: Graph) -> list[str]:
    """Shapes that are not stated at all: nir reads such a node, but cannot write it."""
    said = []
    for node in view.nodes.values():
        op, shape = node.op, node.input_shape
        if isinstance(op, nir.Flatten) and op.input_type["input"] is None:
            op.input_type = {"input": np.array(shape)}
        elif isinstance(op, nir.Conv1d | nir.Conv2d) and op.input_shape is None:
            op.input_shape = shape[1] if isinstance(op, nir.Conv1d) else np.array(shape[1:])
        else:
            continue
        said.append(f"the input of node {node.name!r}, which was not stated, is now {shape}")
    return said


def _apply(error: ContradictionError) -> list[str]:
    # What stands for a port of a nested graph in the view is not in the file.
    op = error.op.metadata.get("port", error.op)
    said = []
    for key, value in error.changes.items():
        before = getattr(op, key)
        if isinstance(op, nir.Input | nir.Output):
            shape = value["input" if "input" in value else "output"]
            name, before = _port(op)
            op.input_type, op.output_type = {"input": shape}, {"output": shape}
            value = shape
        else:
            name = key
            setattr(op, key, value)
        if _plain(before) == _plain(value):
            continue
        said.append(f"{name} of node {error.node!r}: {_plain(before)} is now {_plain(value)}")
    return said


def _port(op: Any) -> tuple[str, Any]:
    declared = op.input_type if isinstance(op, nir.Input) else op.output_type
    return "the shape", next(iter(declared.values()))


def _plain(value: Any) -> str:
    """A shape as numbers; parameters of neurons by their shape."""
    if isinstance(value, dict):
        value = next(iter(value.values()))
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return f"shape {array.shape}"
    return str(tuple(array.tolist()) if array.ndim else array.item())
