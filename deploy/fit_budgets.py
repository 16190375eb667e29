"""Budgets: amounts that the layers of a network share, one rule for each kind of limit."""

from __future__ import annotations

from collections.abc import Callable

from tser.deploy.fit_network import Population
from tser.deploy.fit_rows import DOES_NOT, UNCHECKED, Case, Finding, Rule, at_most
from tser.deploy.placement import RESOURCES, Tiling
from tser.deploy.placement_layers import words

_WIDER = "a narrower network"
_IN_WORDS = {
    "neurons": "neurons",
    "axons_in": "axons in",
    "axons_out": "axons out",
    "synaptic_memory": "bits of synapses",
    "core": "core",
}


def _cores(case: Case, limit: int) -> Finding:
    placement = case.placement
    if placement is None:
        return Finding(UNCHECKED, reason="how layers come to cores is not published")
    if placement.stuck and case.chip.placement == "tiles":
        name, resource, needed, held = placement.stuck[0]
        return Finding(
            DOES_NOT,
            tuple(layer for layer, *_ in placement.stuck),
            limit=limit,
            reason=f"one neuron of {name} needs {needed:,} {_IN_WORDS[resource]} of {held:,}",
            change=_WIDER,
            by_width=True,
        )
    if placement.stuck:
        names = tuple(layer for layer, *_ in placement.stuck)
        if placement.cores > limit:
            over = placement.cores - limit
            return Finding(DOES_NOT, names, placement.cores, limit, over, change="fewer layers")
        return Finding(
            DOES_NOT,
            names,
            placement.cores,
            limit,
            reason="no core with the memory it needs is left",
            change=_WIDER,
            by_width=True,
        )
    found = at_most([("", placement.cores)], limit, change=_WIDER, by_width=True)
    bound = f"at least {placement.lower_bound}, however they are placed"
    if found.verdict == DOES_NOT and placement.lower_bound <= limit:
        bound += "; a better placement than the greedy one might fit"
    return Finding(**{**vars(found), "reason": bound})


def _fullest(resource: str) -> Rule:
    """The tile that takes most of one resource of a core."""

    def rule(case: Case, limit: int) -> Finding:
        if case.placement is None:
            return Finding(UNCHECKED, reason="how layers come to cores is not published")
        number = RESOURCES.index(resource)

        def amount(tiling: Tiling) -> int:
            return tiling.load.amounts[number]

        found = [(t.layer, amount(t)) for t in case.placement.tilings]
        found += [(layer, n) for layer, name, n, _ in case.placement.stuck if name == resource]
        return at_most(found, limit, change=_WIDER, by_width=True)

    return rule


def _hidden(case: Case) -> list[Population]:
    outputs = case.chip.limits.outputs
    if outputs is None:
        return list(case.network.populations)
    return [p for p in case.network.populations if p.name not in case.network.ends]


def _neurons(case: Case, limit: int) -> Finding:
    total = sum(p.neurons for p in _hidden(case))
    return at_most([("", total)], limit, change=_WIDER, by_width=True)


def _synapses(case: Case, limit: int) -> Finding:
    inner = case.chip.limits.outputs is not None  # connections of ends are stored apart
    total = 0
    for p in _hidden(case):
        kept = [c for c in p.incoming if not (inner and c.outside)]
        total += sum(c.synapses(p.size) for c in kept)
    return at_most([("", total)], limit, change=_WIDER, by_width=True)


def _inputs(case: Case, limit: int) -> Finding:
    channels, height, width = case.network.inputs
    return at_most([("", channels * height * width)], limit, change="fewer inputs")


def _outputs(case: Case, limit: int) -> Finding:
    found = [(p.name, p.neurons) for p in case.network.outputs]
    return at_most(found, limit, change="fewer classes")


def _words(read: Callable[[Population], int]) -> Rule:
    """Memory of a layer against the core that has most of it."""

    def rule(case: Case, limit: tuple[int, ...]) -> Finding:
        found = [(p.name, read(p)) for p in case.network.populations]
        return at_most(found, max(limit), change=_WIDER, by_width=True)

    return rule


def _kernel(population: Population) -> int:
    return words(population).kernel


def _membranes(population: Population) -> int:
    return words(population).neuron


def _biases(population: Population) -> int:
    return words(population).bias


BUDGETS: dict[str, Rule] = {
    "cores": _cores,
    "neurons_per_core": _fullest("neurons"),
    "neurons": _neurons,
    "inputs": _inputs,
    "outputs": _outputs,
    "axons_in": _fullest("axons_in"),
    "axons_out": _fullest("axons_out"),
    "synapses": _synapses,
    "synaptic_memory": _fullest("synaptic_memory"),
    "kernel_memory": _words(_kernel),
    "neuron_memory": _words(_membranes),
    "bias_memory": _words(_biases),
}
"""Kind of limit -> the rule that looks at it."""
