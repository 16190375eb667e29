"""The inputs that a command names: an array in a file, or the images of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser.data import ImageData
from tser.deploy.graph_file import check_suffix
from tser.deploy.inputs import BATCH, data_for_graph, image_batches
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph
from tser.export.shapes import Shape

Array = NDArray[Any]

MOST_VALUES = 2**27
"""Values of all neurons and steps that a batch may have, so that memory stays bounded."""


@dataclass(frozen=True)
class Inputs:
    """What a graph is run on.

    Attributes:
        name: of the data set, or path of the file.
        split: of the data set; "" of a file.
        samples: N.
        frames: T of inputs that have one frame a step, None for constant ones.
        batches: batch size -> ``x [B, ...]`` or ``[T, B, ...]`` float32, with labels ``[B]`` or
            None.
    """

    name: str
    split: str
    samples: int
    frames: int | None
    batches: Callable[[int], Iterator[tuple[Array, Array | None]]]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.split} images of {self.name}" if self.split else self.name


def batch_size(values: int, steps: int) -> int:
    """How many samples are run at a time.

    Args:
        values: of all neurons, for one sample and step.
        steps: T.
    """
    return max(1, min(BATCH, MOST_VALUES // max(1, steps * values)))


def images_of(data: ImageData, samples: int | None) -> Inputs:
    """The first so many test images of a data set; None: all."""
    count = len(data.test.labels)
    count = count if samples is None else min(samples, count)

    def batches(size: int) -> Iterator[tuple[Array, Array | None]]:
        yield from image_batches(data, count, size)

    return Inputs(data.name, "test", count, data.frames, batches)


def named_inputs(
    graph: Graph,
    origin: str,
    source: Path | None,
    data: str | None,
    samples: int | None,
    root: Path | None,
) -> Inputs:
    """The array in ``source``, or test images of ``data`` as the graph takes them.

    Args:
        graph: that is to be run.
        origin: what to call it in messages.
        source: a ``.npy`` file, see `file_inputs`.
        data: name of a data set, where there is no file.
        samples: the first so many; None: all.
        root: folder of the data set.

    Raises:
        InputFileError: a file that does not hold inputs of this graph.
        UsageError: fewer than one sample, or data that do not fit the graph.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"--samples must be at least 1, got {samples}")
    if source is not None:
        return file_inputs(source, graph.input.output_shape, samples)
    return images_of(data_for_graph(graph, data or "", root, origin), samples)


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
            wrong = np.argwhere(~np.isfinite(x))
            if len(wrong):
                raise InputFileError(
                    f"{path} holds values that are not finite in float32, first in sample "
                    f"{first + wrong[0][1 if frames else 0]}; save finite inputs"
                )
            yield x, None

    return Inputs(str(path), "", count, len(array) if frames else None, batches)
