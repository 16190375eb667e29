"""Does an exported graph do what the reference did, spike by spike?

* E0: every spike of every layer and step is the same, and logits differ by no more than rounding.
* E1: the spikes differ only where rounding explains it (every flip and everything downstream of
  it is certified, see ``certificate``), and every prediction is the same.
* E2: spikes differ beyond that, but firing rates of every layer agree within 1 % of each other
  and at least 99 % of the predictions are the same.
* E3: not equivalent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tser.deploy.backends import Backend, Trace
from tser.deploy.certificate import Audit, NotCertifiable, violations
from tser.errors import InputFileError
from tser.export.graph import Graph, Node

Verdict = Literal["E0", "E1", "E2", "E3"]
RATE_TOLERANCE = 0.01
ARGMAX_TOLERANCE = 0.01
Counts = NDArray[np.int64]


@dataclass
class LayerTally:
    """Counts of one spiking layer over all samples.

    Attributes:
        name: NIR node.
        neurons: number of neurons.
        flips: spikes that differ, per step, ``[T]``.
        seeds: flips whose inputs and own past are the same in both runs.
        violations: recorded spikes that rounding cannot explain, in either run.
        reference: spikes of the reference, per step, ``[T]``.
        candidate: spikes of the candidate, per step, ``[T]``.
    """

    name: str
    neurons: int
    flips: Counts
    reference: Counts
    candidate: Counts
    seeds: int = 0
    violations: int = 0


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
        wrong = sum(layer.violations for layer in self.layers.values()) + self.logits_outside_bound
        if not wrong and not self.uncertifiable and not self.argmax_differences:
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
        wrong = sum(layer.violations for layer in self.layers.values())
        if self.verdict == "E0":
            return "every spike is the same"
        if self.verdict == "E1":
            return f"{self.flips} flips, all certified as rounding ties or their consequences"
        parts = [f"{self.flips} flips"]
        if wrong:
            parts.append(f"{wrong} spikes that rounding cannot explain")
        if self.logits_outside_bound:
            parts.append(f"{self.logits_outside_bound} logits that rounding cannot explain")
        if self.argmax_differences:
            parts.append(f"{self.argmax_differences} of {self.samples} predictions differ")
        if self.uncertifiable:
            parts.append(self.uncertifiable)
        return "; ".join(parts)


@dataclass
class Evidence:
    """All comparisons of one validation and the accuracy of every executor.

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


def compare(
    graph: Graph,
    reference: Backend,
    candidates: list[Backend],
    batches: Iterable[tuple[NDArray[Any], NDArray[Any] | None]],
    bias_magnitude: dict[str, NDArray[np.float64]] | None = None,
) -> Evidence:
    """Run everything on the same inputs and compare every spike.

    Args:
        graph: the reference's; what is recorded, of all executors, is certified on it.
        reference: usually the PyTorch student.
        candidates: executors of the exported graph.
        batches: ``(x [B, C, H, W] or [T, B, C, H, W], labels [B] or None)``.
        bias_magnitude: see ``Audit``; widens the bound for the reference's unfolded batch norm.

    Returns:
        Tallies and verdicts.

    Raises:
        InputFileError: a candidate whose logits have another shape.
    """
    evidence = Evidence([])
    for x, labels in batches:
        expected = reference(x)
        _count_correct(evidence, reference.name, expected.logits, labels)
        steps, count = expected.logits.shape[:2]
        for number, backend in enumerate(candidates):
            if number == len(evidence.comparisons):
                tallies = {node.name: _empty(node, steps) for node in graph.spiking}
                evidence.comparisons.append(Comparison(backend.name, backend.source, tallies))
            actual = backend(x)
            _count_correct(evidence, backend.name, actual.logits, labels)
            comparison = evidence.comparisons[number]
            _compare_batch(graph, comparison, x, (expected, actual), bias_magnitude or {})
            comparison.samples += count
        evidence.samples += count
    return evidence


def _empty(node: Node, steps: int) -> LayerTally:
    def zeros() -> Counts:
        return np.zeros(steps, np.int64)

    return LayerTally(node.name, int(np.prod(node.output_shape)), zeros(), zeros(), zeros())


def _count_correct(
    evidence: Evidence, name: str, logits: NDArray[Any], labels: NDArray[Any] | None
) -> None:
    if labels is None:
        return
    right = (np.cumsum(logits, 0).argmax(-1) == labels).sum(1)
    evidence.correct[name] = evidence.correct.get(name, np.zeros_like(right)) + right


