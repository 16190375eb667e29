"""Random small NIR graphs of every class, whose numbers are dyadic: short sums are exact."""

from typing import Any

import nir
import numpy as np

from tests.graphs import DT, Array, conv, dyadic, flatten, network, pool
from tser.export.shapes import SHAPE_RULES, Shape

Rng = np.random.Generator
NEURONS = (nir.I, nir.IF, nir.LI, nir.LIF, nir.CubaLI, nir.CubaLIF)
_RANGES: dict[str, tuple[float, ...]] = {
    "tau": (DT, 2 * DT),
    "tau_syn": (DT, 2 * DT),
    "tau_mem": (DT, 2 * DT),
    "v_leak": (0, 0, -0.25, 0.5),
    "v_threshold": (0.25, 0.5, 0.5, 1),
    "v_reset": (0, 0, -0.5, 0.25),
    "w_in": (1, 2),
}
_PARAMETERS: dict[type, tuple[str, ...]] = {
    nir.I: ("r",),
    nir.IF: ("r", "v_threshold", "v_reset"),
    nir.LI: ("tau", "r", "v_leak"),
    nir.LIF: ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    nir.CubaLI: ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
    nir.CubaLIF: ("tau_syn", "tau_mem", "r", "v_leak", "w_in", "v_threshold", "v_reset"),
}


def neuron(rng: Rng, kind: type, shape: Shape) -> Any:
    """A layer of neurons; each parameter is one for all of them, or one for each."""
    values = {}
    for name in _PARAMETERS[kind]:
        choices = _RANGES.get(name, (1, 2))
        if name == "r" and kind in (nir.I, nir.IF):
            choices = (0.5 / DT, 1 / DT)  # without tau, r is a rate
        value = rng.choice(choices, shape if rng.random() < 0.5 else ())
        values[name] = np.broadcast_to(value, shape).astype(np.float32)
    return kind(**values)


def _candidates(rng: Rng, shape: Shape) -> list[Any]:
    """One node of every class that takes ``shape``."""
    outputs = int(rng.integers(2, 4))
    weight = dyadic(rng, (outputs, shape[-1]), bits=1)
    found = [neuron(rng, kind, shape) for kind in NEURONS]
    found += [nir.Affine(weight, dyadic(rng, outputs, bits=1)), nir.Linear(weight)]
    found += [nir.Scale(dyadic(rng, shape, bits=1) + np.float32(0.5))]
    found += [nir.Threshold(dyadic(rng, shape, bits=2))]
    found += [nir.Delay((rng.integers(0, 3, shape) * DT).astype(np.float32))]
    if len(shape) > 1:
        found.append(flatten(len(shape)))
    if len(shape) == 2:
        taps = dyadic(rng, (2, shape[0], int(rng.integers(1, 4))), bits=1)
        stride, padding = (int(rng.integers(1, high)) for high in (3, 2))
        found.append(nir.Conv1d(None, taps, stride, padding, 1, 1, dyadic(rng, 2, bits=1)))
    if len(shape) == 3:
        groups = 2 if shape[0] % 2 == 0 and rng.random() < 0.5 else 1
        taps = dyadic(rng, (2, shape[0] // groups, *rng.integers(1, 4, 2)), bits=1)
        options = {"stride": int(rng.integers(1, 3)), "padding": int(rng.integers(0, 2))}
        found.append(conv(taps, None, groups=groups, bias=dyadic(rng, 2, bits=1), **options))
        for kind in (nir.SumPool2d, nir.AvgPool2d):
            found.append(pool(kind, tuple(rng.choice([1, 2], 2)), padding=int(rng.integers(0, 2))))
    return [op for op in found if _fits(op, shape)]


def _fits(op: Any, shape: Shape) -> bool:
    try:
        return len(SHAPE_RULES[type(op)](op, shape)) > 0
    except ValueError:
        return False


def random_graph(seed: int) -> tuple[nir.NIRGraph, nir.NIRGraph, Array]:
    """A graph, the same one with some of its nodes in nested graphs, and an input.

    A chain of one to five nodes; some are skipped by a second edge, and some neurons feed
    themselves, at once, through weights or through a delay.

    Returns:
        The flat graph, the nested one, and ``[T, B, *input_shape]``.
    """
    rng = np.random.default_rng(seed)
    shape: Shape = [(3,), (2, 4), (2, 4, 4)][int(rng.integers(3))]
    given, source = shape, "input"
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    shapes: dict[str, Shape] = {}
    for number in range(int(rng.integers(1, 6))):
        candidates = _candidates(rng, shape)
        if number % 2 and rng.random() < 0.5:  # spikes keep the numbers short
            candidates = [op for op in candidates if hasattr(op, "v_threshold")]
        op, name = candidates[int(rng.integers(len(candidates)))], f"n{number}"
        nodes[name] = op
        edges.append((source, name))
        before, shape = shape, SHAPE_RULES[type(op)](op, shape)
        shapes[name] = before
        if hasattr(op, "v_threshold") and rng.random() < 0.5:
            edges += _loop(rng, name, shape, nodes)
        if shape == before and rng.random() < 0.3:
            nodes[f"skip{number}"] = nir.Scale(np.ones(shape, np.float32))
            nodes[f"sum{number}"] = nir.Scale(np.full(shape, 0.5, np.float32))
            edges += [(source, f"skip{number}"), (name, f"sum{number}")]
            edges.append((f"skip{number}", f"sum{number}"))
            name = f"sum{number}"
        source = name
    edges.append((source, "output"))
    flat = network(given, nodes, edges, shape)
    wrapped = {name: _nested(rng, op, shapes.get(name)) for name, op in nodes.items()}
    nested = network(given, wrapped, edges, shape)
    steps, batch = int(rng.integers(1, 5)), int(rng.integers(1, 3))
    return flat, nested, dyadic(rng, (steps, batch, *given), bits=1, most=2)


def _loop(rng: Rng, name: str, shape: Shape, nodes: dict[str, Any]) -> list[tuple[str, str]]:
    """An edge from a neuron to itself, through nothing, a weight or a delay."""
    via: Any = [
        None,
        nir.Scale(dyadic(rng, shape, bits=1)),
        nir.Linear(dyadic(rng, (shape[-1], shape[-1]), bits=1)),
        nir.Delay((rng.integers(1, 3, shape) * DT).astype(np.float32)),
    ][int(rng.integers(4))]
    if via is None:
        return [(name, name)]
    nodes[f"{name}back"] = via
    return [(name, f"{name}back"), (f"{name}back", name)]


def _nested(rng: Rng, op: Any, shape: Shape | None) -> Any:
    """A graph that holds nothing but ``op``, or ``op`` itself."""
    if shape is None or rng.random() < 0.5:
        return op
    after = SHAPE_RULES[type(op)](op, shape)
    return network(shape, {"inner": op}, [("input", "inner"), ("inner", "output")], after)
