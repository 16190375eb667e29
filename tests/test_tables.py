"""Every table keyed by NIR's classes covers all of them, or refuses the rest by name."""

import inspect
from typing import Any

import nir
import numpy as np
import pytest

from tests.graphs import DT, Array, conv, flatten, full, lif, network, pool, view
from tser.deploy.backends import Trace
from tser.deploy.certificate import Audit, Bounded, NotCertifiable
from tser.deploy.counting import KNOWN, count_operations
from tser.deploy.footprint import STATES
from tser.deploy.interpreter import NEURON_STEPS, run
from tser.deploy.numeric import STATELESS
from tser.errors import InputFileError
from tser.export.graph import NEURONS, SPIKING, STATEFUL, WEIGHTED, Graph, resolve
from tser.export.onnx_file import compile_onnx
from tser.export.onnx_neurons import NEURON_EMITTERS
from tser.export.onnx_ops import STATELESS_EMITTERS
from tser.export.shapes import SHAPE_RULES


def _classes() -> set[type]:
    """The classes that NIR reads and writes."""
    names = nir.ir.__all__
    found = {getattr(nir.ir, name) for name in names if inspect.isclass(getattr(nir.ir, name))}
    return found - {nir.NIRNode}


CLASSES = _classes()
RUNNABLE = CLASSES - {nir.NIRGraph}
"""Nested graphs are opened by the view, so nothing below meets one."""


def _cuba(kind: type) -> Any:
    names = ["tau_syn", "tau_mem", "r", "v_leak", "w_in"]
    names += ["v_threshold", "v_reset"] if kind is nir.CubaLIF else []
    return kind(**{name: full((2, 4, 4), DT) for name in names})


def _small(value: float = 0.5) -> Array:
    return full((2, 4, 4), value)


EXAMPLES: dict[type, Any] = {
    nir.Affine: nir.Affine(full((3, 4), 1), full(3, 0)),
    nir.Linear: nir.Linear(full((3, 4), 1)),
    nir.Scale: nir.Scale(_small()),
    nir.Conv1d: nir.Conv1d(4, np.ones((1, 2, 3)), 1, 0, 1, 1, np.zeros(1)),
    nir.Conv2d: conv(np.ones((1, 2, 3, 3)), (4, 4)),
    nir.SumPool2d: pool(nir.SumPool2d, 2),
    nir.AvgPool2d: pool(nir.AvgPool2d, 2),
    nir.Flatten: flatten(),
    nir.Threshold: nir.Threshold(_small()),
    nir.Delay: nir.Delay(_small(DT)),
    nir.I: nir.I(_small()),
    nir.LI: nir.LI(_small(DT), _small(), _small()),
    nir.CubaLI: _cuba(nir.CubaLI),
    nir.IF: nir.IF(_small(), _small()),
    nir.LIF: lif((2, 4, 4)),
    nir.CubaLIF: _cuba(nir.CubaLIF),
}
"""One node of every class but the ports and the graph itself, for inputs of [2, 4, 4]."""


def _view(kind: type) -> Graph:
    shape = (2, 4) if kind is nir.Conv1d else (2, 4, 4)
    return view(shape, {"node": EXAMPLES[kind]}, timesteps=3)


def _x(kind: type) -> Array:
    return np.ones((2, *((2, 4) if kind is nir.Conv1d else (2, 4, 4))), np.float32)


def test_there_are_nineteen_classes() -> None:
    assert len(CLASSES) == 19
    assert CLASSES - EXAMPLES.keys() == {nir.Input, nir.Output, nir.NIRGraph}


def test_shapes() -> None:
    assert SHAPE_RULES.keys() == RUNNABLE


def test_interpreter() -> None:
    assert STATELESS.keys() | NEURON_STEPS.keys() == RUNNABLE
    assert not STATELESS.keys() & NEURON_STEPS.keys()
    assert NEURON_STEPS.keys() == set(STATEFUL)


def test_onnx() -> None:
    assert STATELESS_EMITTERS.keys() | NEURON_EMITTERS.keys() == RUNNABLE - {nir.Input}
    assert not STATELESS_EMITTERS.keys() & NEURON_EMITTERS.keys()
    assert NEURON_EMITTERS.keys() == NEURON_STEPS.keys()


def test_groups_of_classes() -> None:
    assert set(SPIKING) < set(NEURONS) < set(STATEFUL) < RUNNABLE
    assert set(STATEFUL) - set(NEURONS) == {nir.Delay}
    assert set(WEIGHTED) == _with_parameter("weight")
    assert set(SPIKING) == _with_parameter("v_threshold")


def _with_parameter(name: str) -> set[type]:
    return {kind for kind in RUNNABLE if name in inspect.signature(kind).parameters}


def test_counting() -> None:
    """Folded, weighted, neurons, or a source and a sink of events."""
    assert set(KNOWN) == RUNNABLE
    assert STATES.keys() == {*NEURONS, nir.Threshold}


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_every_class_runs_compiles_and_counts(kind: type) -> None:
    graph = _view(kind)
    out, _ = run(graph, _x(kind))
    assert out.shape == (3, 2, *graph.output.output_shape)
    made = {name for n in compile_onnx(graph).graph.node for name in n.output}
    assert {"node", "node.t0"} & made
    counts = count_operations(graph, [_x(kind)])
    assert not counts.gaps
    named = {row.name for row in counts.layers}
    assert ("node" in named) == (kind in (*WEIGHTED, *NEURONS, nir.Threshold, nir.Delay))


UNBOUNDED = {nir.Delay}


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_every_class_has_a_rounding_bound_or_is_named(kind: type) -> None:
    graph = _view(kind)
    out, kept = run(graph, _x(kind), record=["node"])
    audit = Audit(graph, _x(kind), Trace(out, {"node": kept["node"] > 0}), {})

    def bound() -> Bounded:
        return audit.margins(graph.nodes["node"]) if kind in SPIKING else audit.logits()

    if kind in UNBOUNDED:
        with pytest.raises(NotCertifiable, match=f"{kind.__name__} .'node'."):
            bound()
    else:
        assert bound().value.shape == bound().error.shape


def test_a_class_of_tomorrow_is_refused_by_name() -> None:
    class Resonator(nir.ir.node.NIRNode):
        def __init__(self) -> None:
            self.input_type = self.output_type = {"input": np.array([2])}

    edges = [("input", "new"), ("new", "output")]
    graph = network((2,), {"new": Resonator()}, edges, (2,))
    with pytest.raises(InputFileError, match="node 'new' is a Resonator, which tser does not know"):
        resolve(graph)
