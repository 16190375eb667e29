"""Which wrong rule a layer follows: the smallest one that gives its recorded spikes.

Every rule is held against a recording in the way of ``certificate``: the layer gets the spikes
that the candidate itself recorded for its inputs, and the recorded spikes of the layer reset the
membrane, so that one flip does not lead to another. A rule explains a layer when

* the stated rule does not: some recorded spikes contradict it beyond rounding,
* no recorded spike or silence contradicts the rule beyond rounding, and
* most of the spikes that contradict the stated rule are on the recorded side of the threshold, and
  one of them beyond rounding or else every spike of the layer: no rule wins by leaving all open.

A neuron and step whose membrane is within the rounding bound of the threshold counts for no rule
and against none. With the resets forced, a rule without contradiction is one that, run by itself,
gives the recording but for such ties.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.backends import Trace
from tser.deploy.certificate import Audit, Bounded, NotCertifiable, gamma, violations
from tser.deploy.conventions import IN_WORDS, Departure, compatible, follow, relevant
from tser.deploy.graph_mistakes import Mistake, mistakes
from tser.export.graph import NEURONS, Graph, Node

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
TIME_STEPS = (10.0, 0.1, 2.0, 0.5, 1000.0, 0.001)
"""Times the stated dt."""
BUDGET = 2**15
"""Neurons times steps that all rules are held against; those that pass, against all."""
NARROW = 0.02
"""A threshold is named when the spikes say what it is to this part of it."""
SILENT = "it never fires, to which many mistakes lead; one of them, "
"""Said before a rule for a layer without spikes."""
LIKE = 3
"""Equally small rules that are named."""


@dataclass(frozen=True)
class Diagnosis:
    """What explains a layer that is wrong.

    Attributes:
        layer: NIR node, or "" of the logits.
        departures: names of the rules that together explain it; empty where none do.
        text: one sentence for people.
        contradictions: recorded values that the stated rule cannot give beyond rounding.
        explained: those of them that the departures give as they were recorded.
        alternatives: other sets, no larger, that explain the recording too.
    """

    layer: str
    departures: tuple[str, ...]
    text: str
    contradictions: int = 0
    explained: int = 0
    alternatives: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class _Cause:
    """One rule: a departure of the neuron, another dt or threshold, or a mistake before it."""

    name: str
    words: str
    departure: Departure | None = None
    dt: float = 1.0
    mistake: Mistake | None = None
    threshold: float | None = None


_Chosen = tuple[_Cause, ...]


@dataclass(frozen=True)
class _Recording:
    """Some columns of a layer's recording; a column is one neuron on one sample.

    Attributes:
        op: the neurons, with one parameter a column.
        spikes: recorded, ``[T, M]``.
        wrong: where they contradict the stated rule.
        columns: of all columns, those that are here.
    """

    op: Any
    spikes: Bools
    wrong: Bools
    columns: NDArray[np.intp]


def diagnose(
    graph: Graph,
    layer: str,
    x: NDArray[Any],
    trace: Trace,
    bias_magnitude: dict[str, Array] | None = None,
) -> Diagnosis:
    """Name the rule by which a candidate's spikes of one layer follow from its own inputs to it.

    Args:
        graph: the reference's, which the candidate claims to execute.
        layer: a spiking layer.
        x: a few samples on which the layer is wrong, ``[B, ...]`` or ``[T, B, ...]``.
        trace: what the candidate recorded on them.
        bias_magnitude: see ``certificate.Audit``.

    Returns:
        The smallest set of rules: one, else two, else three of the neuron's own.
    """
    case = _Case(graph, layer, x, trace, bias_magnitude or {})
    try:
        wrong = violations(case.audit(None).margins(case.node), case.spikes)
    except NotCertifiable as error:
        return Diagnosis(layer, (), f"layer {layer!r}: {error}")
    count = int(wrong.sum())
    if not count:
        return Diagnosis(layer, (), f"layer {layer!r}: every spike follows the stated rule")
    worst = int(wrong.sum((0, *range(2, wrong.ndim))).argmax())
    one = case.of_sample(worst)
    some = one.recording(wrong[:, worst : worst + 1], BUDGET)
    everything = case.recording(wrong, None)
    causes = _causes(graph, case.node)
    for group in _groups(causes, case, everything):
        found = [(chosen, case.explained(chosen, everything)) for chosen in group
                 if one.explained(chosen, some)]  # fmt: skip
        found = [(chosen, explained) for chosen, explained in found if explained]
        if found:
            named = _named(layer, f"layer {layer!r}", count, found)
            return named if case.spikes.any() else replace(named, text=SILENT + named.text)
    if not case.spikes.any():
        return Diagnosis(layer, (), f"layer {layer!r}: it never fires", count)
    text = f"layer {layer!r}: no rule that is tried gives these spikes"
    return Diagnosis(layer, (), text, count)


def diagnose_logits(
    graph: Graph,
    x: NDArray[Any],
    trace: Trace,
    bias_magnitude: dict[str, Array] | None = None,
) -> Diagnosis:
    """Name the mistake by which a candidate's logits follow from its own spikes.

    Args:
        graph: the reference's.
        x: a few samples on which the logits are wrong, ``[B, ...]`` or ``[T, B, ...]``.
        trace: what the candidate recorded on them.
        bias_magnitude: see ``certificate.Audit``.
    """
    bias = bias_magnitude or {}
    shape = trace.logits.shape
    try:
        stated = Audit(graph, x, trace, bias).logits()
    except NotCertifiable as error:
        return Diagnosis("", (), f"the logits: {error}")
    off = ~(np.abs(trace.logits - stated.value) <= stated.error)
    count = int(off.sum())
    if not count:
        return Diagnosis("", (), "the logits follow from the spikes by the stated rule")
    found: list[tuple[_Chosen, int]] = []
    for cause, given in _logits(graph, x, trace, bias, stated):
        value, bound = (np.broadcast_to(part, shape) for part in (given.value, given.error))
        if not (np.abs(trace.logits - value) <= bound).all():
            continue
        told = np.abs(value - stated.value) > bound + stated.error
        if (told & off).sum() * 2 > count:
            found.append(((cause,), int((told & off).sum())))
    if found:
        return _named("", "the logits", count, found)
    return Diagnosis("", (), "the logits: no rule that is tried gives them", count)


def _logits(
    graph: Graph,
    x: NDArray[Any],
    trace: Trace,
    bias: dict[str, Array],
    stated: Bounded,
) -> Iterator[tuple[_Cause, Bounded]]:
    """The logits ``[T or 1, B, K]`` under every rule."""
    steps = len(trace.logits)
    readout = _readout(graph)
    made = mistakes(graph, graph.output) + (mistakes(graph, readout) if readout else [])
    for mistake in made:
        with suppress(NotCertifiable):
            changed = Audit(mistake.graph, x, trace, bias).logits()
            yield _Cause(mistake.name, mistake.words, mistake=mistake), changed
    if readout is not None:
        given = Audit(graph, x, trace, bias).current(readout)
        for cause in (cause for cause in _causes(graph, readout) if cause.mistake is None):
            departures = [cause.departure] if cause.departure else []
            course = follow(
                readout.op,
                graph.dt * cause.dt,
                given.value,
                departures,
                error=given.error,
                steps=steps,
            )
            shape = (*course.membrane.shape[:2], *graph.output.output_shape)
            yield cause, Bounded(course.membrane.reshape(shape), course.error.reshape(shape))
    shape = (steps, *stated.value.shape[1:])
    value, error = (np.broadcast_to(v, shape) for v in (stated.value, stated.error))
    total = np.cumsum(value, 0)
    bound = np.cumsum(error, 0) + gamma(steps) * np.cumsum(np.abs(value) + error, 0)
    yield _Cause("summed_logits", "they are summed over the steps"), Bounded(total, bound)
    passed = np.arange(1, steps + 1).reshape(-1, *[1] * (value.ndim - 1))
    mean = Bounded(total / passed, bound / passed + gamma(2) * np.abs(total) / passed)
    yield _Cause("averaged_logits", "they are averaged over the steps so far"), mean


def _readout(graph: Graph) -> Node | None:
    """Neurons that do not fire and are the output as they are."""
    node = graph.output
    while isinstance(node.op, nir.Output | nir.Flatten):
        if len(node.inputs) != 1 or node.inputs[0].delayed:
            return None
        node = graph.nodes[node.inputs[0].source]
    fires = hasattr(node.op, "v_threshold")
    return node if isinstance(node.op, NEURONS) and not fires else None


class _Case:
    """One layer of one recording, and its input current under every mistake."""

    def __init__(
        self, graph: Graph, layer: str, x: NDArray[Any], trace: Trace, bias: dict[str, Array]
    ) -> None:
        self.graph, self.x, self.trace, self.bias = graph, x, trace, bias
        self.node, self.spikes = graph.nodes[layer], trace.spikes[layer]
        self._audits: dict[str, Audit] = {}
        self._currents: dict[str, Bounded | None] = {}

    def of_sample(self, sample: int) -> _Case:
        """The same layer on one sample."""
        part = slice(sample, sample + 1)
        spikes = {name: value[:, part] for name, value in self.trace.spikes.items()}
        frames = self.x.ndim == len(self.graph.input.output_shape) + 2
        x = self.x[:, part] if frames else self.x[part]
        trace = Trace(self.trace.logits[:, part], spikes)
        return _Case(self.graph, self.node.name, x, trace, self.bias)

    def audit(self, mistake: Mistake | None) -> Audit:
        """The recomputation of the recording with a mistake made, or as it is stated."""
        graph = self.graph if mistake is None else mistake.graph
        return Audit(graph, self.x, self.trace, self.bias)

    def current(self, chosen: _Chosen) -> Bounded | None:
        """The layer's input ``[T or 1, B * N]``; None where no bound is derived."""
        mistake = next((cause.mistake for cause in chosen if cause.mistake), None)
        key = "" if mistake is None else f"{mistake.name} {mistake.words}"
        if key not in self._currents:
            self._currents[key] = self._computed(mistake)
        return self._currents[key]

    def _computed(self, mistake: Mistake | None) -> Bounded | None:
        graph = self.graph if mistake is None else mistake.graph
        try:
            found = self.audit(mistake).current(graph.nodes[self.node.name])
        except NotCertifiable:
            return None
        steps = len(found.value)
        return Bounded(found.value.reshape(steps, -1), found.error.reshape(steps, -1))

    def recording(self, wrong: Bools, budget: int | None) -> _Recording:
        """The columns with contradictions first, then others, as many as the budget allows."""
        steps = len(self.spikes)
        wrong, spikes = wrong.reshape(steps, -1), self.spikes.reshape(steps, -1)
        columns = np.arange(wrong.shape[1])
        most = len(columns) if budget is None else max(16, budget // steps)
        if len(columns) > most:
            bad = np.flatnonzero(wrong.any(0))[: most // 2]
            others = np.setdiff1d(columns, bad)
            step = max(1, len(others) // (most - len(bad)))
            columns = np.concatenate([bad, others[::step]])
        op, batch = copy.copy(self.node.op), self.spikes.shape[1]
        for name, value in vars(self.node.op).items():
            if isinstance(value, np.ndarray | np.floating) and np.asarray(value).dtype.kind == "f":
                shape = (batch, *self.node.output_shape)
                setattr(op, name, np.broadcast_to(value, shape).reshape(-1)[columns])
        return _Recording(op, spikes[:, columns], wrong[:, columns], columns)

    def explained(self, chosen: _Chosen, recording: _Recording) -> int:
        """Contradictions that ``chosen`` answers as recorded; 0 where it does not explain."""
        current = self.current(chosen)
        if current is None:
            return 0
        departures = [cause.departure for cause in chosen if cause.departure]
        factor = float(np.prod([cause.dt for cause in chosen]))
        op = recording.op
        for cause in chosen:
            if cause.threshold is not None:
                op = copy.copy(op)
                op.v_threshold = np.full_like(op.v_threshold, cause.threshold, np.float64)
        course = follow(
            op,
            self.graph.dt * factor,
            current.value[:, recording.columns],
            departures,
            error=current.error[:, recording.columns],
            steps=len(recording.spikes),
            forced=recording.spikes,
        )
        if not (np.isfinite(course.error).all() and np.isfinite(course.membrane).all()):
            return 0
        margin, error = course.membrane - np.asarray(op.v_threshold, np.float64), course.error
        inclusive = "at_threshold" in departures
        fires = margin >= error if inclusive else margin > error
        silent = margin < -error if inclusive else margin <= -error
        if np.where(recording.spikes, silent, fires).any():
            return 0
        likely = (margin >= 0 if inclusive else margin > 0) == recording.spikes
        answered = likely & recording.wrong
        certain = np.where(recording.spikes, fires, silent) & recording.wrong
        tells = certain.any() or likely.all()
        return int(answered.sum()) if tells and 2 * answered.sum() > recording.wrong.sum() else 0

    def other_threshold(self, recording: _Recording) -> _Cause | None:
        """The threshold that the spikes speak for, where they say it narrowly enough."""
        stated = np.unique(np.asarray(recording.op.v_threshold, np.float64))
        current = self.current(())
        if current is None or len(stated) != 1 or not np.isfinite(stated).all():
            return None
        course = follow(
            recording.op,
            self.graph.dt,
            current.value[:, recording.columns],
            error=current.error[:, recording.columns],
            steps=len(recording.spikes),
            forced=recording.spikes,
        )
        fired, v = recording.spikes, course.membrane
        if not fired.any() or fired.all():
            return None
        lowest = float((v - course.error)[~fired].max())
        highest = float((v + course.error)[fired].min())
        limit = float(stated[0])
        if lowest >= highest or highest - lowest > NARROW * abs(limit):
            return None
        value = (lowest + highest) / 2
        words = f"the threshold is about {value:.4g}, not {limit:.4g}, or its input is scaled alike"
        return _Cause("other_threshold", words, threshold=value) if value != limit else None


def _causes(graph: Graph, node: Node) -> list[_Cause]:
    found = [_Cause(name, IN_WORDS[name], departure=name) for name in relevant(node.op)]
    for factor in TIME_STEPS:
        words = f"dt is {factor:g} times the stated one"
        found.append(_Cause(f"dt_times_{factor:g}", words, dt=factor))
    found += [_Cause(one.name, one.words, mistake=one) for one in mistakes(graph, node)]
    return found


def _groups(causes: list[_Cause], case: _Case, recording: _Recording) -> Iterator[list[_Chosen]]:
    """Sets of rules, from the smallest on."""
    yield [(cause,) for cause in causes]
    threshold = case.other_threshold(recording)
    if threshold is not None:
        yield [(threshold,)]
    yield [pair for pair in itertools.combinations(causes, 2) if _together(pair)]
    own = [cause for cause in causes if cause.departure]
    yield [three for three in itertools.combinations(own, 3) if _together(three)]


def _together(chosen: _Chosen) -> bool:
    mistaken = sum(cause.mistake is not None for cause in chosen)
    timed = sum(cause.dt != 1 for cause in chosen)
    return mistaken < 2 and timed < 2 and compatible([cause.name for cause in chosen])


def _named(layer: str, subject: str, count: int, found: Sequence[tuple[_Chosen, int]]) -> Diagnosis:
    (best, explained), *others = found
    text = f"{subject}: {_words(best)}"
    if others:
        text += "; or: " + "; or: ".join(_words(chosen) for chosen, _ in others[: LIKE - 1])
    alternatives = tuple(_names(chosen) for chosen, _ in others)
    return Diagnosis(layer, _names(best), text, count, explained, alternatives)


def _names(chosen: _Chosen) -> tuple[str, ...]:
    return tuple(cause.name for cause in chosen)


def _words(chosen: _Chosen) -> str:
    return ", and ".join(cause.words for cause in chosen)
