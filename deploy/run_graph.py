"""``tser run``: execute an exported or third-party graph on a file or a data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tser.deploy.backends import Trace
from tser.deploy.graph_file import check_suffix, open_nir
from tser.deploy.interpreter import run
from tser.deploy.model_trial import tried
from tser.deploy.named_inputs import Inputs, batch_size, named_inputs
from tser.deploy.onnx_backend import OnnxBackend, compile_for
from tser.deploy.onnx_view import onnx_view
from tser.deploy.outputs import check_finite
from tser.deploy.spike_file import SpikeFile
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph
from tser.export.onnx_file import read_onnx
from tser.export.shapes import Shape
from tser.files import atomic_path

Array = NDArray[Any]
Runtime = Literal["nir", "onnx"]


@dataclass(frozen=True)
class Program:
    """A graph that can be run.

    Attributes:
        graph: the NIR view; of an ONNX model only its input and metadata.
        layers: names of the spiking layers, and their shapes without batch and time.
        values: of all neurons, for one sample and step.
        fixed: T, where the file allows no other.
        start: T of a constant input or None, frames or not, layers to record -> what runs a batch.
    """

    graph: Graph
    layers: dict[str, Shape]
    values: int
    fixed: int | None
    start: Callable[[int, bool, dict[str, Shape]], Callable[[Array], Trace]]


def run_graph(
    path: Path,
    *,
    source: Path | None = None,
    data: str | None = None,
    runtime: Runtime | None = None,
    dt: float | None = None,
    timesteps: int | None = None,
    samples: int | None = None,
    out: Path | None = None,
    trace: Path | None = None,
    root: Path | None = None,
) -> dict[str, Any]:
    """Run a graph and write what it puts out.

    Args:
        path: a ``.nir`` file of any tool, or an ``.onnx`` file of ours in any form.
        source: a ``.npy`` file ``[N, *input_shape]`` or ``[T, N, *input_shape]``, given to the
            network as it is.
        data: name of a data set whose test images are used, normalised as the graph says.
        runtime: "nir" is the NumPy interpreter, "onnx" is ONNX Runtime; default: by the file.
        dt: time step [s] of a ``.nir`` file that states none.
        timesteps: T for a constant input; default: what the graph states.
        samples: the first so many; None: all.
        out: ``.npz`` with ``logits [T, N, K]``, ``predictions [N]`` and, of a data set,
            ``labels [N]``; or ``.npy`` with the logits.
        trace: ``.npz`` with the spikes of every layer, bool ``[T, N, ...]``.
        root: folder of the data set.

    Returns:
        Plain values, ready for JSON.

    Raises:
        InputFileError: a file that is damaged, or inputs of another shape.
        UsageError: options that contradict each other or the graph.
    """
    _check_options(path, source, data, out, trace)
    program = open_program(path, runtime, dt)
    inputs = named_inputs(program.graph, str(path), source, data, samples, root)
    steps = _steps(program, inputs, timesteps, path)
    size = batch_size(program.values, steps)
    recorded = program.layers if trace is not None else {}
    execute = program.start(steps, inputs.frames is not None, recorded)
    logits: list[Array] = []
    labels: list[Array] = []
    with ExitStack() as stack:
        spikes = None
        if trace is not None:
            spikes = stack.enter_context(SpikeFile(trace, recorded, steps, inputs.samples))
        for x, truth in inputs.batches(size):
            result = execute(x)
            check_finite(result.logits, sum(part.shape[1] for part in logits), str(path))
            logits.append(result.logits)
            if truth is not None:
                labels.append(truth)
            if spikes is not None:
                spikes.add(result.spikes)
    rates = spikes.rates() if spikes is not None else None
    joined = np.concatenate(logits, axis=1)
    found = _answers(joined, np.concatenate(labels) if labels else None)
    if out is not None:
        _write(out, joined, found)
    accuracy = found.get("accuracy")
    return {
        "schema_version": 1,
        "graph": str(path),
        "runtime": _runtime(path, runtime),
        "input": inputs.title,
        "samples": inputs.samples,
        "timesteps": steps,
        "output_shape": list(joined.shape[2:]),
        "predictions": found["predictions"].tolist() if "predictions" in found else None,
        "class_names": program.graph.class_names,
        "accuracy": None if accuracy is None else accuracy.tolist(),
        "firing_rates": rates,
        "out": None if out is None else str(out),
        "trace": None if trace is None else str(trace),
    }


def open_program(path: Path, runtime: Runtime | None = None, dt: float | None = None) -> Program:
    """A graph file, ready to run.

    Raises:
        InputFileError: missing, damaged, or an ONNX model that is not ours.
        UsageError: an option that this kind of file does not take.
    """
    check_suffix(path, ".nir", ".onnx")
    if path.suffix == ".nir":
        return _nir_program(open_nir(path, dt), path, _runtime(path, runtime))
    if runtime == "nir":
        raise UsageError(f"{path} is an ONNX model; leave out --runtime nir, or name the .nir file")
    if dt is not None:
        raise UsageError(f"{path} was compiled for its dt; leave out --dt")
    return _onnx_program(path)


def _runtime(path: Path, runtime: Runtime | None) -> Runtime:
    return runtime or ("onnx" if path.suffix == ".onnx" else "nir")


def _nir_program(graph: Graph, path: Path, runtime: Runtime) -> Program:
    layers = {node.name: node.output_shape for node in graph.spiking}

    def start(steps: int, frames: bool, recorded: dict[str, Shape]) -> Callable[[Array], Trace]:
        if runtime == "onnx":
            model = compile_for(graph, steps, frames)
            return OnnxBackend(model, recorded, f"the ONNX form of {path}", steps)

        def execute(x: Array) -> Trace:
            logits, kept = run(graph, x, steps, record=list(recorded))
            return Trace(logits, {name: value > 0 for name, value in kept.items()})

        return execute

    values = sum(math.prod(node.output_shape) for node in graph.nodes.values())
    return Program(graph, layers, values, None, start)


def _onnx_program(path: Path) -> Program:
    model = read_onnx(path)
    view = onnx_view(model, path)
    tried(model, path)

    def start(steps: int, given: bool, recorded: dict[str, Shape]) -> Callable[[Array], Trace]:
        return OnnxBackend(model, recorded, str(path), None if given else steps)

    sizes = (*view.layers.values(), view.graph.input.output_shape)
    values = sum(math.prod(size) for size in sizes)
    return Program(view.graph, view.layers, 2 * values, view.fixed, start)


def _steps(program: Program, inputs: Inputs, timesteps: int | None, path: Path) -> int:
    """T.

    Raises:
        InputFileError: inputs with another T than the file takes.
        UsageError: nothing says it, or two things say otherwise.
    """
    if inputs.frames is not None and timesteps not in (None, inputs.frames):
        raise UsageError(f"{inputs.title} has {inputs.frames} time steps; leave out --timesteps")
    steps = inputs.frames or timesteps or program.graph.timesteps
    if steps is None:
        raise UsageError(f"{path} does not say how many time steps to run; pass --timesteps")
    if program.fixed is not None and steps != program.fixed:
        if inputs.frames is not None:
            raise InputFileError(
                f"{inputs.title} has {steps} time steps, {path} was unrolled for {program.fixed}; "
                "export it with --form scan"
            )
        raise UsageError(
            f"{path} was unrolled for {program.fixed} time steps; leave out --timesteps, or "
            "export it with --form scan"
        )
    return steps


def _answers(logits: Array, labels: Array | None) -> dict[str, Array]:
    """Predictions ``[N]`` of the mean over all steps; with labels also accuracy after each."""
    if logits.ndim != 3:
        return {}
    counts = np.arange(1, len(logits) + 1, dtype=np.float64)[:, None, None]
    after = (np.cumsum(logits, axis=0, dtype=np.float64) / counts).argmax(-1)
    found: dict[str, Array] = {"predictions": after[-1]}
    if labels is not None:
        found |= {"labels": labels, "accuracy": (after == labels).mean(-1)}
    return found


def _write(out: Path, logits: Array, found: dict[str, Array]) -> None:
    with atomic_path(out) as temporary:
        if out.suffix == ".npy":
            np.save(temporary, logits)
        else:
            kept: dict[str, Any] = {"logits": logits}
            kept |= {key: found[key] for key in ("predictions", "labels") if key in found}
            np.savez_compressed(temporary, **kept)


def _check_options(
    path: Path, source: Path | None, data: str | None, out: Path | None, trace: Path | None
) -> None:
    if source is not None and data is not None:
        raise UsageError("--input and --data both name inputs; leave out one of them")
    if source is None and data is None:
        raise UsageError(f"{path} needs inputs: give one of --input FILE.npy and --data NAME")
    for option, target, suffixes in (
        ("--out", out, (".npz", ".npy")),
        ("--trace", trace, (".npz",)),
    ):
        if target is None:
            continue
        if target.is_dir():  # so is what an empty name stands for
            raise UsageError(f"{option} names the folder {target}; name a file in it")
        if target.suffix not in suffixes:
            raise UsageError(f"{option} {target} is not named {' or '.join(suffixes)}")
        if source is not None and target.resolve() == source.resolve():
            raise UsageError(f"{option} {target} would overwrite the input; choose another name")
    if out is not None and trace is not None and out.resolve() == trace.resolve():
        raise UsageError("--out and --trace name the same file; choose two")
