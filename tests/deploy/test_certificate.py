"""Rounding bounds: sound for any order of float32 sums, zero where float32 is exact."""

from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import DT, Array, conv, dyadic, flatten, full, lif, pool, spikes, view
from tser.deploy.backends import Trace
from tser.deploy.certificate import (
    UNIT,
    Audit,
    Bounded,
    NotCertifiable,
    exact,
    gamma,
    grid,
    violations,
)
from tser.export.graph import Graph
from tser.export.shapes import window

ANY = settings(deadline=None, derandomize=True, max_examples=60)
STEPS, BATCH = 6, 4


# --- the arithmetic of bounds --------------------------------------------------------------


def test_gamma_is_highams() -> None:
    assert gamma(1) == pytest.approx(2**-24, rel=1e-6)
    assert gamma(1000) == 1000 * 2**-24 / (1 - 1000 * 2**-24)
    np.testing.assert_array_equal(gamma(np.array([0, 1])), [0, gamma(1)])


@ANY
@given(st.lists(st.integers(-(2**20), 2**20), max_size=9), st.integers(-30, 30))
def test_the_grid_divides_all_and_is_the_coarsest(numbers: list[int], shift: int) -> None:
    values = np.array(numbers, np.float64) * 2.0**shift
    step = grid(values)
    if not values.any():
        assert step == np.inf
        return
    assert step == 2.0 ** round(np.log2(step))
    assert not (values % step).any()
    assert (values % (2 * step)).any()


@ANY
@given(st.integers(0, 999), st.integers(1, 60), st.integers(-20, 20))
def test_sums_called_exact_are_exact_in_any_order(seed: int, count: int, shift: int) -> None:
    rng = np.random.default_rng(seed)
    most = 2**24 // count
    values = rng.integers(-most, most + 1, count) * 2.0**shift
    assert exact(grid(values), np.abs(values).sum())
    total = np.float32(0)
    for value in rng.permutation(values).astype(np.float32):
        total = total + value
    assert float(total) == values.sum()


def test_sums_not_called_exact_may_round() -> None:
    values = np.array([2.0**24, 1])
    assert not exact(grid(values), values.sum())
    assert np.float32(2.0**24) + np.float32(1) == 2.0**24


def test_what_a_recorded_spike_says_about_the_exact_membrane() -> None:
    margin = np.array([0.5, 0.5, -0.5, -0.5, 1e-8, 1e-8, -1e-8, -1e-8, 0, 0])
    bound = np.array([1e-7] * 8 + [0] * 2)
    fired = np.array([True, False] * 5)
    wrong = [False, True, True, False, False, False, False, False, True, False]
    assert violations(Bounded(margin, bound), fired).tolist() == wrong


# --- membranes -----------------------------------------------------------------------------


def _serial(terms: Array, order: Array) -> Array:
    """Float32 sum over the last axis, one after the other in ``order``."""
    total = np.zeros(terms.shape[:-1], np.float32)
    for place in order:
        total = total + terms[..., place]
    return total


