"""``tser validate``: a graph against the student or another graph, as one JSON document."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tser.deploy.backends import Backend, Trace
from tser.deploy.candidates import Subject, executors, open_subject, pair_layers, paired
from tser.deploy.equivalence import compare
from tser.deploy.graph_file import is_compiled_from
from tser.deploy.model_trial import tried
from tser.deploy.named_inputs import Inputs, batch_size, named_inputs
from tser.deploy.probing import probe
from tser.deploy.references import (
    Reference,
    graph_as_reference,
    student_of,
)
from tser.deploy.spike_file import SpikeFile
from tser.deploy.tally import Comparison, Evidence
from tser.deploy.validation_document import document
from tser.errors import InputFileError, UsageError
from tser.export.onnx_file import read_onnx
from tser.runs import Run


def validate(
    path: Path,
    against: Run | Path,
    *,
    backends: Sequence[str] = (),
    samples: int | None = None,
    source: Path | None = None,
    data: str | None = None,
    dt: float | None = None,
    timesteps: int | None = None,
    probes: bool = False,
    trace: Path | None = None,
    root: Path | None = None,
) -> dict[str, Any]:
    """Compare a graph with the student of a run, or with another graph, spike by spike.

    A ``.nir`` file is run by the NumPy interpreter and by ONNX Runtime, the latter on the run's
    ``model.onnx`` when that was compiled from this very graph, else compiled on the spot. An
    ``.onnx`` file is run by ONNX Runtime.

    Args:
        path: the graph, ``.nir`` or ``.onnx``.
        against: the run or the graph that it should equal.
        backends: what to run it with, of `candidates.BACKENDS`; none: as above.
        samples: how many test images; None: all.
        source: ``.npy`` with the inputs of two graphs.
        data: data set with the inputs of two graphs.
        dt: time step [s] of ``.nir`` files that state none.
        timesteps: T of two graphs that state none.
        probes: also run inputs and networks made to show wrong rules, see `probing`.
        trace: ``.npz`` for the spikes of everything that ran, packed to bits.
        root: folder of the data set.

    Returns:
        Plain values, ready for JSON.

    Raises:
        InputFileError: a file that is damaged, or a graph of another network.
        UsageError: an incomplete run, missing data, options that do not go together, or a backend
            whose package is not installed.
    """
    subject = open_subject(path, dt if path.suffix == ".nir" else None)
    reference: Reference
    inputs: Inputs | None
    if isinstance(against, Run):
        if source is not None or data is not None or timesteps is not None:
            raise UsageError(
                "a run is validated on its own data and time steps; leave out --data, --input and "
                "--timesteps"
            )
        subject = _with_model_of(against, subject)
        reference = student_of(against, root)
        inputs = reference.run_inputs(samples) if reference.run_inputs else None
    else:
        reference = graph_as_reference(against, subject, dt)
        inputs = None
        if source is not None or data is not None:
            origin = str(against)
            inputs = named_inputs(reference.graph, origin, source, data, samples, root)
        elif not probes:
            raise UsageError(
                "two graphs are compared on inputs that you name: pass --data NAME, "
                "--input FILE.npy or --probes"
            )
    pairs = pair_layers(reference.layers, subject.layers)
    if pairs is None:
        raise InputFileError(
            f"{path} has other spiking layers than {reference.title} {reference.source}; "
            "name the run or graph that it was made from"
        )
    steps = _steps(reference, subject, inputs, timesteps)
    static = reference.check(subject)
    evidence = Evidence([])
    shape = _other_shape(reference, subject, pairs)
    if inputs is not None:
        frames = inputs.frames is not None
        candidates = paired(executors(subject, backends, steps, frames), subject, pairs)
        evidence = (
            _broken(candidates, shape)
            if shape
            else _compared(reference, candidates, inputs, steps, trace)
        )
    probed = None
    if probes:
        probed = [] if shape else probe(reference, subject, pairs, backends, steps, inputs)
    return document(path, reference, evidence, static, inputs, steps, probed)


def _with_model_of(run: Run, subject: Subject) -> Subject:
    """``subject`` with the run's ONNX model, when that was compiled from this very graph."""
    if subject.graph is None or not run.onnx.exists():
        return subject
    model = read_onnx(run.onnx)
    if is_compiled_from(model, subject.graph):
        model = tried(model, run.onnx)
        return dataclasses.replace(subject, model=model, model_source=str(run.onnx))
    source = f"compiled from {subject.path}; {run.onnx} is of another graph and was not checked"
    return dataclasses.replace(subject, model_source=source)


def _steps(
    reference: Reference, subject: Subject, inputs: Inputs | None, timesteps: int | None
) -> int:
    frames = None if inputs is None else inputs.frames
    stated = timesteps or frames or reference.timesteps or subject.timesteps
    if stated is None:
        raise UsageError(
            f"neither {reference.source} nor {subject.path} says how many time steps to run; pass "
            "--timesteps"
        )
    return stated


def _other_shape(reference: Reference, subject: Subject, pairs: dict[str, str]) -> str:
    """The first layer that has other neurons, in words; "" where none has."""
    for own, name in pairs.items():
        a, b = reference.layers[name], subject.layers[own]
        if a != b:
            return f"layer {own!r} has neurons of shape {b}, {reference.title} has {a}"
    return ""


def _broken(candidates: Sequence[Backend], reason: str) -> Evidence:
    return Evidence([Comparison(one.name, one.source, {}, broken=reason) for one in candidates])


def _compared(
    reference: Reference,
    candidates: Sequence[Backend],
    inputs: Inputs,
    steps: int,
    trace: Path | None,
) -> Evidence:
    backend = reference.start(steps, inputs.frames is not None)
    neurons = sum(math.prod(shape) for shape in reference.layers.values())
    with ExitStack() as stack:
        watch = None
        if trace is not None:
            names = [backend.name, *(one.name for one in candidates)]
            layers = {
                f"{name}/{layer}": shape
                for name in names
                for layer, shape in reference.layers.items()
            }
            file = stack.enter_context(SpikeFile(trace, layers, steps, inputs.samples, packed=True))

            def watch(traces: dict[str, Trace]) -> None:
                file.add(
                    {
                        f"{name}/{layer}": spikes
                        for name, one in traces.items()
                        for layer, spikes in one.spikes.items()
                    }
                )

        return compare(
            reference.graph,
            backend,
            candidates,
            inputs.batches(batch_size(neurons, steps)),
            reference.bias_magnitude,
            certify=reference.certify,
            watch=watch,
        )
