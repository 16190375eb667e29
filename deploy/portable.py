"""The portable profile: what a NIR file keeps to so that most tools run it as it is meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import nir
import numpy as np

from tser.deploy.facts import FACTS, Facts, of_classes, parameters, sums
from tser.export.graph import MISSING, NEURONS, WEIGHTED

CLASSES = ("Input", "Output", "Affine", "Linear", "Conv2d", "AvgPool2d", "Flatten", "LIF")


@dataclass(frozen=True)
class Violation:
    """A rule of the profile that a graph breaks.

    Attributes:
        rule: its short name.
        says: the rule in words.
        nodes: where it is broken.
    """

    rule: str
    says: str
    nodes: tuple[str, ...]


def _shapes(facts: Facts) -> list[str]:
    return [
        n.name
        for n in facts.nodes(*NEURONS)
        if any(value.shape != n.output_shape for value in parameters(n.op).values())
    ]


def _precision(facts: Facts) -> list[str]:
    found = [
        n.name
        for n in facts.nodes(*NEURONS)
        if any(value.dtype != np.float32 for value in parameters(n.op).values())
    ]
    for n in facts.nodes(*WEIGHTED):
        values = [n.op.weight, getattr(n.op, "bias", n.op.weight)]
        if any(np.asarray(value).dtype != np.float32 for value in values):
            found.append(n.name)
    return found


def _flattenings(facts: Facts) -> list[str]:
    return [
        n.name
        for n in facts.nodes(nir.Flatten)
        if n.name not in facts.ports and (int(n.op.start_dim), int(n.op.end_dim)) != (-3, -1)
    ]


def _foreign(facts: Facts) -> list[str]:
    return of_classes(facts, lambda kind: kind not in CLASSES)


def _sums_before_others(facts: Facts) -> list[str]:
    lif = {n.name for n in facts.nodes(nir.LIF)}
    return [name for name in sums(facts) if name not in lif]


def _unstated(facts: Facts) -> list[str]:
    stated = "dt" in facts.graph.metadata or facts.graph.dt_origin.startswith("not needed")
    return [] if stated and facts.graph.dt_origin != MISSING else ["the metadata"]


RULES: dict[str, tuple[str, Callable[[Facts], list[str]]]] = {
    "classes": (f"only {', '.join(CLASSES)}", _foreign),
    "zero-leak": ("v_leak = 0", FACTS["leak_not_zero"]),
    "zero-reset": ("v_reset = 0", FACTS["reset_not_zero"]),
    "uniform": ("the neurons of a layer have the same parameters", FACTS["not_uniform"]),
    "full-shape": ("parameters of neurons have the shape of the layer", _shapes),
    "float32": ("weights and parameters are float32", _precision),
    "input-shape": ("convolutions state their input_shape", FACTS["no_input_shape"]),
    "ungrouped": ("convolutions have one group", FACTS["groups"]),
    "post-add": ("sums end in a LIF, with nothing between", _sums_before_others),
    "flatten": ("Flatten has start_dim = -3 and end_dim = -1", _flattenings),
    "feed-forward": ("no cycles, whose delay NIR leaves open", FACTS["cycle"]),
    "flat": ("no graphs inside the graph", FACTS["nested"]),
    "names": ("names are of A-Z, a-z, 0-9 and _", FACTS["name"]),
    "dt": ("the metadata state the time step", _unstated),
    "typed": ("nir's own type check takes the file", FACTS["refused_by_nir"]),
}
"""Rule -> what it says, and where it is broken."""


def violations(facts: Facts) -> list[Violation]:
    """Every rule that the graph breaks."""
    found = []
    for name, (says, check) in RULES.items():
        if nodes := check(facts):
            detail = f" ({facts.refusal})" if name == "typed" else ""
            found.append(Violation(name, says + detail, tuple(nodes)))
    return found
