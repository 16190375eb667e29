"""What a NIR graph uses that not every tool understands: one test for each fact."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from tser.export.graph import NEURONS, SPIKING, WEIGHTED, Graph, Node, decay
from tser.export.shapes import as_shape

PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+\Z")
CURRENT_BASED = (nir.CubaLIF, nir.CubaLI)
PARAMETERS = ("tau", "tau_mem", "tau_syn", "r", "v_leak", "w_in", "v_threshold", "v_reset")
"""Of neurons; each kind has some of them."""
_COARSE = 2.0**12
"""Weights on a grid of fewer levels than this make sums meet a threshold exactly."""


@dataclass(frozen=True)
class Facts:
    """A graph with what its view no longer shows.

    Attributes:
        graph: the resolved view; its dt may be NaN.
        nested: names of the graphs inside it.
        refusal: what nir's own type check says against it, or "".
    """

    graph: Graph
    nested: tuple[str, ...]
    refusal: str

    def nodes(self, *kinds: type) -> list[Node]:
        """Nodes of the view; without ``kinds`` all."""
        every = self.graph.nodes.values()
        return [n for n in every if not kinds or isinstance(n.op, kinds)]

    @property
    def ports(self) -> set[str]:
        """Names of what stands for the ports of nested graphs in the view."""
        return {n.name for n in self.nodes(nir.Flatten) if "port" in (n.op.metadata or {})}


def gather(raw: nir.NIRGraph, graph: Graph) -> Facts:
    """Facts of the file ``raw`` and its view ``graph``."""
    return Facts(graph, tuple(_nested(raw, "")), type_check(raw))


def _nested(raw: nir.NIRGraph, prefix: str) -> list[str]:
    found = []
    for name, op in raw.nodes.items():
        if isinstance(op, nir.NIRGraph):
            found += [prefix + name, *_nested(op, f"{prefix}{name}.")]
    return found


def type_check(raw: nir.NIRGraph) -> str:
    """Why ``nir.read`` refuses a graph, or "" when it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _checked(raw)
    except Exception as error:  # noqa: BLE001 - nir raises many types
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def _checked(raw: nir.NIRGraph) -> nir.NIRGraph:
    # The check infers types in place, so it gets copies; arrays are shared.
    nodes = {
        name: _checked(op) if isinstance(op, nir.NIRGraph) else copy.copy(op)
        for name, op in raw.nodes.items()
    }
    return nir.NIRGraph(nodes, list(raw.edges), metadata={}, type_check=True)


# --- facts: names of the nodes to which they apply ------------------------------------------


Fact = Callable[["Facts"], list[str]]
TIMED = frozenset(
    {
        "dt_other",
        "ties",
        "gain_not_unit",
        "gain_neither",
        "tau_not_above_dt",
        "if_gain_not_rate",
        "cuba_gain_not_unit",
        "cuba_input_gain_not_unit",
    }
)
"""Facts that are about dt: where it is not known they hold of every node that they may hold of."""


def _where(*kinds: type) -> Callable[[Callable[[Any, float], Any]], Fact]:
    """A fact about each node of some kinds, stated by its parameters and dt."""

    def make(holds: Callable[[Any, float], Any]) -> Fact:
        return lambda facts: [
            n.name for n in facts.nodes(*kinds) if bool(holds(n.op, facts.graph.dt))
        ]

    return make


def differs(values: Any, expected: Any) -> bool:
    """Whether parameters are not what they should be, beyond rounding."""
    return not np.allclose(np.asarray(values, np.float64), expected, rtol=1e-6, atol=1e-12)


def parameters(op: Any) -> dict[str, NDArray[Any]]:
    """The parameters of a neuron."""
    return {key: np.asarray(getattr(op, key)) for key in PARAMETERS if hasattr(op, key)}


def _varies(op: Any, names: tuple[str, ...]) -> bool:
    chosen = [v.reshape(-1) for key, v in parameters(op).items() if key in names]
    return any((v != v[:1]).any() for v in chosen)


def _positive(op: Any, _: float) -> bool:
    return int(op.start_dim) >= 0 or int(op.end_dim) >= 0


def _cycles(facts: Facts) -> list[str]:
    return [n.name for n in facts.nodes() if any(edge.delayed for edge in n.inputs)]


def _ties(facts: Facts) -> list[str]:
    """Neurons that meet v = v_threshold exactly, not only nearly.

    Weights are so coarse, and dt / tau so round, that membranes stay on a grid.
    """
    return [
        n.name
        for n in facts.nodes(*SPIKING)
        if _round_rates(n.op, facts.graph.dt) and any(map(_coarse, _sources(facts, n)))
    ]