def _compare_batch(
    graph: Graph,
    comparison: Comparison,
    x: NDArray[Any],
    traces: tuple[Trace, Trace],
    bias_magnitude: dict[str, NDArray[np.float64]],
) -> None:
    expected, actual = traces
    if expected.logits.shape != actual.logits.shape:
        raise InputFileError(
            f"{comparison.source} gives logits of shape {actual.logits.shape}, the reference "
            f"{expected.logits.shape} (steps, samples, classes)"
        )
    flipped: dict[str, NDArray[np.bool_]] = {}
    count = expected.logits.shape[1]
    touched = np.zeros(count, bool)
    for node in graph.spiking:
        a, b = expected.spikes[node.name], actual.spikes[node.name]
        tally, axes = comparison.layers[node.name], tuple(range(1, a.ndim))
        tally.reference += a.sum(axes)
        tally.candidate += b.sum(axes)
        flips = a != b
        if flips.any():
            flipped[node.name] = flips
            tally.flips += flips.sum(axes)
            touched |= np.moveaxis(flips, 1, 0).reshape(count, -1).any(1)
    try:
        if flipped:
            # Samples without a flip have nothing to explain, and there are many of them.
            samples = np.flatnonzero(touched)
            parts = _selected(expected, samples), _selected(actual, samples)
            chosen = x[:, samples] if x.ndim == len(graph.input.output_shape) + 2 else x[samples]
            audits = _audits(graph, chosen, parts, bias_magnitude)
            flipped = {name: flips[:, samples] for name, flips in flipped.items()}
            if comparison.first_divergence is None:
                found = _first(graph, flipped, parts[0], audits[0])
                found["sample"] = comparison.samples + int(samples[found["sample"]])
                comparison.first_divergence = found
            for name, flips in flipped.items():
                _certify(graph.nodes[name], comparison.layers[name], flips, parts, audits)
        if not np.array_equal(expected.logits, actual.logits):
            audits = _audits(graph, x, traces, bias_magnitude)
            for trace, audit in zip(traces, audits, strict=True):
                bounded = audit.logits()
                off = ~(np.abs(trace.logits - bounded.value) <= bounded.error)  # NaN is off
                comparison.logits_outside_bound += int(off.sum())
    except NotCertifiable as error:
        comparison.uncertifiable = str(error)
    difference = np.abs(expected.logits.astype(np.float64) - actual.logits)
    difference[~np.isfinite(difference)] = np.finfo(np.float32).max  # JSON has no infinity
    comparison.logits_max_difference = max(
        comparison.logits_max_difference, float(difference.max(initial=0))
    )
    answers = [trace.logits.sum(0).argmax(-1) for trace in traces]
    differ = answers[0] != answers[1]
    for trace in traces:
        differ |= ~np.isfinite(trace.logits).all((0, 2))
    comparison.argmax_differences += int(differ.sum())


def _selected(trace: Trace, samples: NDArray[np.intp]) -> Trace:
    spikes = {name: value[:, samples] for name, value in trace.spikes.items()}
    return Trace(trace.logits[:, samples], spikes)


def _audits(
    graph: Graph,
    x: NDArray[Any],
    traces: tuple[Trace, Trace],
    bias_magnitude: dict[str, NDArray[np.float64]],
) -> tuple[Audit, Audit]:
    expected, actual = traces
    return Audit(graph, x, expected, bias_magnitude), Audit(graph, x, actual, bias_magnitude)


def _certify(
    node: Node,
    tally: LayerTally,
    flips: NDArray[np.bool_],
    traces: tuple[Trace, Trace],
    audits: tuple[Audit, Audit],
) -> None:
    same_input = np.asarray(audits[0].current(node).value == audits[1].current(node).value)
    same_input = np.broadcast_to(same_input, flips.shape)
    undisturbed = np.logical_and.accumulate(same_input, 0)
    undisturbed[1:] &= ~np.logical_or.accumulate(flips, 0)[:-1]
    tally.seeds += int((flips & undisturbed).sum())
    for trace, audit in zip(traces, audits, strict=True):
        tally.violations += int(violations(audit.margins(node), trace.spikes[node.name]).sum())


def _first(
    graph: Graph,
    flipped: dict[str, NDArray[np.bool_]],
    expected: Trace,
    audit: Audit,
) -> dict[str, Any]:
    """The earliest flip of a batch; ``sample`` counts from its start."""
    order = {node.name: position for position, node in enumerate(graph.spiking)}
    earliest: tuple[int, int, int, str, tuple[int, ...]] | None = None
    for name, flips in flipped.items():
        by_sample = np.moveaxis(flips, 1, 0)
        sample, t, *neuron = (int(i) for i in np.argwhere(by_sample)[0])
        found = (sample, t, order[name], name, tuple(neuron))
        earliest = min(earliest or found, found)
    if earliest is None:
        raise ValueError("no flip to locate")
    sample, t, _, name, place = earliest
    index = (t, sample, *place)
    result: dict[str, Any] = {
        "sample": sample,
        "t": t,
        "layer": name,
        "neuron": list(place),
        "reference": bool(expected.spikes[name][index]),
        "v_minus_threshold": None,
        "bound": None,
    }
    try:
        margins = audit.margins(graph.nodes[name])
    except NotCertifiable:
        return result
    result["v_minus_threshold"] = float(margins.value[index])
    result["bound"] = float(margins.error[index])
    return result
