"""Exact operation counts, against loops over every connection, step and sample."""

import itertools
import weakref
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    spikes,
    taps,
    view,
)
from tser.deploy.counting import LayerCount, OperationCount, count_operations
from tser.deploy.interpreter import run
from tser.deploy.numeric import STATELESS
from tser.errors import UsageError
from tser.export.graph import Graph, resolve
from tser.export.shapes import SHAPE_RULES, Shape

ANY = settings(deadline=None, derandomize=True, max_examples=40)
RNG = np.random.default_rng(0)


def _row(counts: OperationCount, name: str) -> LayerCount:
    (row,) = [row for row in counts.layers if row.name == name]
    return row


def _loop(op: Any, x: Array) -> dict[str, Any]:
    """Counts of one synapse on ``[T, B, ...]``, tap by tap."""
    shape, steps, samples = x.shape[2:], *x.shape[:2]
    output = SHAPE_RULES[type(op)](op, shape)
    structural, effective = np.zeros(steps, np.int64), np.zeros(steps, np.int64)
    hit = np.zeros((steps, samples, *output), bool)
    dense = padded = 0
    for source, target, weight in taps(op, shape):
        padded += steps * samples
        if not inside(source, shape):
            continue
        dense += steps * samples
        active = x[(slice(None), slice(None), *source)] != 0
        structural += active.sum(1)
        effective += active.sum(1) * (weight != 0)
        hit[(slice(None), slice(None), *target)] |= active
    return {
        "events": (x != 0).sum(tuple(range(1, x.ndim))),
        "sop_structural": structural,
        "sop_effective": effective,
        "dense": dense,
        "dense_padded": padded,
        "driven": int(hit.sum()),
    }


def _assert_counts(row: LayerCount, expected: dict[str, Any]) -> None:
    for name in ("events", "sop_structural", "sop_effective"):
        assert getattr(row, name).tolist() == expected[name].tolist(), name
        assert getattr(row, name).dtype == np.int64
    assert (row.dense, row.dense_padded) == (expected["dense"], expected["dense_padded"])


# --- one layer -----------------------------------------------------------------------------


@ANY
@given(convolutions(), st.integers(1, 3), st.integers(1, 3))
def test_any_convolution(case: tuple[Any, Shape], steps: int, samples: int) -> None:
    op, shape = case
    x = spikes(np.random.default_rng(steps * 10 + samples), (steps, samples, *shape))
    output = view(shape, {"conv": op}).output.output_shape
    counts = count_operations(view(shape, {"conv": op, "lif": lif(output)}), [x])
    expected = _loop(op, x)
    _assert_counts(_row(counts, "conv"), expected)
    neurons = _row(counts, "lif")
    assert neurons.neuron_updates_driven == expected["driven"]
    assert neurons.neuron_updates == np.prod(output) * steps * samples
    assert (counts.samples, counts.timesteps, counts.gaps) == (samples, steps, [])


@pytest.mark.parametrize("shape", [(6,), (2, 6)])
def test_a_linear_layer(shape: Shape) -> None:
    op, x = nir.Affine(dyadic(RNG, (5, 6), bits=1), full(5, 1)), spikes(RNG, (3, 4, *shape))
    counts = count_operations(view(shape, {"fc": op, "lif": lif((*shape[:-1], 5))}), [x])
    expected = _loop(op, x)
    _assert_counts(_row(counts, "fc"), expected)
    assert _row(counts, "fc").sop_effective.sum() < _row(counts, "fc").sop_structural.sum()
    assert _row(counts, "lif").neuron_updates_driven == expected["driven"]


