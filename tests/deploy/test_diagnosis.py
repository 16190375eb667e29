"""Diagnosis: a wrong layer is named by the rule that it follows, and nothing else is."""

import dataclasses
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import DT, Array, conv, dyadic, flatten, full, lif, network, pool, view
from tests.nodes import cuba
from tser.deploy.backends import NirBackend, Trace
from tser.deploy.certificate import Audit, violations
from tser.deploy.diagnosis import diagnose, diagnose_logits
from tser.deploy.interpreter import run
from tser.export.graph import Graph, resolve

STEPS = 10
ANY = settings(deadline=None, derandomize=True, max_examples=12)
F = np.float32


# --- a layer that follows another rule ------------------------------------------------------
# Written out once more in float32, with nothing of the module under test.


def _lif(op: Any, dt: float, drive: Array, rule: str) -> Array:
    """Spikes ``[T, B, N]`` of a LIF that follows ``rule``; one step after the other."""
    if rule == "one_step_delay":
        drive = np.concatenate([np.zeros_like(drive[:1]), drive[:-1]])
    scale = {"dt_times_10": 10, "dt_times_2": 2, "dt_times_0.5": 0.5}.get(rule, 1)
    rate = (F(dt * scale) / op.tau).astype(F)
    keep = np.exp(-rate) if rule in ("exponential_decay", "both_exponential") else F(1) - rate
    gain = F(1) - np.exp(-rate) if rule in ("exponential_gain", "both_exponential") else rate
    gain = np.ones_like(rate) if rule == "no_gain" else gain
    r = np.ones_like(op.r) if rule == "no_resistance" else op.r
    rest = np.zeros_like(op.v_leak) if rule == "no_leak_value" else op.v_leak
    reset = np.zeros_like(op.v_reset) if rule == "reset_to_zero" else op.v_reset
    v = np.broadcast_to(rest, drive.shape[1:]).astype(F)
    last = np.zeros(drive.shape[1:], bool)
    fired = np.zeros(drive.shape, bool)
    for t, i in enumerate(drive):
        v = keep * v + (F(1) - keep) * rest + gain * (r * i)
        if rule == "late_subtraction":  # snnTorch: the reset comes with the next update
            v = v - last * op.v_threshold
        spike = v >= op.v_threshold if rule == "at_threshold" else v > op.v_threshold
        if rule == "subtractive_reset":
            v = v - spike * op.v_threshold
        elif rule not in ("no_reset", "late_subtraction"):
            v = np.where(spike, reset, v)
        v, fired[t], last = v.astype(F), spike, spike
    return fired


RULES = {
    rule: (rule,)
    for rule in (
        "exponential_decay",
        "exponential_gain",
        "no_gain",
        "subtractive_reset",
        "at_threshold",
        "one_step_delay",
        "reset_to_zero",
        "no_reset",
        "no_leak_value",
        "no_resistance",
        "dt_times_10",
        "dt_times_2",
        "dt_times_0.5",
    )
} | {
    "both_exponential": ("exponential_decay", "exponential_gain"),
    "late_subtraction": ("subtractive_reset", "late_reset"),
}


