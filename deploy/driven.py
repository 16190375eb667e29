"""Which neurons receive an event at a step: what an event-driven chip has to update."""

from __future__ import annotations

import math
from collections.abc import Sequence

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.synapses import Synapse
from tser.export.graph import Node
from tser.export.shapes import Window, window

Mask = NDArray[np.bool_]
PIECE = 2**17
"""Elements that are combined at a time."""

Arrival = tuple[Synapse, tuple[Node, ...], int]


def driven_per_step(
    node: Node,
    arrivals: Sequence[Arrival],
    active: dict[str, Mask],
    steps: int,
    dt: float,
    keep: Mask | None = None,
) -> NDArray[np.int64]:
    """How many neurons of ``node`` receive at least one event, over all samples.

    Args:
        node: neurons.
        arrivals: of `tser.deploy.synapses.arrivals`.
        active: where each source is non-zero, ``[T or 1, B, ...]``; 1: the same at every step.
        steps: T.
        dt: time step [s].
        keep: which steps each sample takes, ``[T, B]``; None: all.

    Returns:
        int64 ``[T]``.
    """
    hit: Mask | None = None
    for synapse, rest, late in arrivals:
        arrived = reached(synapse, active[synapse.source.name], rest, steps=steps, dt=dt)
        for _ in range(late):
            arrived = np.broadcast_to(arrived, (steps, *arrived.shape[1:]))
            arrived = np.concatenate([np.zeros_like(arrived[:1]), arrived[:-1]])
        hit = arrived if hit is None else hit | arrived
    if hit is None:
        return np.zeros(steps, np.int64)
    if keep is not None:
        hit = hit & keep.reshape(*keep.shape, *[1] * (hit.ndim - 2))
    alike = math.prod(node.input_shape) // math.prod(hit.shape[2:])
    found = np.array([np.count_nonzero(each) for each in hit], np.int64)
    return np.broadcast_to(found * alike, steps).copy()


def reached(
    synapse: Synapse,
    active: Mask,
    rest: tuple[Node, ...] = (),
    *,
    steps: int = 1,
    dt: float = 1.0,
) -> Mask:
    """Which elements of the sink, or of the last node after it, receive at least one event.

    Args:
        synapse: which connections; zero weights count as connections.
        active: where the source is non-zero, ``[T or 1, B, *source shape]``.
        rest: nodes after the sink to follow the events through.
        steps: T, which delays among ``rest`` need.
        dt: time step [s], likewise.

    Returns:
        ``[T or 1, B, *output shape]`` of the last node; an axis that all targets share, such as the
        channels of a convolution, may have length 1.
    """
    active, alike = _merged(synapse, active)
    for node in (*synapse.path, synapse.sink, *rest):
        if isinstance(node.op, nir.Affine | nir.Linear):
            active, alike = np.asarray(active.any(-1, keepdims=True)), False
        elif isinstance(node.op, nir.Conv1d | nir.Conv2d):
            active, alike = _behind_convolution(node, active), False
        elif isinstance(node.op, nir.AvgPool2d | nir.SumPool2d):
            whole = _whole(active, (active.shape[2], *node.input_shape[1:]))
            active = _any_window(whole, window(node.op))
        elif isinstance(node.op, nir.Flatten) and node.input_shape != node.output_shape:
            if not alike:
                active = _whole(active, node.input_shape)
                active = active.reshape(*active.shape[:2], *node.output_shape)
            else:  # for a matrix, which only asks whether there is any
                active = active.reshape(*active.shape[:2], -1)
        elif isinstance(node.op, nir.Delay) and node is not synapse.sink:
            active = _late(node, _whole(active, node.input_shape), steps, dt)
    return active


def _whole(active: Mask, shape: tuple[int, ...]) -> Mask:
    return np.broadcast_to(active, (*active.shape[:2], *shape))


