"""Synapses and their fan-out, against loops over every connection."""

import itertools
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings

from tests.graphs import (
    DT,
    Array,
    conv,
    convolutions,
    dyadic,
    flatten,
    full,
    inside,
    lif,
    network,
    pool,
    pools,
    taps,
    view,
)
from tser.deploy.driven import reached
from tser.deploy.synapses import (
    Synapse,
    Uncounted,
    arrivals,
    fan_out,
    find_synapses,
)
from tser.export.graph import Graph, resolve
from tser.export.shapes import Shape

ANY = settings(deadline=None, derandomize=True, max_examples=60)
RNG = np.random.default_rng(0)


def _loop(op: Any, shape: Shape, effective: bool) -> Array:
    """Fan-out of every input, connection by connection."""
    counts = np.zeros(shape, np.int64)
    for source, _, weight in taps(op, shape):
        if inside(source, shape) and (weight or not effective):
            counts[source] += 1
    return counts


def _reached(synapse: Synapse, active: Array, shape: Shape, rest: Any = ()) -> Array:
    """For samples ``[B, ...]`` of one step; what targets share is given to all of them."""
    return np.broadcast_to(reached(synapse, active[None], rest)[0], shape)


def _only(graph: Graph) -> Synapse:
    (synapse,) = find_synapses(graph)
    return synapse


@ANY
@given(convolutions())
def test_fan_out_of_any_convolution(case: tuple[Any, Shape]) -> None:
    op, shape = case
    synapse = _only(view(shape, {"conv": op}))
    for effective in (False, True):
        counts = fan_out(synapse, effective=effective)
        np.testing.assert_array_equal(counts, _loop(op, shape, effective))
        assert counts.dtype == np.int64


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_fan_out_of_a_linear_layer(shape: Shape) -> None:
    op = nir.Linear(dyadic(RNG, (4, 5), bits=1))
    assert (op.weight == 0).any()
    synapse = _only(view(shape, {"fc": op}))
    for effective in (False, True):
        counts = fan_out(synapse, effective=effective)
        np.testing.assert_array_equal(counts, _loop(op, shape, effective))


@pytest.mark.parametrize("outputs", [256, 600])
def test_more_outputs_than_a_byte_counts(outputs: int) -> None:
    weight = full((outputs + 1, 2), 1)
    weight[0] = 0
    layers = {"fc": nir.Linear(weight), "conv": conv(weight[..., None, None], None)}
    for name, shape in (("fc", (2,)), ("conv", (2, 1, 1))):
        synapse = _only(view(shape, {name: layers[name]}))
        every, used = (fan_out(synapse, effective=effective) for effective in (False, True))
        assert every.reshape(-1).tolist() == [outputs + 1] * 2
        assert used.reshape(-1).tolist() == [outputs] * 2


@ANY
@given(convolutions())
def test_what_a_convolution_reaches(case: tuple[Any, Shape]) -> None:
    op, shape = case
    graph = view(shape, {"conv": op})
    active = np.random.default_rng(0).random((3, *shape)) < 0.3
    expected = np.zeros((3, *graph.nodes["conv"].output_shape), bool)
    for source, target, _ in taps(op, shape):
        if inside(source, shape):
            expected[(slice(None), *target)] |= active[(slice(None), *source)]
    np.testing.assert_array_equal(_reached(_only(graph), active, expected.shape), expected)


# --- pools and other nodes that fold into the synapse behind them --------------------------


