"""What two graphs differ in before anything is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tser.export.graph import Graph
from tser.export.lower import ExportError
from tser.export.nir_file import flatten
from tser.export.onnx_file import compile_onnx, model_metadata, options_of
from tser.export.onnx_forms import Encoding

STATED = (
    "timesteps",
    "encoding",
    "input_max_value",
    "input_mean",
    "input_std",
    "class_names",
)
"""Metadata that say how a graph is to be run; a file may leave them out."""


def static_differences(expected: Graph, actual: Graph, whose: str = "the student") -> list[str]:
    """What differs between two graphs without running them, one sentence each.

    Args:
        expected: lowered afresh from the student, or another file's.
        actual: as read from the file.
        whose: what to call the expected one.
    """
    found = []
    for name in expected.nodes.keys() | actual.nodes.keys():
        if name not in expected.nodes or name not in actual.nodes:
            where = "the file" if name in expected.nodes else whose
            found.append(f"node {name!r} is missing in {where}")
            continue
        a, b = expected.nodes[name], actual.nodes[name]
        if a.kind != b.kind:
            found.append(f"node {name!r} is of class {b.kind}, {whose} has {a.kind}")
            continue
        if sorted(e.source for e in a.inputs) != sorted(e.source for e in b.inputs):
            found.append(f"node {name!r} has other incoming edges than {whose}")
        ours, theirs = (flatten(node.op.to_dict()) for node in (a, b))
        found += [
            f"{name}.{key} differs from {whose}{_extent(ours[key], theirs.get(key))}"
            for key in sorted(ours)
            if key not in theirs or not _equal(ours[key], theirs[key])
        ]
    return sorted([*found, *stated_differences(expected, actual, whose)])


def _extent(expected: Any, actual: Any) -> str:
    """In how many values, and by how much."""
    a, b = np.asarray(expected), np.asarray(actual)
    if actual is None:
        return ": it is not there"
    shapes = "" if a.shape == b.shape else f": shape {b.shape}, not {a.shape}"
    if a.dtype.kind not in "fiu" or b.dtype.kind not in "fiu":
        return shapes
    if shapes and b.size != 1:
        return shapes
    # One number for all neurons can be held against each of them.
    apart = np.abs(a.astype(np.float64) - b.reshape(() if shapes else b.shape))
    count = np.count_nonzero(apart)
    values = f" in {count:,} of {a.size:,} values, by at most {apart.max(initial=0):.3g}"
    if not shapes:
        return values
    return f"{shapes}{',' + values if count else ', the same values'}"


def stated_differences(expected: Graph, actual: Graph, whose: str = "the student") -> list[str]:
    """What a file says about how to run it that is not so; equal spikes do not make it right.

    Args:
        expected: lowered afresh from the student, or another file's.
        actual: as read from the file.
        whose: what to call the expected one.
    """
    found = [
        f"{key} is {actual.metadata[key]}, not {expected.metadata.get(key)}"
        for key in STATED
        if key in actual.metadata and actual.metadata[key] != expected.metadata.get(key)
    ]
    if expected.dt != actual.dt:
        found.append(f"dt is {actual.dt:g} s, {whose} has {expected.dt:g} s")
    return found


def onnx_differences(
    expected: Graph, model: onnx.ModelProto, whose: str = "the student"
) -> list[str]:
    """How a model differs from one compiled afresh, in a sentence.

    Args:
        expected: lowered afresh from the student, or another file's.
        model: as read.
        whose: what to call the expected one.
    """
    encoding: Encoding = "sequence" if _says(model, "encoding") == "sequence" else "direct"
    stated = _says(model, "timesteps")
    steps = int(stated) if stated and stated.isdigit() else None
    try:
        fresh = compile_onnx(expected, steps, encoding, options_of(model)).graph
    except ExportError as error:
        return [str(error)]
    if fresh == model.graph:
        return []
    return [f"its operators or constants are not those of a fresh export of {whose}"]


def onnx_contradictions(expected: Graph, model: onnx.ModelProto, student: str) -> list[str]:
    """What a model says about itself that is not so; see `stated_differences`.

    Args:
        expected: lowered afresh from the student.
        model: as read.
        student: digest of the student's graph.
    """
    wanted = {key: expected.metadata.get(key) for key in STATED if key != "encoding"}
    wanted |= {"dt": expected.dt, "nir_sha256": student}
    return [
        f"{key} is {_says(model, key)}, not {value}"
        for key, value in wanted.items()
        if _says(model, key) not in (None, "", str(value))
    ]


def _says(model: onnx.ModelProto, key: str) -> str | None:
    return model_metadata(model).get(key)


def _equal(a: Any, b: Any) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))