GOLDEN: dict[str, tuple[int, dict[str, Any]]] = {
    "3x3 s1 p1": (6744, {"padding": 1}),
    "3x3 s1 p0": (4824, {}),
    "3x3 s2 p1": (1696, {"stride": 2, "padding": 1}),
    "1x1 s2": (264, {"kernel": 1, "stride": 2}),
    "depthwise 3x3": (1686, {"padding": 1, "groups": 4}),
    "dilation 2, pad 2": (5704, {"padding": 2, "dilation": 2}),
    "50 % pruned": (3458, {"padding": 1, "pruned": 0.5}),
}
"""Effective operations, and the options of the convolution."""
EVENTS = "03440010 00040404 00444400 03000100 40444000 04044040 40010443 00440440"
"""108 spikes on 8 x 8 (how many at each place) that give all these totals."""


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_cases(case: str) -> None:
    """108 input spikes in 2 samples, 4 -> 8 channels on 8 x 8."""
    golden, options = GOLDEN[case]
    options = dict(options)
    kernel, pruned = options.pop("kernel", 3), options.pop("pruned", 0)
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.5, 1, (8, 4 // options.get("groups", 1), kernel, kernel))
    weight.reshape(-1)[rng.permutation(weight.size)[: int(pruned * weight.size)]] = 0
    x = np.zeros((8, 8, 8), np.float32)
    for place, count in enumerate(EVENTS.replace(" ", "")):
        x[rng.permutation(8)[: int(count)], place // 8, place % 8] = 1
    x = x.reshape(1, 2, 4, 8, 8)
    op = conv(weight, (8, 8), **options)
    row = _row(count_operations(view((4, 8, 8), {"conv": op}), [x]), "conv")
    _assert_counts(row, _loop(op, x))
    assert int(row.events.sum()) == 108
    # Which weights are pruned is another choice; the other totals are the published ones.
    assert int(row.sop_effective.sum()) == pytest.approx(golden, rel=0.05 if pruned else 0)
    assert (row.sop_effective.sum() < row.sop_structural.sum()) == bool(pruned)
    if case == "3x3 s1 p1":
        assert (row.dense, row.dense_padded) == (30_976, 36_864)


# --- additions and multiplications ---------------------------------------------------------


def _one_layer(x: Array, steps: int | None = None) -> LayerCount:
    graph = view((4,), {"fc": nir.Affine(dyadic(RNG, (3, 4)), full(3, 1)), "lif": lif(3)})
    return _row(count_operations(graph, [x], steps), "fc")


def test_an_analog_input_is_multiplied_at_every_step() -> None:
    row = _one_layer(np.array([[0, 0.5, 1, 2], [0, 0, 0, 1]]), steps=5)
    assert row.operation == "MAC"
    assert (row.macs, row.macs_once) == (5 * 2 * 12, 2 * 12)
    assert row.events.tolist() == [4] * 5
    assert row.sop_structural.tolist() == [12] * 5


@pytest.mark.parametrize("height", [1.0, 0.25, -3.0])
def test_one_height_of_input_is_added_alone(height: float) -> None:
    """Binary spikes, scaled spikes, negative spikes: nothing to multiply."""
    row = _one_layer(spikes(RNG, (5, 2, 4)) * np.float32(height))
    assert (row.operation, row.macs, row.macs_once) == ("AC", 0, 0)
    assert (row.sop_structural > 0).any()


def test_a_sign_is_a_subtraction() -> None:
    row = _one_layer(np.array([[[0.5, -0.5, 0, 0]]], np.float32))
    assert (row.operation, row.macs, row.sop_structural.tolist()) == ("AC", 0, [6])


@pytest.mark.parametrize("heights", [(1, 2), (1, -2)])
def test_two_heights_are_analog(heights: tuple[int, int]) -> None:
    row = _one_layer(np.array([[[*heights, 0, 0]]], np.float32))
    assert (row.operation, row.macs) == ("MAC", 12)


def test_sums_of_spikes_are_events_at_a_synapse_each() -> None:
    nodes = {name: lif(4, v_th=height) for name, height in (("a", 0.2), ("b", 0.4))}
    edges = [("input", "a"), ("input", "b"), ("a", "fc"), ("b", "fc"), ("fc", "output")]
    nodes["fc"] = nir.Affine(full((3, 4), 1), full(3, 1))
    counts = count_operations(
        resolve(network((4,), nodes, edges, (3,))), [dyadic(RNG, (6, 2, 4), most=2)]
    )
    rows = [_row(counts, "a->fc"), _row(counts, "b->fc")]
    assert [row.operation for row in rows] == ["AC", "AC"]
    for row in rows:
        assert row.sop_structural.sum() == 3 * _row(counts, row.source).events.sum() > 0
    # The layer itself is there once.
    assert [row.ann_macs for row in rows] == [12, 0]
    assert [row.bias_adds for row in rows] == [3 * 6 * 2, 0]
    assert [row.parameter_bits for row in rows] == [15 * 32, 0]


def test_the_heights_of_the_whole_run_decide() -> None:
    """Each batch holds one height, all together two."""
    graph = view((4,), {"fc": nir.Linear(dyadic(RNG, (3, 4)))})
    batches = [full((1, 2, 4), 1), full((1, 2, 4), 2)]
    for batch in batches:
        assert _row(count_operations(graph, [batch]), "fc").operation == "AC"
    row = _row(count_operations(graph, batches), "fc")
    assert (row.operation, row.macs) == ("MAC", 4 * 12)


def test_silence_is_no_operation() -> None:
    row = _one_layer(np.zeros((3, 2, 4)))
    assert (row.operation, row.macs, row.sop_structural.tolist()) == ("AC", 0, [0, 0, 0])
    assert row.dense == 3 * 2 * 12


# --- whole networks ------------------------------------------------------------------------


def _residual(rng: np.random.Generator) -> tuple[Graph, dict[str, Any]]:
    shape = (3, 5, 5)
    weights = {name: dyadic(rng, (3, inputs, 3, 3)) for name, inputs in (("stem", 2), ("conv", 3))}
    nodes = {
        "stem": conv(weights["stem"], (5, 5), padding=1),
        "lif1": lif(shape, v_th=0.3),
        "conv": conv(weights["conv"], (5, 5), padding=1),
        "lif2": lif(shape, v_th=0.3),
        "pool": pool(nir.AvgPool2d, (5, 3)),
        "flatten": flatten(),
        "fc": nir.Affine(dyadic(rng, (4, 3), bits=1), full(4, 1)),
    }
    edges = [*itertools.pairwise(["input", *nodes, "output"]), ("lif1", "lif2")]
    return resolve(network((2, 5, 5), nodes, edges, (4,))), nodes


def test_a_residual_network() -> None:
    rng = np.random.default_rng(2)
    graph, nodes = _residual(rng)
    x = spikes(rng, (4, 3, 2, 5, 5))
    counts = count_operations(graph, [x])
    _, values = run(graph, x, record=["lif1", "lif2"])
    assert [row.name for row in counts.layers] == [
        "stem",
        "lif1",
        "conv",
        "lif1->lif2",
        "lif2",
        "fc",
    ]
    _assert_counts(_row(counts, "stem"), _loop(nodes["stem"], x))
    main = _loop(nodes["conv"], values["lif1"])
    _assert_counts(_row(counts, "conv"), main)
    fired = (values["lif1"] > 0).sum((1, 2, 3, 4))
    shortcut = _row(counts, "lif1->lif2")
    # An identity shortcut is one operation an event, whatever the image size.
    assert shortcut.sop_structural.tolist() == shortcut.events.tolist() == fired.tolist()
    assert shortcut.sop_effective.tolist() == fired.tolist()
    assert (shortcut.operation, shortcut.kind, shortcut.dense) == ("AC", "identity", 4 * 3 * 75)
    # The pool covers 5 x 3 of 5 x 5: events in the last two columns reach nothing.
    covered = values["lif2"][..., :3]
    head = _row(counts, "fc")
    assert head.events.tolist() == (values["lif2"] > 0).sum((1, 2, 3, 4)).tolist()
    assert head.sop_structural.tolist() == (4 * covered.sum((1, 2, 3, 4))).tolist()
    used = (nodes["fc"].weight != 0).sum(0)
    by_channel = covered.sum((1, 3, 4)) @ used
    assert head.sop_effective.tolist() == by_channel.tolist()
    assert head.dense == 4 * 3 * 4 * 45
    # A neuron is driven by its convolution, by its shortcut, or by both.
    hit = values["lif1"] > 0
    for source, target, _ in taps(nodes["conv"], (3, 5, 5)):
        if inside(source, (3, 5, 5)):
            hit = hit.copy()
            place = (slice(None), slice(None), *target)
            hit[place] |= values["lif1"][(slice(None), slice(None), *source)] > 0
    assert _row(counts, "lif2").neuron_updates_driven == hit.sum()
    assert _row(counts, "lif2").neuron_updates == 4 * 3 * 75
    assert _row(counts, "lif2").firing_rate == values["lif2"].mean(dtype=np.float64)
    assert _row(counts, "lif1").events.tolist() == fired.tolist()
    total = sum(int(row.sop_structural.sum()) for row in counts.layers)
    assert counts.total("sop_structural") == total
    assert counts.gaps == []


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4], [6, 1]])
def test_batches_add_up_to_the_whole(sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    graph, _ = _residual(rng)
    x = dyadic(rng, (7, 2, 5, 5))
    whole = count_operations(graph, [x], 3)
    parts = count_operations(graph, np.split(x, np.cumsum(sizes)[:-1]), 3)
    assert (parts.samples, parts.timesteps) == (7, 3)
    for a, b in zip(whole.layers, parts.layers, strict=True):
        for key, value in vars(a).items():
            np.testing.assert_array_equal(getattr(b, key), value, err_msg=f"{a.name}.{key}")


def test_inputs_are_not_kept() -> None:
    """One batch at a time: the next is asked for when the last is counted and gone."""
    graph, _ = _residual(np.random.default_rng(0))
    alive: list[Any] = []

    def batches() -> Any:
        for seed in range(5):
            x = spikes(np.random.default_rng(seed), (3, 2, 2, 5, 5))
            alive.append(weakref.ref(x))
            yield x
            del x
            assert sum(ref() is not None for ref in alive[:-1]) == 0

    assert count_operations(graph, batches()).samples == 10


def test_what_was_recorded_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a batch is run, nothing that was recorded of the last one takes memory."""
    graph, _ = _residual(np.random.default_rng(0))
    alive: list[Any] = []

    def recorded(*args: Any, **options: Any) -> Any:
        assert not any(ref() is not None for ref in alive)
        out, values = run(*args, **options)
        alive.extend(weakref.ref(value) for value in values.values())
        return out, values

    monkeypatch.setattr("tser.deploy.counting.run", recorded)
    count_operations(graph, [spikes(RNG, (3, 2, 2, 5, 5)) for _ in range(3)])
    assert len(alive) >= 3 * 3


def test_neurons_behind_a_flatten_are_driven() -> None:
    op = conv(np.ones((2, 1, 3, 3)), (4, 4))
    graph = view((1, 4, 4), {"conv": op, "flatten": flatten(), "lif": lif(8)})
    x = spikes(RNG, (3, 2, 1, 4, 4), rate=0.1)
    counts = count_operations(graph, [x])
    driven = _row(counts, "lif").neuron_updates_driven
    assert driven == _loop(op, x)["driven"]
    assert 0 < driven < 3 * 2 * 8
    assert counts.gaps == []


RECURRENT = [("input", "in"), ("in", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "output")]


def test_a_recurrent_layer_is_driven_by_the_step_before() -> None:
    rng = np.random.default_rng(1)
    nodes = {"in": nir.Linear(dyadic(rng, (5, 3))), "lif": lif(5, v_th=0.3)}
    back = dyadic(rng, (5, 5), bits=1)
    graph = resolve(network((3,), {**nodes, "back": nir.Linear(back)}, RECURRENT, (5,)))
    x = spikes(rng, (6, 2, 3), rate=0.2)
    out, _ = run(graph, x)
    counts = count_operations(graph, [x])
    before = np.concatenate([np.zeros((1, 2, 5)), out[:-1]])
    assert _row(counts, "back").events.tolist() == before.sum((1, 2)).tolist()
    assert _row(counts, "back").sop_structural.tolist() == (5 * before.sum((1, 2))).tolist()
    driven = x.any(-1) | before.any(-1)
    assert _row(counts, "lif").neuron_updates_driven == 5 * driven.sum()
    assert not (driven == (x.any(-1) | out.any(-1))).all()


def test_a_delayed_identity_carries_the_events_of_the_step_before() -> None:
    edges = [("input", "lif"), ("lif", "lif"), ("lif", "output")]
    graph = resolve(network((3,), {"lif": lif(3, v_th=0.3)}, edges, (3,)))
    x = spikes(np.random.default_rng(0), (6, 2, 3), rate=0.3)
    out, _ = run(graph, x)
    counts, fired = count_operations(graph, [x]), out.sum((1, 2))
    assert _row(counts, "lif->lif").events.tolist() == [0, *fired[:-1].tolist()]
    assert _row(counts, "lif->lif").sop_structural.tolist() == [0, *fired[:-1].tolist()]
    before = np.concatenate([np.zeros((1, 2, 3)), out[:-1]])
    assert _row(counts, "lif").neuron_updates_driven == ((x > 0) | (before > 0)).sum()


def test_a_constant_current_drives_at_every_step() -> None:
    graph = view((3,), {"lif": lif(3)})
    counts = count_operations(graph, [np.array([[1.0, 0, 2]])], 4)
    assert _row(counts, "lif").neuron_updates_driven == 8
    assert _row(counts, "lif").neuron_updates == 12


# --- what is not counted is said -----------------------------------------------------------


def test_an_overlapping_pool_too_large_to_follow_is_a_listed_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tser.deploy.composition.MOST_PAIRS", 99)
    nodes = {"lif": lif((1, 5, 5)), "pool": pool(nir.AvgPool2d, 3, 2), "flatten": flatten()}
    graph = view((1, 5, 5), nodes | {"fc": nir.Linear(full((2, 4), 1))})
    counts = count_operations(graph, [spikes(RNG, (2, 1, 1, 5, 5))])
    assert [row.name for row in counts.layers] == ["input->lif", "lif"]
    (gap,) = counts.gaps
    assert (gap["name"], gap["kind"]) == ("fc", "Linear")
    assert "the windows of the pool 'pool' overlap" in gap["reason"]


def test_a_class_of_tomorrow_is_a_listed_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that shapes and the interpreter know already, and the counter does not."""

    class Resonator(nir.ir.node.NIRNode):
        def __init__(self) -> None:
            self.input_type = self.output_type = {"input": np.array([3])}

    monkeypatch.setitem(SHAPE_RULES, Resonator, lambda op, shape: shape)
    monkeypatch.setitem(STATELESS, Resonator, lambda node, x: x)
    nodes = {"odd": Resonator(), "fc": nir.Linear(full((2, 3), 1))}
    counts = count_operations(view((3,), nodes), [spikes(RNG, (4, 2, 3))])
    (gap,) = counts.gaps
    assert (gap["name"], gap["kind"]) == ("odd", "Resonator")
    assert "does not know" in gap["reason"]


def test_neurons_that_do_not_fire_put_out_no_spikes() -> None:
    nodes = {"li": nir.LI(full(3, DT), full(3, 1), full(3, 0.5)), "fc": nir.Linear(full((2, 3), 1))}
    counts = count_operations(view((3,), nodes), [spikes(RNG, (4, 2, 3))])
    row = _row(counts, "li")
    assert (row.events.tolist(), row.firing_rate) == ([0] * 4, 0.0)
    # What they hand on crosses a synapse all the same.
    assert (_row(counts, "fc").operation, _row(counts, "fc").events.tolist()) == ("MAC", [6] * 4)


def test_a_threshold_is_updated_at_every_step() -> None:
    nodes = {"or": nir.Threshold(full(3, 0.5)), "fc": nir.Linear(full((2, 3), 1))}
    x = spikes(RNG, (4, 2, 3))
    row = _row(count_operations(view((3,), nodes), [x]), "or")
    assert (row.kind, row.neurons, row.neuron_updates) == ("neuron", 3, 24)
    assert row.neuron_updates_driven == x.sum()
    assert row.events.tolist() == x.sum((1, 2)).tolist()
    assert (row.parameter_bits, row.state_bits) == (32, 0)


def test_more_samples_than_a_byte_counts() -> None:
    x = np.ones((2, 600, 4), np.float32)
    row = _one_layer(x)
    assert row.events.tolist() == [2400, 2400]
    assert row.sop_structural.tolist() == [7200, 7200]


def test_inputs_of_different_lengths_are_refused() -> None:
    graph = view((4,), {"fc": nir.Linear(full((3, 4), 1))})
    with pytest.raises(UsageError, match="inputs of 2 and of 3 time steps"):
        count_operations(graph, [full((2, 1, 4), 1), full((3, 1, 4), 1)])


def test_no_inputs_are_refused() -> None:
    graph = view((4,), {"fc": nir.Linear(full((3, 4), 1))})
    with pytest.raises(UsageError, match="no inputs"):
        count_operations(graph, [], 2)


@pytest.mark.parametrize("kind", [nir.AvgPool2d, nir.SumPool2d])
def test_a_pool_of_currents_is_a_listed_gap(kind: type) -> None:
    op = conv(np.ones((1, 1, 1, 1)), (4, 4))
    graph = view((1, 4, 4), {"conv": op, "pool": pool(kind, 2), "lif": lif((1, 2, 2))})
    counts = count_operations(graph, [spikes(RNG, (2, 1, 1, 4, 4))])
    (gap,) = counts.gaps
    assert (gap["name"], gap["kind"]) == ("pool", kind.__name__)
    assert _row(counts, "lif").neuron_updates_driven > 0


def test_a_delay_of_spikes_and_currents_is_a_listed_gap() -> None:
    nodes = {
        "lif": lif(3),
        "fc": nir.Linear(full((3, 3), 1)),
        "late": nir.Delay(full(3, DT)),
        "out": lif(3),
    }
    edges = [*itertools.pairwise(["input", *nodes, "output"]), ("lif", "late")]
    counts = count_operations(resolve(network((3,), nodes, edges, (3,))), [spikes(RNG, (4, 2, 3))])
    (gap,) = counts.gaps
    assert (gap["name"], gap["kind"]) == ("late", "Delay")
    assert "the sum of spikes and" in gap["reason"]


def test_a_scale_of_currents_is_a_listed_gap() -> None:
    node = nir.Scale(full(3, 2))
    nodes = {"fc": nir.Linear(dyadic(RNG, (3, 4))), "flatten": flatten(1), "odd": node}
    counts = count_operations(view((4,), nodes | {"lif": lif(3)}), [spikes(RNG, (4, 2, 4))])
    assert [gap["name"] for gap in counts.gaps] == ["odd"]
    on_spikes = view((3,), {"lif": lif(3), "odd": node, "fc": nir.Linear(full((2, 3), 1))})
    assert count_operations(on_spikes, [spikes(RNG, (4, 2, 3))]).gaps == []


def test_counts_are_exact_integers() -> None:
    """Beyond 2**53, where floats would round."""
    row = LayerCount("a", "conv", "b", "AC", *[np.array([2**60, 1])] * 3)
    assert OperationCount([row, row], 1, 2).total("sop_structural") == 2**61 + 2