def _net(seed: int, gain: float = 1.0) -> tuple[Graph, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    nodes = {
        "fc1": nir.Affine(_normal(rng, (9, 20)), _normal(rng, 9)),
        "lif1": lif(9, tau=3.3e-3, r=gain, v_th=0.3, v_reset=-0.1, v_leak=0.05),
        "fc2": nir.Affine(_normal(rng, (7, 9)), _normal(rng, 7)),
        "lif2": lif(7, tau=3.3e-3, r=gain, v_th=0.3),
        "fc3": nir.Affine(_normal(rng, (5, 7)), _normal(rng, 5)),
    }
    return view((20,), nodes, dt=1e-3), nodes


def _normal(rng: np.random.Generator, shape: Any) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def _recorded(rng: np.random.Generator, graph: Graph) -> Trace:
    """A made-up recording: a certificate forces whatever was recorded."""
    layers = {n.name: (STEPS, BATCH, *n.output_shape) for n in graph.spiking}
    fired = {name: spikes(rng, shape) > 0 for name, shape in layers.items()}
    return Trace(np.zeros((STEPS, BATCH, *graph.output.output_shape)), fired)


def _affine(op: Any, x: Array, order: Array) -> Array:
    return _serial(x[..., None, :] * op.weight, order) + op.bias


@ANY
@given(st.integers(0, 99), st.sampled_from(["norse", "kept", "distributed"]), st.booleans())
def test_any_float32_program_stays_within_the_bound(seed: int, form: str, gained: bool) -> None:
    """Sums in random order, three ways to write the step, resets as recorded."""
    gain = 1.7 if gained else 1.0
    graph, nodes = _net(seed, gain)
    rng = np.random.default_rng(seed)
    x, trace = _normal(rng, (BATCH, 20)), _recorded(rng, graph)
    audit = Audit(graph, x, trace, {})
    inputs = {"lif1": x[None], "lif2": trace.spikes["lif1"].astype(np.float32)}
    for name, before in (("lif1", "fc1"), ("lif2", "fc2")):
        op, order = nodes[name], rng.permutation(inputs[name].shape[-1])
        drive = _affine(nodes[before], inputs[name], order)
        drive = np.broadcast_to(drive, (STEPS, *drive.shape[1:])) * np.float32(gain)
        a, rest = np.float32(1e-3) / op.tau, op.v_leak
        v, margins = np.broadcast_to(rest, drive.shape[1:]), audit.margins(graph.nodes[name])
        for t in range(STEPS):
            if form == "norse":
                v = v + a * ((drive[t] + rest) - v)
            elif form == "kept":
                v = (1 - a) * v + a * (drive[t] + rest)
            else:
                v = v + a * rest + a * drive[t] - a * v
            assert v.dtype == np.float32
            miss = np.abs(v.astype(np.float64) - op.v_threshold - margins.value[t])
            assert (miss <= margins.error[t]).all()
            assert (margins.error[t] > 0).all()
            v = np.where(trace.spikes[name][t], op.v_reset, v)
        assert margins.error.max() < 5e-4  # a bound that lets everything pass is none


def test_the_bound_grows_as_roundings_add_up() -> None:
    """Adding 0.1 rounds the same way many times over; nothing fires."""
    steps, step = 800, np.float32(0.1)
    graph = view((1,), {"n": nir.IF(full(1, 1 / DT), full(1, 1e3), full(1, 0))})
    silent = np.zeros((steps, 1, 1), bool)
    audit = Audit(graph, full((1, 1), step), Trace(silent, {"n": silent}), {})
    margins = audit.margins(graph.nodes["n"])
    v = np.cumsum(np.full(steps, step), dtype=np.float32).astype(np.float64)
    misses = np.abs(v - 1e3 - margins.value[:, 0, 0])
    assert (misses <= margins.error[:, 0, 0]).all()
    # A bound on the last step alone would be too small.
    assert misses.max() > 8 * UNIT * (v[-1] + step)


@ANY
@given(st.integers(0, 99))
def test_logits_of_any_float32_program_stay_within_the_bound(seed: int) -> None:
    graph, nodes = _net(seed)
    rng = np.random.default_rng(seed)
    trace = _recorded(rng, graph)
    bounded = Audit(graph, _normal(rng, (BATCH, 20)), trace, {}).logits()
    logits = _affine(nodes["fc3"], trace.spikes["lif2"].astype(np.float32), rng.permutation(7))
    assert (np.abs(logits - bounded.value) <= bounded.error).all()
    assert 0 < bounded.error.max() < 1e-4


def _convnet(rng: np.random.Generator, weights: Any) -> dict[str, Any]:
    return {
        "conv1": conv(weights(rng, (4, 2, 3, 3)), (6, 6), padding=1, bias=weights(rng, 4)),
        "lif1": lif((4, 6, 6), v_th=0.5),
        "conv2": conv(weights(rng, (6, 2, 3, 3)), (6, 6), stride=2, groups=2, dilation=2),
        "lif2": lif((6, 1, 1), v_th=0.25),
        "pool": pool(nir.SumPool2d, 1),
        "flatten": flatten(),
        "fc": nir.Affine(weights(rng, (3, 6)), weights(rng, 3)),
    }


@pytest.mark.parametrize("seed", range(5))
def test_convolutions_in_another_order_stay_within_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = _convnet(rng, _normal)
    graph = view((2, 6, 6), nodes)
    x, trace = _normal(rng, (BATCH, 2, 6, 6)), _recorded(rng, graph)
    bounded = Audit(graph, x, trace, {}).current(graph.nodes["lif1"])
    padded = np.pad(x, ((0, 0), (0, 0), *window(nodes["conv1"]).pads))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(BATCH, 6, 6, 1, 18)
    terms = columns * nodes["conv1"].weight.reshape(4, 18)
    drive = _serial(terms, rng.permutation(18)) + nodes["conv1"].bias
    miss = np.abs(drive.transpose(0, 3, 1, 2) - bounded.value[0])
    assert (miss <= bounded.error[0]).all()
    assert 0 < bounded.error.max() < 1e-4


def test_the_bound_counts_what_is_active() -> None:
    weight = full((1, 1000), 1)
    graph = view((1000,), {"fc": nir.Linear(weight * np.float32(0.1)), "lif": lif(1)})
    errors = []
    for active in (1, 10, 1000):
        x = np.zeros((1, 1000), np.float32)
        x[0, :active] = 0.1
        trace = Trace(np.zeros((1, 1, 1)), {"lif": np.zeros((1, 1, 1), bool)})
        errors.append(float(Audit(graph, x, trace, {}).current(graph.nodes["lif"]).error.max()))
    assert errors[0] < errors[1] / 5 < errors[2] / 50


def test_a_folded_norm_widens_the_bound() -> None:
    graph, _ = _net(0)
    rng = np.random.default_rng(0)
    x, trace = _normal(rng, (BATCH, 20)), _recorded(rng, graph)
    plain = Audit(graph, x, trace, {}).current(graph.nodes["lif1"]).error
    wide = Audit(graph, x, trace, {"fc1": np.full(9, 100.0)}).current(graph.nodes["lif1"]).error
    assert (wide > plain + 99 * UNIT).all()


def test_a_bias_on_the_last_dimension() -> None:
    """An affine node on ``[3, 4]`` is the one on ``[4]``, three times."""
    rng = np.random.default_rng(0)
    op = nir.Affine(_normal(rng, (3, 4)), np.array([0, 1, 1000], np.float32))
    both, one = (view(shape, {"fc": op, "lif": lif((*shape[:-1], 3))}) for shape in ((3, 4), (4,)))
    x = _normal(rng, (2, 3, 4))
    silent = [np.zeros((1, *size, 3), bool) for size in ((2, 3), (6,))]
    maps, rows = (
        Audit(graph, x.reshape(-1, *graph.input.output_shape), Trace(fired, {"lif": fired}), {})
        for graph, fired in zip((both, one), silent, strict=True)
    )
    expected = rows.current(one.nodes["lif"])
    actual = maps.current(both.nodes["lif"])
    np.testing.assert_allclose(actual.value.reshape(1, 6, 3), expected.value)
    np.testing.assert_allclose(actual.error.reshape(1, 6, 3), expected.error)


# --- synapses, and neurons that do not fire ------------------------------------------------


def _values(rng: np.random.Generator, count: int) -> dict[str, Array]:
    """Parameters of every neuron, of any kind."""
    ranges = {
        "tau": (1.5e-3, 8e-3),
        "tau_mem": (1.5e-3, 8e-3),
        "tau_syn": (1.1e-3, 8e-3),
        "r": (0.5, 2),
        "w_in": (0.5, 4),
        "v_leak": (-0.3, 0.3),
        "v_threshold": (0.2, 0.8),
        "v_reset": (-0.3, 0.1),
    }
    drawn = {name: rng.uniform(*limits, count) for name, limits in ranges.items()}
    return {name: value.astype(np.float32) for name, value in drawn.items()}


_CUBA = ("tau_mem", "tau_syn", "r", "w_in", "v_leak")
_FIRE = ("v_threshold", "v_reset")
NEURON_KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "CubaLIF": (nir.CubaLIF, (*_CUBA, *_FIRE)),
    "CubaLI": (nir.CubaLI, _CUBA),
    "LIF": (nir.LIF, ("tau", "r", "v_leak", *_FIRE)),
    "LI": (nir.LI, ("tau", "r", "v_leak")),
    "IF": (nir.IF, ("r", *_FIRE)),
    "I": (nir.I, ("r",)),
}


