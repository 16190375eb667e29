"""Where two runs first differ, and what surrounds it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser.deploy.backends import Trace
from tser.deploy.certificate import Audit, NotCertifiable
from tser.export.graph import Graph

Bools = NDArray[np.bool_]

NEIGHBOURS = 24
"""Neurons of the layer that are shown around the one that differs."""


def first_divergence(
    graph: Graph,
    flipped: dict[str, Bools],
    traces: tuple[Trace, Trace],
    audits: tuple[Audit, Audit] | None,
) -> dict[str, Any]:
    """The earliest flip of a batch by (sample, t, layer, neuron), and its surroundings.

    Args:
        graph: of the reference.
        flipped: where spikes differ, ``[T, B, ...]``, of layers in which some do.
        traces: reference and candidate.
        audits: of both, or None where nothing can be certified.

    Returns:
        ``sample`` counts from the start of the batch. ``window`` holds the spikes of neighbouring
        neurons in both runs, and the membranes of the neuron against its threshold, all ``[T]``.
    """
    order = {node.name: position for position, node in enumerate(graph.spiking)}
    found: list[tuple[int, int, int, str, tuple[int, ...]]] = []
    for name, flips in flipped.items():
        by_sample = np.moveaxis(flips, 1, 0)
        sample, t, *neuron = (int(i) for i in np.argwhere(by_sample)[0])
        found.append((sample, t, order[name], name, tuple(neuron)))
    sample, t, _, name, place = min(found)
    index = (t, sample, *place)
    result: dict[str, Any] = {
        "sample": sample,
        "t": t,
        "layer": name,
        "neuron": list(place),
        "reference": bool(traces[0].spikes[name][index]),
        "v_minus_threshold": None,
        "bound": None,
        "window": _raster(name, traces, sample, place),
    }
    if audits is None:
        return result
    node = graph.nodes[name]
    try:
        margins = audits[0].margins(node)
        threshold = float(np.broadcast_to(node.op.v_threshold, node.output_shape)[place])
        reference, candidate = (audit.margins(node).value[:, sample] for audit in audits)
        result["window"] |= {
            "threshold": threshold,
            "membrane_reference": [_finite(v[place]) + threshold for v in reference],
            "membrane_candidate": [_finite(v[place]) + threshold for v in candidate],
        }
    except NotCertifiable:
        return result
    result["v_minus_threshold"] = _finite(margins.value[index])
    result["bound"] = _finite(margins.error[index])
    return result


def _finite(value: float) -> float:
    """JSON has no infinity."""
    return float(np.clip(np.nan_to_num(value), -np.finfo(np.float32).max, np.finfo(np.float32).max))


def _raster(
    name: str, traces: tuple[Trace, Trace], sample: int, place: tuple[int, ...]
) -> dict[str, Any]:
    """Spikes of the neurons around ``place``, by their position in the flattened layer."""
    spikes = [trace.spikes[name][:, sample].reshape(len(trace.logits), -1) for trace in traces]
    shape = traces[0].spikes[name].shape[2:]
    centre = int(np.ravel_multi_index(place, shape)) if shape else 0
    count = spikes[0].shape[1]
    first = max(0, min(centre - NEIGHBOURS // 2, count - NEIGHBOURS))
    shown = range(first, min(count, first + NEIGHBOURS))
    reference, candidate = (
        part[:, shown.start : shown.stop].T.astype(int).tolist() for part in spikes
    )
    return {
        "first_neuron": first,
        "position": centre - first,
        "reference": reference,
        "candidate": candidate,
    }
