"""The NumPy interpreter against recorded simulators, scalar loops, Norse and hand-written loops."""

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norse.torch.functional.lif import LIFFeedForwardState, LIFParameters, lif_feed_forward_step
from norse.torch.functional.lif_box import (
    LIFBoxFeedForwardState,
    LIFBoxParameters,
    lif_box_feed_forward_step,
)

from tests.graphs import (
    DT,
    TAU,
    Array,
    conv,
    dyadic,
    flatten,
    full,
    lif,
    network,
    pool,
    spikes,
    view,
)
from tser.deploy.interpreter import run
from tser.errors import InputFileError
from tser.export.graph import resolve
from tser.export.nir_file import read_nir

PAPER = Path(__file__).parent.parent / "data" / "nir-paper"
ANY = settings(deadline=None, derandomize=True, max_examples=40)


# --- the recorded traces of the NIR paper --------------------------------------------------


def _recorded(simulator: str) -> Array:
    """``[1000, 3]``: input, membrane potential, spike."""
    return np.loadtxt(PAPER / f"lif_{simulator}.csv", delimiter=",")


def _paper(dtype: type[np.floating[Any]] = np.float32) -> Array:
    graph = resolve(read_nir(PAPER / "lif_norse.nir"), dt=1e-4)
    out, _ = run(graph, _recorded("norse")[:, :1, None], dtype=dtype)
    return out[:, 0, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_spikes_that_the_nir_paper_recorded(dtype: type[np.floating[Any]]) -> None:
    fired = _paper(dtype)
    assert np.flatnonzero(fired).tolist() == [460, 510, 710, 760]
    for simulator in ("norse", "snntorch", "exact"):
        np.testing.assert_array_equal(fired, _recorded(simulator)[:, 2])
    # Another discretisation of the same neuron: the check can tell.
    assert np.flatnonzero(_recorded("sinabs")[:, 2]).tolist() == [450, 500, 710, 760]


def test_the_membrane_that_norse_recorded() -> None:
    recorded = _recorded("norse")
    op = nir.LI(tau=full(1, 2.5e-3), r=full(1, 1), v_leak=full(1, 0))
    v, _ = run(view((1,), {"v": op}, dt=1e-4), recorded[:, :1, None])
    first = int(np.flatnonzero(recorded[:, 2])[0])
    np.testing.assert_allclose(v[:first, 0, 0], recorded[:first, 1], rtol=0, atol=1e-7)


# --- every neuron against a scalar loop ----------------------------------------------------


def _loop(op: Any, drive: list[float], dt: float, index: int) -> list[float]:
    """Euler steps of the equations in the docstring of ``op``, for one neuron."""
    p = {key: float(v[index]) for key, v in op.to_dict().items() if isinstance(v, np.ndarray)}
    fires = "v_threshold" in p
    v, i, out = p.get("v_leak", 0.0), 0.0, []
    for x in drive:
        if "tau_syn" in p:  # tau_syn I' = -I + w_in S;  tau_mem v' = (v_leak - v) + R I
            i += dt * p["w_in"] * x / p["tau_syn"]  # S is a pulse at the start of the step
            dv = ((p["v_leak"] - v) + p["r"] * i) / p["tau_mem"]
            i -= dt * i / p["tau_syn"]
        elif "tau" in p:  # tau v' = (v_leak - v) + R I
            dv = ((p["v_leak"] - v) + p["r"] * x) / p["tau"]
        else:  # v' = R I
            dv = p["r"] * x
        v += dt * dv
        if fires:
            z = v > p["v_threshold"]
            v = p["v_reset"] if z else v
            out.append(float(z))
        else:
            out.append(v)
    return out


PARAMETERS: dict[type, tuple[str, ...]] = {
    nir.LI: ("tau", "r", "v_leak"),
    nir.LIF: ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    nir.I: ("r",),
    nir.IF: ("r", "v_threshold", "v_reset"),
    nir.CubaLI: ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
    nir.CubaLIF: ("tau_syn", "tau_mem", "r", "v_leak", "w_in", "v_threshold", "v_reset"),
}
RANGES = {
    "tau": (2e-3, 9e-3),
    "tau_syn": (2e-3, 9e-3),
    "tau_mem": (2e-3, 9e-3),
    "r": (0.5, 3.0),
    "v_leak": (-0.5, 0.5),
    "w_in": (0.5, 3.0),
    "v_threshold": (0.6, 1.0),
    "v_reset": (-0.5, 0.5),
}


@pytest.mark.parametrize("kind", PARAMETERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", range(4))
def test_neurons_follow_their_equations(kind: type, seed: int) -> None:
    rng, size = np.random.default_rng(seed), 5
    values = {name: rng.uniform(*RANGES[name], size) for name in PARAMETERS[kind]}
    scale = 1e3 if kind in (nir.I, nir.IF) else 1  # without tau, r is a rate
    drive = rng.normal(1, 2, (30, 2, size)) * scale * 0.3
    op = kind(**values)
    out, _ = run(view((size,), {"neuron": op}, dt=DT), drive, dtype=np.float64)
    for sample in range(2):
        for index in range(size):
            expected = _loop(op, drive[:, sample, index].tolist(), DT, index)
            np.testing.assert_allclose(out[:, sample, index], expected, rtol=1e-11, atol=1e-12)
    if "v_threshold" in values:
        assert 0.02 < out.mean() < 0.9
        assert set(np.unique(out)) == {0, 1}


@pytest.mark.parametrize("kind", [nir.LIF, nir.IF, nir.CubaLIF], ids=lambda kind: kind.__name__)
def test_a_spike_needs_more_than_the_threshold(kind: type) -> None:
    values = dict.fromkeys(PARAMETERS[kind], full(3, 1.0))
    values |= {name: full(3, DT) for name in values if name.startswith("tau")}
    values["v_threshold"] = np.nextafter(full(3, 1), np.array([0, 1, 2], np.float32))
    for name in ("v_leak", "v_reset"):
        if name in values:
            values[name] = full(3, 0)
    drive = full((1, 3), 1 / DT if kind is nir.IF else 1)
    out, _ = run(view((3,), {"neuron": kind(**values)}), drive, 2)
    assert out[0, 0].tolist() == [1, 0, 0]


def test_norse_lif_box_bit_for_bit() -> None:
    rng, size = np.random.default_rng(0), 200
    drive = rng.normal(1, 2, (40, 3, size)).astype(np.float32)
    p = LIFBoxParameters(
        tau_mem_inv=torch.tensor(1 / TAU),
        v_leak=torch.tensor(0.125),
        v_th=torch.tensor(0.75),
        v_reset=torch.tensor(-0.25),
    )
    state = LIFBoxFeedForwardState(v=torch.full((3, size), 0.125))
    expected = []
    for step in torch.from_numpy(drive):
        z, state = lif_box_feed_forward_step(step, state, p, DT)
        expected.append(z.numpy())
    out, _ = run(view((size,), {"n": lif(size, v_leak=0.125, v_th=0.75, v_reset=-0.25)}), drive)
    np.testing.assert_array_equal(out, np.stack(expected))
    assert 0.1 < out.mean() < 0.9


def test_norse_lif_is_a_cuba_lif_with_a_gain() -> None:
    rng, size = np.random.default_rng(0), 100
    drive = spikes(rng, (60, 2, size)) * np.float32(0.75)
    p = LIFParameters(
        tau_syn_inv=torch.tensor(1 / TAU),
        tau_mem_inv=torch.tensor(1 / TAU / 2),
        v_leak=torch.tensor(0.0),
        v_th=torch.tensor(0.25),
        v_reset=torch.tensor(0.0),
    )
    state = LIFFeedForwardState(v=torch.zeros(2, size), i=torch.zeros(2, size))
    expected = []
    for step in torch.from_numpy(drive):
        z, state = lif_feed_forward_step(step, state, p, DT)
        expected.append(z.numpy())
    op = nir.CubaLIF(
        tau_syn=full(size, TAU),
        tau_mem=full(size, 2 * TAU),
        r=full(size, 1),
        v_leak=full(size, 0),
        v_threshold=full(size, 0.25),
        w_in=full(size, TAU / DT),
    )
    out, _ = run(view((size,), {"neuron": op}), drive)
    np.testing.assert_array_equal(out, np.stack(expected))
    assert 0.02 < out.mean() < 0.9


# --- delays and recurrence -----------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3, 9])
def test_a_delay_shifts_by_whole_steps(steps: int) -> None:
    x = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    out, _ = run(view((3,), {"late": nir.Delay(full(3, steps * DT))}), x)
    expected = np.concatenate([np.zeros((steps, 2, 3), np.float32), x])[:6]
    np.testing.assert_array_equal(out, expected)


def test_elements_may_be_delayed_by_different_times() -> None:
    x = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    # Seconds are rounded to the nearest step.
    out, _ = run(view((3,), {"late": nir.Delay(np.array([0.0, 2.4 * DT, 1.6 * DT]))}), x)
    for element, late in enumerate((0, 2, 2)):
        np.testing.assert_array_equal(out[late:, :, element], x[: 6 - late, :, element])
        assert not out[:late, :, element].any()


def test_a_negative_delay_is_refused_by_name() -> None:
    with pytest.raises(InputFileError, match="node 'late' has a negative delay"):
        run(view((3,), {"late": nir.Delay(full(3, -DT))}), np.zeros((4, 1, 3)))


def _recurrent(back: Array, bias: Array, size: int, late: int = 0) -> nir.NIRGraph:
    """LIF neurons that feed themselves through ``back``, and through a delay if ``late``."""
    nodes: dict[str, Any] = {"lif": lif(size, v_th=0.5, v_reset=-0.25)}
    nodes["back"] = nir.Affine(back, bias)
    edges = [("input", "lif"), ("lif", "back"), ("lif", "output")]
    if late:
        nodes["late"] = nir.Delay(full(size, late * DT))
        edges += [("back", "late"), ("late", "lif")]
    else:
        edges += [("back", "lif")]
    return network((size,), nodes, edges, (size,))


@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_recurrent_layer_is_a_loop_over_the_spikes_of_the_last_step(
    dtype: type[np.floating[Any]], late: int
) -> None:
    rng, size, steps = np.random.default_rng(late), 6, 25
    back, bias = dyadic(rng, (size, size)), dyadic(rng, size)
    drive = dyadic(rng, (steps, 3, size), most=2)
    v, z = np.zeros((3, size)), np.zeros((3, size), bool)
    # A delay holds 0 before it has been fed, whatever the bias.
    sent = [np.zeros((3, size))] * late
    expected = []
    for t in range(steps):
        sent.append(z @ back.T.astype(np.float64) + bias)
        v = v + 0.5 * (drive[t] + sent[t] - v)
        z = v > 0.5
        v = np.where(z, -0.25, v)
        expected.append(z)
    out, _ = run(resolve(_recurrent(back, bias, size, late)), drive, dtype=dtype)
    np.testing.assert_array_equal(out, np.stack(expected))
    assert out.dtype == dtype
    assert 0.1 < out.mean() < 0.9


def test_step_by_step_is_the_same_as_layer_by_layer() -> None:
    """An idle loop forces the first; the arithmetic must not change with it."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 2, 3, 3)).astype(np.float32)
    cuba = {name: full((4, 3, 3), 2e-3) for name in ("tau_syn", "tau_mem")}
    nodes = {
        "conv": conv(weight, (5, 5), bias=rng.normal(size=4)),
        "lif": lif((4, 3, 3), v_th=0.3),
        "late": nir.Delay(full((4, 3, 3), 2 * DT)),
        "cuba": nir.CubaLI(**cuba, r=full((4, 3, 3), 2), v_leak=full((4, 3, 3), 0.1)),
    }
    plain = view((2, 5, 5), nodes)
    edges = [(e.source, n.name) for n in plain.nodes.values() for e in n.inputs]
    loop = nodes | {"idle": nir.Scale(full((4, 3, 3), 0))}
    edges += [("lif", "idle"), ("idle", "lif")]
    looped = resolve(network((2, 5, 5), loop, edges, (4, 3, 3)))
    assert looped.recurrent
    x = rng.normal(size=(7, 2, 2, 5, 5))
    first, kept = run(plain, x, record=["lif"])
    second, also = run(looped, x, record=["lif"])
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(kept["lif"], also["lif"])
    assert 0 < kept["lif"].mean() < 1


# --- inputs and outputs --------------------------------------------------------------------


def _convnet(rng: np.random.Generator) -> dict[str, Any]:
    """Its sums are exact on dyadic inputs, in whatever order a kernel adds."""
    return {
        "conv": conv(dyadic(rng, (3, 1, 3, 3)), (6, 6), padding=1),
        "lif": lif((3, 6, 6), tau=[[[3e-3]], [[4e-3]], [[5e-3]]], v_th=0.2),
        "pool": pool(nir.AvgPool2d, 2),
        "flatten": flatten(),
        "fc": nir.Affine(dyadic(rng, (4, 27)), full(4, 0.5)),
    }


@ANY
@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 3))
def test_a_constant_input_is_the_same_as_a_repeated_one(seed: int, steps: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    graph = view((1, 6, 6), _convnet(rng))
    x = dyadic(rng, (batch, 1, 6, 6), most=2)
    record = ["conv", "lif", "flatten"]
    once, kept = run(graph, x, steps, record=record)
    repeated, also = run(graph, np.repeat(x[None], steps, 0), record=record)
    np.testing.assert_array_equal(once, repeated)
    assert once.shape == (steps, batch, 4)
    for name in record:
        np.testing.assert_array_equal(kept[name], also[name])
        assert kept[name].shape == (steps, batch, *graph.nodes[name].output_shape)


def test_samples_do_not_touch_each_other() -> None:
    rng = np.random.default_rng(0)
    graph = view((1, 6, 6), {**_convnet(rng)}, timesteps=5)
    x = dyadic(rng, (4, 1, 6, 6))
    whole, _ = run(graph, x, dtype=np.float64)
    for sample in range(4):
        alone, _ = run(graph, x[sample : sample + 1], dtype=np.float64)
        np.testing.assert_allclose(alone[:, 0], whole[:, sample], rtol=1e-13)


def test_fan_in_is_a_sum() -> None:
    edges = [("input", "a"), ("input", "b"), ("a", "c"), ("b", "c"), ("input", "c")]
    nodes = {"a": nir.Scale(full(2, 2)), "b": nir.Scale(full(2, 4)), "c": nir.Scale(full(2, 1))}
    graph = resolve(network((2,), nodes, [*edges, ("c", "output")], (2,)))
    out, _ = run(graph, np.array([[1.0, -3.0]]), 2)
    np.testing.assert_array_equal(out, [[[7, -21]], [[7, -21]]])


def test_what_is_not_known_is_asked_for() -> None:
    graph = view((3,), {"lif": lif(3)})
    with pytest.raises(InputFileError, match="how many time steps to run; state T"):
        run(graph, np.zeros((2, 3)))
    with pytest.raises(InputFileError, match=r"the input has shape \(2, 4\)"):
        run(graph, np.zeros((2, 4)), 3)
    with pytest.raises(InputFileError, match=r"the input has shape \(3,\)"):
        run(graph, np.zeros(3), 3)
    with pytest.raises(InputFileError, match="the input has 5 steps, 3 were asked for"):
        run(graph, np.zeros((5, 2, 3)), 3)
    assert run(graph, np.zeros((5, 2, 3)), 5)[0].shape == (5, 2, 3)
    assert run(view((3,), {"lif": lif(3)}, timesteps=4), np.zeros((2, 3)))[0].shape == (4, 2, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_precision_is_chosen(dtype: type[np.floating[Any]]) -> None:
    rng = np.random.default_rng(0)
    graph, x = view((1, 6, 6), _convnet(rng)), rng.normal(size=(2, 1, 6, 6))
    out, kept = run(graph, x, 3, dtype=dtype, record=["conv", "lif"])
    assert {out.dtype, kept["conv"].dtype} == {np.dtype(dtype)}
    assert kept["lif"].dtype == bool  # a byte for each spike
