"""``tser validate``: the student against its exported graphs, as one JSON document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tser.checkpoints import load_run_data, load_student
from tser.deploy.backends import Backend, NirBackend, TorchBackend
from tser.deploy.equivalence import Comparison, Evidence, LayerTally, compare
from tser.deploy.graph_file import check_suffix, is_compiled_from, open_nir
from tser.deploy.inputs import image_batches
from tser.deploy.onnx_backend import OnnxBackend
from tser.deploy.openvino_backend import OpenVinoBackend
from tser.errors import InputFileError
from tser.export.graph import Graph, resolve
from tser.export.lower import lower
from tser.export.nir_file import digest, flatten
from tser.export.onnx_file import compile_onnx, model_metadata, options_of, read_onnx
from tser.export.onnx_forms import Encoding
from tser.export.variants import stated_variant, vary
from tser.runs import Run

STATED = (
    "timesteps",
    "encoding",
    "input_max_value",
    "input_mean",
    "input_std",
    "class_names",
)
"""Metadata that say how a graph is to be run; a file may leave them out."""


def validate(
    path: Path,
    run: Run,
    *,
    samples: int | None = None,
    root: Path | None = None,
    openvino: bool = False,
) -> dict[str, Any]:
    """Compare the student of ``run`` with an exported graph on test images.

    A ``.nir`` file is run by the NumPy interpreter and by ONNX Runtime, the latter on the run's
    ``model.onnx`` when that was compiled from this very graph, else compiled on the spot. An
    ``.onnx`` file is run by ONNX Runtime.

    Args:
        path: the exported graph.
        run: the run that it should equal.
        samples: how many test images; None: all.
        root: folder of the data set.
        openvino: run the ONNX model by OpenVINO too.

    Returns:
        Plain values, ready for JSON.

    Raises:
        InputFileError: a file that is damaged, or a graph of another network.
        UsageError: an incomplete run, missing data, or OpenVINO is wanted and not installed.
    """
    check_suffix(path, ".nir", ".onnx")
    data = load_run_data(run, root)
    student = load_student(run, data)
    lowered = lower(student, data)
    expected = resolve(lowered.graph, origin=str(run.path))
    model = read_onnx(path) if path.suffix == ".onnx" else None
    candidates: list[Backend]
    if model is not None:
        graph, candidates = expected, _runtimes(model, expected, str(path), openvino)
        differences = onnx_differences(expected, model)
        contradictions = onnx_contradictions(expected, model, digest(lowered.graph))
    else:
        graph, candidates = _candidates(path, run, student.timesteps, expected, openvino)
        lowered.graph = vary(lowered.graph, stated_variant(graph.metadata))
        written = resolve(lowered.graph, origin=str(run.path))
        differences = static_differences(written, graph)
        contradictions = stated_differences(written, graph)
    # Certified against the student's own graph: the file's may state parameters that widen the
    # bounds it is held to.
    evidence = compare(
        expected,
        TorchBackend(student, lowered.modules, f"student of {run.path}"),
        candidates,
        image_batches(data, samples),
        lowered.bias_magnitude,
    )
    digests = {
        "graph_digest": None if model is not None else graph.metadata.get("sha256"),
        "student_digest": digest(lowered.graph),
    }
    document = _document(path, run, evidence, differences, digests, data.name, student.timesteps)
    if contradictions:
        document["verdict"] = "E3"
    return document | {"contradictions": contradictions}


def _candidates(
    path: Path, run: Run, timesteps: int, expected: Graph, openvino: bool
) -> tuple[Graph, list[Backend]]:
    graph = open_nir(path)
    if [n.name for n in graph.spiking] != [n.name for n in expected.spiking] or any(
        graph.nodes[n.name].output_shape != n.output_shape for n in expected.spiking
    ):
        raise InputFileError(
            f"{path} has other spiking layers than the student of {run.path}; "
            "name the run it was exported from"
        )
    model, source = None, f"compiled from {path}"
    if run.onnx.exists():
        model = read_onnx(run.onnx)
        if is_compiled_from(model, graph):
            source = str(run.onnx)
        else:
            source += f"; {run.onnx} is of another graph and was not checked"
            model = None
    model = model or compile_onnx(graph, timesteps)
    return graph, [
        NirBackend(graph, timesteps, str(path)),
        *_runtimes(model, graph, source, openvino),
    ]


def _runtimes(model: onnx.ModelProto, graph: Graph, source: str, openvino: bool) -> list[Backend]:
    found: list[Backend] = [OnnxBackend(model, _layers(graph), source)]
    if openvino:
        found.append(OpenVinoBackend(model, _layers(graph), source))
    return found


def _layers(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {node.name: node.output_shape for node in graph.spiking}


def static_differences(expected: Graph, actual: Graph) -> list[str]:
    """What differs between two graphs without running them, one sentence each.

    Args:
        expected: lowered afresh from the student.
        actual: as read from the file.
    """
    found = []
    for name in expected.nodes.keys() | actual.nodes.keys():
        if name not in expected.nodes or name not in actual.nodes:
            where = "the file" if name in expected.nodes else "the student"
            found.append(f"node {name!r} is missing in {where}")
            continue
        a, b = expected.nodes[name], actual.nodes[name]
        if a.kind != b.kind:
            found.append(f"node {name!r} is a {b.kind}, the student has a {a.kind}")
            continue
        if sorted(e.source for e in a.inputs) != sorted(e.source for e in b.inputs):
            found.append(f"node {name!r} has other incoming edges than the student")
        ours, theirs = (flatten(node.op.to_dict()) for node in (a, b))
        found += [
            f"{name}.{key} differs from the student"
            for key in sorted(ours)
            if key not in theirs or not _equal(ours[key], theirs[key])
        ]
    return sorted([*found, *stated_differences(expected, actual)])


def stated_differences(expected: Graph, actual: Graph) -> list[str]:
    """What a file says about how to run it that is not so; equal spikes do not make it right.

    Args:
        expected: lowered afresh from the student.
        actual: as read from the file.
    """
    found = [
        f"{key} is {actual.metadata[key]}, not {expected.metadata.get(key)}"
        for key in STATED
        if key in actual.metadata and actual.metadata[key] != expected.metadata.get(key)
    ]
    if expected.dt != actual.dt:
        found.append(f"dt is {actual.dt:g} s, the student has {expected.dt:g} s")
    return found


def onnx_differences(expected: Graph, model: onnx.ModelProto) -> list[str]:
    """How a model differs from one compiled afresh from the student, in a sentence."""
    encoding: Encoding = "sequence" if _says(model, "encoding") == "sequence" else "direct"
    if compile_onnx(expected, None, encoding, options_of(model)).graph == model.graph:
        return []
    return ["its operators or constants are not those of a fresh export of the student"]


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


def _document(
    path: Path,
    run: Run,
    evidence: Evidence,
    differences: list[str],
    digests: dict[str, Any],
    data: str,
    timesteps: int,
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "graph": str(path),
        "against": str(run.path),
        "data": data,
        "split": "test",
        "samples": evidence.samples,
        "timesteps": timesteps,
        "verdict": evidence.verdict,
        "static": {"identical": not differences, "differences": differences},
        **digests,
        "accuracy": {
            name: [int(n) / evidence.samples for n in correct]
            for name, correct in evidence.correct.items()
        },
        "backends": [_backend(comparison) for comparison in evidence.comparisons],
    }


def _backend(comparison: Comparison) -> dict[str, Any]:
    return {
        "name": comparison.name,
        "source": comparison.source,
        "verdict": comparison.verdict,
        "reason": comparison.reason(),
        "flips": comparison.flips,
        "seeds": sum(layer.seeds for layer in comparison.layers.values()),
        "violations": sum(layer.violations for layer in comparison.layers.values()),
        "neuron_steps": comparison.neuron_steps,
        "first_divergence": comparison.first_divergence,
        "argmax_differences": comparison.argmax_differences,
        "logits": {
            "max_abs_difference": comparison.logits_max_difference,
            "outside_bound": comparison.logits_outside_bound,
        },
        "layers": [_layer(layer, comparison.samples) for layer in comparison.layers.values()],
    }


def _layer(layer: LayerTally, samples: int) -> dict[str, Any]:
    steps = layer.neurons * samples

    def rate(spikes: NDArray[np.int64]) -> list[float]:
        return [float(n) / steps for n in spikes]

    return {
        "name": layer.name,
        "neurons": layer.neurons,
        "flips": layer.flips.tolist(),
        "seeds": layer.seeds,
        "violations": layer.violations,
        "firing_rate_reference": rate(layer.reference),
        "firing_rate_candidate": rate(layer.candidate),
    }
