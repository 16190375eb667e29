"""``tser run``: execute an exported or third-party graph on a file or a data set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.backends import Trace
from tser.deploy.graph_file import check_suffix, open_nir
from tser.deploy.inputs import data_for_graph, image_batches
from tser.deploy.interpreter import run
from tser.deploy.onnx_backend import OnnxBackend
from tser.deploy.spike_file import SpikeFile
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph, Node
from tser.export.graph_checks import MOST_STEPS
from tser.export.onnx_file import OnnxOptions, compile_onnx, model_metadata, options_of, read_onnx
from tser.export.shapes import Shape
from tser.files import atomic_path

Array = NDArray[Any]
Runtime = Literal["nir", "onnx"]

MOST_VALUES = 2**27
"""Values of all neurons and steps that a batch may have, so that memory stays bounded."""
MOST_BATCH = 100
MOST_UNROLLED = 32
"""T from which on a NIR graph is run by ONNX Runtime as a loop."""


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


@dataclass(frozen=True)
class Inputs:
    """What a graph is run on.

    Attributes:
        name: for people.
        samples: N.
        frames: T of inputs that have one frame a step, None for constant ones.
        batches: batch size -> ``x [B, ...]`` or ``[T, B, ...]`` float32, with labels ``[B]`` or
            None.
    """

    name: str
    samples: int
    frames: int | None
    batches: Callable[[int], Iterator[tuple[Array, Array | None]]]


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
    inputs = _inputs_of(program.graph, path, source, data, samples, root)
    steps = _steps(program, inputs, timesteps, path)
    size = max(1, min(MOST_BATCH, MOST_VALUES // max(1, steps * program.values)))
    recorded = program.layers if trace is not None else {}
    execute = program.start(steps, inputs.frames is not None, recorded)
    logits, labels = [], []
    with ExitStack() as stack:
        spikes = None
        if trace is not None:
            spikes = stack.enter_context(SpikeFile(trace, recorded, steps, inputs.samples))
        for x, truth in inputs.batches(size):
            result = execute(x)
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
        "input": inputs.name,
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
            form = OnnxOptions("sequence" if steps <= MOST_UNROLLED else "scan")
            model = compile_onnx(graph, steps, "sequence" if frames else "direct", form)
            return OnnxBackend(model, recorded, f"the ONNX form of {path}", steps)

        def execute(x: Array) -> Trace:
            logits, kept = run(graph, x, steps, record=list(recorded))
            return Trace(logits, {name: value > 0 for name, value in kept.items()})

        return execute

    values = sum(math.prod(node.output_shape) for node in graph.nodes.values())
    return Program(graph, layers, values, None, start)


def _onnx_program(path: Path) -> Program:
    model = read_onnx(path)
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
        metadata = _graph_metadata(stated, frames)
        graph = Graph({"input": _input_node(shape)}, float(stated["dt"]), "stated", metadata)
        if not 1 <= (graph.timesteps or 1) <= MOST_STEPS or min(_sizes(layers, shape)) < 1:
            raise ValueError("out of range")
        _ = graph.class_names
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise InputFileError(
            f"{path}: its metadata do not say how it is to be run; export it again"
        ) from error

    def start(steps: int, given: bool, recorded: dict[str, Shape]) -> Callable[[Array], Trace]:
        return OnnxBackend(model, recorded, str(path), None if given else steps)

    values = sum(math.prod(size) for size in layers.values()) + math.prod(shape)
    return Program(graph, layers, 2 * values, fixed, start)


def _sizes(layers: dict[str, Shape], shape: Shape) -> list[int]:
    return [1, *shape, *(size for layer in layers.values() for size in layer)]


def _graph_metadata(stated: dict[str, str], frames: bool) -> dict[str, Any]:
    """Metadata as a NIR graph has them; what takes frames may take repeated images too."""
    left_out = {"encoding"} if frames or stated.get("form") == "step" else set()
    return {key: value for key, value in stated.items() if key not in left_out}


def _input_node(shape: Shape) -> Node:
    return Node("input", nir.Input({"input": np.array(shape, int)}), (), shape, shape)


def _steps(program: Program, inputs: Inputs, timesteps: int | None, path: Path) -> int:
    """T.

    Raises:
        InputFileError: inputs with another T than the file takes.
        UsageError: nothing says it, or two things say otherwise.
    """
    if inputs.frames is not None and timesteps not in (None, inputs.frames):
        raise UsageError(f"{inputs.name} has {inputs.frames} time steps; leave out --timesteps")
    steps = inputs.frames or timesteps or program.graph.timesteps
    if steps is None:
        raise UsageError(f"{path} does not say how many time steps to run; pass --timesteps")
    if program.fixed is not None and steps != program.fixed:
        if inputs.frames is not None:
            raise InputFileError(
                f"{inputs.name} has {steps} time steps, {path} was unrolled for {program.fixed}; "
                "export it with --form scan"
            )
        raise UsageError(
            f"{path} was unrolled for {program.fixed} time steps; leave out --timesteps, or "
            "export it with --form scan"
        )
    return steps


def _inputs_of(
    graph: Graph,
    path: Path,
    source: Path | None,
    data: str | None,
    samples: int | None,
    root: Path | None,
) -> Inputs:
    if samples is not None and samples < 1:
        raise UsageError(f"--samples must be at least 1, got {samples}")
    if source is not None:
        return file_inputs(source, graph.input.output_shape, samples)
    images = data_for_graph(graph, data or "", root, str(path))
    count = len(images.test.labels)
    count = count if samples is None else min(samples, count)

    def batches(size: int) -> Iterator[tuple[Array, Array | None]]:
        yield from image_batches(images, count, size)

    return Inputs(f"test images of {images.name}", count, images.frames, batches)


def file_inputs(path: Path, shape: Shape, samples: int | None = None) -> Inputs:
    """The array in a ``.npy`` file, read batch by batch.

    Args:
        path: holds ``[N, *shape]``, or ``[T, N, *shape]``.
        shape: that the graph takes.
        samples: the first so many; None: all.

    Raises:
        InputFileError: no such file, not an array of numbers, another shape, or values that are
            not finite.
    """
    if path.suffix == ".npz" and path.is_file():
        raise InputFileError(f"{path} is an .npz archive; save its one array with numpy.save")
    check_suffix(path, ".npy")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises many types
        reason = " ".join(str(error).split())[:160]
        if "Python objects" in reason or "pickled" in reason:
            raise InputFileError(
                f"{path} holds Python objects, which are not loaded; save one array of numbers"
            ) from error
        raise InputFileError(f"{path} is not a .npy file: {reason}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputFileError(f"{path} is an .npz archive; save its one array with numpy.save")
    if array.dtype.kind not in "fiub":
        raise InputFileError(f"{path} holds {array.dtype}, not numbers; save it as float32")
    frames = array.ndim == len(shape) + 2
    if array.ndim - len(shape) not in (1, 2) or array.shape[1 + frames :] != shape:
        expected = ", ".join(map(str, shape))
        raise InputFileError(
            f"{path} has shape {array.shape}; the graph takes [N, {expected}] or [T, N, {expected}]"
        )
    if 0 in array.shape:
        raise InputFileError(f"{path} has shape {array.shape}: there is nothing to run")
    count = array.shape[1 if frames else 0]
    count = count if samples is None else min(samples, count)

    def batches(size: int) -> Iterator[tuple[Array, Array | None]]:
        for first in range(0, count, size):
            part = slice(first, min(first + size, count))
            with np.errstate(over="ignore"):  # what overflows is refused below
                x = np.asarray(array[:, part] if frames else array[part], np.float32)
            if not np.isfinite(x).all():
                raise InputFileError(f"{path} holds values that are not finite in float32")
            yield x, None

    return Inputs(str(path), count, len(array) if frames else None, batches)


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