def _neurons(kind: str, seed: int, count: int = 9) -> Any:
    node, names = NEURON_KINDS[kind]
    values = _values(np.random.default_rng(seed), count)
    if kind in ("I", "IF"):
        values["r"] = values["r"] * np.float32(300)
    return node(**{name: values[name] for name in names})


class _Program:
    """Neurons in float32, the step spelt in one of three ways; ``v`` is before the reset.

    The last two, ``skip`` and ``late``, are mistakes.
    """

    def __init__(
        self, op: Any, form: str = "norse", skip: int | None = None, late: bool = False
    ) -> None:
        self.op, self.form, self.skip, self.late = op, form, skip, late
        self.v = np.asarray(getattr(op, "v_leak", np.float32(0)), np.float32)
        self.current = np.zeros((BATCH, 1), np.float32)
        self.t = 0

    def step(self, x: Array) -> Array:
        op, form, dt = self.op, self.form, np.float32(1e-3)
        if isinstance(op, nir.I | nir.IF):
            self.v = self.v + (dt * (op.r * x) if form == "kept" else (dt * op.r) * x)
            return self.v
        drive = self._synapse(x) if hasattr(op, "tau_syn") else x
        a = dt / (op.tau_mem if hasattr(op, "tau_mem") else op.tau)
        if form == "norse":
            self.v = self.v + a * ((op.v_leak - self.v) + op.r * drive)
        elif form == "kept":
            self.v = (1 - a) * self.v + a * (op.r * drive + op.v_leak)
        else:
            self.v = self.v + a * op.v_leak + (a * op.r) * drive - a * self.v
        assert self.v.dtype == np.float32
        return self.v

    def _synapse(self, x: Array) -> Array:
        op, form = self.op, self.form
        b, before = np.float32(1e-3) / op.tau_syn, self.current
        scaled = (b * op.w_in) * x if form == "norse" else b * (op.w_in * x)
        jumped = self.current + scaled
        decayed = (1 - b) * jumped if form == "kept" else jumped - b * jumped
        self.current = jumped if self.t == self.skip else decayed
        self.t += 1
        return before if self.late else jumped