def _merged(synapse: Synapse, active: Mask) -> tuple[Mask, bool]:
    """Channels that reach the same targets as one, and whether there are any.

    ``[T, B, C, ...]`` -> ``[T, B, G, ...]``. Pools on the way keep channels apart, so what these
    have in common can be found before them: it leaves less to slide over.
    """
    shape, sink = synapse.source.output_shape, synapse.sink
    flat = len(shape) == 3 and isinstance(sink.op, nir.Affine | nir.Linear)
    if flat and len(sink.input_shape) == 1:
        return _any_of_groups(active, 1), True
    kept = all(len(node.output_shape) == len(shape) for node in synapse.path)
    if isinstance(sink.op, nir.Conv1d | nir.Conv2d) and kept:
        return _any_of_groups(active, window(sink.op).groups), True
    return active, False


def _any_of_groups(active: Mask, groups: int) -> Mask:
    """``[T, B, C, ...]`` -> ``[T, B, G, ...]``, in halves and in pieces.

    So whole rows are combined at a time even where maps are small, within the cache.
    """
    times, batch, channels, *size = active.shape
    count = channels // groups
    if count == 1:
        return active
    rows = active.reshape(times * batch * groups, count, -1)
    out = np.empty((len(rows), rows.shape[2]), bool)
    half = (count + 1) // 2
    step = max(1, PIECE // (half * rows.shape[2]))
    room = np.empty((step, half, rows.shape[2]), bool)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        left = room[: len(piece)]
        np.logical_or(piece[:, :half], piece[:, count - half :], out=left)  # a middle one: twice
        while left.shape[1] > 1:
            half_left = (left.shape[1] + 1) // 2
            later = left[:, left.shape[1] - half_left :]
            left = left[:, :half_left]
            np.logical_or(left, later, out=left)
        out[start : start + step] = left[:, 0]
    return out.reshape(times, batch, groups, *size)


def _behind_convolution(node: Node, active: Mask) -> Mask:
    """``[T, B, C or G, (H,) W]`` -> ``[T, B, O or 1, (H',) W']``."""
    geometry = window(node.op)
    if active.shape[2] != geometry.groups:
        active = _any_of_groups(active, geometry.groups)
    maps = active if active.ndim == 5 else active[..., None, :]
    hit = _any_window(maps, geometry)
    if geometry.groups > 1:
        hit = np.repeat(hit, node.output_shape[0] // geometry.groups, axis=2)
    return hit if active.ndim == 5 else hit[..., 0, :]


def _any_window(active: Mask, geometry: Window) -> Mask:
    """Whether any element of a window is set, ``[T, B, C, H, W]`` -> ``[T, B, C, H', W']``.

    The maps are small and many: as the last axes the many are what is gone through in one go.
    """
    height, width = active.shape[3:]
    (top, bottom), (left, right) = geometry.pads
    rows, columns = geometry.output(height, width)
    (sh, sw), (dh, dw), (kh, kw) = geometry.stride, geometry.dilation, geometry.kernel
    padded = np.zeros((top + height + bottom, left + width + right, *active.shape[:3]), bool)
    padded[top : top + height, left : left + width] = active.transpose(3, 4, 0, 1, 2)
    tall = _any_of([padded[y : y + sh * (rows - 1) + 1 : sh] for y in range(0, kh * dh, dh)])
    hit = _any_of([tall[:, x : x + sw * (columns - 1) + 1 : sw] for x in range(0, kw * dw, dw)])
    return np.ascontiguousarray(hit.transpose(2, 3, 4, 0, 1))


def _any_of(parts: list[Mask]) -> Mask:
    total = parts[0].copy()
    for part in parts[1:]:
        total |= part
    return total


def _late(node: Node, active: Mask, steps: int, dt: float) -> Mask:
    """Each element later by its own number of steps, as `DelayLine` does it."""
    delays = np.rint(np.asarray(node.op.delay, np.float64) / dt).astype(int)
    delays = np.broadcast_to(delays, node.output_shape)
    active = np.broadcast_to(active, (steps, *active.shape[1:]))
    out = np.zeros(active.shape, bool)
    for delay in np.unique(delays[delays < steps]):
        part = delays == delay
        out[delay:, :, part] = active[: steps - delay, :, part]
    return out