def _chain(seed: int, exact: bool) -> tuple[Graph, dict[str, Any]]:
    """Two layers of neurons, the second with everything that can be forgotten."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> Array:
        return dyadic(rng, shape) if exact else rng.normal(size=shape).astype(F)

    odd = {} if exact else {"tau": 3.3e-3, "v_th": 0.9}
    own = {"tau": 4 * DT, "v_reset": -0.25, "v_leak": 0.125, "r": 2} | odd
    nodes = {
        "fc1": nir.Affine(weights(12, 8), weights(12)),
        "lif1": lif(12, **({"v_th": 0.5} | odd)),
        "fc2": nir.Affine(weights(30, 12), weights(30)),
        "lif2": lif(30, **own),
        "fc3": nir.Affine(weights(4, 30), weights(4)),
    }
    return view((8,), nodes, dt=DT if exact else 1e-3), nodes


def _recorded(graph: Graph, x: Array, **spikes: Array) -> Trace:
    """What the interpreter records, with some layers as given."""
    trace = NirBackend(graph, STEPS, "graph")(x)
    return Trace(trace.logits, trace.spikes | spikes)


def _broken(graph: Graph, nodes: dict[str, Any], x: Array, rule: str) -> Trace:
    trace = _recorded(graph, x)
    fc = nodes["fc2"]
    drive = trace.spikes["lif1"].astype(F) @ fc.weight.T + fc.bias
    spikes = _lif(nodes["lif2"], graph.dt, drive, rule)
    return Trace(trace.logits, trace.spikes | {"lif2": spikes})


def _violations(graph: Graph, x: Array, trace: Trace, layer: str = "lif2") -> int:
    margins = Audit(graph, x, trace, {}).margins(graph.nodes[layer])
    return int(violations(margins, trace.spikes[layer]).sum())


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("rule", RULES)
@ANY
@given(st.integers(0, 999))
def test_the_rule_that_a_layer_follows_is_named(rule: str, exact: bool, seed: int) -> None:
    graph, nodes = _chain(seed, exact)
    rng = np.random.default_rng(seed)
    x = dyadic(rng, (4, 8)) if exact else rng.normal(size=(4, 8)).astype(F)
    trace = _broken(graph, nodes, x, rule)
    found = diagnose(graph, "lif2", x, trace)
    count = _violations(graph, x, trace)
    assert found.contradictions == count
    if count:
        # Few spikes may follow from a smaller set of rules as well.
        named = {frozenset(one) for one in (found.departures, *found.alternatives)}
        assert frozenset(RULES[rule]) in named or len(found.departures) < len(RULES[rule]), found
        assert found.explained
        assert found.text.startswith("layer 'lif2': ")
    else:
        assert found.departures == ()


@pytest.mark.parametrize("rule", RULES)
def test_with_enough_spikes_the_rule_is_the_first_that_is_named(rule: str) -> None:
    graph, nodes = _chain(0, exact=rule == "at_threshold")
    rng = np.random.default_rng(0)
    x = dyadic(rng, (40, 8)) if rule == "at_threshold" else rng.normal(size=(40, 8)).astype(F)
    trace = _broken(graph, nodes, x, rule)
    found = diagnose(graph, "lif2", x, trace)
    assert set(found.departures) == set(RULES[rule]), found
    assert found.alternatives == ()
    assert found.explained == found.contradictions == _violations(graph, x, trace) > 0


@ANY
@given(st.integers(0, 999), st.booleans())
def test_a_layer_that_follows_the_stated_rule_is_not_accused(seed: int, exact: bool) -> None:
    graph, nodes = _chain(seed, exact)
    x = np.random.default_rng(seed).normal(size=(4, 8)).astype(F)
    found = diagnose(graph, "lif2", x, _broken(graph, nodes, x, "none"))
    assert (found.departures, found.contradictions, found.explained) == ((), 0, 0)
    assert "every spike" in found.text


@ANY
@given(st.integers(0, 999))
def test_noise_is_not_explained(seed: int) -> None:
    graph, _ = _chain(seed, exact=False)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 8)).astype(F)
    trace = _recorded(graph, x, lif2=rng.random((STEPS, 4, 30)) < 0.3)
    found = diagnose(graph, "lif2", x, trace)
    assert found.departures == ()
    assert found.contradictions > 0
    assert "no rule" in found.text


def test_what_is_wrong_upstream_is_not_held_against_a_layer() -> None:
    graph, nodes = _chain(0, exact=False)
    x = np.random.default_rng(0).normal(size=(20, 8)).astype(F)
    clean = _recorded(graph, x)
    wrong = np.random.default_rng(1).random(clean.spikes["lif1"].shape) < 0.4
    drive = wrong.astype(F) @ nodes["fc2"].weight.T + nodes["fc2"].bias
    for rule in ("none", "subtractive_reset"):
        spikes = {"lif1": wrong, "lif2": _lif(nodes["lif2"], graph.dt, drive, rule)}
        found = diagnose(graph, "lif2", x, Trace(clean.logits, clean.spikes | spikes))
        assert found.departures == (() if rule == "none" else (rule,))


def test_another_threshold_is_measured() -> None:
    graph, nodes = _chain(0, exact=False)
    x = np.random.default_rng(0).normal(size=(200, 8)).astype(F)
    other = dataclasses.replace(nodes["lif2"], v_threshold=nodes["lif2"].v_threshold * F(1.01))
    trace = _recorded(graph, x)
    drive = trace.spikes["lif1"].astype(F) @ nodes["fc2"].weight.T + nodes["fc2"].bias
    spikes = {"lif2": _lif(other, graph.dt, drive, "none")}
    found = diagnose(graph, "lif2", x, Trace(trace.logits, trace.spikes | spikes))
    assert found.departures == ("other_threshold",)
    assert "about 0.909, not 0.9" in found.text


# --- other neurons --------------------------------------------------------------------------


def _one(op: Any) -> Graph:
    fc = nir.Affine(np.eye(3, dtype=F), full(3, 0))
    return view((3,), {"fc": fc, "cell": op})


def _drive(seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0.6, 1, (STEPS, 60, 3)).astype(F)


@pytest.mark.parametrize("rule", ["subtractive_reset", "no_gain", "reset_to_zero", "no_resistance"])
def test_an_if_is_diagnosed(rule: str) -> None:
    op = nir.IF(full(3, 0.5 / DT), full(3, 1), full(3, -0.25))
    graph, x = _one(op), _drive()
    gain = F({"no_gain": 0.5 / DT, "no_resistance": DT}.get(rule, 0.5))
    v, fired = np.zeros(x.shape[1:], F), np.zeros(x.shape, bool)
    for t, i in enumerate(x):
        v = v + gain * i
        fired[t] = v > 1
        low = v - 1 if rule == "subtractive_reset" else F(0 if rule == "reset_to_zero" else -0.25)
        v = np.where(fired[t], low, v).astype(F)
    found = diagnose(graph, "cell", x, _recorded(graph, x, cell=fired))
    assert found.departures == (rule,), found


@pytest.mark.parametrize(
    "rule", ["no_synaptic_gain", "one_step_delay", "exponential_decay", "none"]
)
def test_a_cubalif_is_diagnosed(rule: str) -> None:
    op = cuba(nir.CubaLIF, v_leak=0.25, v_reset=-0.5, tau_syn=3e-3, tau_mem=5e-3)
    graph, x = _one(op), _drive()
    a, b = (F(DT) / tau for tau in (op.tau_mem, op.tau_syn))
    soft = rule == "exponential_decay"
    keep_v, keep_i = (np.exp(-a), np.exp(-b)) if soft else (1 - a, 1 - b)
    v, current = np.broadcast_to(op.v_leak, x.shape[1:]).astype(F), np.zeros(x.shape[1:], F)
    fired, before = np.zeros(x.shape, bool), current
    for t, i in enumerate(x):
        current = current + (F(1) if rule == "no_synaptic_gain" else b) * i
        seen = before if rule == "one_step_delay" else current
        v = keep_v * (v - op.v_leak) + op.v_leak + a * op.r * seen
        before, current = current, keep_i * current
        fired[t] = v > op.v_threshold
        v = np.where(fired[t], op.v_reset, v).astype(F)
    found = diagnose(graph, "cell", x, _recorded(graph, x, cell=fired))
    assert found.departures == (() if rule == "none" else (rule,)), found
    assert (found.contradictions == 0) == (rule == "none")


# --- mistakes on the way to a layer ---------------------------------------------------------


def _maps() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "c1": conv(rng.normal(size=(4, 3, 3, 3)), (8, 8), padding=1, bias=rng.normal(size=4)),
        "l1": lif((4, 8, 8), v_th=0.7),
        "pool": pool(nir.AvgPool2d, 2),
        "c2": conv(rng.normal(size=(6, 4, 3, 3)), (4, 4), padding=1, bias=rng.normal(size=6)),
        "skip": conv(rng.normal(size=(6, 4, 2, 2)), (8, 8), stride=2),
        "l2": lif((6, 4, 4)),
        "flat": flatten(),
        "fc": nir.Affine(rng.normal(size=(20, 96)).astype(F) / 3, rng.normal(size=20).astype(F)),
        "l3": lif(20),
        "scale": nir.Scale(full(20, 0.3)),
        "out": nir.Affine(rng.normal(size=(5, 20)).astype(F), full(5, 0.3)),
    }


EDGES = [
    *[("input", "c1"), ("c1", "l1"), ("l1", "pool"), ("pool", "c2"), ("c2", "l2")],
    *[("l1", "skip"), ("skip", "l2"), ("l2", "flat"), ("flat", "fc"), ("fc", "l3")],
    *[("l3", "scale"), ("scale", "out"), ("out", "output")],
]


def _net(edges: list[tuple[str, str]] = EDGES, **changed: Any) -> Graph:
    return resolve(network((3, 8, 8), _maps() | changed, edges, (5,), timesteps=STEPS))


def _other(name: str, **values: Any) -> dict[str, Any]:
    op = _maps()[name]
    for key, value in values.items():
        setattr(op, key, value)
    return {name: op}


def _columns(axes: tuple[int, ...]) -> dict[str, Any]:
    """The linear layer as one that takes its features in another order."""
    places = np.arange(96).reshape(6, 4, 4).transpose(axes).reshape(-1)
    weight = np.empty_like(_maps()["fc"].weight)
    weight[:, places] = _maps()["fc"].weight
    return _other("fc", weight=weight)


W1, W2 = _maps()["c1"].weight, _maps()["c2"].weight
MISTAKES: dict[str, tuple[str, dict[str, Any], list[tuple[str, str]]]] = {
    "no_bias:c1": ("l1", _other("c1", bias=full(4, 0)), EDGES),
    "no_bias:fc": ("l3", _other("fc", bias=full(20, 0)), EDGES),
    "lost_edge:skip->l2": ("l2", {}, [e for e in EDGES if "skip" not in e]),
    "lost_edge:c2->l2": ("l2", {}, [e for e in EDGES if not {"pool", "c2"} & {*e}]),
    "pool_kind:pool": ("l2", {"pool": pool(nir.SumPool2d, 2)}, EDGES),
    "flatten_order:fc": ("l3", _columns((1, 2, 0)), EDGES),
    "flipped_kernel:c2": ("l2", _other("c2", weight=W2[:, :, ::-1, ::-1].copy()), EDGES),
    "transposed_kernel:c1": ("l1", _other("c1", weight=W1.transpose(0, 1, 3, 2).copy()), EDGES),
    "reversed_channels:c1": ("l1", _other("c1", weight=W1[:, ::-1].copy()), EDGES),
    "float16_weights:fc": ("l3", _other("fc", weight=_maps()["fc"].weight.astype("f2").astype(F)),
                           EDGES),
}  # fmt: skip


def _images(count: int) -> Array:
    return np.random.default_rng(1).normal(size=(count, 3, 8, 8)).astype(F)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_before_a_layer_is_named(name: str) -> None:
    layer, changed, edges = MISTAKES[name]
    count = 60 if "float16" in name else 6
    used = {end for edge in edges for end in edge}
    nodes = {key: op for key, op in (_maps() | changed).items() if key in used}
    wrong = resolve(network((3, 8, 8), nodes, edges, (5,), timesteps=STEPS))
    graph, x = _net(), _images(count)
    trace = NirBackend(wrong, STEPS, "wrong")(x)
    found = diagnose(graph, layer, x, trace)
    assert found.contradictions
    assert found.departures == (name,), found
    for node in graph.spiking:
        if node.name != layer:
            assert diagnose(graph, node.name, x, trace).contradictions == 0


def test_a_path_that_is_late_is_named() -> None:
    nodes = _maps() | {"delay": nir.Delay(full((6, 4, 4), DT))}
    late = [e for e in EDGES if e != ("skip", "l2")] + [("skip", "delay"), ("delay", "l2")]
    wrong = resolve(network((3, 8, 8), nodes, late, (5,), timesteps=STEPS))
    x = _images(4)
    found = diagnose(_net(), "l2", x, NirBackend(wrong, STEPS, "wrong")(x))
    assert found.departures == ("late_edge:l1->skip",)
    assert found.text == "layer 'l2': what 'l1' sends reaches 'skip' one step late"


def test_a_mistake_and_a_wrong_rule_are_told_together() -> None:
    graph, x = _net(l3=lif(20, v_reset=-0.5)), _images(12)
    wrong = _net(l3=lif(20), **_other("fc", bias=full(20, 0)))
    found = diagnose(graph, "l3", x, NirBackend(wrong, STEPS, "wrong")(x))
    assert set(found.departures) == {"reset_to_zero", "no_bias:fc"}
    assert " and " in found.text


def test_a_feedback_that_is_read_at_once_is_named() -> None:
    rng = np.random.default_rng(0)
    nodes = {
        "in": nir.Affine(rng.normal(size=(6, 6)).astype(F), full(6, 0.2)),
        "a": lif(6),
        "ahead": nir.Linear(rng.normal(size=(6, 6)).astype(F)),
        "b": lif(6, v_th=0.3),
        "back": nir.Linear(rng.normal(size=(6, 6)).astype(F)),
    }
    edges = [("input", "in"), ("in", "a"), ("a", "ahead"), ("ahead", "b"), ("b", "back")]
    edges += [("back", "a"), ("b", "output")]
    graph = resolve(network((6,), nodes, edges, (6,)))
    x = rng.normal(size=(30, 6)).astype(F)
    trace = _recorded(graph, x)
    late = trace.spikes["b"].astype(F) @ nodes["back"].weight.T
    drive = x @ nodes["in"].weight.T + nodes["in"].bias + late
    spikes = _lif(nodes["a"], DT, drive, "none")
    found = diagnose(graph, "a", x, Trace(trace.logits, trace.spikes | {"a": spikes}))
    assert len(found.departures) == 1
    assert found.departures[0].startswith("early_edge:"), found


def test_frames_can_be_diagnosed() -> None:
    rng = np.random.default_rng(0)
    graph, x = _net(), rng.normal(size=(STEPS, 5, 3, 8, 8)).astype(F)
    wrong = _net(**_other("c1", bias=full(4, 0)))
    assert diagnose(graph, "l1", x, NirBackend(wrong, STEPS, "wrong")(x)).departures == (
        "no_bias:c1",
    )


# --- logits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("no_bias:out", _other("out", bias=full(5, 0))),
        ("no_scale:scale", _other("scale", scale=full(20, 1))),
    ],
)
def test_a_mistake_before_the_logits_is_named(name: str, changed: dict[str, Any]) -> None:
    graph, x = _net(), _images(5)
    trace = NirBackend(_net(**changed), STEPS, "wrong")(x)
    found = diagnose_logits(graph, x, trace)
    assert found.departures == (name,)
    assert (found.layer, found.text[:11]) == ("", "the logits:")
    assert found.explained > 0


def test_logits_that_are_gathered_over_time_are_named() -> None:
    graph, x = _net(), _images(5)
    trace = NirBackend(graph, STEPS, "graph")(x)
    assert diagnose_logits(graph, x, trace).departures == ()
    total = np.cumsum(trace.logits, 0, dtype=F)
    mean = total / np.arange(1, STEPS + 1, dtype=F).reshape(-1, 1, 1)
    for name, logits in (("summed_logits", total), ("averaged_logits", mean)):
        found = diagnose_logits(graph, x, Trace(logits, trace.spikes))
        assert found.departures == (name,)
    noise = np.random.default_rng(0).normal(size=total.shape).astype(F)
    found = diagnose_logits(graph, x, Trace(noise, trace.spikes))
    assert (found.departures, found.contradictions > 0) == ((), True)


def test_a_readout_of_membranes_is_diagnosed() -> None:
    rng = np.random.default_rng(0)
    nodes = {
        "fc": nir.Affine(rng.normal(size=(9, 4)).astype(F), full(9, 0.2)),
        "lif": lif(9),
        "out": nir.Affine(rng.normal(size=(3, 9)).astype(F), full(3, 0.1)),
        "li": nir.LI(full(3, 3e-3), full(3, 1), full(3, 0)),
    }
    graph = view((4,), nodes)
    x = rng.normal(size=(6, 4)).astype(F)
    logits, kept = run(graph, x, STEPS, record=["lif", "out"])
    trace = Trace(logits, {"lif": kept["lif"] > 0})
    assert diagnose_logits(graph, x, trace).departures == ()
    rate, v = F(DT) / nodes["li"].tau, np.zeros((6, 3), F)
    wrong = np.empty_like(logits)
    for t, i in enumerate(kept["out"]):
        v = np.exp(-rate) * v + rate * i
        wrong[t] = v
    found = diagnose_logits(graph, x, Trace(wrong, trace.spikes))
    assert found.departures == ("exponential_decay",)
    nodes["out"] = nir.Affine(nodes["out"].weight, full(3, 0))
    unbiased = run(view((4,), nodes), x, STEPS)[0]
    found = diagnose_logits(graph, x, Trace(unbiased, trace.spikes))
    assert found.departures == ("no_bias:out",)


def test_a_graph_without_bounds_is_said_to_have_none() -> None:
    nodes = {"a": lif(3), "delay": nir.Delay(full(3, DT)), "b": lif(3)}
    graph, x = view((3,), nodes), np.ones((2, 3), F)
    trace = _recorded(graph, x)
    assert "no rounding bound" in diagnose(graph, "b", x, trace).text
    ends = view((3,), {"a": lif(3), "delay": nir.Delay(full(3, DT))})
    assert "no rounding bound" in diagnose_logits(ends, x, _recorded(ends, x)).text
