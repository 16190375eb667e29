"""What storing the weights as float16 changes, counted in spikes and predictions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser.deploy.onnx_backend import OnnxBackend
from tser.export.graph import Graph
from tser.export.onnx_file import OnnxOptions, Weights, compile_onnx
from tser.export.onnx_forms import Encoding
from tser.export.shapes import Shape

Array = NDArray[Any]

SAMPLES = 16
TIMESTEPS = 8
"""T where neither the graph nor the user says one."""


def float16_effect(
    graph: Graph, inputs: Iterable[Array], timesteps: int | None = None
) -> dict[str, int]:
    """Run the graph with float32 and with float16 weights in ONNX Runtime.

    Args:
        graph: the resolved view.
        inputs: batches ``[B, *input_shape]`` or ``[T, B, *input_shape]``.
        timesteps: T of constant inputs; default: what the graph states, else `TIMESTEPS`.

    Returns:
        ``samples``; ``neuron_steps``, of which ``spikes`` fire with float32 weights and ``flips``
        do otherwise with float16; ``changed_predictions``, of ``samples``.

    Raises:
        ExportError: weights beyond float16.
    """
    layers = {node.name: node.output_shape for node in graph.spiking}
    counts = dict.fromkeys(("samples", "neuron_steps", "spikes", "flips", "changed_predictions"), 0)
    weights: tuple[Weights, ...] = ("float32", "float16")
    backends: dict[tuple[int, bool], list[OnnxBackend]] = {}
    for x in inputs:
        frames = x.ndim == len(graph.input.output_shape) + 2
        steps = len(x) if frames else timesteps or graph.timesteps or TIMESTEPS
        if (steps, frames) not in backends:
            encoding: Encoding = "sequence" if frames else "direct"
            backends[steps, frames] = [
                OnnxBackend(
                    compile_onnx(graph, steps, encoding, OnnxOptions(weights=kind)),
                    layers,
                    f"the graph with {kind} weights",
                )
                for kind in weights
            ]
        exact, rounded = (backend(x) for backend in backends[steps, frames])
        for name, spikes in exact.spikes.items():
            counts["neuron_steps"] += spikes.size
            counts["spikes"] += int(np.count_nonzero(spikes))
            counts["flips"] += int(np.count_nonzero(spikes != rounded.spikes[name]))
        before, after = (_predictions(trace.logits) for trace in (exact, rounded))
        counts["samples"] += len(before)
        counts["changed_predictions"] += int(np.count_nonzero(before != after))
    return counts


def random_inputs(shape: Shape, samples: int = SAMPLES) -> list[Array]:
    """One batch ``[samples, *shape]`` of uniform values from 0 to 1, the same at every call."""
    return [np.random.default_rng(0).random((samples, *shape), np.float32)]


def first_images(batches: Iterable[tuple[Array, Any]]) -> list[Array]:
    """The images of the first batch."""
    return [x for x, _ in itertools.islice(batches, 1)]


def _predictions(logits: Array) -> NDArray[np.int64]:
    """``[T, B, ...]`` -> ``[B]``: the class of the mean over all steps."""
    return np.asarray(logits.mean(0).reshape(logits.shape[1], -1).argmax(-1), np.int64)