FORMS = ["norse", "kept", "distributed"]


@pytest.mark.parametrize("kind", NEURON_KINDS)
@ANY
@given(seed=st.integers(0, 999), form=st.sampled_from(FORMS), over_time=st.booleans())
def test_any_float32_program_of_any_neuron_stays_within_the_bound(
    kind: str, seed: int, form: str, over_time: bool
) -> None:
    op, rng = _neurons(kind, seed), np.random.default_rng(seed)
    affine = nir.Affine(_normal(rng, (9, 20)), _normal(rng, 9))
    graph = view((20,), {"fc": affine, "n": op}, dt=1e-3)
    x = _normal(rng, (STEPS, BATCH, 20) if over_time else (BATCH, 20))
    trace = _recorded(rng, graph)
    audit = Audit(graph, x, trace, {})
    fires = hasattr(op, "v_threshold")
    bounded = audit.margins(graph.nodes["n"]) if fires else audit.logits()
    drive = _affine(affine, x if over_time else x[None], rng.permutation(20))
    program = _Program(op, form)
    for t in range(STEPS):
        v = program.step(drive[t if over_time else 0])
        exact_v = bounded.value[t] + (op.v_threshold if fires else 0)
        assert (np.abs(v.astype(np.float64) - exact_v) <= bounded.error[t]).all()
        assert (bounded.error[t] > 0).all()
        if fires:
            program.v = np.where(trace.spikes["n"][t], op.v_reset, v)
    assert bounded.error.max() < 2e-4 * np.abs(bounded.value).max()


