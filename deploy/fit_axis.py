"""One axis of a convolution with the pools before it: which inputs reach which outputs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Axis:
    """Output ``o`` takes the inputs ``o * stride - pad + offset`` for every offset.

    Attributes:
        offsets: positions of the taps, ascending.
        stride: inputs between two outputs.
        pad: inputs before the first that do not exist.
        inputs: how many.
        outputs: how many.
    """

    offsets: tuple[int, ...]
    stride: int
    pad: int
    inputs: int
    outputs: int

    @classmethod
    def of(cls, window: Any, number: int, inputs: int, outputs: int) -> Axis:
        """Axis 0 (height) or 1 (width) of a sliding window."""
        taps = range(window.kernel[number])
        offsets = tuple(tap * window.dilation[number] for tap in taps)
        return cls(offsets, window.stride[number], window.pads[number][0], inputs, outputs)

    @classmethod
    def straight(cls, size: int) -> Axis:
        """Every input to its own output."""
        return cls((0,), 1, 0, size, size)

    def behind(self, pool: Any, number: int, inputs: int) -> Axis:
        """The axis from the inputs of a pool, whose outputs are the inputs of this one."""
        stride, kernel = pool.stride[number], pool.kernel[number]
        offsets = sorted({o * stride + tap for o in self.offsets for tap in range(kernel)})
        pad = self.pad * stride + pool.pads[number][0]
        return Axis(tuple(offsets), self.stride * stride, pad, inputs, self.outputs)

    @property
    def most_taps(self) -> int:
        """Inputs of one output at most, without the padding."""
        return int(_inside(self).sum(1).max())

    @property
    def all_taps(self) -> int:
        """Pairs of an input and an output."""
        return int(_inside(self).sum())

    @property
    def most_targets(self) -> int:
        """Outputs that one input reaches at most."""
        return int(np.bincount(_positions(self)[_inside(self)], minlength=1).max())

    def overlap(self, own: int, count: int) -> int:
        """Pairs of an input of one tile of ``own`` and a tile of ``count`` outputs that takes it.

        At most: of the tile of inputs with most of them.
        """
        return _overlap(self, own, count)

    def widest(self, count: int) -> int:
        """Inputs that a tile of ``count`` outputs takes at most."""
        return _widest(self, count)

    def shapes(self, count: int) -> tuple[int, ...]:
        """How many outputs each distinct kind of input reaches, in the tile with most of them.

        Inputs are of one kind where the same taps lead from them to the outputs of the tile:
        they can share the weights that are stored.
        """
        return _shapes(self, count)


ONE = Axis.straight(1)


@functools.lru_cache(maxsize=4096)
def _positions(axis: Axis) -> NDArray[np.int64]:
    starts = np.arange(axis.outputs, dtype=np.int64)[:, None] * axis.stride - axis.pad
    return np.asarray(starts + np.asarray(axis.offsets, np.int64))


@functools.lru_cache(maxsize=4096)
def _inside(axis: Axis) -> NDArray[np.bool_]:
    positions = _positions(axis)
    return np.asarray((positions >= 0) & (positions < axis.inputs))


@functools.lru_cache(maxsize=65536)
def _taken(axis: Axis, count: int) -> tuple[NDArray[np.int64], ...]:
    """The inputs that each tile of ``count`` outputs takes, each once."""
    positions, inside = _positions(axis), _inside(axis)
    tiles = [slice(first, first + count) for first in range(0, axis.outputs, count)]
    return tuple(np.unique(positions[tile][inside[tile]]) for tile in tiles)


@functools.lru_cache(maxsize=65536)
def _widest(axis: Axis, count: int) -> int:
    return max(len(taken) for taken in _taken(axis, count))


@functools.lru_cache(maxsize=65536)
def _shapes(axis: Axis, count: int) -> tuple[int, ...]:
    best: tuple[int, ...] = (0,)
    tiles = -(-axis.outputs // count)
    positions, inside = _positions(axis), _inside(axis)
    for tile in sorted({0, tiles // 2, tiles - 1}):
        rows = slice(tile * count, (tile + 1) * count)
        taps: dict[int, list[int]] = {}
        for row, kept in zip(positions[rows].tolist(), inside[rows].tolist(), strict=True):
            for number, position in enumerate(row):
                if kept[number]:
                    taps.setdefault(position, []).append(axis.offsets[number])
        kinds = {tuple(sorted(t)) for t in taps.values()}
        sizes = tuple(sorted(len(kind) for kind in kinds))
        best = max(best, sizes, key=sum)
    return best


@functools.lru_cache(maxsize=65536)
def _overlap(axis: Axis, own: int, count: int) -> int:
    takers = np.bincount(np.concatenate(_taken(axis, count)), minlength=axis.inputs)
    return int(np.add.reduceat(takers, np.arange(0, axis.inputs, own)).max())
