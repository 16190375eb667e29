"""Walls: what a layer must be for a chip to take it, one rule for each kind of limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from tser.deploy.fit_network import READOUT, Connection, Network, Population
from tser.deploy.fit_rows import (
    DOES_NOT,
    FITS,
    UNCHECKED,
    Case,
    Finding,
    Rule,
    at_most,
    one_of,
)
from tser.deploy.placement_layers import kernel_of

_NO_CONV = "no convolution"


def _neurons(case: Case, limit: tuple[str, ...]) -> Finding:
    allowed = limit
    found = [(p.name, p.kind) for p in case.network.populations if p.kind != READOUT]
    change = f"use {' or '.join(allowed[:2])} neurons" if allowed else "another kind of network"
    return one_of(found, allowed, nothing="no neurons", change=change)


def _resets(case: Case, limit: tuple[str, ...]) -> Finding:
    found = [(p.name, p.reset) for p in case.network.populations if p.reset]
    extra = ("zero",) if "value" in limit else ()
    allowed = tuple(dict.fromkeys((*limit, *extra)))
    change = "set v_reset = v_leak"
    if "zero" not in allowed:
        change = "neurons that lose their threshold at a spike, which NIR cannot state"
    return one_of(found, allowed, nothing="no spikes", change=change)


def _leaks(case: Case, limit: tuple[str, ...]) -> Finding:
    leaky = [p for p in case.network.populations if p.rates]
    if "any" in limit:
        return Finding(FITS, limit=", ".join(limit))
    if not leaky:
        return Finding(FITS, used="none", limit=", ".join(limit))
    if "bit_shift" not in limit:
        names = tuple(p.name for p in leaky)
        change = "use IF neurons, which do not decay"
        return Finding(DOES_NOT, names, "decay", ", ".join(limit), change=change)
    if math.isnan(case.network.dt):
        return Finding(UNCHECKED, reason="dt is not known; add --dt SECONDS")
    off = [(p.name, r) for p in leaky for r in p.rates if not _is_shift(r)]
    if not off:
        return Finding(FITS, used="dt/tau = 2^-k", limit=", ".join(limit))
    rate = off[0][1]
    shift = max(0, round(-math.log2(rate))) if rate > 0 else 0
    names = tuple(dict.fromkeys(name for name, _ in off))
    change = f"tau = {2**shift} dt = {2**shift * case.network.dt:g} s is the nearest"
    return Finding(DOES_NOT, names, f"dt/tau = {rate:.6g}", "2^-k", change=change)


def _is_shift(rate: float) -> bool:
    shift = -math.log2(rate) if rate > 0 else math.nan
    return 0 <= shift < 16 and math.isclose(shift, round(shift), abs_tol=1e-6)


def _decay_bits(case: Case, limit: int) -> Finding:
    rates = [(p.name, r) for p in case.network.populations for r in p.rates]
    if not rates:
        return Finding(FITS, reason="nothing decays")
    if any(math.isnan(rate) for _, rate in rates):
        return Finding(UNCHECKED, reason="dt is not known; add --dt SECONDS")
    rates = [(name, rate) for name, rate in rates if rate > 0]  # the others keep what they have
    if not rates:
        return Finding(FITS, reason="nothing decays")
    name, slowest = min(rates, key=lambda pair: pair[1])
    needed = max(0, math.ceil(-math.log2(min(slowest, 1.0)) - 1e-6))
    change = f"tau of at most {2**limit * case.network.dt:g} s"
    return at_most([(name, needed)], limit, change=change)


def _connections(case: Case, limit: tuple[str, ...]) -> Finding:
    shown = {"conv": "a linear layer", "identity": "a linear layer in place of the shortcut"}
    found = [(c.name, c.kind) for _, c in case.network.connections]
    result = one_of(found, limit, change=lambda kind: f"use {shown.get(kind, 'convolutions')}")
    pooled = [c.name for _, c in case.network.connections if c.pools]
    if result.verdict == FITS and pooled and "conv" not in limit:
        change = "leave out the pool, or let the weights after it take its place"
        return Finding(DOES_NOT, tuple(pooled), "pool", ", ".join(limit), change=change)
    if result.verdict == FITS and case.chip.placement == "layer_a_core":
        apart = [p.name for p in case.network.populations if not _one_kernel(p)]
        if apart:
            return Finding(
                DOES_NOT,
                tuple(apart),
                "sums",
                "one kernel",
                reason="its inputs differ in stride or map, so that they cannot share a kernel",
                change="take the stride out of the shortcut and pool what it takes instead",
            )
    return result


def _one_kernel(p: Population) -> bool:
    """Whether all inputs can be channels of one kernel: like maps and strides, taps inside it."""
    if len(p.incoming) < 2:
        return True
    if any(c.kind == "linear" for c in p.incoming):
        return len({(c.kind, c.arriving[1:]) for c in p.incoming}) == 1
    if len({c.arriving[1:] for c in p.incoming}) > 1:
        return False
    frames = [_frame(c) for c in p.incoming]
    if len({stride for stride, _, _ in frames}) > 1:
        return False
    for axis in (0, 1):
        first = max(pad[axis] for _, pad, _ in frames)
        last = max(kernel[axis] - pad[axis] for _, pad, kernel in frames)
        largest = max(kernel[axis] for _, _, kernel in frames)
        if first + last > largest:
            return False
    return True


def _frame(c: Connection) -> tuple[Any, tuple[int, int], tuple[int, int]]:
    """Stride, padding and kernel."""
    if c.layer is None:
        return (1, 1), (0, 0), (1, 1)
    return c.layer.stride, (c.layer.pads[0][0], c.layer.pads[1][0]), c.layer.kernel


def _recurrence(case: Case, limit: bool) -> Finding:
    delayed = [(p.name, c) for p, c in case.network.connections if c.delayed]
    if not delayed:
        return Finding(FITS, used="no cycle")
    outputs = case.network.ends
    if not limit:
        names = tuple(name for name, _ in delayed)
        return Finding(DOES_NOT, names, "cycle", "no cycle", change="a feed-forward network")
    looped = tuple(name for name, c in delayed if name in outputs)
    if looped and case.chip.limits.outputs is not None:
        change = "a layer of output neurons after it"
        return Finding(DOES_NOT, looped, "cycle", "not at the output", change=change)
    return Finding(FITS, used="cycle")


def _analog_input(case: Case, limit: bool) -> Finding:
    first = tuple(p.name for p, c in case.network.connections if c.outside)
    encoding = case.network.encoding
    if limit or not first:
        return Finding(FITS, used=encoding or None)
    if encoding == "direct":
        change = "compute the first layer on a host (--first-layer host), or rate-code the input"
        return Finding(DOES_NOT, first, "analog image", "spikes", change=change)
    if encoding in ("spikes", "frames"):
        return Finding(FITS, used=encoding, limit="spikes")
    return Finding(UNCHECKED, first, reason="the file does not state how inputs are encoded")


def _readout(case: Case, limit: bool) -> Finding:
    sums = tuple(p.name for p in case.network.populations if p.kind == READOUT)
    if limit or not sums:
        return Finding(FITS, reason="" if sums else "it ends in neurons")
    change = "end in spiking neurons, or add up on a host (--readout host)"
    return Finding(DOES_NOT, sums, "sums", "spikes", change=change)


def _layers(case: Case, limit: int) -> Finding:
    count = len(case.network.populations)
    if count >= limit:
        return Finding(FITS, used=count)
    change = "a hidden layer of neurons before the output"
    return Finding(DOES_NOT, used=f"{count} layers", limit=f"{limit} at least", change=change)


def _fan_in(case: Case, limit: int) -> Finding:
    found = [(p.name, p.fan_in) for p in case.network.populations]
    return at_most(found, limit, change="fewer inputs for each neuron", by_width=True)


def _fan_out(case: Case, limit: int) -> Finding:
    totals: dict[str, int] = {}
    for p, c in case.network.connections:
        if not c.outside:
            totals[c.source] = totals.get(c.source, 0) + c.fan_out(p.size)
    return at_most(
        totals.items(), limit, nothing="one layer", change="smaller layers", by_width=True
    )


def _input_projection(case: Case, limit: int) -> Finding:
    found = [(p.name, p.neurons) for p, c in case.network.connections if c.outside]
    return at_most(found, limit, change="a smaller first layer", by_width=True)


def _output_projection(case: Case, limit: int) -> Finding:
    found = [(c.source, c.inputs) for p in case.network.outputs for c in p.incoming]
    return at_most(found, limit, change="a smaller last hidden layer", by_width=True)


def _destinations(case: Case, limit: int) -> Finding:
    counts = [(p.name, len(case.network.targets(p.name))) for p in case.network.populations]
    change = "fewer branches, or a layer that repeats its input"
    return at_most(counts, limit, change=change)


def _weight_bits(case: Case, limit: int) -> Finding:
    found = [(c.name, c.weights.bits) for _, c in case.network.connections if c.kind != "identity"]
    if case.weight_bits is not None:
        found = [(name, case.weight_bits) for name, _ in found]
    change = f"quantise to {limit} bits (with --weight-bits {limit} the rest is checked)"
    floats = tuple(name for name, bits in found if bits is None)
    if floats:
        return Finding(DOES_NOT, floats, "float", limit, change=change)
    known = [(name, bits) for name, bits in found if bits is not None]
    return at_most(known, limit, nothing="no weights", change=change)


def _weight_values(case: Case, limit: int) -> Finding:
    most = math.inf if case.weight_bits is None else max(1, 2**case.weight_bits - 2)
    found = [
        (p.name, min(most, sum(c.weights.values for c in p.incoming)))
        for p in case.network.populations
    ]
    change = f"weights of at most {limit} values a neuron, such as -1, 0 and 1"
    return at_most(found, limit, change=change)


def _state_bits(case: Case, limit: int) -> Finding:
    stated = case.chip.limits.weight_bits
    bits = case.weight_bits or (stated.value if stated else None)
    if bits is None:
        return Finding(UNCHECKED, reason="the width of the weights is not published")
    found = []
    for p in case.network.populations:
        peak = max(c.weights.peak for c in p.incoming)
        step = peak / max(1, 2 ** (bits - 1) - 1)
        if math.isnan(p.threshold) and p.reset and math.isnan(case.network.dt):
            return Finding(UNCHECKED, reason="dt is not known; add --dt SECONDS")
        if p.reset and step and math.isfinite(p.threshold):
            found.append((p.name, max(1, math.ceil(p.threshold / step)).bit_length() + 1))
    change = "larger weights, or a lower threshold"
    return at_most(found, limit, nothing="no thresholds", change=change)


def _sides(connections: Iterable[Connection]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for c in connections:
        height, width = kernel_of(c)
        found.append((c.name, height if height == width else f"{height} x {width}"))
    return found


def _nearest(allowed: tuple[int, ...]) -> Callable[[Any], str]:
    def say(value: Any) -> str:
        if not isinstance(value, int):
            return "a square one"
        return f"{min(allowed, key=lambda a: (abs(a - value), a))} is the nearest that it takes"

    return say


def _kernels(case: Case, limit: tuple[int, ...]) -> Finding:
    found = [c for _, c in case.network.connections if c.kind != "identity"]
    return one_of(_sides(found), limit, nothing=_NO_CONV, change=_nearest(limit))


def _of_layers(case: Case, read: Callable[[Any], Iterable[int]]) -> list[tuple[str, Any]]:
    layers = [c for _, c in case.network.connections if c.layer is not None]
    return [(c.name, value) for c in layers for value in read(c.layer)]


def _strides(case: Case, limit: tuple[int, ...]) -> Finding:
    found = _of_layers(case, lambda layer: layer.stride)
    return one_of(found, limit, nothing=_NO_CONV, change=_nearest(limit))


def _paddings(case: Case, limit: tuple[int, ...]) -> Finding:
    found = _of_layers(case, lambda layer: [side for pads in layer.pads for side in pads])
    return one_of(found, limit, nothing=_NO_CONV, change=_nearest(limit))


def _dilation(case: Case, limit: int) -> Finding:
    found = _of_layers(case, lambda layer: layer.dilation)
    return at_most(found, limit, nothing=_NO_CONV, change="a larger kernel with zeros")


def _channel_groups(case: Case, limit: int) -> Finding:
    found = _of_layers(case, lambda layer: [layer.groups])
    return at_most(found, limit, nothing=_NO_CONV, change="a convolution without groups")


def _pools(case: Case, limit: tuple[int, ...]) -> Finding:
    found: list[tuple[str, Any]] = []
    for _, c in case.network.connections:
        if len(c.pools) > 1:
            found.append((c.name, "several in a row"))
        for pool in c.pools:
            plain = pool.kernel[0] == pool.kernel[1] and pool.stride == pool.kernel
            plain = plain and pool.pads == ((0, 0), (0, 0))
            size = "x".join(map(str, pool.kernel))
            found.append((c.name, pool.kernel[0] if plain else f"{size}, overlapping or padded"))
    return one_of(found, limit, nothing="no pool", change=_nearest(limit))


def _channels(case: Case, limit: int) -> Finding:
    found = [(p.name, p.size[0]) for p in case.network.populations]
    return at_most(found, limit, change="fewer channels", by_width=True)


def _input_size(case: Case, limit: int) -> Finding:
    found = [(c.name, max(c.arriving[1:])) for _, c in case.network.connections]
    return at_most(found, limit, change="a pool or a smaller image")


def _output_size(case: Case, limit: int) -> Finding:
    found = [(p.name, max(p.size[1:])) for p in case.network.populations]
    return at_most(found, limit, change="a larger stride, or a pool before it")


def _no_layer(network: Network) -> bool:
    return all(c.layer is None for _, c in network.connections)


UNUSED: dict[str, Callable[[Network], bool]] = {
    "resets": lambda n: not any(p.reset for p in n.populations),
    "leaks": lambda n: not any(p.rates for p in n.populations),
    "decay_bits": lambda n: not any(p.rates for p in n.populations),
    "recurrence": lambda n: not any(c.delayed for _, c in n.connections),
    "readout": lambda n: all(p.kind != READOUT for p in n.populations),
    "strides": _no_layer,
    "paddings": _no_layer,
    "dilation": lambda n: all(
        c.layer is None or set(c.layer.dilation) == {1} for _, c in n.connections
    ),
    "channel_groups": lambda n: all(
        c.layer is None or c.layer.groups == 1 for _, c in n.connections
    ),
    "pools": lambda n: not any(c.pools for _, c in n.connections),
}
"""Kind of limit -> whether the network does without what it limits, whatever the limit."""

WALLS: dict[str, Rule] = {
    "neuron_models": _neurons,
    "resets": _resets,
    "leaks": _leaks,
    "decay_bits": _decay_bits,
    "connections": _connections,
    "recurrence": _recurrence,
    "analog_input": _analog_input,
    "readout": _readout,
    "layers": _layers,
    "fan_in": _fan_in,
    "fan_out": _fan_out,
    "input_projection": _input_projection,
    "output_projection": _output_projection,
    "destinations": _destinations,
    "weight_bits": _weight_bits,
    "weight_values": _weight_values,
    "state_bits": _state_bits,
    "kernels": _kernels,
    "strides": _strides,
    "paddings": _paddings,
    "dilation": _dilation,
    "channel_groups": _channel_groups,
    "pools": _pools,
    "channels": _channels,
    "input_size": _input_size,
    "output_size": _output_size,
}
"""Kind of limit -> the rule that looks at it."""