def _misses(op: Any, other: Any, **mistakes: Any) -> Array:
    """By how many bounds a program of ``other`` misses what ``op`` does; nothing fires."""
    rng = np.random.default_rng(1)
    graph = view((9,), {"n": op}, dt=1e-3)
    x = _normal(rng, (STEPS, BATCH, 9))
    silent = np.zeros((STEPS, BATCH, 9), bool)
    bounded = Audit(graph, x, Trace(silent, {}), {}).logits()
    program = _Program(other, **mistakes)
    steps = np.stack([program.step(step) for step in x])
    return np.asarray(np.abs(steps - bounded.value) / bounded.error)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("CubaLI", "LI", "I") for name in NEURON_KINDS[kind][1]],
)
def test_a_parameter_that_is_a_thousandth_off_is_outside_the_bound(kind: str, name: str) -> None:
    op, other = _neurons(kind, 0), _neurons(kind, 0)
    assert _misses(op, other).max() <= 1
    setattr(other, name, getattr(other, name) * np.float32(1.001))
    assert (_misses(op, other).max((0, 1)) > 10).all()  # in every neuron


@pytest.mark.parametrize("step", range(STEPS - 1))
def test_a_missing_decay_of_the_current_is_outside_the_bound(step: int) -> None:
    misses = _misses(_neurons("CubaLI", 0), _neurons("CubaLI", 0), skip=step)
    assert misses[: step + 1].max() <= 1
    assert (misses[step + 1] > 100).mean() > 0.9


def test_a_current_that_is_a_step_late_is_outside_the_bound() -> None:
    misses = _misses(_neurons("CubaLI", 0), _neurons("CubaLI", 0), late=True)
    assert (misses[0] > 100).mean() > 0.9


def test_the_bound_of_a_current_grows_as_roundings_add_up() -> None:
    """A current that hardly decays takes up 0.1 many times over, rounded the same way each time."""
    steps, step, slow = 800, np.float32(0.1), np.float32(2.0**20)
    constants = {"r": full(1, 1), "v_leak": full(1, 0), "tau_mem": full(1, DT)}
    op = nir.CubaLI(tau_syn=full(1, slow * DT), w_in=full(1, slow * step), **constants)
    graph = view((1,), {"n": op})
    audit = Audit(graph, full((1, 1), 1), Trace(np.zeros((steps, 1, 1)), {}), {})
    bounded, current, misses = audit.logits(), np.float32(0), []
    for t in range(steps):
        current = current + step
        misses.append(abs(float(current) - bounded.value[t, 0, 0]))  # v follows at once
        assert misses[-1] <= bounded.error[t, 0, 0]
        current = current - current / slow
    # A bound on the last step of the current and of the membrane would be too small.
    assert max(misses) > 5 * 8 * UNIT * float(current)


def test_what_a_neuron_that_does_not_fire_puts_out_carries_its_bound() -> None:
    """LI into LIF: the second bound holds the first one's."""
    rng = np.random.default_rng(0)
    nodes = {"li": _neurons("LI", 0), "lif": _neurons("LIF", 1)}
    graph = view((9,), nodes, dt=1e-3)
    x, trace = _normal(rng, (STEPS, BATCH, 9)), _recorded(rng, graph)
    audit = Audit(graph, x, trace, {})
    analog, margins = audit.current(graph.nodes["lif"]), audit.margins(graph.nodes["lif"])
    assert (analog.error > 0).all()
    op: Any = nodes["lif"]
    gain = 1e-3 / op.tau * op.r
    assert (margins.error > gain * analog.error).all()
    first, second = _Program(nodes["li"], "kept"), _Program(op, "distributed")
    for t in range(STEPS):
        v = second.step(first.step(x[t]))
        miss = np.abs(v.astype(np.float64) - op.v_threshold - margins.value[t])
        assert (miss <= margins.error[t]).all()
        second.v = np.where(trace.spikes["lif"][t], op.v_reset, v)


# --- where float32 is exact ----------------------------------------------------------------


