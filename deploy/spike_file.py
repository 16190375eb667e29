"""Every spike of a long run in one ``.npz`` file, without holding them in memory."""

from __future__ import annotations

import math
import os
import shutil
import zipfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser.errors import TserError
from tser.export.shapes import Shape
from tser.files import atomic_path, check_place, scratch_beside
from tser.room import place_error

Array = NDArray[Any]


class SpikeFile:
    """Collects batches; the file gets its name when the block ends without a failure.

    The arrays are laid out on the disk beside it, since those of a batch are not neighbours in
    ``[T, N, ...]``, and then compressed.

    Args:
        path: the ``.npz`` file; one bool array ``[T, N, ...]`` a layer, under its name.
        packed: eight neurons to a byte instead: uint8 ``[T, N, bytes]``, with the shape of the
            layer under ``<name>.shape``; ``np.unpackbits(array, -1, count)`` undoes it.
        layers: names, and shapes without batch and time.
        timesteps: T.
        samples: N.

    Raises:
        UsageError: the folder cannot be written.
        TserError: the disk is too full.
    """

    def __init__(
        self,
        path: Path,
        layers: dict[str, Shape],
        timesteps: int,
        samples: int,
        *,
        packed: bool = False,
    ) -> None:
        self.path, self._layers, self._packed = path, layers, packed
        self._shapes = {name: (timesteps, samples, *shape) for name, shape in layers.items()}
        self._arrays: dict[str, np.memmap[Any, Any]] = {}
        self._counts = dict.fromkeys(layers, 0)
        self._filled = 0
        self._seen: set[str] = set()
        self._open = ExitStack()

    def __enter__(self) -> SpikeFile:
        check_place(self.path)
        with ExitStack() as stack:
            self._folder = stack.enter_context(scratch_beside(self.path))
            need = sum(math.prod(self._stored(shape)) for shape in self._shapes.values())
            free = shutil.disk_usage(self.path.parent).free
            if need * 1.5 > free:
                raise TserError(
                    f"the spikes for {self.path} take {need * 1.5 / 1e9:.3g} GB while they are "
                    f"written and {free / 1e9:.3g} GB are free; use --samples for fewer"
                )
            for number, (name, shape) in enumerate(self._shapes.items()):
                self._arrays[name] = self._array(self._folder / f"{number}.npy", shape)
            self._open = stack.pop_all()
        return self

    def _array(self, file: Path, shape: Shape) -> np.memmap[Any, Any]:
        kind = np.uint8 if self._packed else np.bool_
        try:
            array = np.lib.format.open_memmap(file, "w+", kind, self._stored(shape))
            # Taken now: on a disk that fills up later, writing to memory would kill the process.
            if hasattr(os, "posix_fallocate"):  # not on macOS
                with file.open("r+b") as opened:
                    os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError as error:
            raise place_error(self.path, error) from error
        return array

    def _stored(self, shape: Shape) -> Shape:
        if not self._packed:
            return shape
        return (*shape[:2], math.ceil(math.prod(shape[2:]) / 8))

    def add(self, spikes: dict[str, Array]) -> None:
        """The next batch, ``[T, B, ...]`` a layer; what never comes is not written."""
        size = 0
        for name, array in self._arrays.items():
            if name not in spikes:
                continue
            self._seen.add(name)
            size = spikes[name].shape[1]
            given = spikes[name]
            if self._packed:
                given = np.packbits(given.reshape(*given.shape[:2], -1), axis=-1)
            array[:, self._filled : self._filled + size] = given
            self._counts[name] += int(np.count_nonzero(spikes[name]))
        self._filled += size

    def rates(self) -> dict[str, float]:
        """Spikes a neuron and step, by layer."""
        return {name: count / math.prod(self._shapes[name]) for name, count in self._counts.items()}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._open:
            if kind is None:
                for array in self._arrays.values():
                    array.flush()
                with (
                    atomic_path(self.path) as temporary,
                    zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
                ):
                    for number, name in enumerate(self._arrays):
                        if name not in self._seen:
                            continue
                        with (
                            (self._folder / f"{number}.npy").open("rb") as source,
                            file.open(_entry(f"{name}.npy"), "w", force_zip64=True) as entry,
                        ):
                            shutil.copyfileobj(source, entry, 1 << 20)
                        if self._packed:
                            with file.open(_entry(f"{name}.shape.npy"), "w") as entry:
                                np.lib.format.write_array(entry, np.array(self._layers[name], int))
            self._arrays.clear()


def _entry(name: str) -> zipfile.ZipInfo:
    """Without a time: the same spikes give the same bytes."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry
