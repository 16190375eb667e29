"""Distinct targets through folded pools whose windows overlap.

An event in two windows of a pool reaches a target behind it on two ways, but the pool and the
synapse folded into one hold a single connection for both. So each target is followed back to all
inputs that it sees, and every pair of them is counted once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import nir
import numpy as np
from numpy.typing import NDArray

from tser.export.graph import WEIGHTED, Node
from tser.export.shapes import window

Mask = NDArray[np.bool_]
Counts = NDArray[np.int64]
POOLS = (nir.AvgPool2d, nir.SumPool2d)

CHUNK = 2**22
"""Pairs of a target and an input looked at together."""
MOST_PAIRS = 2**33
"""Pairs, times taps of the pools, that are looked at: some ten seconds."""


class Uncounted(ValueError):
    """A connection whose operations cannot be counted, with the reason."""


def merges(path: tuple[Node, ...], sink: Node) -> bool:
    """Whether several ways may lead from an input to one target: windows overlap before a sum."""
    pools = [node for node in path if isinstance(node.op, POOLS)]
    return any(_overlaps(node) for node in (pools if _weighted(sink) else pools[:-1]))


def _weighted(sink: Node) -> bool:
    return isinstance(sink.op, WEIGHTED)


def _overlaps(node: Node) -> bool:
    geometry = window(node.op)
    return any(s < k for s, k in zip(geometry.stride, geometry.kernel, strict=True))


def composed_fan_out(path: tuple[Node, ...], sink: Node, *, effective: bool) -> Counts:
    """How many distinct targets each input of ``path`` reaches.

    Args:
        path: pools, scales and flattenings, in order.
        sink: a weighted node; of any other its inputs are the targets.
        effective: only on ways along weights and scales that are not 0. Ways whose weights cancel
            are a connection all the same.

    Returns:
        int64 array of the input shape of ``path[0]``.

    Raises:
        Uncounted: more pairs of target and input than can be looked at.
    """
    scaled = effective and any(_blocks(node) for node in path)
    planes = not scaled and (
        isinstance(sink.op, nir.Conv1d | nir.Conv2d)
        or (not _weighted(sink) and len(sink.input_shape) == 3)
    )
    shape = path[0].input_shape
    size = math.prod(shape[1:] if planes else shape)
    taps = sum(math.prod(window(n.op).kernel) for n in path if isinstance(n.op, POOLS))
    total = np.zeros(shape, np.int64)
    work = 0
    for factor, targets in _targets(sink, effective, max(1, CHUNK // size)):
        work += len(targets) * size * taps
        if work > MOST_PAIRS:
            name = next(node.name for node in path if isinstance(node.op, POOLS))
            raise Uncounted(
                f"the windows of the pool {name!r} overlap before a weighted layer that is too "
                "large to follow each target back"
            )
        for node in reversed(path):
            targets = _pull_back(node, targets, effective)
        total += factor * targets.sum(0, dtype=np.int64)
    return total


def _blocks(node: Node) -> bool:
    return isinstance(node.op, nir.Scale) and not np.all(node.op.scale)


def _pull_back(node: Node, targets: Mask, effective: bool) -> Mask:
    """What ``[N, ...]`` targets see of the input of ``node``, from what they see of its output.

    A first axis of 1 behind N stands for all channels.
    """
    if isinstance(node.op, nir.Scale):
        used = np.broadcast_to(np.asarray(node.op.scale) != 0, node.input_shape)
        return targets & used if effective and not used.all() else targets
    if isinstance(node.op, nir.Flatten):
        # Channels that are one for all stay so: what a convolution sees was flattened behind them.
        channels = targets.shape[1] if targets.ndim > 2 else node.input_shape[0]
        return targets.reshape(len(targets), channels, *node.input_shape[1:])
    geometry = window(node.op)
    height, width = node.input_shape[1:]
    rows, columns = node.output_shape[1:]
    (top, bottom), (left, right) = geometry.pads
    (sh, sw), (kh, kw) = geometry.stride, geometry.kernel
    count, channels = targets.shape[:2]
    tall = np.zeros((count, channels, height + top + bottom, columns), bool)
    for i in range(kh):
        tall[:, :, i : i + sh * (rows - 1) + 1 : sh] |= targets
    seen = np.zeros((count, channels, height, width + left + right), bool)
    for j in range(kw):
        seen[..., j : j + sw * (columns - 1) + 1 : sw] |= tall[:, :, top : top + height]
    return seen[..., left : left + width]


def _targets(sink: Node, effective: bool, chunk: int) -> Iterator[tuple[int | Counts, Mask]]:
    """What targets see of the input of ``sink``, in pieces: (how many there are of each, which).

    The number is one for all channels or ``[C, 1, 1]``; which is ``[N, *input shape]``, or with 1
    in place of C.
    """
    if isinstance(sink.op, nir.Conv1d | nir.Conv2d):
        yield from _of_convolution(sink, effective, chunk)
    elif _weighted(sink):
        yield from _of_matrix(sink, effective, chunk)
    elif len(sink.input_shape) == 3:
        shape = (1, *sink.input_shape[1:])
        for each in _one_by_one(math.prod(shape), chunk):
            yield 1, each.reshape(-1, *shape)
    else:
        for each in _one_by_one(math.prod(sink.input_shape), chunk):
            yield 1, each.reshape(-1, *sink.input_shape)


def _one_by_one(size: int, chunk: int) -> Iterator[Mask]:
    """Rows of the unit matrix ``[size, size]``."""
    for start in range(0, size, chunk):
        rows = min(chunk, size - start)
        yield np.eye(rows, size, start, dtype=bool)


def _of_matrix(sink: Node, effective: bool, chunk: int) -> Iterator[tuple[int, Mask]]:
    used = sink.op.weight != 0
    factor = 1
    if not effective:
        used, factor = np.ones((1, used.shape[1]), bool), len(used)
    front = sink.input_shape[:-1]
    for places in _one_by_one(math.prod(front), max(1, chunk // len(used))):
        for start in range(0, len(used), chunk):
            pairs = places[:, None, :, None] & used[None, start : start + chunk, None, :]
            yield factor, pairs.reshape(-1, *sink.input_shape)


def _of_convolution(sink: Node, effective: bool, chunk: int) -> Iterator[tuple[Counts, Mask]]:
    """Channels whose kernels have their zeros at the same taps share what their targets see."""
    geometry = window(sink.op)
    kernels, counts = _kernels(sink, effective, geometry.groups)
    height, width = (1, *sink.input_shape[1:])[-2:]
    rows, columns = geometry.output(height, width)
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    top, left = geometry.pads[0][0], geometry.pads[1][0]
    shape = sink.input_shape[1:]
    for kernel, count in zip(kernels, counts.T, strict=True):
        for start in range(0, rows * columns, chunk):
            y, x = np.divmod(np.arange(start, min(start + chunk, rows * columns)), columns)
            seen = np.zeros((len(y), 1, height, width), bool)
            for i, j in np.argwhere(kernel):
                row, column = y * sh + i * dh - top, x * sw + j * dw - left
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                seen[np.flatnonzero(inside), 0, row[inside], column[inside]] = True
            yield count[:, None, None], seen.reshape(len(seen), 1, *shape)


def _kernels(sink: Node, effective: bool, groups: int) -> tuple[Mask, Counts]:
    """Patterns of taps ``[M, KH, KW]``, and how many of each go out from a channel ``[C, M]``."""
    weight = sink.op.weight if sink.op.weight.ndim == 4 else sink.op.weight[:, :, None]
    outputs, per_group, *size = weight.shape
    if not effective:
        counts = np.full((sink.input_shape[0], 1), outputs // groups, np.int64)
        return np.ones((1, *size), bool), counts
    used = (weight != 0).reshape(outputs * per_group, -1)
    packed, which = np.unique(np.packbits(used, axis=1), axis=0, return_inverse=True)
    patterns = np.unpackbits(packed, axis=1, count=used.shape[1]).astype(bool)
    group = np.arange(outputs)[:, None] // (outputs // groups)
    channel = (group * per_group + np.arange(per_group)).reshape(-1)
    counts = np.zeros((sink.input_shape[0], len(patterns)), np.int64)
    np.add.at(counts, (channel, which.reshape(-1)), 1)
    return patterns.reshape(-1, *size), counts