def test_dyadic_networks_have_no_tolerance() -> None:
    rng = np.random.default_rng(0)
    graph = view((2, 6, 6), _convnet(rng, dyadic))
    x, trace = dyadic(rng, (BATCH, 2, 6, 6)), _recorded(rng, graph)
    audit = Audit(graph, x, trace, {})
    for node in graph.spiking:
        margins = audit.margins(node)
        assert not margins.error.any()
        assert (margins.value == margins.value.astype(np.float32)).all()
    assert not audit.logits().error.any()


def test_an_integrator_is_exact_too() -> None:
    op = nir.IF(full(3, 1 / DT), full(3, 2), full(3, 0))
    graph = view((3,), {"if": op})
    trace = _recorded(np.random.default_rng(0), graph)
    audit = Audit(graph, dyadic(np.random.default_rng(0), (BATCH, 3)), trace, {})
    assert not audit.margins(graph.nodes["if"]).error.any()


@pytest.mark.parametrize(
    "changed",
    [
        {"tau": 3 * DT},
        {"v_leak": 0.1},
        {"v_th": 0.3},
        {"v_reset": 0.7},
        {"r": 1e-5},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_one_value_that_is_not_dyadic_brings_the_tolerance_back(changed: dict[str, float]) -> None:
    op = lif(3, **changed)
    for name in ("v_leak", "v_threshold", "v_reset"):  # as a file in float64 may hold them
        setattr(op, name, getattr(op, name).astype(np.float64))
    if "v_th" in changed:
        op.v_threshold[:] = 0.3
    graph = view((3,), {"lif": op})
    rng = np.random.default_rng(0)
    trace = _recorded(rng, graph)
    audit = Audit(graph, dyadic(rng, (BATCH, 3)), trace, {})
    # A reset matters from the step after the first spike on.
    assert audit.margins(graph.nodes["lif"]).error[-1].any()


def test_a_folded_norm_is_never_exact() -> None:
    rng = np.random.default_rng(0)
    graph = view((4,), {"fc": nir.Affine(dyadic(rng, (3, 4)), dyadic(rng, 3)), "lif": lif(3)})
    x, trace = dyadic(rng, (BATCH, 4)), _recorded(rng, graph)
    assert not Audit(graph, x, trace, {}).margins(graph.nodes["lif"]).error.any()
    magnitudes = {"fc": np.abs(graph.nodes["fc"].op.bias.astype(np.float64))}
    assert Audit(graph, x, trace, magnitudes).margins(graph.nodes["lif"]).error.any()


@pytest.mark.parametrize(("kernel", "tolerance"), [(2, False), (3, True)])
def test_an_average_is_exact_over_a_power_of_two(kernel: int, tolerance: bool) -> None:
    nodes = {"lif": lif((1, 6, 6)), "pool": pool(nir.AvgPool2d, kernel), "flatten": flatten()}
    graph = view((1, 6, 6), nodes)
    trace = _recorded(np.random.default_rng(0), graph)
    error = Audit(graph, np.zeros((BATCH, 1, 6, 6)), trace, {}).logits().error
    assert error.any() == tolerance


# --- what is not covered -------------------------------------------------------------------


def test_a_node_without_a_bound_is_named() -> None:
    op = nir.Delay(full(3, DT))
    graph = view((3,), {"odd": op, "lif": lif(3)})
    trace = _recorded(np.random.default_rng(0), graph)
    audit = Audit(graph, np.zeros((BATCH, 3)), trace, {})
    with pytest.raises(NotCertifiable, match=f"{type(op).__name__} .'odd'."):
        audit.margins(graph.nodes["lif"])


def test_recorded_spikes_are_what_the_next_layer_is_given() -> None:
    graph, nodes = _net(0)
    rng = np.random.default_rng(0)
    trace = _recorded(rng, graph)
    current = Audit(graph, _normal(rng, (BATCH, 20)), trace, {}).current(graph.nodes["lif2"])
    weight, bias = nodes["fc2"].weight.astype(np.float64), nodes["fc2"].bias
    np.testing.assert_allclose(current.value, trace.spikes["lif1"] @ weight.T + bias, rtol=1e-12)