def _round_rates(op: Any, dt: float) -> bool:
    taus = [value for key, value in parameters(op).items() if key.startswith("tau")]
    parts = [16 * decay(dt, tau).astype(np.float32) for tau in taus]
    return math.isnan(dt) or all(np.array_equal(part, np.rint(part)) for part in parts)


def _sources(facts: Facts, node: Node) -> list[Any]:
    ops = [facts.graph.nodes[edge.source].op for edge in node.inputs]
    return [op for op in ops if isinstance(op, WEIGHTED)]


def _coarse(op: Any) -> bool:
    weight = np.abs(np.asarray(op.weight, np.float64))
    weight = weight[weight > 0]
    if not weight.size:
        return True
    levels = weight / weight.min()
    return bool(levels.max() < _COARSE and (levels * 8 == np.rint(levels * 8)).all())


FACTS: dict[str, Fact] = {
    "spiking": lambda facts: [n.name for n in facts.graph.spiking],
    "reset_not_zero": _where(*SPIKING)(lambda op, _: differs(op.v_reset, 0)),
    "leak_not_zero": _where(nir.LIF, nir.LI, *CURRENT_BASED)(lambda op, _: differs(op.v_leak, 0)),
    "reset_not_leak": _where(nir.LIF)(lambda op, _: differs(op.v_reset, op.v_leak)),
    "gain_not_one": _where(nir.LIF, nir.LI)(lambda op, _: differs(op.r, 1)),
    "gain_not_unit": _where(nir.LIF)(lambda op, dt: differs(op.r, op.tau / dt)),
    "gain_neither": _where(nir.LIF)(lambda op, dt: differs(op.r, 1) and differs(op.r, op.tau / dt)),
    "if_gain_not_one": _where(nir.IF)(lambda op, _: differs(op.r, 1)),
    "if_gain_not_rate": _where(nir.IF)(lambda op, dt: differs(op.r, 1 / dt)),
    "cuba_gain_not_unit": _where(nir.CubaLIF)(lambda op, dt: differs(op.r, op.tau_mem / dt)),
    "cuba_input_gain_not_unit": _where(nir.CubaLIF)(
        lambda op, dt: differs(op.w_in, op.tau_syn / dt)
    ),
    "cuba_leak_not_zero": _where(nir.CubaLIF)(lambda op, _: differs(op.v_leak, 0)),
    "not_uniform": _where(*NEURONS)(lambda op, _: _varies(op, PARAMETERS)),
    "threshold_not_uniform": _where(*SPIKING)(lambda op, _: _varies(op, ("v_threshold",))),
    "tau_not_above_dt": _where(nir.LIF)(lambda op, dt: not np.all(op.tau > dt)),
    "cycle": _cycles,
    "nested": lambda facts: list(facts.nested),
    "flatten_positive": lambda facts: [
        name for name in _where(nir.Flatten)(_positive)(facts) if name not in facts.ports
    ],
    "pool_padding": _where(nir.SumPool2d)(lambda op, _: np.any(op.padding)),
    "groups": _where(nir.Conv1d, nir.Conv2d)(lambda op, _: int(op.groups) != 1),
    "no_input_shape": _where(nir.Conv1d, nir.Conv2d)(
        lambda op, _: as_shape(op.input_shape) is None
    ),
    "name": lambda facts: [n.name for n in facts.nodes() if not PLAIN_NAME.match(n.name)],
    "ties": _ties,
    "refused_by_nir": lambda facts: ["the file"] if facts.refusal else [],
}
"""Name of a fact -> the nodes to which it applies; [] when it does not hold."""


def sums(facts: Facts, least: int = 2) -> list[str]:
    """Nodes that add up at least so many inputs of the same step."""
    late: set[str] = set()  # what comes from the step before, through whatever lies between
    for node in facts.nodes():
        if node.inputs and all(edge.delayed or edge.source in late for edge in node.inputs):
            late.add(node.name)
    return [
        node.name
        for node in facts.nodes()
        if sum(not edge.delayed and edge.source not in late for edge in node.inputs) >= least
    ]


def of_classes(facts: Facts, wanted: Callable[[str], bool]) -> list[str]:
    """Nodes whose class is ``wanted``; the ports of nested graphs are none."""
    ports = facts.ports
    return [n.name for n in facts.nodes() if n.name not in ports and wanted(n.kind)]
