"""Inputs and networks made to show what test images may miss: borders, ties, resets, overdrive.

The given network is run on probe inputs. Beside it, its *dyadic twin* is: the same topology, its
numbers rounded to powers of two and few of their multiples, so that float32 adds them exactly.
There, ties at the threshold are frequent, nothing is left to rounding, and every difference is a
mistake of the executor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import nir
import numpy as np
from numpy.typing import NDArray

from tser.deploy.backends import Backend, CannotCompare, NirBackend
from tser.deploy.candidates import Subject, executors, fits, open_subject, paired
from tser.deploy.equivalence import compare
from tser.deploy.named_inputs import Inputs
from tser.deploy.probes import Probe, probe_inputs
from tser.deploy.references import Reference
from tser.deploy.runtime_probes import runtime_probes
from tser.deploy.tally import Comparison
from tser.deploy.twin import Variant, coarse, twin, twin_onnx
from tser.errors import UsageError
from tser.export.graph import Graph, resolve
from tser.export.nir_file import write_nir
from tser.files import scratch

Array = NDArray[Any]
FEW = 4
"""Samples of the given inputs that the probes overdrive."""


def probe(
    reference: Reference,
    subject: Subject,
    pairs: dict[str, str],
    backends: Sequence[str],
    timesteps: int,
    inputs: Inputs | None,
) -> list[dict[str, Any]]:
    """Run all probes.

    Args:
        reference: what should be done.
        subject: what is judged.
        pairs: the subject's name of a layer -> the reference's.
        backends: names; none: the subject's own.
        timesteps: T.
        inputs: of which some are overdriven.

    Returns:
        One entry a probe and executor: ``network`` ("given", a dyadic twin, or "known by hand"),
        ``probe``, ``backend``, ``verdict`` (None: could not be run), ``passed``, ``flips``,
        ``reason``, ``diagnosis``, and ``counts``: whether it has a say in the verdict. What is
        run with other resets or leaks than the graph has, or with networks that are not the
        graph at all, tells about the executor and has none.
    """
    samples = None
    if inputs is not None:
        samples, _ = next(inputs.batches(FEW))
    probes = probe_inputs(reference.graph, timesteps, samples)
    found = _on_given(reference, subject, pairs, backends, probes)
    found += _on_twins(reference, subject, pairs, backends, probes)
    return found + list(_on_known(subject, backends))


def _on_given(
    reference: Reference,
    subject: Subject,
    pairs: dict[str, str],
    backends: Sequence[str],
    probes: Sequence[Probe],
) -> list[dict[str, Any]]:
    found = []
    ready: dict[tuple[int, bool], list[Backend]] = {}
    for one in probes:
        key = one.timesteps, _frames(reference.graph, one.x)
        if key not in ready:
            if subject.graph is None and not fits(subject.model, *key):
                reason = f"{subject.path} takes another number of time steps, or other inputs"
                found.append(_entry("given", one.name, None, reason=reason))
                continue
            try:
                candidates = paired(executors(subject, backends, *key), subject, pairs)
                ready[key] = [_reference_at(reference, *key), *candidates]
            except UsageError as error:
                found.append(_entry("given", one.name, None, reason=str(error)))
                continue
        first, *others = ready[key]
        evidence = compare(
            reference.graph,
            first,
            others,
            [(one.x, None)],
            reference.bias_magnitude,
            certify=reference.certify,
        )
        found += [_entry("given", one.name, result) for result in evidence.comparisons]
    return found


def _reference_at(reference: Reference, timesteps: int, frames: bool) -> Backend:
    """The reference for T; where it is fixed to another, its graph in the interpreter."""
    if reference.timesteps in (None, timesteps) or not reference.certify:
        return reference.start(timesteps, frames)
    return NirBackend(reference.graph, timesteps, reference.source)


def _on_twins(
    reference: Reference,
    subject: Subject,
    pairs: dict[str, str],
    backends: Sequence[str],
    probes: Sequence[Probe],
) -> Iterator[dict[str, Any]]:
    if reference.raw is None:
        reason = f"{reference.source} is no NIR graph"
        yield _entry("dyadic twin", "all", None, reason=reason)
        return
    longest = max(one.timesteps for one in probes)
    chosen = [one for one in probes if one.timesteps == longest]
    with scratch() as folder:
        for variant in get_args(Variant):
            title = f"dyadic twin, {variant}"
            try:
                graph = resolve(twin(_dated(reference.raw, reference.graph), variant=variant))
                other = _twin_of(subject, variant, folder)
            except UsageError as error:
                yield _entry(title, "all", None, reason=str(error))
                continue
            for frames in sorted({_frames(graph, one.x) for one in chosen}):
                x = _joined([one.x for one in chosen if _frames(graph, one.x) == frames], frames)
                try:
                    candidates = paired(executors(other, backends, longest, frames), other, pairs)
                except UsageError as error:
                    yield _entry(title, "all", None, reason=str(error))
                    continue
                first = NirBackend(graph, longest, "the twin of the reference")
                for result in compare(graph, first, candidates, [(x, None)]).comparisons:
                    result.broken = result.broken.replace(str(other.path), "the twin")
                    yield _entry(title, "all inputs", result, counts=variant == "as_is")


def _on_known(subject: Subject, backends: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Networks whose spikes are known by hand, in every executor of NIR."""
    if subject.graph is None:
        return
    with scratch() as folder:
        for one in runtime_probes(subject.graph.dt):
            path = folder / f"{one.name.replace(' ', '_')}.nir"
            write_nir(one.graph, path)
            known = open_subject(path)
            for backend in executors(known, backends, known.timesteps or 1, False):
                try:
                    fired = backend(one.x).spikes
                    flips = sum(int((fired[name] != one.spikes[name]).sum()) for name in one.spikes)
                    reason = one.wrong if flips else "every spike is the same"
                except CannotCompare as error:
                    flips, reason = 0, str(error).replace(str(path), "the probe")
                    yield _entry("known by hand", one.name, None, reason, backend.name)
                    continue
                yield {
                    **_entry("known by hand", one.name, None, reason, backend.name),
                    "verdict": "E3" if flips else "E0",
                    "passed": not flips,
                    "flips": flips,
                }


