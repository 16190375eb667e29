r"""The dyadic twin of a network: the same one with numbers whose sums float32 adds exactly.

Weights become multiples of a small power of two, a step of the membrane takes a power of two of
it, thresholds and resets are coarse. Every correct program then gives the same spikes to the last
bit, whatever the order of its sums, and membranes often meet the threshold exactly: any
difference is a mistake and not rounding.

Sums are exact as long as they have at most 24 bits: an input of :math:`2^{-1}`, weights of
:math:`2^{-6}` and T steps of dt / tau = 1/2 make :math:`7 + T`, and the size of the sum takes the
rest. So feed it inputs of `coarse`; behind an average pool whose area is no power of two they are
not exact. ``certificate`` finds out by itself: its bound is 0 where they are.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, Literal, get_args

import nir
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tser.errors import UsageError
from tser.export.graph import NEURONS, WEIGHTED, Graph, decay, resolve
from tser.export.onnx_external import copy_of
from tser.export.onnx_file import model_metadata

Variant = Literal["as_is", "v_reset", "v_reset_below", "v_leak"]
"""What is changed beside the rounding; the last three move by a quarter of the threshold."""
GRID = 2.0**-6
"""Of weights and biases."""
COARSE = 2.0**-3
"""Of thresholds, resets and leaks."""
MOST_LEAK = 2
"""dt / tau is at least 2 to minus this, since every step adds so many bits to the membrane."""
Array = NDArray[Any]


def coarse(x: Array, step: float = 0.5, most: float = 4.0) -> NDArray[np.float32]:
    """Inputs rounded to multiples of ``step`` from ``-most`` to ``most``."""
    return np.asarray(np.clip(np.round(x / step) * step, -most, most), np.float32)


def twin(graph: nir.NIRGraph, grid: float = GRID, variant: Variant = "as_is") -> nir.NIRGraph:
    """The dyadic twin of a graph, of the same nodes and edges.

    Args:
        graph: with its dt in the metadata; it stays as it is.
        grid: weights and biases become its multiples, of which not all are 0; a power of two.
        variant: "as_is", or `v_reset` moved up or down, or `v_leak` moved up, by a quarter of the
            threshold, where they matter and are often forgotten.

    Raises:
        UsageError: ``grid`` is no power of two, the variant moves what no layer has, or the graph
            states no dt.
        InputFileError: the graph contradicts itself.
    """
    _check(grid, variant)
    view = resolve(graph)
    if variant == "v_leak" and not any(hasattr(node.op, "v_leak") for node in view.nodes.values()):
        raise UsageError("no layer of the graph has a v_leak to move")
    if variant.startswith("v_reset") and not view.spiking:
        raise UsageError("no layer of the graph has a v_reset to move")
    metadata = {key: value for key, value in graph.metadata.items() if key != "sha256"}
    rounded = _rounded_graph(graph, view, grid, variant)
    return nir.NIRGraph(rounded.nodes, rounded.edges, metadata=metadata, type_check=False)


def _check(grid: float, variant: str) -> None:
    if not (grid > 0 and np.isfinite(grid) and np.frexp(grid)[0] == 0.5):
        raise UsageError(f"the grid of a twin must be a power of two, got {grid!r}")
    if variant not in get_args(Variant):
        raise UsageError(
            f"{variant!r} is not a variant of a twin; use {', '.join(get_args(Variant))}"
        )


def _rounded_graph(graph: nir.NIRGraph, view: Graph, grid: float, variant: Variant) -> nir.NIRGraph:
    nodes = {}
    for name, op in graph.nodes.items():
        if isinstance(op, nir.NIRGraph):
            nodes[name] = _rounded_graph(op, view, grid, variant)
        else:
            nodes[name] = _rounded_node(op, view.dt, grid, variant)
    return nir.NIRGraph(nodes, list(graph.edges), metadata=graph.metadata, type_check=False)


def _rounded_node(op: Any, dt: float, grid: float, variant: Variant) -> Any:
    op = copy.copy(op)
    if isinstance(op, WEIGHTED):
        op.weight = _on_grid(op.weight, grid)
        if getattr(op, "bias", None) is not None:
            op.bias = _on_grid(op.bias, grid)
    elif isinstance(op, nir.Scale):
        op.scale = _power(op.scale)
    elif isinstance(op, nir.Threshold):
        op.threshold = _coarse(op.threshold)
    elif isinstance(op, NEURONS):
        _round_neurons(op, dt, variant)
    return op


def _round_neurons(op: Any, dt: float, variant: Variant) -> None:
    if isinstance(op, nir.CubaLIF | nir.CubaLI):
        gain = _power(decay(dt, op.tau_syn) * np.asarray(op.w_in, np.float64))
        rate = _rate(decay(dt, op.tau_syn))
        op.w_in = np.asarray(gain / np.where(rate > 0, rate, 1), np.float32)
    if isinstance(op, nir.IF | nir.I):
        op.r = _inverse(_power(np.float64(dt) * np.asarray(op.r, np.float64)), dt)
    else:
        op.r = _power(op.r)
    step = np.float64(np.float32(dt))
    for name in ("tau", "tau_mem", "tau_syn"):
        if hasattr(op, name):
            rate = _rate(decay(dt, getattr(op, name))).astype(np.float64)
            with np.errstate(divide="ignore"):
                setattr(op, name, np.asarray(step / rate, np.float32))
    fires = hasattr(op, "v_threshold")
    if fires:
        op.v_threshold = _limit(op.v_threshold)
        op.v_reset = _moved(_coarse(op.v_reset), op.v_threshold, variant, "v_reset")
    if hasattr(op, "v_leak"):
        limit = op.v_threshold if fires else np.ones_like(op.v_leak)
        op.v_leak = _moved(_coarse(op.v_leak), limit, variant, "v_leak")


def _on_grid(values: Any, grid: float) -> Array:
    """Multiples of ``grid``; where all would be 0, the largest stay one step away from it."""
    values = np.asarray(values, np.float32)
    rounded = np.round(values / np.float32(grid)) * np.float32(grid)
    if values.any() and not rounded.any():
        largest = np.abs(values) == np.abs(values).max()
        rounded = np.where(largest, np.sign(values) * np.float32(grid), rounded)
    return np.asarray(rounded + 0.0, np.float32)


def _power(values: Any) -> Array:
    """The nearest power of two, of the same sign; 0 stays 0."""
    values = np.asarray(values, np.float32)
    sizes = np.where(values == 0, np.float32(1), np.abs(values))
    nearest = np.exp2(np.round(np.log2(sizes.astype(np.float64))))
    return np.asarray(np.where(values == 0, 0, np.sign(values) * nearest), np.float32)


def _rate(values: Any) -> Array:
    """The leak a step as a power of two, at most 1 and not too small; 0, which is none, stays."""
    rates = _power(values)
    return np.where(rates > 0, np.clip(rates, 2.0**-MOST_LEAK, 1), rates).astype(np.float32)


def _coarse(values: Any) -> Array:
    values = np.asarray(values, np.float32)
    finite = np.where(np.isfinite(values), values, 0)
    rounded = np.round(finite / np.float32(COARSE)) * np.float32(COARSE) + np.float32(0)
    return np.asarray(np.where(np.isfinite(values), rounded, values), np.float32)


def _limit(values: Any) -> Array:
    """Thresholds: coarse, and not 0 where they were not."""
    values, rounded = np.asarray(values, np.float32), _coarse(values)
    least = np.sign(values) * np.float32(COARSE)
    return np.asarray(np.where(rounded == 0, least, rounded), np.float32)


def _moved(values: Array, limit: Array, variant: Variant, name: str) -> Array:
    if not variant.startswith(name):
        return values
    quarter = np.where(np.isfinite(limit), np.asarray(limit, np.float32) / 4, 0.25)
    moved = values - quarter if variant.endswith("below") else values + quarter
    return np.asarray(moved, np.float32)


def _inverse(gain: Array, dt: float) -> Array:
    """The r with ``dt r == gain`` exactly, in float64; a float32 has none for most dt."""
    wanted = gain.astype(np.float64)
    best = start = wanted / np.float64(dt)
    for candidate in (np.nextafter(start, np.inf), np.nextafter(start, -np.inf), start):
        best = np.where(np.float64(dt) * candidate == wanted, candidate, best)
    return np.asarray(best, np.float64)


_Rounding = Callable[[Array], Array]


def twin_onnx(
    model: onnx.ModelProto, grid: float = GRID, variant: Variant = "as_is"
) -> onnx.ModelProto:
    """The dyadic twin of a model that tser compiled: what `compile_onnx` makes of `twin`.

    Args:
        model: in any form, weights of float32; it stays as it is.
        grid: see `twin`.
        variant: see `twin`.

    Raises:
        UsageError: a model of another tool, or one of float16 weights, or a variant that moves
            what the model does not hold: a reset to 0 and a leak to 0 are no numbers in it.
    """
    _check(grid, variant)
    stated = model_metadata(model)
    if model.producer_name != "tser" or "layers" not in stated:
        raise UsageError("a dyadic twin of an ONNX model needs one that tser exported")
    if stated.get("weights") == "float16":
        raise UsageError("a dyadic twin needs weights of float32; export without --weights float16")
    made = copy_of(model)
    graphs = _graphs(made.graph)
    tensors = [(graph, t) for graph in graphs for t in graph.initializer]
    known = {tensor.name: numpy_helper.to_array(tensor) for _, tensor in tensors}
    moved = "" if variant == "as_is" else variant.removesuffix("_below")
    if moved:
        _check_movable(known, list(json.loads(stated["layers"])), moved)
    limits = _limits(graphs, known)
    for _, tensor in tensors:
        values = _rounded_tensor(tensor.name, known[tensor.name], known, limits, grid, variant)
        if values is not None:
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in (node for graph in graphs for node in graph.node):
        for attribute in node.attribute if node.op_type == "ThresholdedRelu" else ():
            attribute.f = float(_limit(attribute.f))
    if "states" in stated:
        _round_states(made, stated["states"], limits, variant)
    return made


def _graphs(graph: Any) -> list[Any]:
    """A graph and the bodies of its loops."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _graphs(attribute.g)
    return found


