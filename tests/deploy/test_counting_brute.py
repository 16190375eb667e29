"""Counts of whole graphs, against a counter that follows every event along every connection."""

import itertools
import math
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy.brute_counter import RECEIVING, WEIGHTED, BruteCounter, biases, stored_numbers
from tests.graphs import (
    DT,
    Array,
    conv,
    convolutions,
    dyadic,
    flatten,
    full,
    lif,
    network,
    pool,
    pools,
    spikes,
    view,
)
from tests.random_graphs import random_graph
from tser.deploy.counting import OperationCount, count_operations
from tser.deploy.footprint import Widths
from tser.export.graph import Graph, resolve
from tser.export.shapes import SHAPE_RULES, Shape

ANY = settings(deadline=None, derandomize=True, max_examples=150)
SOME = settings(deadline=None, derandomize=True, max_examples=50)


def _assert_same(graph: Graph, x: Array) -> OperationCount:
    """All that the brute-force counter knows too."""
    counts, brute = count_operations(graph, [x]), BruteCounter(graph, x)
    steps, samples = x.shape[:2]
    rows = [row for row in counts.layers if row.kind not in ("neuron", "delay")]
    found = [
        (
            row.name,
            row.events.tolist(),
            row.sop_structural.tolist(),
            row.sop_effective.tolist(),
            row.dense,
            row.operation,
            row.macs,
            row.macs_once,
        )
        for row in rows
    ]
    expected = []
    for row in brute.rows:
        analog = len(row.values) > 1
        macs = row.dense * analog
        expected.append(
            (
                row.name,
                row.events,
                row.structural,
                row.effective,
                row.dense,
                "MAC" if analog else "AC",
                macs,
                macs // steps,
            )
        )
    assert sorted(found) == sorted(expected)
    for node in graph.nodes.values():
        if isinstance(node.op, RECEIVING):
            (row,) = [r for r in counts.layers if r.kind == "neuron" and r.name == node.name]
            size = math.prod(node.output_shape)
            assert row.driven_per_step.tolist() == brute.driven[node.name].tolist(), node.name
            assert row.neuron_updates_driven == brute.driven[node.name].sum()
            assert row.neuron_updates == size * steps * samples
            fired = brute.values[node.name] != 0
            fires = hasattr(node.op, "v_threshold") or isinstance(node.op, nir.Threshold)
            assert row.events.tolist() == (fired.reshape(steps, -1).sum(1) * fires).tolist()
            numbers = stored_numbers(node)
            assert (row.parameter_bits, row.state_bits) == (32 * numbers[0], 32 * numbers[1])
        elif isinstance(node.op, WEIGHTED):
            own = [r for r in rows if r.name.rpartition(">")[2] == node.name]
            assert sum(r.bias_adds for r in own) == biases(node) * steps * samples
            assert sum(r.parameter_bits for r in own) == 32 * stored_numbers(node)[0]
    return counts


@ANY
@given(st.integers(0, 10**6))
def test_random_graphs(seed: int) -> None:
    """Chains, shortcuts, recurrence at once and late, every class of node."""
    flat, nested, x = random_graph(seed)
    counts = _assert_same(resolve(flat), x)
    known = {"AvgPool2d", "SumPool2d", "Scale", "Delay"}
    assert {gap["kind"] for gap in counts.gaps} <= known
    totals = ("sop_structural", "sop_effective", "neuron_updates_driven", "bias_adds")
    within = count_operations(resolve(nested), [x])
    assert [within.total(name) for name in totals] == [counts.total(name) for name in totals]


