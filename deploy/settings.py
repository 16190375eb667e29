"""What every way to run a network reaches and costs: always t steps, or stop when sure.

Counts stay exact: each setting has its own counters, fed with the steps that it takes, over the
same run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tser.deploy.counting import Counter, OperationCount
from tser.deploy.interpreter import run
from tser.deploy.outputs import check_finite
from tser.errors import UsageError
from tser.evaluate import THRESHOLDS
from tser.export.graph import Graph
from tser.metrics import confidence_per_step, exit_step

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class Setting:
    """One way to run the network.

    Attributes:
        t: steps that every sample takes; None: it stops by its confidence.
        threshold: the confidence at which it stops.
        accuracy: share of right answers, 0..1.
        mean_steps: steps taken on average.
        counts: exact, of the steps taken.
    """

    t: int | None
    threshold: float | None
    accuracy: float
    mean_steps: float
    counts: OperationCount


def count_settings(
    graph: Graph,
    batches: Iterable[Batch],
    timesteps: int | None = None,
    *,
    origin: str = "the graph",
) -> tuple[OperationCount, list[Setting]]:
    """Count operations of all T steps, and of every setting.

    Args:
        graph: the resolved view, of a classifier.
        batches: ``(x [B, ...] or [T, B, ...], labels [B])``.
        timesteps: T; default what the graph states.
        origin: what to call the graph in messages.

    Returns:
        Counts of all steps, and the settings: t = 1..T, then the thresholds of ``tser eval``.

    Raises:
        UsageError: outputs that are no logits.
        InputFileError: outputs that are not finite.
    """
    whole = Counter(graph)
    counters: list[Counter] = []
    right: list[int] = []
    taken: list[int] = []
    choices: list[tuple[int | None, float | None]] = []
    for x, labels in batches:
        logits, values = run(graph, x, timesteps, record=whole.wanted)
        if logits.ndim != 3:
            raise UsageError("settings are compared by accuracy, and the graph puts out no logits")
        check_finite(logits, whole.samples, origin)
        steps = len(logits)
        whole.add(values, steps)
        if not choices:
            choices = [(t, None) for t in range(1, steps + 1)]
            choices += [(None, threshold) for threshold in THRESHOLDS]
            counters = [Counter(graph) for _ in choices]
            right, taken = [0] * len(choices), [0] * len(choices)
        confidence, answer = confidence_per_step(torch.from_numpy(np.array(logits)))
        for number, (t, threshold) in enumerate(choices):
            last = np.full(len(labels), (t or 1) - 1)
            if threshold is not None:
                last = exit_step(confidence, threshold).numpy()
            keep = np.arange(steps)[:, None] <= last
            counters[number].add(values, steps, keep)
            right[number] += int((answer.numpy()[last, np.arange(len(labels))] == labels).sum())
            taken[number] += int(keep.sum())
    samples = whole.samples
    settings = [
        Setting(t, threshold, right[n] / samples, taken[n] / samples, counters[n].result())
        for n, (t, threshold) in enumerate(choices)
    ]
    return whole.result(), settings
