"""What the certificate forgives is rounding, and what is more than rounding it never forgives.

Random small networks whose thresholds are membranes that they reach to a rounding are run by two
programs that differ in nothing but the order in which they add: every flip must be certified. The
same networks with a real change must not be.

``TSER_SOUNDNESS_NETS`` sets how many networks are drawn, and ``TSER_SOUNDNESS_REPORT`` names a file
for what was counted.
"""

import copy
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.graphs import Array, conv, flatten, inside, network, pool, taps
from tser.deploy.backends import Trace
from tser.deploy.equivalence import compare
from tser.export.graph import Graph, Node, decay, resolve

NETS = int(os.environ.get("TSER_SOUNDNESS_NETS", "1000"))
CHANGED = max(NETS // 5, 100)
DT, STEPS, BATCH, WIDE = 1e-3, 4, 3, 12
NEURONS = ("LIF", "IF", "CubaLIF")
KINDS = ("dense", "deep", "residual", "conv", "pooled", "recurrent")
CLEAR = 1e-3
"""How far from the threshold a membrane is that no float32 sum of these sizes can get wrong."""


# --- programs that differ in the order of their sums ---------------------------------------


@dataclass(frozen=True)
class Forced:
    """Recorded spikes: what is read downstream, and what resets each membrane.

    Attributes:
        spikes: by layer, ``[T, B, ...]``.
        states: membranes before each step, likewise; empty: they go on from their own past.
        resets: whether the spikes reset their own layer too.
    """

    spikes: Mapping[str, Array]
    states: Mapping[str, Array]
    resets: bool = False


@dataclass
class Program:
    """A network written out, in float32 or float64, with sums in an order of its own.

    Attributes:
        graph: of what is executed.
        order: seeds the order of every sum.
        dtype: of everything.
        subtract: a layer with a reset by subtraction, or "".
    """

    graph: Graph
    order: int = 0
    dtype: type[np.floating] = np.float32
    subtract: str = ""
    name: str = "program"
    source: str = "written out"

    def __call__(self, x: Array) -> Trace:
        spikes, _, logits = self.run(x)
        return Trace(logits, spikes)

    def replay(
        self, x: Array, spikes: dict[str, Array], states: dict[str, Array] | None = None
    ) -> dict[str, Array]:
        return self.run(x, Forced(spikes, states or {}))[0]

    def run(
        self, x: Array, forced: Forced | None = None
    ) -> tuple[dict[str, Array], dict[str, Array], Array]:
        """Spikes and membranes of every layer, and the logits, ``[T, B, ...]`` each."""
        rng = np.random.default_rng(self.order)
        frames = x if x.ndim == len(self.graph.input.output_shape) + 2 else [x] * STEPS
        sums = {node.name: _Sum(node, rng, self.dtype) for node in self.graph.nodes.values()}
        layers = {n.name: _Layer(n, self) for n in self.graph.spiking}
        last: dict[str, Array] = {}
        logits = []
        for t, frame in enumerate(frames):
            values: dict[str, Array] = {}
            for node in self.graph.nodes.values():
                if isinstance(node.op, nir.Input):
                    values[node.name] = np.asarray(frame, self.dtype)
                    continue
                silence = np.zeros((len(frames[0]), *node.input_shape), self.dtype)
                parts = [
                    last.get(e.source, silence) if e.delayed else values[e.source]
                    for e in node.inputs
                ]
                total = sums[node.name].edges(parts)
                if node.name in layers:
                    values[node.name] = layers[node.name].step(t, total, forced)
                else:
                    values[node.name] = sums[node.name].output(total)
            last = values
            logits.append(values[self.graph.output.name])
        spikes = {name: np.stack(layer.fired) for name, layer in layers.items()}
        membranes = {name: np.stack(layer.compared) for name, layer in layers.items()}
        return spikes, membranes, np.stack(logits)


class _Sum:
    """Everything that one node adds, in an order that stays the same over time."""

    def __init__(self, node: Node, rng: np.random.Generator, dtype: type[np.floating]) -> None:
        self.node, self.dtype, self._order = node, dtype, rng.permutation(len(node.inputs))
        matrix = _matrix(node)
        self._weights = None if matrix is None else matrix.astype(dtype)
        if matrix is not None:
            self._places = rng.permuted(np.broadcast_to(np.arange(matrix.shape[1]), matrix.shape),
                                        axis=1)  # fmt: skip
            inner = np.arange(1, matrix.shape[1])
            cuts = rng.choice(inner, rng.integers(0, min(4, len(inner)) + 1), replace=False)
            self._blocks = np.concatenate([[0], np.sort(cuts)]).astype(int)

    def edges(self, parts: list[Array]) -> Array:
        """The sum of what arrives by several edges."""
        total = parts[self._order[0]]
        for place in self._order[1:]:
            total = total + parts[place]
        return total

    def output(self, x: Array) -> Array:
        """What a stateless node makes of ``[B, ...]``."""
        shape = (len(x), *self.node.output_shape)
        if self._weights is None:
            return x.reshape(shape)
        one = np.ones((len(x), 1), self.dtype)  # of the bias
        flat = np.concatenate([x.reshape(len(x), -1), one], axis=1)
        products = flat[:, None] * self._weights
        shuffled = np.take_along_axis(products, self._places[None], axis=2)
        total = np.add.accumulate(np.add.reduceat(shuffled, self._blocks, axis=2), axis=2)[..., -1]
        if isinstance(self.node.op, nir.AvgPool2d):
            total = total / self.dtype(np.prod(self.node.op.kernel_size))
        return np.asarray(total, self.dtype).reshape(shape)


def _matrix(node: Node) -> Array | None:
    """Weights and, in the last column, the bias of a node that adds; ``[out, in + 1]``."""
    op, shape = node.op, node.input_shape
    if isinstance(op, nir.AvgPool2d):
        return _pooling(node)
    if not isinstance(op, nir.Affine | nir.Linear | nir.Conv2d):
        return None
    if not isinstance(op, nir.Conv2d):
        bias = getattr(op, "bias", np.zeros(len(op.weight)))
        return np.concatenate([op.weight, bias[:, None]], axis=1)
    matrix = np.zeros((int(np.prod(node.output_shape)), int(np.prod(shape)) + 1))
    for source, target, weight in taps(op, shape):
        if inside(source, shape):
            row = np.ravel_multi_index(target, node.output_shape)
            matrix[row, np.ravel_multi_index(source, shape)] = weight
    matrix[:, -1] = np.repeat(op.bias, len(matrix) // len(op.bias))
    return matrix


def _pooling(node: Node) -> Array:
    (channels, height, width), (kh, kw) = node.input_shape, map(int, node.op.kernel_size)
    source = np.arange(channels * height * width).reshape(node.input_shape)
    windows = source.reshape(channels, height // kh, kh, width // kw, kw).transpose(0, 1, 3, 2, 4)
    rows = windows.reshape(-1, kh * kw)
    matrix = np.zeros((len(rows), source.size + 1))
    np.put_along_axis(matrix, rows, 1.0, axis=1)
    return matrix


class _Layer:
    """The neurons of one layer."""

    def __init__(self, node: Node, program: Program) -> None:
        op, dtype = node.op, program.dtype
        self.node, self.subtract = node, program.subtract == node.name
        if isinstance(op, nir.IF):
            self.rate, self.gain = dtype(0), (DT * op.r.astype(np.float64)).astype(dtype)
        elif isinstance(op, nir.LIF):
            self.rate = decay(program.graph.dt, op.tau).astype(dtype)
        else:
            self.rate = decay(program.graph.dt, op.tau_mem).astype(dtype)
            self.forget = decay(program.graph.dt, op.tau_syn).astype(dtype)
            self.gain = (decay(program.graph.dt, op.tau_syn) * op.w_in).astype(dtype)
        names = ("v_threshold", "v_reset", "v_leak", "r")
        self.p = {key: np.asarray(getattr(op, key, 0), dtype) for key in names}
        self.v: Array = np.broadcast_to(self.p["v_leak"], node.output_shape)
        self.i: Array = np.zeros((), dtype)
        self.fired: list[Array] = []
        self.compared: list[Array] = []

    def step(self, t: int, x: Array, forced: Forced | None) -> Array:
        name, p = self.node.name, self.p
        if forced and name in forced.states:
            self.v = forced.states[name][t].astype(x.dtype)
        if isinstance(self.node.op, nir.IF):
            v = self.v + self.gain * x
        elif isinstance(self.node.op, nir.LIF):
            v = self.v + self.rate * ((p["r"] * x + p["v_leak"]) - self.v)
        else:
            self.i = self.i + self.gain * x
            v = self.v + self.rate * ((p["v_leak"] - self.v) + p["r"] * self.i)
            self.i = self.i - self.forget * self.i
        fired = v > p["v_threshold"]
        self.compared.append(v)
        self.fired.append(fired)
        resets = forced.spikes[name][t] if forced and forced.resets else fired
        self.v = np.where(resets, v - p["v_threshold"] if self.subtract else p["v_reset"], v)
        read = forced.spikes[name][t] if forced else fired
        return np.asarray(read, x.dtype)


# --- networks near ties --------------------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """A drawn network with inputs.

    Attributes:
        raw: the NIR graph.
        x: ``[B, ...]`` or ``[T, B, ...]``.
        orders: of the sums of two programs.
    """

    raw: nir.NIRGraph
    x: Array
    orders: tuple[int, int]


SEEDS = st.integers(0, 2**32 - 1)
KINDS_OF_NEURONS = st.tuples(*[st.sampled_from(NEURONS)] * 3)


def _net(seed: int, kind: str, neurons: tuple[str, ...], frames: bool) -> Net:
    """A network with weights that are nowhere dyadic; ``neurons`` of the second and third layer
    are left over where it has fewer."""
    rng = np.random.default_rng(seed)
    raw = _ARCHITECTURES[kind](rng, neurons if kind == "deep" else neurons[:2])
    shape = resolve(raw).input.output_shape
    x = rng.normal(size=(*((STEPS,) if frames else ()), BATCH, *shape)).astype(np.float32)
    first, second = (int(order) for order in rng.integers(0, 2**32, 2))
    return Net(_near_ties(raw, x, rng), x, (first, second))


def _affine(rng: np.random.Generator, outputs: int, inputs: int) -> nir.Affine:
    weight = rng.normal(0, 2 / inputs**0.5, (outputs, inputs)).astype(np.float32)
    return nir.Affine(weight, rng.normal(0.5, 0.3, outputs).astype(np.float32))


def _neurons(rng: np.random.Generator, kind: str, shape: Any) -> Any:
    def drawn(low: float, high: float) -> Array:
        return rng.uniform(low, high, shape).astype(np.float32)

    common = {"v_threshold": drawn(0.4, 0.6), "v_reset": drawn(-0.2, 0.1)}
    if kind == "IF":
        return nir.IF(r=drawn(0.7, 1.3) / np.float32(DT), **common)
    leaky = {"r": drawn(0.7, 1.3), "v_leak": drawn(-0.1, 0.1), **common}
    if kind == "LIF":
        return nir.LIF(tau=drawn(1.1e-3, 5e-3), **leaky)
    tau = {"tau_mem": drawn(1.1e-3, 5e-3), "tau_syn": drawn(1.1e-3, 5e-3)}
    return nir.CubaLIF(**tau, w_in=drawn(0.7, 1.3), **leaky)


def _chain(rng: np.random.Generator, neurons: tuple[str, ...]) -> nir.NIRGraph:
    nodes: dict[str, Any] = {}
    for number, kind in enumerate(neurons):
        nodes[f"fc{number}"] = _affine(rng, WIDE, WIDE)
        nodes[f"n{number}"] = _neurons(rng, kind, WIDE)
    return network((WIDE,), {**nodes, "readout": _affine(rng, 3, WIDE)}, dt=DT, timesteps=STEPS)


def _residual(rng: np.random.Generator, neurons: tuple[str, ...]) -> nir.NIRGraph:
    """Currents of two synapses and an identity meet in the second layer."""
    nodes = {"a": _affine(rng, WIDE, WIDE), "n0": _neurons(rng, neurons[0], WIDE)}
    nodes |= {"b": _affine(rng, WIDE, WIDE), "c": nir.Linear(_affine(rng, WIDE, WIDE).weight)}
    nodes |= {"n1": _neurons(rng, neurons[1], WIDE), "readout": _affine(rng, 3, WIDE)}
    edges = [("input", "a"), ("a", "n0"), ("n0", "b"), ("b", "n1"), ("n0", "c"), ("c", "n1")]
    edges += [("n0", "n1"), ("n1", "readout"), ("readout", "output")]
    return network((WIDE,), nodes, edges, (3,), dt=DT, timesteps=STEPS)


def _convolved(
    rng: np.random.Generator, neurons: tuple[str, ...], pooled: bool = False
) -> nir.NIRGraph:
    def filters(outputs: int, inputs: int, size: int, **options: Any) -> nir.Conv2d:
        weight = rng.normal(0, 2 / (9 * inputs) ** 0.5, (outputs, inputs, 3, 3))
        return conv(weight, (size, size), bias=rng.normal(0.5, 0.3, outputs), **options)

    nodes: dict[str, Any] = {"c0": filters(2, 1, 4, padding=1)}
    nodes["n0"] = _neurons(rng, neurons[0], (2, 4, 4))
    if pooled:
        nodes |= {"pool": pool(nir.AvgPool2d, 2), "c1": filters(3, 2, 2, padding=1)}
    else:
        nodes["c1"] = filters(3, 2, 4, padding=1, stride=2)
    nodes["n1"] = _neurons(rng, neurons[1], (3, 2, 2))
    nodes |= {"flat": flatten(), "readout": _affine(rng, 3, 12)}
    return network((1, 4, 4), nodes, dt=DT, timesteps=STEPS)


def _recurrent(rng: np.random.Generator, neurons: tuple[str, ...]) -> nir.NIRGraph:
    """The first layer reads its own spikes a step later."""
    nodes = {"a": _affine(rng, WIDE, WIDE), "n0": _neurons(rng, neurons[0], WIDE)}
    nodes |= {"back": _affine(rng, WIDE, WIDE), "b": _affine(rng, WIDE, WIDE)}
    nodes |= {"n1": _neurons(rng, neurons[1], WIDE), "readout": _affine(rng, 3, WIDE)}
    edges = [("input", "a"), ("a", "n0"), ("n0", "back"), ("back", "n0"), ("n0", "b")]
    edges += [("b", "n1"), ("n1", "readout"), ("readout", "output")]
    return network((WIDE,), nodes, edges, (3,), dt=DT, timesteps=STEPS)


_ARCHITECTURES = {
    "dense": _chain,
    "deep": _chain,
    "residual": _residual,
    "conv": _convolved,
    "pooled": lambda rng, neurons: _convolved(rng, neurons, pooled=True),
    "recurrent": _recurrent,
}


def _near_ties(raw: nir.NIRGraph, x: Array, rng: np.random.Generator) -> nir.NIRGraph:
    """Every threshold a membrane that its neuron reaches on some sample, as float32.

    Of a layer that reads itself they are set from the first step on, since a spike changes what
    comes after it.
    """
    view = resolve(raw)
    for node in view.spiking:
        op = raw.nodes[node.name]
        before, count = op.v_threshold.reshape(-1), op.v_threshold.size
        sample, time = rng.integers(0, BATCH, count), rng.integers(0, STEPS, count)
        op.v_threshold = np.full_like(op.v_threshold, 1e30)  # no spike, and no reset
        for steps in np.arange(STEPS)[:, None] if view.recurrent else [np.arange(STEPS)]:
            _, membranes, _ = Program(view, dtype=np.float64).run(x)
            highest = np.maximum.accumulate(membranes[node.name], 0).reshape(STEPS, BATCH, -1)
            reached = highest[time, sample, np.arange(count)]
            limit = np.where(reached > 0.15, reached, before).astype(np.float32)
            chosen = np.isin(time, steps).reshape(op.v_threshold.shape)
            op.v_threshold = np.where(chosen, limit.reshape(chosen.shape), op.v_threshold)
    return raw


# --- the properties ------------------------------------------------------------------------


def _any(count: int) -> settings:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        deadline=None, derandomize=True, max_examples=count, suppress_health_check=checks,
        database=None,
    )  # fmt: skip


def _report(name: str, counts: Counter[str]) -> None:
    if path := os.environ.get("TSER_SOUNDNESS_REPORT"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"property": name, **counts}) + "\n")


@pytest.mark.slow
def test_every_flip_from_another_order_of_sums_is_certified() -> None:
    counts: Counter[str] = Counter()

    @_any(NETS)
    @given(seed=SEEDS, kind=st.sampled_from(KINDS), neurons=KINDS_OF_NEURONS, frames=st.booleans())
    def check(seed: int, kind: str, neurons: tuple[str, ...], frames: bool) -> None:
        net = _net(seed, kind, neurons, frames)
        graph = resolve(net.raw)
        first, second = (Program(graph, order) for order in net.orders)
        (found,) = compare(graph, first, [second], [(net.x, None)]).comparisons
        assert found.uncertifiable == found.not_replayed == ""
        for layer in found.layers.values():
            assert (layer.violations, layer.uncertified) == (0, 0)
            assert layer.certified_margin <= layer.certified_bound
        assert found.logits_outside_bound == 0
        assert found.diagnoses == {}
        # A certified flip may still decide a prediction; then it is not E1.
        assert found.argmax_differences or found.verdict in ("E0", "E1")
        counts["networks"] += 1
        counts["networks with a flip"] += found.flips > 0
        counts[f"{kind} networks with a flip"] += found.flips > 0
        counts["flips"] += found.flips
        counts["seeds"] += sum(layer.seeds for layer in found.layers.values())
        counts["predictions that differ"] += found.argmax_differences

    check()
    _report("order", counts)
    assert counts["networks"] >= NETS
    assert counts["networks with a flip"] > 0.8 * counts["networks"]
    assert counts["seeds"] > 2 * counts["networks"]


CHANGES = ("threshold", "tau", "bias", "weight", "reset", "subtractive")


def _changed(net: Net, layer: str, change: str) -> tuple[nir.NIRGraph, str] | None:
    """The network with one real change at or before a layer, and who resets by subtraction."""
    nodes = {name: copy.copy(op) for name, op in net.raw.nodes.items()}
    op, before = nodes[layer], [s for s, t in net.raw.edges if t == layer and s in nodes]
    synapse = next(nodes[s] for s in before if hasattr(nodes[s], "weight"))
    tau = "tau" if isinstance(op, nir.LIF) else "tau_mem"
    if change == "threshold":
        op.v_threshold = op.v_threshold * np.float32(1.01)
    elif change == "tau":
        if isinstance(op, nir.IF):
            return None
        setattr(op, tau, getattr(op, tau) * np.float32(1.01))
    elif change == "bias":
        if not hasattr(synapse, "bias"):
            return None
        synapse.bias = np.zeros_like(synapse.bias)
    elif change == "weight":
        synapse.weight = np.flip(synapse.weight, 0).copy()
    elif change == "reset":
        op.v_reset = op.v_reset + np.float32(0.1)
    raw = nir.NIRGraph(nodes, list(net.raw.edges), metadata=net.raw.metadata, type_check=False)
    return raw, layer if change == "subtractive" else ""


def _contradicted(graph: Graph, x: Array, trace: Trace) -> dict[str, bool]:
    """Layers with a spike or silence that the stated rule forbids by far, by float64 sums."""
    exact = Program(graph, dtype=np.float64)
    _, membranes, _ = exact.run(x, Forced(trace.spikes, {}, resets=True))
    found = {}
    for node in graph.spiking:
        margin = membranes[node.name] - node.op.v_threshold.astype(np.float64)
        fired = trace.spikes[node.name]
        found[node.name] = bool(np.where(fired, margin < -CLEAR, margin > CLEAR).any())
    return found


@pytest.mark.slow
def test_a_real_change_is_never_certified_and_is_blamed_on_its_layer() -> None:
    counts: Counter[str] = Counter()

    @_any(CHANGED)
    @given(
        seed=SEEDS,
        kind=st.sampled_from(KINDS),
        neurons=KINDS_OF_NEURONS,
        frames=st.booleans(),
        place=st.integers(0, 2),
        change=st.sampled_from(CHANGES),
    )
    def check(
        seed: int, kind: str, neurons: tuple[str, ...], frames: bool, place: int, change: str
    ) -> None:
        net = _net(seed, kind, neurons, frames)
        graph = resolve(net.raw)
        layer = graph.spiking[place % len(graph.spiking)].name
        counts["networks"] += 1
        made = _changed(net, layer, change)
        if made is None:
            return
        raw, subtract = made
        candidate = Program(resolve(raw), net.orders[1], subtract=subtract)
        wrong = _contradicted(graph, net.x, candidate(net.x))
        assert not any(found for name, found in wrong.items() if name != layer)
        if not wrong[layer]:
            return
        counts["networks that a change contradicts"] += 1
        counts[change] += 1
        (found,) = compare(
            graph, Program(graph, net.orders[0]), [candidate], [(net.x, None)]
        ).comparisons
        assert found.verdict in ("E2", "E3")
        blamed = [name for name, tally in found.layers.items() if tally.violations]
        assert blamed == [layer]
        assert list(found.diagnoses) == [layer]

    check()
    _report("change", counts)
    assert counts["networks that a change contradicts"] > 0.5 * counts["networks"]
    assert all(counts[change] for change in CHANGES)