def _windows(op: Any, shape: Shape, output: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(input, output) of every connection of a pool."""
    (kh, kw), (sh, sw), (top, left) = (v.tolist() for v in (op.kernel_size, op.stride, op.padding))
    places = itertools.product(*map(range, output), range(kh), range(kw))
    pairs = [((c, y * sh + i - top, x * sw + j - left), (c, y, x)) for c, y, x, i, j in places]
    return [(source, target) for source, target in pairs if inside(source, shape)]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 0), ((2, 3), (3, 3), 0), (2, 2, 1), ((6, 5), 6, 0)]
)
@pytest.mark.parametrize("effective", [False, True])
def test_events_fan_out_through_a_pool(
    kernel: Any, stride: Any, padding: int, effective: bool
) -> None:
    shape = (2, 6, 5)
    folded = pool(nir.AvgPool2d, kernel, stride, padding)
    output = view(shape, {"pool": folded}).output.output_shape
    size = int(np.prod(output))
    fc = nir.Affine(dyadic(RNG, (3, size), bits=1), full(3, 1))
    graph = view(shape, {"lif": lif(shape), "pool": folded, "flatten": flatten(), "fc": fc})
    synapse = next(s for s in find_synapses(graph) if s.name == "fc")
    assert [node.name for node in synapse.path] == ["pool", "flatten"]
    behind = _loop(fc, (size,), effective).reshape(output)
    expected = np.zeros(shape, np.int64)
    for source, target in _windows(folded, shape, output):
        expected[source] += behind[target]
    np.testing.assert_array_equal(fan_out(synapse, effective=effective), expected)


def test_a_target_behind_two_windows_is_one_target() -> None:
    """Windows 0..2 and 2..4: the element 2 is in both, and has the 4 targets of either."""
    overlapping = pool(nir.AvgPool2d, (1, 3), (1, 2))
    weight = full((4, 2), 1)
    weight[1:, 0] = weight[2:, 1] = 0
    nodes = {"pool": overlapping, "flatten": flatten(), "fc": nir.Linear(weight)}
    synapse = _only(view((1, 1, 6), nodes))
    assert fan_out(synapse, effective=False).tolist() == [[[4, 4, 4, 4, 4, 0]]]
    assert fan_out(synapse, effective=True).tolist() == [[[1, 1, 2, 2, 2, 0]]]


def test_ways_that_cancel_are_a_connection() -> None:
    """The composed weight of the middle is 1 - 1."""
    weight = np.array([[1, -1]], np.float32)
    nodes = {"pool": pool(nir.SumPool2d, (1, 2), (1, 1)), "flatten": flatten()}
    synapse = _only(view((1, 1, 3), {**nodes, "fc": nir.Linear(weight)}))
    assert fan_out(synapse, effective=True).tolist() == [[[1, 1, 1]]]


def test_what_is_too_large_to_follow_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tser.deploy.composition.MOST_PAIRS", 4 * 25 * 9)
    nodes = {"pool": pool(nir.AvgPool2d, 3, 2), "flatten": flatten()}
    weight = full((5, 4), 1)
    weight[0, 0] = 0  # without one, all outputs would see the same
    small = _only(view((1, 5, 5), {**nodes, "fc": nir.Linear(weight[:4])}))
    assert fan_out(small, effective=True).sum() == 4 * 25 - 4  # those in no other window
    large = _only(view((1, 5, 5), {**nodes, "fc": nir.Linear(weight)}))
    assert fan_out(large, effective=False).sum() == 5 * 25
    with pytest.raises(Uncounted, match="the windows of the pool 'pool' overlap .* too large"):
        fan_out(large, effective=True)


@pytest.mark.parametrize("chunk", [1, 60, 10**6])
def test_pieces_of_any_size_give_the_same(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    layers = {
        "conv": conv(dyadic(rng, (2, 2, 2, 2), bits=0), None, padding=1),
        "fc": nir.Linear(dyadic(rng, (3, 4), bits=0)),
        "again": pool(nir.SumPool2d, 2, 1),
    }
    for name, layer in layers.items():
        nodes = {"pool": pool(nir.AvgPool2d, 2, 1), name: layer}
        last = {} if name != "again" else {"lif": lif((2, 3, 3))}
        synapse = _only(view((2, 5, 5), nodes | last))
        whole = [fan_out(synapse, effective=used).tolist() for used in (False, True)]
        monkeypatch.setattr("tser.deploy.composition.CHUNK", chunk)
        parts = [fan_out(synapse, effective=used).tolist() for used in (False, True)]
        monkeypatch.undo()
        assert parts == whole


@ANY
@given(pools())
def test_a_pool_straight_into_neurons(case: tuple[Any, Shape]) -> None:
    """Nothing is counted twice there: each window is a target of its own."""
    op, shape = case
    output = view(shape, {"pool": op}).output.output_shape
    synapse = _only(view(shape, {"pool": op, "lif": lif(output)}))
    expected = np.zeros(shape, np.int64)
    active = np.random.default_rng(0).random((2, *shape)) < 0.3
    hit = np.zeros((2, *output), bool)
    for source, target in _windows(op, shape, output):
        expected[source] += 1
        hit[(slice(None), *target)] |= active[(slice(None), *source)]
    assert (synapse.kind, synapse.name) == ("identity", "input->lif")
    np.testing.assert_array_equal(fan_out(synapse, effective=False), expected)
    np.testing.assert_array_equal(_reached(synapse, active, hit.shape), hit)


def test_a_scale_of_zero_is_no_effective_connection() -> None:
    nodes = {
        "scale": nir.Scale(np.array([2, 0, -1], np.float32)),
        "fc": nir.Linear(full((4, 3), 1)),
    }
    synapse = _only(view((3,), nodes))
    assert fan_out(synapse, effective=False).tolist() == [4, 4, 4]
    assert fan_out(synapse, effective=True).tolist() == [4, 0, 4]


# --- which synapses there are --------------------------------------------------------------


def _summary(graph: Graph) -> list[tuple[Any, ...]]:
    return [(s.name, s.kind, s.source.name, s.sink.name, s.delayed) for s in find_synapses(graph)]


def test_synapses_of_a_residual_network() -> None:
    nodes = {
        "stem": conv(np.ones((2, 1, 3, 3)), (4, 4), padding=1),
        "lif1": lif((2, 4, 4)),
        "conv": conv(np.ones((2, 2, 3, 3)), (4, 4), padding=1),
        "lif2": lif((2, 4, 4)),
        "pool": pool(nir.AvgPool2d, 4),
        "flatten": flatten(),
        "fc": nir.Linear(full((3, 2), 1)),
    }
    edges = [*itertools.pairwise(["input", *nodes, "output"]), ("lif1", "lif2")]
    assert _summary(resolve(network((1, 4, 4), nodes, edges, (3,)))) == [
        ("stem", "conv", "input", "stem", False),
        ("conv", "conv", "lif1", "conv", False),
        ("lif1->lif2", "identity", "lif1", "lif2", False),
        ("fc", "linear", "lif2", "fc", False),
    ]


def test_several_sources_of_one_layer_are_told_apart() -> None:
    edges = [("input", "a"), ("input", "b"), ("a", "fc"), ("b", "fc"), ("fc", "output")]
    nodes = {"a": lif(3), "b": lif(3, v_th=2), "fc": nir.Linear(full((2, 3), 1))}
    assert _summary(resolve(network((3,), nodes, edges, (2,))))[2:] == [
        ("a->fc", "linear", "a", "fc", False),
        ("b->fc", "linear", "b", "fc", False),
    ]


def test_a_threshold_is_a_target_and_a_source() -> None:
    nodes = {"pool": pool(nir.SumPool2d, 2), "or": nir.Threshold(full((1, 2, 2), 0.5))}
    nodes |= {"flatten": flatten(), "fc": nir.Linear(full((2, 4), 1))}
    assert _summary(view((1, 4, 4), nodes)) == [
        ("input->or", "identity", "input", "or", False),
        ("fc", "linear", "or", "fc", False),
    ]


RECURRENT = [("input", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "output")]


def test_recurrent_synapses() -> None:
    back = nir.Linear(full((2, 2), 1))
    graph = resolve(network((2,), {"lif": lif(2), "back": back}, RECURRENT, (2,)))
    assert _summary(graph) == [
        ("back", "linear", "lif", "back", True),
        ("input->lif", "identity", "input", "lif", False),
    ]
    late = {s.name: steps for s, _, steps in arrivals(graph, graph.nodes["lif"], _all(graph))}
    assert late == {"input->lif": 0, "back": 1}


def _all(graph: Graph) -> list[Synapse]:
    return find_synapses(graph)


def test_a_neuron_that_feeds_itself() -> None:
    edges = [("input", "lif"), ("lif", "lif"), ("lif", "output")]
    graph = resolve(network((2,), {"lif": lif(2)}, edges, (2,)))
    assert _summary(graph)[1] == ("lif->lif", "identity", "lif", "lif", True)
    late = {s.name: steps for s, _, steps in arrivals(graph, graph.nodes["lif"], _all(graph))}
    assert late == {"input->lif": 0, "lif->lif": 1}


def test_a_delayed_edge_behind_a_folded_node() -> None:
    edges = [("input", "lif"), ("lif", "scale"), ("scale", "lif"), ("lif", "output")]
    nodes = {"lif": lif(2), "scale": nir.Scale(full(2, 0.5))}
    graph = resolve(network((2,), nodes, edges, (2,)))
    assert _summary(graph)[1] == ("lif->lif", "identity", "lif", "lif", True)


def test_a_delay_hands_events_on() -> None:
    nodes = {"lif": lif(2), "late": nir.Delay(full(2, DT)), "fc": nir.Linear(full((3, 2), 1))}
    assert _summary(view((2,), nodes))[-1] == ("fc", "linear", "late", "fc", False)


def test_what_drives_neurons_behind_folded_nodes() -> None:
    weights = conv(np.ones((2, 1, 3, 3)), (4, 4))
    graph = view((1, 4, 4), {"conv": weights, "flatten": flatten(), "lif": lif(8)})
    ((synapse, rest, late),) = arrivals(graph, graph.nodes["lif"], _all(graph))
    assert (synapse.name, [node.name for node in rest], late) == ("conv", ["flatten"], 0)
    active = np.zeros((1, 1, 4, 4), bool)
    active[0, 0, 0, 0] = True
    assert _reached(synapse, active, (1, 8), rest).tolist() == [[True, *[False] * 3] * 2]
