"""What a graph is judged against: the student of a run, or another graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.checkpoints import load_run_data, load_student, weights_digest
from tser.deploy.backends import Backend, TorchBackend
from tser.deploy.candidates import Renamed, Subject, executors, open_subject
from tser.deploy.named_inputs import Inputs, images_of
from tser.deploy.static_check import (
    onnx_contradictions,
    onnx_differences,
    stated_differences,
    static_differences,
)
from tser.export.graph import Graph, resolve
from tser.export.lower import lower
from tser.export.nir_file import digest
from tser.export.shapes import Shape
from tser.export.variants import stated_variant, vary
from tser.runs import Run

Array = NDArray[Any]


@dataclass(frozen=True)
class StaticCheck:
    """What differs before anything is run.

    Attributes:
        differences: between the two graphs.
        contradictions: what the file says of itself that is not so.
        graph_digest: that the file states.
        reference_digest: of the reference's graph.
    """

    differences: list[str]
    contradictions: list[str] = field(default_factory=list)
    graph_digest: str | None = None
    reference_digest: str | None = None


@dataclass(frozen=True)
class Reference:
    """One side of a comparison.

    Attributes:
        title: what to call it in messages.
        source: path of the run or the file.
        graph: the view that rounding is bounded on.
        certify: False where ``graph`` is not known, and only names the layers.
        layers: names of the spiking layers and their shapes.
        timesteps: T, where it is fixed.
        start: T, frames or not -> its executor.
        check: the static comparison.
        bias_magnitude: see `Audit`.
        raw: its NIR graph, where there is one.
        weights: digest that the student's weights carry; None: a graph, or weights of others.
        run_inputs: test images of the run's data, by number of samples; None: there is no run.
    """

    title: str
    source: str
    graph: Graph
    certify: bool
    layers: dict[str, Shape]
    timesteps: int | None
    start: Callable[[int, bool], Backend]
    check: Callable[[Subject], StaticCheck]
    bias_magnitude: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    raw: nir.NIRGraph | None = None
    weights: str | None = None
    run_inputs: Callable[[int | None], Inputs] | None = None


def student_of(run: Run, root: Path | None) -> Reference:
    """The PyTorch student.

    Raises:
        UsageError: an incomplete run, or missing data.
        InputFileError: damaged files.
    """
    data = load_run_data(run, root)
    student = load_student(run, data)
    lowered = lower(student, data)
    graph = resolve(lowered.graph, origin=str(run.path))
    own = digest(lowered.graph)

    def start(timesteps: int, frames: bool) -> Backend:
        return TorchBackend(student, lowered.modules, f"student of {run.path}")

    def check(subject: Subject) -> StaticCheck:
        if subject.graph is None:
            model = subject.model
            if model is None:
                raise ValueError("a subject has a graph or a model")
            return StaticCheck(
                onnx_differences(graph, model), onnx_contradictions(graph, model, own), None, own
            )
        stated = subject.graph.metadata
        fresh = resolve(vary(lowered.graph, stated_variant(stated)), origin=str(run.path))
        return StaticCheck(
            static_differences(fresh, subject.graph, "the student"),
            stated_differences(fresh, subject.graph, "the student"),
            stated.get("sha256"),
            digest(vary(lowered.graph, stated_variant(stated))),
        )

    return Reference(
        title="the student",
        source=str(run.path),
        # The student's own graph: the file's may state parameters that widen the bounds.
        graph=graph,
        certify=True,
        layers={node.name: node.output_shape for node in graph.spiking},
        timesteps=student.timesteps,
        start=start,
        check=check,
        bias_magnitude=lowered.bias_magnitude,
        raw=lowered.graph,
        weights=weights_digest(run.student),
        run_inputs=partial(images_of, data),
    )


def graph_as_reference(path: Path, subject: Subject, dt: float | None) -> Reference:
    """Another graph file; where it is ONNX, rounding is bounded on ``subject``.

    Raises:
        InputFileError: missing or damaged.
        UsageError: it does not state its time step and none is given.
    """
    other = open_subject(path, dt if path.suffix == ".nir" else None)
    graph = other.graph or subject.graph

    def start(timesteps: int, frames: bool) -> Backend:
        backend = executors(other, (), timesteps, frames)[0]
        return Renamed(backend, {name: name for name in other.layers}, title="reference")

    def check(candidate: Subject) -> StaticCheck:
        if other.graph is not None and candidate.graph is not None:
            return StaticCheck(
                static_differences(other.graph, candidate.graph, "the reference"),
                [],
                candidate.graph.metadata.get("sha256"),
                other.graph.metadata.get("sha256"),
            )
        if other.model is not None and candidate.model is not None:
            same = other.model.graph == candidate.model.graph
            return StaticCheck([] if same else ["their operators or constants differ"])
        known = other.graph or candidate.graph
        model = other.model or candidate.model
        if known is None or model is None:
            raise ValueError("a subject has a graph or a model")
        if not onnx_differences(known, model):
            return StaticCheck([])
        names = (path, candidate.path) if other.model is not None else (candidate.path, path)
        return StaticCheck(
            [f"{names[0]} is not what {names[1]} compiles to; compare two .nir files to see where"]
        )

    known = graph is not None and (
        other.graph is not None or [*subject.layers.items()] == [*other.layers.items()]
    )
    return Reference(
        title="the reference",
        source=str(path),
        graph=graph if graph is not None and known else other.view,
        certify=known,
        layers=other.layers,
        timesteps=other.timesteps,
        start=start,
        check=check,
        raw=other.raw,
    )
