"""Does an exported graph do what the reference did, spike by spike? Verdicts: see `tally`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser.deploy.backends import Backend, CannotCompare, Trace
from tser.deploy.certificate import Audit, NotCertifiable, violations
from tser.deploy.diagnosis import diagnose, diagnose_logits
from tser.deploy.divergence import first_divergence
from tser.deploy.replays import replay_seeds, undisturbed_seeds
from tser.deploy.tally import LAGS, Comparison, Evidence, LayerTally, empty_tally
from tser.export.graph import Graph

Bools = NDArray[np.bool_]
Batch = tuple[NDArray[Any], NDArray[Any] | None]

LEAST_DIAGNOSED, MOST_DIAGNOSED = 4, 32
"""Samples on which wrong rules are tried."""
EVIDENCE = 2**14
"""Spikes that tell rules apart: of a layer with fewer, more samples are taken."""
LOGITS = ""
"""Under which a diagnosis of the logits is kept."""
NO_GRAPH = "no .nir graph is at hand that rounding could be bounded on"


@dataclass(frozen=True)
class Judge:
    """What recorded runs are held against.

    Attributes:
        graph: the reference's; what is recorded, of all executors, is certified on it.
        bias_magnitude: see ``Audit``; widens the bound for the reference's unfolded batch norm.
        certify: False where no graph of the reference is known.
    """

    graph: Graph
    bias_magnitude: dict[str, NDArray[np.float64]]
    certify: bool = True

    def audits(self, x: NDArray[Any], traces: tuple[Trace, Trace]) -> tuple[Audit, Audit] | None:
        """The recomputation of two recorded runs; None without a graph of the reference."""
        if not self.certify:
            return None
        first, second = traces
        return (
            Audit(self.graph, x, first, self.bias_magnitude),
            Audit(self.graph, x, second, self.bias_magnitude),
        )

    def select(self, x: NDArray[Any], samples: NDArray[np.intp]) -> NDArray[Any]:
        """Some samples of a batch."""
        frames = x.ndim == len(self.graph.input.output_shape) + 2
        return x[:, samples] if frames else x[samples]


def compare(
    graph: Graph,
    reference: Backend,
    candidates: Sequence[Backend],
    batches: Iterable[Batch],
    bias_magnitude: dict[str, NDArray[np.float64]] | None = None,
    *,
    certify: bool = True,
    watch: Callable[[dict[str, Trace]], None] | None = None,
) -> Evidence:
    """Run everything on the same inputs and compare every spike.

    Memory does not grow with the number of batches.

    Args:
        graph: the reference's; what is recorded, of all executors, is certified on it.
        reference: usually the PyTorch student.
        candidates: executors of the exported graph.
        batches: ``(x [B, C, H, W] or [T, B, C, H, W], labels [B] or None)``.
        bias_magnitude: see ``Audit``; widens the bound for the reference's unfolded batch norm.
        certify: False where ``graph`` only names the layers.
        watch: called with the traces of each batch by name of the executor.

    Returns:
        Tallies and verdicts.

    Raises:
        InputFileError: the reference, or a runtime on our own files, fails.
    """
    judge = Judge(graph, bias_magnitude or {}, certify)
    evidence = Evidence(
        [
            Comparison(one.name, one.source, {}, remark=getattr(one, "remark", ""))
            for one in candidates
        ]
    )
    for x, labels in batches:
        expected = reference(x)
        _count_correct(evidence, reference.name, expected.logits, labels)
        traces = {reference.name: expected}
        steps, count = expected.logits.shape[:2]
        for backend, comparison in zip(candidates, evidence.comparisons, strict=True):
            if comparison.broken:
                continue
            if not comparison.layers:
                comparison.layers = {node.name: empty_tally(node, steps) for node in graph.spiking}
            try:
                actual = backend(x)
                _check_shape(comparison, expected, actual)
            except CannotCompare as error:
                comparison.broken, comparison.layers = str(error), {}
                continue
            _count_correct(evidence, backend.name, actual.logits, labels)
            if watch:
                traces[backend.name] = actual
            _compare_batch(judge, comparison, x, (expected, actual), backend)
            comparison.samples += count
        if watch:
            watch(traces)
        evidence.samples += count
    return evidence


def _check_shape(comparison: Comparison, expected: Trace, actual: Trace) -> None:
    if expected.logits.shape != actual.logits.shape:
        raise CannotCompare(
            f"{comparison.source} gives logits of shape {actual.logits.shape}, the reference "
            f"{expected.logits.shape} (steps, samples, classes)"
        )


def _count_correct(
    evidence: Evidence, name: str, logits: NDArray[Any], labels: NDArray[Any] | None
) -> None:
    if labels is None:
        return
    right = (np.cumsum(logits, 0).argmax(-1) == labels).sum(1)
    evidence.correct[name] = evidence.correct.get(name, np.zeros_like(right)) + right


def _compare_batch(
    judge: Judge,
    comparison: Comparison,
    x: NDArray[Any],
    traces: tuple[Trace, Trace],
    backend: Backend,
) -> None:
    expected, actual = traces
    flipped = _count_flips(comparison.layers, traces)
    try:
        if flipped:
            # Samples without a flip have nothing to explain, and there are many of them.
            touched = np.logical_or.reduce([_by_sample(flips) for flips in flipped.values()])
            samples = np.flatnonzero(touched)
            flipped = {name: flips[:, samples] for name, flips in flipped.items()}
            parts = _selected(expected, samples), _selected(actual, samples)
            _explain(judge, comparison, judge.select(x, samples), parts, flipped, samples, backend)
        if not np.array_equal(expected.logits, actual.logits):
            audits = judge.audits(x, traces)
            if audits is None:
                raise NotCertifiable(NO_GRAPH)
            for trace, audit in zip(traces, audits, strict=True):
                bounded = audit.logits()
                off = ~(np.abs(trace.logits - bounded.value) <= bounded.error)  # NaN is off
                comparison.logits_outside_bound += int(off.sum())
                if off.any() and trace is actual and LOGITS not in comparison.diagnoses:
                    few = _diagnosed(off)
                    comparison.diagnoses[LOGITS] = diagnose_logits(
                        judge.graph,
                        judge.select(x, few),
                        _selected(trace, few),
                        judge.bias_magnitude,
                    )
    except NotCertifiable as error:
        comparison.uncertifiable = str(error)
    _compare_logits(comparison, expected.logits, actual.logits)


def _count_flips(layers: dict[str, LayerTally], traces: tuple[Trace, Trace]) -> dict[str, Bools]:
    """Where spikes differ, of layers in which some do."""
    flipped: dict[str, Bools] = {}
    expected, actual = traces
    for name, tally in layers.items():
        a, b = expected.spikes[name], actual.spikes[name]
        axes = tuple(range(1, a.ndim))
        tally.reference += a.sum(axes)
        tally.candidate += b.sum(axes)
        flips = a != b
        if flips.any():
            flipped[name] = flips
            tally.flips += flips.sum(axes)
            counts = a.sum(0, dtype=np.int32) - b.sum(0, dtype=np.int32)
            tally.count_distance += int(np.abs(counts).sum())
            _count_lags(tally, a, b)
    return flipped


def _count_lags(tally: LayerTally, reference: Bools, candidate: Bools) -> None:
    for number, lag in enumerate(LAGS):
        early, late = (reference, candidate) if lag >= 0 else (candidate, reference)
        steps = len(reference) - abs(lag)
        if steps > 0:
            off = early[:steps] != late[abs(lag) :]
            tally.mismatches[number] += int(np.count_nonzero(off))


def _by_sample(flips: Bools) -> Bools:
    return np.asarray(np.moveaxis(flips, 1, 0).reshape(flips.shape[1], -1).any(1))


def _diagnosed(wrong: Bools) -> NDArray[np.intp]:
    """The samples, of those with something wrong, on which rules are tried."""
    size = wrong.size // wrong.shape[1]
    most = min(max(LEAST_DIAGNOSED, EVIDENCE // size), MOST_DIAGNOSED)
    return np.flatnonzero(_by_sample(wrong))[:most]


def _selected(trace: Trace, samples: NDArray[np.intp]) -> Trace:
    spikes = {name: value[:, samples] for name, value in trace.spikes.items()}
    return Trace(trace.logits[:, samples], spikes)


def _explain(
    judge: Judge,
    comparison: Comparison,
    x: NDArray[Any],
    traces: tuple[Trace, Trace],
    flipped: dict[str, Bools],
    samples: NDArray[np.intp],
    backend: Backend,
) -> None:
    """Certify the flips of the samples that have some, find their seeds, and name wrong rules."""
    audits = judge.audits(x, traces)
    if comparison.first_divergence is None:
        found = first_divergence(judge.graph, flipped, traces, audits)
        found["sample"] = comparison.samples + int(samples[found["sample"]])
        comparison.first_divergence = found
    if audits is None:
        raise NotCertifiable(NO_GRAPH)
    if not replay_seeds(comparison, backend, x, traces[0], audits[0]):
        undisturbed_seeds(comparison, flipped, audits)
    for name in _touched(judge.graph, list(comparison.layers), flipped):
        tally, node = comparison.layers[name], judge.graph.nodes[name]
        for trace, audit in zip(traces[::-1], audits[::-1], strict=True):
            wrong = violations(audit.margins(node), trace.spikes[name])
            tally.violations += int(wrong.sum())
            if wrong.any() and name not in comparison.diagnoses:
                few = _diagnosed(wrong)
                diagnosis = diagnose(
                    judge.graph,
                    name,
                    judge.select(x, few),
                    _selected(trace, few),
                    judge.bias_magnitude,
                )
                if trace is traces[0]:
                    diagnosis = replace(diagnosis, text=f"of the reference: {diagnosis.text}")
                comparison.diagnoses[name] = diagnosis


def _touched(graph: Graph, layers: list[str], flipped: dict[str, Bools]) -> list[str]:
    """Layers that a flip may reach, also those that happen to fire as before."""
    if graph.recurrent:
        return layers
    return layers[min(layers.index(name) for name in flipped) :]


def _compare_logits(comparison: Comparison, expected: NDArray[Any], actual: NDArray[Any]) -> None:
    difference = np.abs(expected.astype(np.float64) - actual)
    difference[~np.isfinite(difference)] = np.finfo(np.float32).max  # JSON has no infinity
    comparison.logits_max_difference = max(
        comparison.logits_max_difference, float(difference.max(initial=0))
    )
    answers = [logits.sum(0).argmax(-1) for logits in (expected, actual)]
    differ = answers[0] != answers[1]
    for logits in (expected, actual):
        differ |= ~np.isfinite(logits).all((0, 2))
    comparison.argmax_differences += int(differ.sum())
