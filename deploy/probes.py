"""Inputs that random data would miss: silence, borders, ties over time, the wrong sign, overdrive.

Amplitudes come from the network itself. A random normal input with the deviation 1 is sent to the
first layers that fire; the *amplitude* is the deviation at which one standard deviation of the
input current, held, just brings the median neuron from rest to its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.interpreter import run, sum_inputs
from tser.errors import UsageError
from tser.export.graph import SPIKING, STATEFUL, Graph, Node
from tser.export.shapes import Shape

Array = NDArray[np.float32]
LEVELS = (0.5, 1.0, 2.0, 4.0)
"""Constant inputs, in amplitudes."""
NEGATIVE = (-0.5, -1.0, -2.0, -4.0)
OVERDRIVE = 2.0
IMPULSE = 4.0
"""What one pixel does to the neuron that it drives most, in distances to the threshold."""
BATCH = 4
CHANNELS = 4
"""Channels in which an impulse is tried; of more, these spread over all."""
SPREAD = 16
"""Random inputs that the amplitude is measured with."""


@dataclass(frozen=True)
class Probe:
    """One batch of inputs.

    Attributes:
        name: for tables.
        x: ``[B, ...]``, held over all steps, or ``[T, B, ...]`` for a graph that takes frames.
        timesteps: T.
        part_of: name of the probe whose first sample this is: its spikes must be the same there.
    """

    name: str
    x: Array
    timesteps: int
    part_of: str | None = None


def probe_inputs(
    graph: Graph,
    timesteps: int,
    samples: NDArray[Any] | None = None,
    seed: int = 0,
    frames: bool | None = None,
) -> list[Probe]:
    """Inputs on which the usual mistakes show.

    Args:
        graph: the resolved view.
        timesteps: T of all of them but "one step".
        samples: inputs of the network's own kind, ``[B, ...]`` or ``[T, B, ...]``, that are
            overdriven; default: random ones.
        seed: of the random ones.
        frames: give a frame for each step, and impulses in the first alone; default: as the graph
            states, else one input for all steps.

    Raises:
        UsageError: T < 1.
        InputFileError: the graph cannot be run.
    """
    if timesteps < 1:
        raise UsageError(f"the number of time steps must be at least 1, got {timesteps}")
    if frames is None:
        frames = graph.metadata.get("encoding") == "frames"
    shape, rng = graph.input.output_shape, np.random.default_rng(seed)
    lead = (timesteps, BATCH) if frames else (BATCH,)
    size = amplitude(graph, timesteps, seed)
    random = (size * rng.normal(size=(*lead, *shape))).astype(np.float32)
    overdriven = random if samples is None else np.asarray(samples, np.float32)
    if frames and overdriven.ndim == len(shape) + 1:
        overdriven = np.broadcast_to(overdriven, (timesteps, *overdriven.shape))
    step = random[:1] if frames else random

    def held(levels: tuple[float, ...]) -> Array:
        values = size * np.array(levels, np.float32).reshape(-1, *[1] * len(shape))
        each = values * np.ones(shape, np.float32)
        return np.array(np.broadcast_to(each, (*lead[:-1], *each.shape)), np.float32)

    return [
        Probe("zero", np.zeros((*lead[:-1], 1, *shape), np.float32), timesteps),
        Probe("impulses", _impulses(graph, timesteps, frames), timesteps),
        Probe("constant", held(LEVELS), timesteps),
        Probe("negative", held(NEGATIVE), timesteps),
        Probe("overdrive", np.array(OVERDRIVE * overdriven, np.float32), len(overdriven) if frames
              else timesteps),
        Probe("random", random, timesteps),
        Probe("alone", random[:, :1] if frames else random[:1], timesteps, part_of="random"),
        Probe("one step", step, 1),
    ]  # fmt: skip


def amplitude(graph: Graph, timesteps: int, seed: int = 0) -> float:
    """The deviation of inputs that makes the first layers fire, see the module; 1 if none does."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(SPREAD, *graph.input.output_shape)).astype(np.float32)
    found = []
    for driven in _reach(graph, x, timesteps):
        wide = driven.std(0)
        if (wide > 0).any():
            found.append(float(1 / np.median(wide[wide > 0])))
    return min(found, default=1.0)


def _impulses(graph: Graph, timesteps: int, frames: bool) -> Array:
    """One pixel at a time, at the centre and in the corners, of some channels."""
    shape = graph.input.output_shape
    places = _places(shape)
    x = np.zeros((len(places), *shape), np.float32)
    for number, place in enumerate(places):
        x[(number, *place)] = 1
    most = max(
        (float(np.abs(driven).max(initial=0)) for driven in _reach(graph, x, timesteps)), default=0
    )
    x *= np.float32(IMPULSE / most if most > 0 else 1)
    if not frames:
        return x
    sequence = np.zeros((timesteps, *x.shape), np.float32)
    sequence[0] = x
    return sequence


def _places(shape: Shape) -> list[tuple[int, ...]]:
    """(channel, centre) and (channel, corner) of a shape."""
    if not shape:
        return [()]
    channels = np.unique(np.linspace(0, shape[0] - 1, CHANNELS).round().astype(int))
    corners: list[tuple[int, ...]] = [()]
    for size in shape[1:]:
        corners = [(*corner, end) for corner in corners for end in (0, size - 1)]
    around = [tuple(size // 2 for size in shape[1:]), *corners]
    return list(dict.fromkeys((int(c), *place) for c in channels for place in around))


def _reach(graph: Graph, x: Array, timesteps: int) -> list[NDArray[np.float64]]:
    """How far, up or down, ``x`` drives the first firing layers, in distances to the threshold.

    Args:
        graph: the resolved view.
        x: ``[N, ...]``, held.
        timesteps: T, in which an IF has to reach its threshold.

    Returns:
        ``[N, ...]`` for each layer, 0 where nothing arrives or the neuron cannot fire.
    """
    first = _first_layers(graph)
    sources = list(dict.fromkeys(name for _, names in first for name in names))
    silent = np.zeros_like(x[:1])
    outputs = [
        run(graph, batch[None], 1, dtype=np.float64, record=sources)[1] for batch in (x, silent)
    ]
    found = []
    for node, names in first:
        driven, base = (sum_inputs([kept[name][0] for name in names]) for kept in outputs)
        op = node.op
        gain = np.asarray(op.r, np.float64) * getattr(op, "w_in", 1.0)
        if isinstance(op, nir.IF):
            gain = gain * graph.dt * timesteps
        distance = np.asarray(op.v_threshold, np.float64) - getattr(op, "v_leak", 0.0)
        valid = np.isfinite(distance) & (distance > 0)
        unit = np.where(valid, gain / np.where(valid, distance, 1), 0)
        found.append((driven - base) * unit)
    return found


def _first_layers(graph: Graph) -> list[tuple[Node, list[str]]]:
    """Firing layers that the input reaches with no neuron or delay between, and from where."""
    reached = {graph.input.name}
    first = []
    for node in graph.nodes.values():
        names = [e.source for e in node.inputs if e.source in reached and not e.delayed]
        if not names:
            continue
        if not isinstance(node.op, STATEFUL):
            reached.add(node.name)
        elif isinstance(node.op, SPIKING):
            first.append((node, names))
    return first