@SOME
@given(
    st.integers(0, 999),
    st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]),
    st.tuples(st.integers(4, 6), st.integers(1, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.booleans(),
    st.booleans(),
)
def test_residual_graphs(
    seed: int,
    geometry: tuple[int, int],
    size: tuple[int, int],
    window: tuple[int, int],
    identity: bool,
    recurrent: bool,
) -> None:
    """stem - (conv - lif, with an identity or a convolution beside it) - pool - fc."""
    rng = np.random.default_rng(seed)
    (groups, stride), (side, dilation) = geometry, size
    options = {"stride": stride, "padding": dilation, "dilation": dilation, "groups": groups}
    weight = dyadic(rng, (2, 2 // groups, 3, 3), bits=1)
    main = conv(weight, None, bias=dyadic(rng, 2, bits=1), **options)
    inner: Shape = (2, side, side)
    outer = SHAPE_RULES[nir.Conv2d](main, inner)
    folded = pool(nir.AvgPool2d, *window)
    inputs = math.prod(SHAPE_RULES[nir.AvgPool2d](folded, outer))
    nodes: dict[str, Any] = {
        "stem": conv(dyadic(rng, (2, 1, 3, 3)), None, padding=1),
        "lif1": lif(inner, v_th=0.3),
        "main": main,
        "lif2": lif(outer, v_th=0.3),
        "pool": folded,
        "flatten": flatten(),
        "fc": nir.Affine(dyadic(rng, (3, inputs), bits=1), dyadic(rng, 3, bits=1)),
    }
    edges = list(itertools.pairwise(["input", *nodes, "output"]))
    if identity and stride == 1:
        edges.append(("lif1", "lif2"))
    else:
        nodes["side"] = conv(dyadic(rng, (2, 2, 1, 1), bits=1), None, stride=stride)
        edges += [("lif1", "side"), ("side", "lif2")]
    if recurrent:
        edges.append(("lif2", "lif2"))
    graph = resolve(network((1, side, side), nodes, edges, (3,)))
    assert not _assert_same(graph, spikes(rng, (3, 2, 1, side, side))).gaps


@SOME
@given(pools(), convolutions(), st.booleans(), st.integers(0, 99))
def test_any_pools_before_a_weighted_layer(
    case: tuple[Any, Shape], other: tuple[Any, Shape], scaled: bool, seed: int
) -> None:
    """Overlapping windows too: a target behind two of them is one target."""
    (op, shape), rng = case, np.random.default_rng(seed)
    nodes: dict[str, Any] = {"lif": lif(shape, v_th=0.2), "pool": op}
    output = SHAPE_RULES[type(op)](op, shape)
    if scaled:
        nodes["scale"] = nir.Scale(dyadic(rng, output, bits=0))
    again = pool(nir.SumPool2d, 2, 1)
    if min(output[1:]) > 1 and seed % 3 == 0:
        nodes["again"] = again
        output = SHAPE_RULES[nir.SumPool2d](again, output)
    nodes |= _weighted(rng, other[0], output, ("conv", "fc", "rows", "none")[seed % 4])
    graph = view(shape, nodes)
    assert not _assert_same(graph, spikes(rng, (2, 1, *shape))).gaps


def _weighted(rng: np.random.Generator, op: Any, shape: Shape, kind: str) -> dict[str, Any]:
    """A layer with as many zeros as weights: the geometry of ``op`` where it fits."""
    if kind == "none":
        return {"out": lif(shape)}
    if kind == "rows":
        return {"rows": nir.Linear(dyadic(rng, (2, shape[-1]), bits=0))}
    if kind == "fc":
        return {"flatten": flatten(), "fc": nir.Linear(dyadic(rng, (3, math.prod(shape)), bits=0))}
    groups = 2 if shape[0] == 2 and rng.random() < 0.5 else 1
    size = (op.weight.shape[2:] * 2)[:2]
    weight = dyadic(rng, (2, shape[0] // groups, *size), bits=0)
    return {"conv": conv(weight, None, groups=groups, padding=3, dilation=2, stride=(1, 2))}


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (5, 1), (6, 2), (4, 2)])
def test_channels_of_any_number_and_groups_of_them(channels: int, groups: int) -> None:
    """Few events, so that it matters which channel has one; and a pool before other groups."""
    rng = np.random.default_rng(channels)
    weight = dyadic(rng, (4, channels // groups, 2, 2), bits=0)
    nodes = {
        "conv": conv(weight, None, groups=groups, bias=dyadic(rng, 4, bits=1)),
        "lif": lif((4, 3, 3), v_th=0.2),
        "pool": pool(nir.AvgPool2d, 2, 1),
        "again": conv(dyadic(rng, (6, 2, 1, 1), bits=0), None, groups=2),
        "out": lif((6, 2, 2)),
    }
    x = spikes(rng, (6, 3, channels, 4, 4), rate=0.03)
    assert not _assert_same(view((channels, 4, 4), nodes), x).gaps


def test_a_pool_folded_into_a_convolution_over_rows() -> None:
    """Flattened behind the channels, then a Conv1d."""
    rng = np.random.default_rng(0)
    weight = dyadic(rng, (2, 2, 3), bits=0)
    nodes = {
        "lif": lif((2, 5, 4), v_th=0.2),
        "pool": pool(nir.AvgPool2d, 3, 1, 1),
        "flatten": flatten(2),
        "conv": nir.Conv1d(None, weight, 2, 1, 1, 1, np.zeros(2, np.float32)),
    }
    assert not _assert_same(view((2, 5, 4), nodes), spikes(rng, (3, 2, 2, 5, 4))).gaps


def test_a_delay_in_front_of_neurons_drives_them_later() -> None:
    """Every neuron by its own number of steps, some of them beyond the last one."""
    rng = np.random.default_rng(0)
    late = nir.Delay((np.array([0, 1, 2, 9]) * DT).astype(np.float32))
    nodes = {"fc": nir.Linear(full((4, 2), 1)), "late": late, "lif": lif(4, v_th=0.2)}
    graph = view((2,), nodes)
    counts = _assert_same(graph, spikes(rng, (6, 1, 2), rate=0.3))
    assert not counts.gaps
    assert [row.name for row in counts.layers] == ["fc", "late", "lif"]
    # A current is a number; what a delay of spikes holds is one bit each.
    assert counts.layers[1].state_bits == 12 * 32
    spiking = view((4,), {"lif": lif(4, v_th=0.2), "late": late})
    row = count_operations(spiking, [spikes(rng, (6, 1, 4))]).layers[-1]
    assert (row.name, row.kind, row.state_bits) == ("late", "delay", 12)
    assert row.sop_structural.tolist() == row.events.tolist() == [0] * 6


@pytest.mark.parametrize("end", ["output", "late"])
def test_a_pool_that_ends_in_no_synapse_is_counted_as_one(end: str) -> None:
    nodes: dict[str, Any] = {"lif": lif((1, 4, 4), v_th=0.2), "pool": pool(nir.SumPool2d, 2)}
    if end == "late":
        nodes["late"] = nir.Delay(full((1, 2, 2), DT))
    counts = _assert_same(view((1, 4, 4), nodes), spikes(np.random.default_rng(0), (3, 2, 1, 4, 4)))
    row = next(row for row in counts.layers if row.name == f"lif->{end}")
    assert (row.kind, row.operation) == ("identity", "AC")
    assert row.sop_structural.tolist() == row.events.tolist()
    assert counts.gaps == []


def test_other_widths() -> None:
    nodes = {"fc": nir.Affine(full((3, 2), 1), full(3, 1)), "lif": lif(3)}
    x = full((2, 1, 2), 1)
    counts = count_operations(view((2,), nodes), [x], widths=Widths(parameter=8, state=16))
    fc, neurons = counts.layers
    assert (fc.parameter_bits, fc.state_bits) == (9 * 8, 0)
    assert (neurons.parameter_bits, neurons.state_bits) == (5 * 8, 3 * 16)
    assert (fc.bias_adds, neurons.bias_adds) == (3 * 2, 0)
