"""Probes: inputs that make neurons fire, and networks whose spikes are known by hand."""

import nir
import numpy as np
import pytest

from tests.graphs import DT, Array, conv, flatten, full, lif, network, view
from tser.deploy.backends import NirBackend
from tser.deploy.interpreter import run
from tser.deploy.onnx_backend import OnnxBackend
from tser.deploy.probes import CHANNELS, IMPULSE, Probe, amplitude, probe_inputs
from tser.deploy.runtime_probes import RuntimeProbe, runtime_probes
from tser.errors import UsageError
from tser.export.graph import Graph, resolve
from tser.export.onnx_file import compile_onnx

STEPS = 6
PROBES = runtime_probes()


def _net(scale: float = 1.0, neuron: str = "lif", **metadata: object) -> Graph:
    rng = np.random.default_rng(0)
    shape = (4, 7, 6)
    cell = lif(shape, tau=3 * DT, v_reset=-0.1)
    if neuron == "if":
        cell = nir.IF(full(shape, 1 / DT), full(shape, 1), full(shape, 0))
    nodes = {
        "conv": conv(scale * rng.normal(size=(4, 2, 3, 3)), (7, 6), padding=1, bias=[0.1] * 4),
        "first": cell,
        "flat": flatten(),
        "fc": nir.Affine((rng.normal(size=(5, 168)) / 6).astype(np.float32), full(5, 0.1)),
        "last": lif(5),
    }
    return view((2, 7, 6), nodes, **metadata)


def _by_name(probes: list[Probe]) -> dict[str, Probe]:
    return {probe.name: probe for probe in probes}


def _rate(graph: Graph, probe: Probe) -> float:
    return float(run(graph, probe.x, probe.timesteps, record=["first"])[1]["first"].mean())


