"""Feed a candidate the reference's spikes, layer by layer, to tell causes from consequences.

One neuron that rounds the other way changes thousands of spikes downstream. Fed the reference's
spikes (input-forced), a layer shows only the flips of its own making: the seeds. With the membrane
before each step forced as well (state-forced), only the arithmetic of a single step is left, so
what still differs is in the input current or the threshold, and what no longer does is in how the
membrane decays or resets, or is rounding that builds up over steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tser.deploy.backends import Backend, Replayable, Trace
from tser.deploy.certificate import Audit, Bounded, over_threshold
from tser.deploy.tally import Comparison, LayerTally

Bools = NDArray[np.bool_]


def replay_seeds(
    comparison: Comparison,
    backend: Backend,
    x: NDArray[np.floating],
    expected: Trace,
    audit: Audit,
) -> bool:
    """Both replays of one batch, counted into ``comparison``; False where they cannot be done.

    Args:
        comparison: its tallies are added to.
        backend: the candidate.
        x: samples that have a flip in the free run.
        expected: what the reference did with them.
        audit: of that.

    Raises:
        NotCertifiable: no rounding bound can be derived for a layer.
    """
    if not isinstance(backend, Replayable):
        comparison.not_replayed = f"{backend.name} cannot be fed recorded spikes"
        return False
    try:
        replayed = backend.replay(x, expected.spikes)
    except NotImplementedError as error:
        comparison.not_replayed = str(error)
        return False
    states = {}
    for name, tally in comparison.layers.items():
        node = audit.graph.nodes[name]
        membrane = audit.membrane(node)
        states[name] = np.asarray(audit.states(node, membrane), np.float32)
        flips = replayed[name] != expected.spikes[name]
        tally.replayed = (tally.replayed or 0) + int(flips.sum())
        if flips.any():
            count_seeds(tally, first_flips(flips), over_threshold(node, membrane))
    try:
        stepped = backend.replay(x, expected.spikes, states)
    except NotImplementedError:
        return True
    for name, tally in comparison.layers.items():
        flips = stepped[name] != expected.spikes[name]
        tally.one_step = (tally.one_step or 0) + int(flips.sum())
    return True


def undisturbed_seeds(
    comparison: Comparison, flipped: dict[str, Bools], audits: tuple[Audit, Audit]
) -> None:
    """The flips of a free run whose inputs and own past are the same in both runs."""
    for name, flips in flipped.items():
        node = audits[0].graph.nodes[name]
        same_input = np.asarray(audits[0].current(node).value == audits[1].current(node).value)
        undisturbed = np.logical_and.accumulate(np.broadcast_to(same_input, flips.shape), 0)
        seeds = first_flips(flips) & undisturbed
        count_seeds(comparison.layers[name], seeds, audits[0].margins(node))


def first_flips(flips: Bools) -> Bools:
    """The first flip of each neuron; later ones follow from another past, ``[T, B, ...]``."""
    first = flips.copy()
    first[1:] &= ~np.logical_or.accumulate(flips, 0)[:-1]
    return first


def count_seeds(tally: LayerTally, seeds: Bools, margins: Bounded) -> None:
    """Count seeds and hold each against what rounding can do there."""
    tally.seed_steps += seeds.sum(tuple(range(1, seeds.ndim)))
    distance, bound = np.abs(margins.value[seeds]), margins.error[seeds]
    # At a bound of 0 the arithmetic is exact, and a flip at the threshold itself is a mistake.
    certified = (distance <= bound) & (bound > 0)
    tally.uncertified += int((~certified).sum())
    if certified.any():
        largest = int(np.argmax(np.where(certified, distance, -1.0)))
        if distance[largest] >= tally.certified_margin:
            tally.certified_margin = float(distance[largest])
            tally.certified_bound = float(bound[largest])
