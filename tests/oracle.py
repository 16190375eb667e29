"""The plain reference of NIR graphs: loops over samples, steps, nodes and neurons in float64.

One number at a time, as the equations stand; nothing here is fast. It keeps an account of the bits
that its sums need, which tells whether float32, or float64, computes them without any rounding.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from tests.graphs import Array, inside, taps
from tser.export.graph import Graph, Node
from tser.export.shapes import window

Place = tuple[int, ...]


@dataclass
class Result:
    """What a graph does.

    Attributes:
        outputs: of every node, ``[T, B, ...]``; a spiking layer that is forced puts out what it is
            forced to.
        fired: by every spiking layer, ``[T, B, ...]``.
        bits: of the significand that the largest sum needs.
    """

    outputs: dict[str, Array]
    fired: dict[str, Array] = field(default_factory=dict)
    bits: int = 0

    def is_exact_in(self, dtype: Any) -> bool:
        """Whether ``dtype`` adds all sums exactly, in any order."""
        return self.bits <= np.finfo(dtype).nmant + 1


class _Account:
    """Arithmetic that notes how many bits it needs."""

    def __init__(self) -> None:
        self.bits = 0

    def add(self, *terms: float) -> float:
        size, unit = math.fsum(map(abs, terms)), min(map(_unit, terms))
        return self._noted(math.fsum(terms), size, unit)

    def multiply(self, a: float, b: float) -> float:
        return self._noted(a * b, abs(a * b), _unit(a) * _unit(b))

    def _noted(self, value: float, size: float, unit: float) -> float:
        if size > 0 and unit < math.inf:
            self.bits = max(self.bits, math.ceil(math.log2(size / unit + 1)))
        return value


def _unit(value: float) -> float:
    """The largest power of two of which ``value`` is a multiple; infinity for 0."""
    top, bottom = float(value).as_integer_ratio()
    return (top & -top) / bottom if top else math.inf


def simulate(
    graph: Graph,
    x: Array,
    spikes: dict[str, Array] | None = None,
    states: dict[str, Array] | None = None,
) -> Result:
    """Execute ``graph``.

    Args:
        graph: the resolved view.
        x: ``[T, B, *input_shape]``.
        spikes: if given, what is read downstream of every spiking layer, ``[T, B, ...]``.
        states: of some spiking layers the membrane before each step, ``[T, B, ...]``.
    """
    account, nodes = _Account(), list(graph.nodes.values())
    outputs = {node.name: np.zeros((*x.shape[:2], *node.output_shape)) for node in nodes}
    fired = {node.name: outputs[node.name].copy() for node in graph.spiking}
    for sample in range(x.shape[1]):
        memory: dict[str, list[Array]] = {node.name: [] for node in nodes}
        for t, node in itertools.product(range(len(x)), nodes):
            total = np.array(x[t, sample], np.float64) if isinstance(node.op, nir.Input) else None
            for edge in node.inputs:
                late = int(edge.delayed)
                nothing = np.zeros(node.input_shape)
                value = outputs[edge.source][t - late, sample] if t >= late else nothing
                total = value if total is None else _each(account.add, total, value)
            if states and node.name in states:
                memory[node.name] = [states[node.name][t, sample], *memory[node.name][1:]]
            result = _respond(node, graph.dt, total, memory[node.name], account)
            if node.name in fired:
                fired[node.name][t, sample] = result
                result = result if spikes is None else spikes[node.name][t, sample]
            outputs[node.name][t, sample] = result
    return Result(outputs, fired, account.bits)


def _each(function: Callable[[float, float], float], a: Array, b: Array) -> Array:
    """``function`` of every pair of elements."""
    found = np.zeros(a.shape)
    for place in np.ndindex(a.shape):
        found[place] = function(float(a[place]), float(b[place]))
    return found


def _number(parameter: Any, place: Place, shape: tuple[int, ...]) -> float:
    """What a parameter is for the neuron at ``place``; it may be one number for all."""
    return float(np.broadcast_to(np.asarray(parameter), shape)[place])


def _respond(node: Node, dt: float, x: Array, memory: list[Array], account: _Account) -> Array:
    """What ``node`` puts out for its input of one step; ``memory`` is its own, empty at first."""
    op, shape, out = node.op, x.shape, np.zeros(node.output_shape)
    if isinstance(op, nir.Affine | nir.Linear | nir.Conv1d | nir.Conv2d):
        _weighted(op, x, out, account)
    elif isinstance(op, nir.SumPool2d | nir.AvgPool2d):
        _pooled(op, x, out, account)
    elif isinstance(op, nir.Scale):
        for place in np.ndindex(shape):
            out[place] = account.multiply(_number(op.scale, place, shape), x[place])
    elif isinstance(op, nir.Threshold):
        for place in np.ndindex(shape):
            out[place] = x[place] > _number(op.threshold, place, shape)
    elif isinstance(op, nir.Delay):
        memory.append(x)
        for place in np.ndindex(shape):
            steps = round(_number(op.delay, place, shape) / dt)
            out[place] = memory[-1 - steps][place] if steps < len(memory) else 0
    elif isinstance(op, nir.Input | nir.Output | nir.Flatten):
        out = x.reshape(node.output_shape)
    else:
        if not memory:
            start = getattr(op, "v_leak", 0)
            memory.append(np.broadcast_to(start, shape).astype(np.float64))
        if len(memory) < 2:
            memory.append(np.zeros(shape))
        potential, current = (values.astype(np.float64) for values in memory)
        for place in np.ndindex(shape):
            p = {key: _number(v, place, shape) for key, v in vars(op).items() if _numeric(v)}
            v, i = float(potential[place]), float(current[place])
            v, i = _step(p, dt, float(x[place]), v, i, account)
            out[place] = v
            if "v_threshold" in p:
                out[place] = v > p["v_threshold"]
                v = p["v_reset"] if out[place] else v
            potential[place], current[place] = v, i
        memory[:] = [potential, current]
    return out


def _numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.number | float | int)


def _step(
    p: dict[str, float], dt: float, x: float, v: float, i: float, account: _Account
) -> tuple[float, float]:
    """One Euler step of a neuron with parameters ``p``: membrane before the reset, and current."""
    add, multiply = account.add, account.multiply
    if "tau_syn" in p:
        gain = multiply(dt / p["tau_syn"], p["w_in"])
        i = add(i, multiply(gain, x))
        slope = add(p["v_leak"], -v, multiply(p["r"], i))
        v = add(v, multiply(dt / p["tau_mem"], slope))
        i = add(i, -multiply(dt / p["tau_syn"], i))
    elif "tau" in p:
        slope = add(multiply(p["r"], x), p["v_leak"], -v)
        v = add(v, multiply(dt / p["tau"], slope))
    else:
        v = add(v, multiply(multiply(dt, p["r"]), x))
    return v, i


def _weighted(op: Any, x: Array, out: Array, account: _Account) -> None:
    terms: dict[Place, list[float]] = {place: [0.0] for place in np.ndindex(out.shape)}
    for source, target, weight in taps(op, x.shape):
        if inside(source, x.shape):
            terms[target].append(account.multiply(weight, float(x[source])))
    for place, arriving in terms.items():
        channel = place[-1] if isinstance(op, nir.Affine | nir.Linear) else place[0]
        bias = getattr(op, "bias", None)
        out[place] = account.add(*arriving, 0.0 if bias is None else float(bias[channel]))


def _pooled(op: Any, x: Array, out: Array, account: _Account) -> None:
    geometry = window(op)
    (kh, kw), (sh, sw) = geometry.kernel, geometry.stride
    top, left = geometry.pads[0][0], geometry.pads[1][0]
    for c, row, column in np.ndindex(out.shape):
        rows = range(row * sh - top, row * sh - top + kh)
        columns = range(column * sw - left, column * sw - left + kw)
        places = [(c, i, j) for i in rows for j in columns if inside((c, i, j), x.shape)]
        total = account.add(0.0, *(float(x[place]) for place in places))
        average = isinstance(op, nir.AvgPool2d)
        out[c, row, column] = account.multiply(total, 1 / (kh * kw)) if average else total