@pytest.mark.parametrize("neuron", ["lif", "if"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_probes_make_neurons_fire_whatever_the_weights(scale: float, neuron: str) -> None:
    graph = _net(scale, neuron)
    probes = _by_name(probe_inputs(graph, STEPS))
    for name in ("random", "overdrive", "impulses"):
        assert 0.002 < _rate(graph, probes[name]) < 0.9, name
    assert _rate(graph, probes["constant"]) > 0
    assert _rate(graph, probes["overdrive"]) > _rate(graph, probes["random"])
    assert not probes["zero"].x.any()
    assert (probes["negative"].x < 0).all()


def test_every_probe_can_be_run() -> None:
    for metadata in ({}, {"encoding": "frames"}):
        graph = _net(**metadata)
        for probe in probe_inputs(graph, STEPS):
            out, _ = run(graph, probe.x, probe.timesteps)
            assert len(out) == probe.timesteps
            assert probe.x.ndim == 4 + bool(metadata)
            assert probe.x.dtype == np.float32
        assert {p.timesteps for p in probe_inputs(graph, STEPS)} == {1, STEPS}


def test_impulses_are_single_pixels_at_the_centre_and_at_the_borders() -> None:
    (impulses,) = [p.x for p in probe_inputs(_net(), STEPS) if p.name == "impulses"]
    places = {tuple(int(i) for i in np.argwhere(x)[0]) for x in impulses}
    assert (np.count_nonzero(impulses.reshape(len(impulses), -1), 1) == 1).all()
    ends = [(3, 3), (0, 0), (0, 5), (6, 0), (6, 5)]
    assert places == {(channel, *place) for channel in (0, 1) for place in ends}


def test_impulses_are_in_the_first_frame_alone_and_of_a_few_channels() -> None:
    nodes = {"conv": conv(np.ones((1, 9, 3, 3)), (5, 5)), "first": lif((1, 3, 3))}
    graph = view((9, 5, 5), nodes, encoding="frames")
    (impulses,) = [p.x for p in probe_inputs(graph, STEPS) if p.name == "impulses"]
    assert impulses.shape == (STEPS, 5 * CHANNELS, 9, 5, 5)
    assert impulses[0].any()
    assert not impulses[1:].any()
    assert impulses.max() == IMPULSE  # weights are 1 and so is the distance to the threshold


def test_a_sample_alone_is_the_first_of_the_batch() -> None:
    for metadata in ({}, {"encoding": "frames"}):
        probes = _by_name(probe_inputs(_net(**metadata), STEPS))
        alone = probes["alone"]
        whole = probes[alone.part_of or ""]
        backend = NirBackend(_net(**metadata), STEPS, "graph")
        for name, fired in backend(alone.x).spikes.items():
            np.testing.assert_array_equal(fired, backend(whole.x).spikes[name][:, :1])


def test_given_samples_are_overdriven() -> None:
    x = np.random.default_rng(1).normal(size=(3, 2, 7, 6)).astype(np.float32)
    probes = _by_name(probe_inputs(_net(), STEPS, x))
    np.testing.assert_array_equal(probes["overdrive"].x, 2 * x)
    frames = _by_name(probe_inputs(_net(encoding="frames"), STEPS, x))["overdrive"]
    np.testing.assert_array_equal(frames.x, np.broadcast_to(2 * x, (STEPS, *x.shape)))


def test_the_amplitude_is_one_deviation_of_the_current_at_the_threshold() -> None:
    nodes = {"fc": nir.Affine(2 * np.eye(50, dtype=np.float32), full(50, 7)), "first": lif(50)}
    assert amplitude(view((50,), nodes), STEPS) == pytest.approx(0.5, rel=0.1)
    never = {"first": lif(3, v_th=np.inf)}
    assert amplitude(view((3,), never), STEPS) == 1
    assert len(probe_inputs(view((3,), never), STEPS)) == 8
    assert len(probe_inputs(view((3,), {"flat": nir.Linear(np.eye(3))}), STEPS)) == 8


def test_no_step_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        probe_inputs(_net(), 0)


# --- known answers --------------------------------------------------------------------------


def _fired(probe: RuntimeProbe, graph: Graph, double: bool) -> dict[str, Array]:
    steps = int(graph.timesteps or 0)
    return NirBackend(graph, steps, "probe", double)(probe.x).spikes


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_executors_give_the_spikes_worked_out_by_hand(probe: RuntimeProbe) -> None:
    graph = resolve(probe.graph)
    layers = {node.name: node.output_shape for node in graph.spiking}
    given = [_fired(probe, graph, double) for double in (False, True)]
    given.append(OnnxBackend(compile_onnx(graph), layers, "probe")(probe.x).spikes)
    for fired in given:
        assert fired.keys() == probe.spikes.keys()
        for name, expected in probe.spikes.items():
            np.testing.assert_array_equal(fired[name], expected)


@pytest.mark.parametrize("dt", [1e-3, 1e-4, 0.25])
def test_the_answers_are_the_same_at_any_dt(dt: float) -> None:
    for probe in runtime_probes(dt):
        graph = resolve(probe.graph)
        assert graph.dt == dt
        for name, fired in _fired(probe, graph, False).items():
            np.testing.assert_array_equal(fired, probe.spikes[name], probe.name)


def _wrong(i: float, steps: int, rule: str) -> list[bool]:
    """One neuron of dt / tau = 1/2 that follows another rule, written out."""
    v, fired = (0.5 if rule == "no start" else 0.0), []
    for _ in range(steps):
        keep = float(np.exp(-0.5)) if rule == "exponential" else 0.5
        v = keep * v + (1.0 if rule == "no gain" else 0.5) * i
        spike = v >= 1 if rule == ">=" else v > 1
        fired.append(spike)
        if spike:
            v = v - 1 if rule == "subtractive" else 0.0
    return fired


@pytest.mark.parametrize(
    ("name", "rule", "i"),
    [
        ("tie", ">=", 2),
        ("reset value", "to zero", 2.5),
        ("leak value", "no leak", 1.25),
        ("reset", "subtractive", 1.75),
        ("gain and bias", "no gain", 1.25),
        ("gain and bias", "exponential", 1.25),
        ("gain and bias", "no bias", 1),
    ],
)
def test_a_wrong_rule_gives_another_answer(name: str, rule: str, i: float) -> None:
    (probe,) = [probe for probe in PROBES if probe.name == name]
    expected = probe.spikes["lif"].reshape(-1).tolist()
    assert _wrong(i, len(expected), rule) != expected
    assert probe.wrong


def test_probes_are_small_networks_of_nir() -> None:
    for probe in PROBES:
        assert probe.graph.metadata["timesteps"] == len(next(iter(probe.spikes.values())))
        again = network((1,), {k: v for k, v in probe.graph.nodes.items() if "put" not in k})
        assert set(again.nodes) == set(probe.graph.nodes)