def _limits(graphs: list[Any], known: dict[str, Array]) -> dict[str, Array]:
    """The thresholds of the twin, by NIR node."""
    ending = ".v_threshold"
    return {
        name.removesuffix(ending): _limit(value)
        for name, value in known.items()
        if name.endswith(ending)
    }


def _check_movable(known: dict[str, Array], layers: list[str], moved: str) -> None:
    def having(*keys: str) -> set[str]:
        return {name.rpartition(".")[0] for name in known if name.rpartition(".")[2] in keys}

    # An IF has a gain and none of the others; it has no v_leak either.
    integrating = having("gain") - having("rate", "membrane", "synapse")
    leaky = {*layers, *having("rate", "membrane", "synapse")} - integrating
    needed = sorted(leaky) if moved == "v_leak" else layers
    missing = [name for name in needed if f"{name}.{moved}" not in known]
    if missing or not needed:
        which = f"layer {missing[0]!r}" if missing else "the model"
        raise UsageError(
            f"{which} of the ONNX model holds no {moved} to move, since it is 0; compile the twin "
            "of its NIR graph instead"
        )


def _rounded_tensor(
    name: str,
    values: Array,
    known: dict[str, Array],
    limits: dict[str, Array],
    grid: float,
    variant: Variant,
) -> Array | None:
    """One constant of the twin; None where it stays."""
    node, _, key = name.rpartition(".")
    if values.dtype != np.float32:
        return None
    simple: dict[str, _Rounding] = {
        "weight": lambda v: _on_grid(v, grid),
        "bias": lambda v: _on_grid(v, grid),
        "scale": _power,
        "threshold": _coarse,
        "r": _power,
        "gain": _power,
        "rate": _rate,
        "membrane": _rate,
        "synapse": _rate,
        "v_threshold": _limit,
    }
    if key in simple:
        return simple[key](values)
    limit = limits.get(node, np.ones((), np.float32))
    if key in ("v_reset", "v_leak"):
        return _moved(_coarse(values), limit, variant, key)
    if key == "initial" and node.endswith(".v"):
        layer = node.removesuffix(".v")
        limit = limits.get(layer, np.ones((), np.float32))
        moves = f"{layer}.v_leak" in known
        return _moved(_coarse(values), limit, variant if moves else "as_is", "v_leak")
    return None


def _round_states(
    model: onnx.ModelProto, text: str, limits: dict[str, Array], variant: Variant
) -> None:
    """The initial membranes that the metadata of a step state."""
    states = json.loads(text)
    for state in states:
        layer, _, key = str(state["input"]).rpartition(".")
        if key == "v" and np.any(state["initial"]):
            limit = limits.get(layer, np.ones((), np.float32))
            state["initial"] = _moved(_coarse(state["initial"]), limit, variant, "v_leak").tolist()
    for prop in model.metadata_props:
        if prop.key == "states":
            prop.value = json.dumps(states)
