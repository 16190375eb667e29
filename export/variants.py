"""The same network written another way: other units of time or gain, for other tools to read.

A NIR file has two conventions for the gain of a leaky neuron, ``tau v' = v_leak - v + r i``:
physical (r = 1; Norse, SpikingJelly) and unit (r = tau / dt with weights smaller by dt / tau;
snnTorch, Spyx, snn-mlir). And a network of discrete steps is the same network with another dt once
its time constants are as many steps long; some readers take a dt of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from tser.errors import UsageError
from tser.export.graph import LEAST_DT, MOST_DT, NEURONS, WEIGHTED, decay
from tser.export.norse_cells import time_constant

Gain = Literal["physical", "unit"]
Array = NDArray[Any]
_LEAKY = (nir.LIF, nir.LI, nir.CubaLIF, nir.CubaLI)
_CURRENT_BASED = (nir.CubaLIF, nir.CubaLI)


@dataclass(frozen=True)
class Variant:
    """How a graph is written.

    Attributes:
        gain: convention of r.
        dt: time step [s] to write it for; None: the network's own.
    """

    gain: Gain = "physical"
    dt: float | None = None


def stated_variant(metadata: dict[str, Any]) -> Variant:
    """The variant that a file of ours says it is."""
    dt = metadata.get("dt") if "dt_before" in metadata else None
    return Variant("unit" if metadata.get("gain") == "unit" else "physical", dt)


def vary(graph: nir.NIRGraph, variant: Variant) -> nir.NIRGraph:
    """``graph`` written as ``variant`` says; the graph itself stays as it is.

    Where the new numbers are no float32, spikes may differ where they are ties; at the usual
    dt / tau = 1/2 they are exact.

    Args:
        graph: with its dt in the metadata, r = 1.
        variant: what to make of it.

    Raises:
        UsageError: dt is no positive number, or the graph has no neurons and so no dt.
    """
    if variant == Variant():
        return graph
    if "dt" not in graph.metadata:
        raise UsageError("the network has no neurons, so it has neither a dt nor a gain to change")
    before = float(graph.metadata["dt"])
    after = before if variant.dt is None else variant.dt
    if not LEAST_DT < after < MOST_DT:
        raise UsageError(f"--dt must be a positive number of seconds, got {after!r}")
    nodes = {name: copy.copy(op) for name, op in graph.nodes.items()}
    edges, metadata = list(graph.edges), dict(graph.metadata)
    if variant.dt is not None:
        metadata |= {"dt": after, "dt_before": before}
        for op in nodes.values():
            _rescale_time(op, before, after)
    if variant.gain == "unit":
        metadata["gain"] = "unit"
        for name in list(nodes):
            if isinstance(nodes[name], _LEAKY):
                edges = _unit_gain(name, nodes, edges, after)
    return nir.NIRGraph(nodes, edges, metadata=metadata, type_check=False)


def _rescale_time(op: Any, before: float, after: float) -> None:
    """The same numbers per step at another dt."""
    for name in ("tau", "tau_mem", "tau_syn"):
        if hasattr(op, name):
            factor = decay(before, getattr(op, name)).astype(np.float32)
            tau = _nearest(time_constant(factor, after), lambda t: decay(after, t), factor)
            if name == "tau_syn":
                gain = (decay(before, op.tau_syn) * op.w_in).astype(np.float32)
                rate = decay(after, tau)
                op.w_in = _nearest(op.w_in, lambda w, rate=rate: rate * w, gain)  # type: ignore[misc]
            setattr(op, name, tau)
    if isinstance(op, nir.IF | nir.I):
        gain = (before * np.asarray(op.r, np.float64)).astype(np.float32)
        op.r = _nearest(gain / np.float64(after), lambda r: after * np.asarray(r, np.float64), gain)
    if isinstance(op, nir.Delay):
        op.delay = (np.asarray(op.delay, np.float64) * (after / before)).astype(np.float32)


def _nearest(array: Array, effect: Callable[[Array], Array], wanted: Array) -> Array:
    """``array`` moved by at most one float32 to where its ``effect`` is ``wanted``, if anywhere."""
    start = np.asarray(array, np.float32)
    best = start
    for candidate in (np.nextafter(start, np.inf), np.nextafter(start, -np.inf), start):
        value = np.asarray(candidate, np.float32)
        best = np.where(effect(value).astype(np.float32) == wanted, value, best)
    return np.asarray(best, np.float32)


def _unit_gain(
    name: str, nodes: dict[str, Any], edges: list[tuple[str, str]], dt: float
) -> list[tuple[str, str]]:
    """Give the neurons ``name`` r / (dt / tau), and what arrives there dt / tau; the new edges."""
    op = nodes[name]
    rate = decay(dt, op.tau_mem if isinstance(op, _CURRENT_BASED) else op.tau).astype(np.float32)
    before = np.asarray(op.r, np.float32)
    op.r = _nearest(before / rate, lambda r: rate.astype(np.float64) * r, before)
    result = []
    for source, target in edges:
        if target != name:
            result.append((source, target))
            continue
        only = sum(start == source for start, _ in edges) == 1
        weighted = isinstance(nodes[source], WEIGHTED)
        if weighted and only and (rate == rate.flat[0]).all():
            _scale_weights(nodes[source], rate.flat[0])
            result.append((source, target))
        else:
            between = f"{name}_gain_{source}"
            nodes[between] = nir.Scale(scale=np.array(rate))
            result += [(source, between), (between, target)]
    return result


def _scale_weights(op: Any, factor: np.float32) -> None:
    op.weight = np.asarray(op.weight * factor, np.float32)
    if getattr(op, "bias", None) is not None:
        op.bias = np.asarray(op.bias * factor, np.float32)


def without_reset(graph: nir.NIRGraph) -> list[str]:
    """Nodes whose ``v_reset`` may be left out of a file, because it is what readers assume.

    Raises:
        UsageError: a layer that resets to something else than 0.
    """
    found = []
    for name, op in graph.nodes.items():
        if isinstance(op, NEURONS) and getattr(op, "v_reset", None) is not None:
            if np.any(op.v_reset):
                raise UsageError(
                    f"layer {name!r} resets to another value than 0, which a file of --compat "
                    "cannot say; leave out --compat"
                )
            found.append(name)
    return found