def _twin_of(subject: Subject, variant: Variant, folder: Path) -> Subject:
    if subject.raw is None or subject.graph is None:
        if subject.model is None:
            raise ValueError("a subject has a graph or a model")
        return dataclasses.replace(subject, model=twin_onnx(subject.model, variant=variant))
    raw = twin(_dated(subject.raw, subject.graph), variant=variant)
    path = folder / f"{variant}.nir"
    write_nir(raw, path)
    graph = resolve(raw)
    return dataclasses.replace(subject, path=path, view=graph, raw=raw, graph=graph, model=None)


def _dated(raw: nir.NIRGraph, graph: Graph) -> nir.NIRGraph:
    """``raw`` with the time step that it is run with."""
    metadata = {"dt": graph.dt, **raw.metadata}
    return nir.NIRGraph(raw.nodes, raw.edges, metadata=metadata, type_check=False)


def _joined(parts: Sequence[Array], frames: bool) -> Array:
    """All samples in one batch, rounded so that their sums are exact."""
    return coarse(np.concatenate(parts, axis=1 if frames else 0))


def _frames(graph: Graph, x: Array) -> bool:
    return x.ndim == len(graph.input.output_shape) + 2


def _entry(
    network: str,
    probe: str,
    result: Comparison | None,
    reason: str = "",
    backend: str = "all",
    *,
    counts: bool = True,
) -> dict[str, Any]:
    """What was found; without a result, why nothing was."""
    entry: dict[str, Any] = {
        "network": network,
        "probe": probe,
        "backend": backend,
        "verdict": None,
        "passed": None,
        "flips": 0,
        "reason": reason,
        "diagnosis": [],
        "counts": False,
    }
    if result is None:
        return entry
    return entry | {
        "backend": result.name,
        "verdict": result.verdict,
        "passed": result.verdict in ("E0", "E1"),
        "flips": result.flips,
        "reason": result.reason(),
        "diagnosis": [
            {
                "layer": name,
                "rules": list(found.departures),
                "alternatives": [list(names) for names in found.alternatives],
                "text": found.text,
            }
            for name, found in result.diagnoses.items()
        ],
        "counts": counts,
    }
