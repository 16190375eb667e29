"""Inputs for exported graphs, in batches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser.data import ImageData, load_data
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph

BATCH = 100


def image_batches(
    data: ImageData, samples: int | None, batch_size: int = BATCH
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Normalised test images and labels.

    Args:
        data: a loaded data set.
        samples: the first so many; None: all.
        batch_size: B.

    Yields:
        ``x [B, C, H, W]`` float32 and ``labels [B]``.

    Raises:
        UsageError: fewer than one sample.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"--samples must be at least 1, got {samples}")
    end = len(data.test) if samples is None else min(samples, len(data.test))
    for start in range(0, end, batch_size):
        stop = min(start + batch_size, end)
        images = data.normalise(data.test.images[start:stop])
        yield images.numpy(), data.test.labels[start:stop].numpy()


def data_for_graph(graph: Graph, name: str, root: Path | None, origin: str) -> ImageData:
    """A data set checked against what the graph takes, scaled as the graph asks.

    Raises:
        UsageError: images of another shape than the graph's input.
        InputFileError: the graph states an input scaling that is not numbers.
    """
    data = load_data(name, root)
    if data.image_shape != graph.input.output_shape:
        raise UsageError(
            f"{origin} takes inputs of shape {graph.input.output_shape}, images of {name!r} are "
            f"{data.image_shape}; name the data set it was trained on"
        )
    return rescaled(data, graph.metadata, origin)


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
    except (TypeError, ValueError) as error:
        raise InputFileError(f"{origin}: its input scaling is not a list of numbers") from error
    channels = data.image_shape[0]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise InputFileError(f"{origin}: its input scaling does not fit {channels} channels")
    return dataclasses.replace(data, mean=mean, std=std)
