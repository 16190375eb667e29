"""The interpreter against plain loops, on random graphs of every class, to the last bit."""

from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.graphs import Array, dyadic, view
from tests.nodes import CASES
from tests.oracle import Result, simulate
from tests.random_graphs import random_graph
from tser.deploy.interpreter import replay, run
from tser.export.graph import Graph, resolve
from tser.export.shapes import SHAPE_RULES, Shape

ANY = settings(deadline=None, derandomize=True, max_examples=80)
SEEDS = st.integers(0, 10**6)


def _check(graph: Graph, x: Array, expected: Result, dtype: Any) -> None:
    out, kept = run(graph, x, dtype=dtype, record=list(graph.nodes))
    np.testing.assert_array_equal(out, expected.outputs[graph.output.name])
    for name, value in kept.items():
        np.testing.assert_array_equal(value, expected.outputs[name], err_msg=name)


@ANY
@given(SEEDS)
def test_random_graphs(seed: int) -> None:
    flat, _, x = random_graph(seed)
    graph = resolve(flat)
    expected = simulate(graph, x)
    assume(expected.is_exact_in(np.float64))
    _check(graph, x, expected, np.float64)
    if expected.is_exact_in(np.float32):
        _check(graph, x, expected, np.float32)


@ANY
@given(SEEDS)
def test_a_nested_graph_is_the_flat_one(seed: int) -> None:
    flat, nested, x = random_graph(seed)
    expected = simulate(resolve(flat), x)
    assume(expected.is_exact_in(np.float64))
    out, _ = run(resolve(nested), x, dtype=np.float64)
    np.testing.assert_array_equal(out, expected.outputs["output"])


@ANY
@given(SEEDS)
def test_replays_of_any_spikes_and_states(seed: int) -> None:
    flat, _, x = random_graph(seed)
    graph = resolve(flat)
    assume(graph.spiking)
    rng = np.random.default_rng(seed)
    shapes = {node.name: (*x.shape[:2], *node.output_shape) for node in graph.spiking}
    spikes = {name: rng.random(shape) < 0.5 for name, shape in shapes.items()}
    states = {name: dyadic(rng, shape, bits=2) for name, shape in shapes.items()}
    chosen = dict(list(states.items())[: int(rng.integers(0, len(states) + 1))])
    for forced in ({}, chosen, states):
        expected = simulate(graph, x, spikes, forced)
        assume(expected.is_exact_in(np.float64))
        fired = replay(graph, x, spikes, dtype=np.float64, states=forced)
        assert fired.keys() == shapes.keys()
        for name, value in fired.items():
            np.testing.assert_array_equal(value, expected.fired[name], err_msg=name)


def test_the_random_graphs_are_of_every_kind() -> None:
    """... and most of them, and a fair share of float32 runs, are compared at all."""
    kinds: set[type] = set()
    found = {"recurrent": 0, "fan-in": 0, "exact": 0, "exact in float32": 0, "fires": 0}
    for seed in range(120):
        flat, nested, x = random_graph(seed)
        kinds |= {type(op) for op in [*flat.nodes.values(), *nested.nodes.values()]}
        graph = resolve(flat)
        result = simulate(graph, x)
        found["recurrent"] += graph.recurrent
        found["fan-in"] += any(len(node.inputs) > 1 for node in graph.nodes.values())
        found["exact"] += result.is_exact_in(np.float64)
        found["exact in float32"] += result.is_exact_in(np.float32)
        found["fires"] += any(0.1 < value.mean() < 0.9 for value in result.fired.values())
    assert kinds == {*SHAPE_RULES, nir.NIRGraph}
    assert found["exact"] > 110
    assert min(found["exact in float32"], found["fires"]) > 50
    assert min(found["recurrent"], found["fan-in"]) > 25


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_node(name: str, dtype: Any) -> None:
    op, shape = CASES[name]
    graph = view(shape, {"node": op})
    x = dyadic(np.random.default_rng(1), (4, 2, *shape), bits=2, most=2)
    expected = simulate(graph, x)
    assert expected.is_exact_in(dtype)
    _check(graph, x, expected, dtype)


@pytest.mark.parametrize(
    ("terms", "bits"),
    [([1.0], 1), ([1.0, 2.0], 2), ([0.5, 3.0], 3), ([-4.0, 0.25], 5), ([0.0], 0), ([3.0, -3.0], 3)],
)
def test_the_account_of_bits(terms: list[float], bits: int) -> None:
    """Sums of fewer than 2**n units need n bits."""
    shape: Shape = (len(terms),)
    graph = view(shape, {"fc": nir.Linear(np.ones((1, *shape), np.float32))})
    x = np.array(terms, np.float64)[None, None]
    assert simulate(graph, x).bits == bits
