"""What a comparison counts, and the verdict that follows.

* E0: every spike of every layer and step is the same, and logits differ by no more than rounding.
* E1: the spikes differ only where rounding explains it (every flip and everything downstream of
  it is certified, see ``certificate``), and every prediction is the same.
* E2: spikes differ beyond that, but firing rates of every layer agree within 1 % of each other
  and at least 99 % of the predictions are the same.
* E3: not equivalent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tser.deploy.diagnosis import Diagnosis
from tser.export.graph import Node

Verdict = Literal["E0", "E1", "E2", "E3"]
RATE_TOLERANCE = 0.01
ARGMAX_TOLERANCE = 0.01
LAGS = (-2, -1, 0, 1, 2)
"""Steps by which the candidate may be late, to see whether its spikes are only shifted."""
Counts = NDArray[np.int64]


@dataclass
class LayerTally:
    """Counts of one spiking layer over all samples.

    Attributes:
        name: NIR node.
        neurons: number of neurons.
        flips: spikes that differ in the free run, per step, ``[T]``.
        reference: spikes of the reference, per step, ``[T]``.
        candidate: spikes of the candidate, per step, ``[T]``.
        seed_steps: flips that no other flip explains, per step, ``[T]``: where the executor can
            replay, a neuron's first flip when it is fed the reference's spikes; else the flips
            whose inputs and own past are the same in both runs.
        uncertified: seeds further from the threshold than rounding can reach.
        violations: recorded spikes that rounding cannot explain, in either run.
        replayed: flips when fed the reference's spikes; None where nothing could be replayed.
        one_step: flips when the membrane before each step is forced too; None likewise.
        certified_margin: largest ``|v - v_threshold|`` at a certified seed.
        certified_bound: what rounding may do there.
        count_distance: sum over neurons and samples of the difference in spike counts.
        mismatches: flips at each of `LAGS`, over the steps that both have.
    """

    name: str
    neurons: int
    flips: Counts
    reference: Counts
    candidate: Counts
    seed_steps: Counts
    uncertified: int = 0
    violations: int = 0
    replayed: int | None = None
    one_step: int | None = None
    certified_margin: float = 0.0
    certified_bound: float = 0.0
    count_distance: int = 0
    mismatches: Counts = field(default_factory=lambda: np.zeros(len(LAGS), np.int64))

    @property
    def seeds(self) -> int:
        """Over all steps."""
        return int(self.seed_steps.sum())

    @property
    def certified(self) -> bool:
        """Whether rounding explains every difference."""
        return not self.violations and not self.uncertified

    @property
    def lag(self) -> int:
        """Steps by which the candidate agrees best; positive: it is late."""
        steps = len(self.flips)
        shown = [
            (self.mismatches[n] / (steps - abs(lag)), abs(lag), lag)
            for n, lag in enumerate(LAGS)
            if abs(lag) < steps
        ]
        return min(shown)[2]


def empty_tally(node: Node, steps: int) -> LayerTally:
    """Nothing counted yet."""

    def zeros() -> Counts:
        return np.zeros(steps, np.int64)

    neurons = int(np.prod(node.output_shape))
    return LayerTally(node.name, neurons, zeros(), zeros(), zeros(), zeros())


@dataclass
class Comparison:
    """Result for one candidate.

    Attributes:
        name: of the backend.
        source: what it executed.
        layers: tallies in execution order.
        samples: number of inputs.
        argmax_differences: predictions (after T steps) that differ.
        logits_max_difference: largest absolute difference.
        logits_outside_bound: logits that rounding cannot explain given the recorded spikes.
        first_divergence: the earliest flip by (sample, t, layer, neuron), or None.
        uncertifiable: why no certificate could be derived, or "".
        not_replayed: why the executor could not be fed recorded spikes, or "".
        diagnoses: of layers that rounding cannot explain, by name, in execution order.
        broken: why nothing could be compared, or "".
        remark: what the executor is known to do otherwise than the file says, or "".
    """

    name: str
    source: str
    layers: dict[str, LayerTally]
    samples: int = 0
    argmax_differences: int = 0
    logits_max_difference: float = 0.0
    logits_outside_bound: int = 0
    first_divergence: dict[str, Any] | None = None
    uncertifiable: str = ""
    not_replayed: str = ""
    diagnoses: dict[str, Diagnosis] = field(default_factory=dict)
    broken: str = ""
    remark: str = ""

    @property
    def flips(self) -> int:
        """Spikes that differ, over all layers and steps."""
        return sum(int(layer.flips.sum()) for layer in self.layers.values())

    @property
    def neuron_steps(self) -> int:
        """Neurons x steps x samples that were compared."""
        return sum(
            layer.neurons * len(layer.flips) * self.samples for layer in self.layers.values()
        )

    @property
    def verdict(self) -> Verdict:
        """E0..E3, as the module states."""
        if self.broken:
            return "E3"
        certified = all(layer.certified for layer in self.layers.values())
        certified = certified and not self.logits_outside_bound and not self.uncertifiable
        if certified and not self.argmax_differences:
            return "E1" if self.flips else "E0"
        rates_agree = all(
            abs(int(layer.reference.sum()) - int(layer.candidate.sum()))
            <= RATE_TOLERANCE * max(int(layer.reference.sum()), int(layer.candidate.sum()))
            for layer in self.layers.values()
        )
        argmax_agree = self.argmax_differences <= ARGMAX_TOLERANCE * self.samples
        return "E2" if rates_agree and argmax_agree else "E3"

    def reason(self) -> str:
        """The verdict in words."""
        if self.broken:
            return self.broken
        wrong = sum(layer.violations for layer in self.layers.values())
        uncertified = sum(layer.uncertified for layer in self.layers.values())
        if self.verdict == "E0":
            return "every spike is the same"
        if self.verdict == "E1":
            return f"{self.flips:,} flips, all certified as rounding ties or their consequences"
        parts = [f"{self.flips:,} flips"]
        if wrong:
            parts.append(f"{wrong:,} spikes that rounding cannot explain")
        elif uncertified:
            parts.append(f"{uncertified:,} seeds that rounding cannot explain")
        if self.logits_outside_bound:
            parts.append(f"{self.logits_outside_bound:,} logits that rounding cannot explain")
        if self.argmax_differences:
            parts.append(f"{self.argmax_differences:,} of {self.samples:,} predictions differ")
        if self.uncertifiable:
            parts.append(self.uncertifiable)
        return "; ".join(parts)


@dataclass
class Evidence:
    """All comparisons and the accuracy of everything that ran.

    Attributes:
        comparisons: one a candidate.
        correct: right answers after each step by executor name, ``[T]``; empty without labels.
        samples: number of inputs.
    """

    comparisons: list[Comparison]
    correct: dict[str, Counts] = field(default_factory=dict)
    samples: int = 0

    @property
    def verdict(self) -> Verdict:
        """The worst of all candidates."""
        return max((c.verdict for c in self.comparisons), default="E3")
