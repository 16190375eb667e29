"""Inputs for exported graphs, in batches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from tser.data import ImageData, load_data
from tser.data.feed import batches_in_order
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph

BATCH = 100


def image_batches(
    data: ImageData,
    samples: int | None,
    batch_size: int = BATCH,
    split: Literal["test", "val"] = "test",
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Normalised images and labels.

    Args:
        data: a loaded data set.
        samples: the first so many; None: all.
        batch_size: B.
        split: which images.

    Yields:
        ``x [B, C, H, W]``, or frames ``[T, B, C, H, W]``, float32, and ``labels [B]``.

    Raises:
        UsageError: fewer than one sample.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"--samples must be at least 1, got {samples}")
    chosen = data.val if split == "val" else data.test
    for images, labels in batches_in_order(data, chosen, batch_size, samples):
        yield images.numpy(), labels.numpy()


def data_for_graph(graph: Graph, name: str, root: Path | None, origin: str) -> ImageData:
    """A data set checked against what the graph takes, scaled as the graph asks.

    Images of a folder are brought to the size that the graph takes.

    Raises:
        UsageError: images of another shape than the graph's input, or frames for a graph that
            takes still images, or the other way round, or another number of classes.
        InputFileError: the graph states an input scaling that is not numbers.
    """
    shape = graph.input.output_shape
    data = load_data(name, root, size=shape[-1]) if shape else load_data(name, root)
    if data.image_shape != shape:
        raise UsageError(
            f"{origin} takes inputs of shape {shape}, images of {name!r} are "
            f"{data.image_shape}; name the data set it was trained on"
        )
    classes = _classes(graph)
    if classes not in (None, data.num_classes):
        raise UsageError(
            f"{origin} tells {classes:,} classes apart, {name!r} has {data.num_classes:,}; "
            "name the data set it was trained on"
        )
    wanted = graph.metadata.get("encoding")
    still = data.frames is None
    if wanted in ("direct", "frames") and (wanted == "direct") != still:
        raise UsageError(
            f"{origin} takes {'a still image' if wanted == 'direct' else 'a frame for each step'}, "
            f"{name!r} has {'still images' if still else 'frames'}; name the data set it was "
            "trained on"
        )
    if not still and graph.timesteps not in (None, data.frames):
        raise UsageError(
            f"{origin} runs for {graph.timesteps} time steps, samples of {name!r} have "
            f"{data.frames} frames; name the data set it was trained on"
        )
    return rescaled(data, graph.metadata, origin)


def _classes(graph: Graph) -> int | None:
    """K, as far as the graph says: the view of an ONNX model has no output node."""
    for node in graph.nodes.values():
        if isinstance(node.op, nir.Output) and len(node.output_shape) == 1:
            return int(node.output_shape[0])
    return None if graph.class_names is None else len(graph.class_names)


def rescaled(data: ImageData, metadata: dict[str, Any], origin: str) -> ImageData:
    """``data`` with the mean and deviation that a graph states, if it states them.

    Raises:
        InputFileError: they are not one number a channel.
    """
    if "input_mean" not in metadata or "input_std" not in metadata:
        return data
    try:
        mean, std = (
            tuple(float(x) for x in json.loads(metadata[key]))
            for key in ("input_mean", "input_std")
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputFileError(f"{origin}: its input scaling is not a list of numbers") from error
    channels = data.image_shape[0]
    if len(mean) != channels or len(std) != channels or not _usable(mean, std):
        raise InputFileError(f"{origin}: its input scaling does not fit {channels} channels")
    return dataclasses.replace(data, mean=mean, std=std)


def _usable(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Whether images can be scaled by these numbers in float32."""
    return all(abs(value) < 1e30 for value in mean) and all(1e-30 < value < 1e30 for value in std)
