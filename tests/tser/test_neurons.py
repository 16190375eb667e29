"""LIF neurons against Norse's own step, bit for bit, and their surrogate gradients."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norse.torch.functional.lif_box import (
    LIFBoxFeedForwardState,
    LIFBoxParameters,
    lif_box_feed_forward_step,
)
from norse.torch.functional.reset import reset_subtract
from torch import Tensor

from tser.config import NeuronConfig
from tser.neurons import LIF, SURROGATES, integrate_and_fire, spike

DT = 1e-3


def float32s(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32)


CASES = {
    "shape": st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    "timesteps": st.integers(1, 9),
    "tau_mem_inv": float32s(1.0, 1000.0),
    "dt": st.floats(1e-5, 1e-3),
    "v_th": float32s(0.0625, 2.0),
    "v_leak": float32s(-1.0, 1.0),
    "v_reset": float32s(-2.0, 1.0),
    "seed": st.integers(0, 2**31),
}


def parameters(
    tau_mem_inv: float = 500.0,
    v_th: float = 1.0,
    v_leak: float = 0.0,
    v_reset: float = 0.0,
    method: str = "triangle",
    alpha: float = 1.0,
) -> LIFBoxParameters:
    return LIFBoxParameters(
        tau_mem_inv=torch.tensor(tau_mem_inv),
        v_leak=torch.tensor(v_leak),
        v_th=torch.tensor(v_th),
        v_reset=torch.tensor(v_reset),
        method=method,
        alpha=alpha,
    )


def norse_steps(current: Tensor, p: LIFBoxParameters, dt: float) -> tuple[Tensor, Tensor]:
    """Spikes and membranes after reset, both ``[T, B, ...]``, one Norse step at a time."""
    state = LIFBoxFeedForwardState(v=torch.zeros_like(current[0]) + p.v_leak)
    spikes, membranes = [], []
    for step in current:
        z, state = lif_box_feed_forward_step(step, state, p, dt)
        spikes.append(z)
        membranes.append(state.v)
    return torch.stack(spikes), torch.stack(membranes)


def current_like(shape: tuple[int, ...], p: LIFBoxParameters, dt: float, seed: int) -> Tensor:
    """Currents whose steps are of the size of the threshold, so that a part of them fires."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return noise * (p.v_th - p.v_leak).abs() / (dt * p.tau_mem_inv)


def bits(values: Tensor) -> Tensor:
    return values.detach().view(torch.int32)


class Membranes:
    """Takes the membranes out of `LIF`: the distances to threshold that it hands to `spike`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.distances: list[Tensor] = []

        def record(x: Tensor, *rest: Any) -> Tensor:
            self.distances.append(x)
            return spike(x, *rest)

        monkeypatch.setattr("tser.neurons.spike", record)


# --- forward: the same bits as Norse -------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(**CASES)
def test_spikes_and_membranes_are_norses_bit_for_bit(
    shape: tuple[int, ...],
    timesteps: int,
    tau_mem_inv: float,
    dt: float,
    v_th: float,
    v_leak: float,
    v_reset: float,
    seed: int,
) -> None:
    p = parameters(tau_mem_inv, v_th, v_leak, v_reset)
    current = current_like((timesteps, *shape), p, dt, seed)
    spikes = LIF(p, dt)(current, timesteps)
    wanted, after_reset = norse_steps(current, p, dt)
    assert spikes.dtype == torch.float32
    assert torch.equal(bits(spikes), bits(wanted))
    with pytest.MonkeyPatch.context() as patch:
        membranes, reference = Membranes(patch), LIF(p, dt)
        reference.integrate = integrate_and_fire
        assert torch.equal(bits(reference(current, timesteps)), bits(wanted))
    # LIF hands out v - v_th before the reset; Norse's v after it is the same where none fired.
    distance = torch.stack(membranes.distances)
    silent = wanted == 0
    assert torch.equal(bits(distance)[silent], bits(after_reset - p.v_th)[silent])
    assert torch.equal(after_reset[~silent], p.v_reset.expand_as(after_reset)[~silent])


def test_the_cases_above_fire_and_stay_silent() -> None:
    p = parameters(v_th=0.5, v_leak=0.25, v_reset=-0.5)
    spikes = LIF(p, DT)(current_like((8, 100), p, DT, 0), 8)
    assert 0.05 < float(spikes.mean()) < 0.5


@pytest.mark.parametrize("length", range(1, 8))
def test_the_first_steps_do_not_depend_on_later_ones(length: int) -> None:
    p = parameters(v_leak=0.2, v_reset=-0.4)
    current = current_like((7, 2, 30), p, DT, 4)
    assert torch.equal(LIF(p, DT)(current[:length], length), LIF(p, DT)(current, 7)[:length])


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 4, 4)])
@pytest.mark.parametrize("v_leak", [0.0, -0.3])
def test_a_constant_current_is_the_repeated_one(shape: tuple[int, ...], v_leak: float) -> None:
    p = parameters(v_leak=v_leak, v_reset=0.1)
    current = current_like((1, *shape), p, DT, 1) + 1.5
    repeated = LIF(p, DT)(current.repeat(7, *[1] * len(shape)), 7)
    constant = LIF(p, DT)(current, 7)
    assert constant.shape == (7, *shape)
    assert torch.equal(bits(constant), bits(repeated))
    assert 0 < float(constant.mean()) < 1


def test_the_gradient_of_a_constant_current_is_summed_over_time() -> None:
    current = (current_like((1, 20), parameters(), DT, 2) + 1.0).requires_grad_()
    repeated = current.detach().repeat(5, 1).requires_grad_()
    LIF(parameters(), DT)(current, 5).sum().backward()
    LIF(parameters(), DT)(repeated, 5).sum().backward()
    assert current.grad is not None
    assert repeated.grad is not None
    torch.testing.assert_close(current.grad[0], repeated.grad.sum(0))
    assert (current.grad != 0).any()


def test_a_membrane_at_the_threshold_does_not_fire() -> None:
    current = torch.tensor([[2.0, math.nextafter(2.0, 3.0) + 1e-6, 2.0 - 1e-6]])
    p = parameters()  # dt / tau_mem = 1/2: a current of 2 lifts v from 0 to exactly v_th = 1
    wanted, _ = norse_steps(current, p, DT)
    assert LIF(p, DT)(current, 1).tolist() == wanted.tolist() == [[0.0, 1.0, 0.0]]


def test_it_starts_at_rest() -> None:
    p = parameters(v_leak=0.75)
    nothing = torch.zeros(1, 1, 3)
    assert not LIF(p, DT)(nothing, 6).any()  # at rest without a current the membrane stays
    assert LIF(p, DT)(nothing + 0.51, 1).all()  # 0.75 + 0.255 > 1; from 0 it would be 0.63


def test_dt_decides_how_fast_it_follows() -> None:
    current = torch.full((1, 1), 1.5)
    first = [
        int(LIF(parameters(tau_mem_inv=100.0), dt)(current, 100).argmax()) for dt in (1e-3, 4e-3)
    ]
    assert first == [10, 2]  # 1.5 (1 - (1 - a)^n) > 1 for n > log(1/3) / log(1 - a)


# --- gradients -----------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, derandomize=True)
@given(alpha=st.floats(0.25, 4.0), **CASES)
def test_gradients_are_norses_through_the_reset(
    alpha: float,
    shape: tuple[int, ...],
    timesteps: int,
    tau_mem_inv: float,
    dt: float,
    v_th: float,
    v_leak: float,
    v_reset: float,
    seed: int,
) -> None:
    p = parameters(tau_mem_inv, v_th, v_leak, v_reset, "triangle", alpha)
    ours = current_like((timesteps, *shape), p, dt, seed).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed + 1))
    (LIF(p, dt, "triangle", alpha)(ours, timesteps) * weight).sum().backward()
    (norse_steps(theirs, p, dt)[0] * weight).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    scale = float(theirs.grad.abs().max())
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6 * scale + 1e-12)


def hand_gradient(
    currents: list[float], derivative: Callable[[float], float], detach: bool
) -> list[float]:
    """d(sum of spikes)/d(current[s]) with dt / tau_mem = 1/2, v_th = 1, v_reset = v_leak = 0."""
    gradients = []
    for source in range(len(currents)):
        v = dv = total = 0.0
        for t, current in enumerate(currents):
            dv += 0.5 * ((t == source) - dv)
            v += 0.5 * (current - v)
            z = float(v > 1)
            dz = derivative(v - 1) * dv
            total += dz
            dv = (1 - z) * dv - (0.0 if detach else v * dz)
            v = (1 - z) * v
        gradients.append(total)
    return gradients


@pytest.mark.parametrize("detach", [False, True])
def test_detach_reset_stops_the_gradient_at_the_reset_only(detach: bool) -> None:
    currents = [1.2, 1.1, 2.2, 0.4, 2.6, 1.9]
    current = torch.tensor(currents, dtype=torch.float64).unsqueeze(1).requires_grad_()
    spikes = LIF(parameters(), DT, detach_reset=detach)(current, 6)
    assert spikes.flatten().tolist() == [0, 0, 1, 0, 1, 0]
    spikes.sum().backward()
    assert current.grad is not None
    wanted = hand_gradient(currents, lambda x: max(0.0, 1 - abs(x)), detach)
    other = hand_gradient(currents, lambda x: max(0.0, 1 - abs(x)), not detach)
    assert current.grad.flatten().tolist() == pytest.approx(wanted, rel=1e-6)
    assert wanted != pytest.approx(other, rel=1e-2)


PRIMITIVES: dict[str, Callable[[float, float], float]] = {
    # The smooth step whose derivative the surrogate is.
    "triangle": lambda x, a: a * (x - math.copysign(x * x / 2, x) if abs(x) < 1 else 0.0),
    "superspike": lambda x, a: x / (1 + a * abs(x)),
    "arctan": lambda x, a: math.atan(math.pi / 2 * a * x) / math.pi,
    "sigmoid": lambda x, a: 1 / (1 + math.exp(-a * x)),
}


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_a_surrogate_is_the_derivative_of_its_smooth_step(name: str, alpha: float) -> None:
    points = [-0.93, -0.5, -0.11, 0.13, 0.49, 0.91]
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    fired = spike(x, name, alpha)
    fired.sum().backward()
    assert x.grad is not None
    h = 1e-5
    step = PRIMITIVES[name]
    slopes = [(step(point + h, alpha) - step(point - h, alpha)) / (2 * h) for point in points]
    assert x.grad.tolist() == pytest.approx(slopes, rel=1e-8)
    assert fired.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "at_zero", "at_two"),
    [
        ("triangle", 2.0, 0.0),
        ("superspike", 1.0, 1 / 25),
        ("arctan", 1.0, 1 / (1 + 4 * math.pi**2)),
        ("sigmoid", 0.5, 2 * math.exp(-4) / (1 + math.exp(-4)) ** 2),
    ],
)
def test_surrogates_at_and_far_from_the_threshold(name: str, at_zero: float, at_two: float) -> None:
    x = torch.tensor([0.0, 2.0, -2.0], requires_grad=True)
    spike(x, name, 2.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([at_zero, at_two, at_two], rel=1e-5)


def test_every_surrogate_is_known_to_the_tests_and_to_the_configuration() -> None:
    assert set(PRIMITIVES) == set(SURROGATES)
    for name in SURROGATES:
        assert NeuronConfig.model_validate({"surrogate": name}).surrogate == name


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_the_layer_uses_the_surrogate_and_alpha_it_was_given(name: str) -> None:
    current = torch.full((1, 1), 2.5, requires_grad=True)
    LIF(parameters(), DT, name, 3.0)(current, 1).sum().backward()
    assert current.grad is not None
    slope = SURROGATES[name](torch.tensor(0.25), 3.0)
    assert current.grad.item() == pytest.approx(0.5 * slope.item(), rel=1e-6)


def test_superspike_honours_alpha() -> None:
    slopes = []
    for alpha in (1.0, 10.0):
        x = torch.tensor([0.5], requires_grad=True)
        spike(x, "superspike", alpha).backward()
        assert x.grad is not None
        slopes.append(x.grad.item())
    assert slopes == pytest.approx([1 / 1.5**2, 1 / 6**2], rel=1e-6)


# --- a time constant that is learned --------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(start=st.floats(0.01, 0.99), dt=st.floats(1e-5, 1e-3))
def test_a_learned_tau_starts_where_it_was_set(start: float, dt: float) -> None:
    neuron = LIF(parameters(tau_mem_inv=start / dt), dt, learn_tau=True)
    assert neuron.rate().item() == pytest.approx(dt * float(torch.tensor(start / dt)), rel=1e-5)
    assert [name for name, _ in neuron.named_parameters()] == ["tau_logit"]
    assert neuron.tau_logit.numel() == 1
    assert "tau_mem_inv" not in neuron.state_dict()


@pytest.mark.parametrize("logit", [-3.0, -0.4, 2.0])
def test_a_learned_tau_decides_the_decay(logit: float) -> None:
    """dt / tau = sigmoid(w), and otherwise the neuron is the same."""
    learned = LIF(parameters(v_leak=0.1, v_reset=-0.2), DT, learn_tau=True)
    with torch.no_grad():
        learned.tau_logit.fill_(logit)
    inverse = 1 / (1 + math.exp(-logit)) / DT
    p = parameters(inverse, v_leak=0.1, v_reset=-0.2)
    current = current_like((6, 50), p, DT, 0)
    ours, wanted = learned(current, 6).detach(), LIF(p, DT)(current, 6)
    assert torch.equal(ours, wanted)
    assert 0 < float(ours.mean()) < 1


def test_the_gradient_of_a_learned_tau() -> None:
    """d(sum of spikes)/dw by hand: two steps, no spike, da/dw = a (1 - a)."""
    neuron = LIF(parameters(), DT, "sigmoid", 2.0, learn_tau=True).double()
    currents = torch.tensor([[1.2], [0.7]], dtype=torch.float64)
    spikes = neuron(currents, 2)
    assert not spikes.any()
    spikes.sum().backward()

    def slope(v: float) -> float:
        z = 1 / (1 + math.exp(-2 * (v - 1)))
        return 2 * z * (1 - z)

    a = 0.5
    v1, dv1 = a * 1.2, 1.2
    dz1 = slope(v1) * dv1
    after = dv1 - v1 * dz1  # the gradient of the reset, which did not happen
    v2, dv2 = v1 + a * (0.7 - v1), after + (0.7 - v1) - a * after
    by_hand = (dz1 + slope(v2) * dv2) * a * (1 - a)
    assert neuron.tau_logit.grad is not None
    assert neuron.tau_logit.grad.item() == pytest.approx(by_hand, rel=1e-6)


def test_a_learned_tau_stays_longer_than_dt() -> None:
    neuron = LIF(parameters(), DT, learn_tau=True)
    optimizer = torch.optim.SGD(neuron.parameters(), lr=100)
    for sign in (1, -1):
        for _ in range(3):
            optimizer.zero_grad()
            (sign * neuron(current_like((4, 200), parameters(), DT, 0), 4).sum()).backward()
            optimizer.step()
            assert 0 <= neuron.rate().item() <= 1
            assert math.isfinite(neuron.tau_logit.item())


@pytest.mark.parametrize("tau_mem_inv", [1000.0, 2000.0, 0.0, -1.0])
def test_a_learned_tau_must_start_longer_than_dt(tau_mem_inv: float) -> None:
    with pytest.raises(ValueError, match="tau_mem that is learned must start longer than dt"):
        LIF(parameters(tau_mem_inv), DT, learn_tau=True)


def test_a_learned_tau_is_shown() -> None:
    neuron = LIF(parameters(tau_mem_inv=250.0), DT, learn_tau=True)
    assert repr(neuron) == "LIF(tau_mem=0.004 s, dt=0.001 s, v_th=1, surrogate=triangle)"


# --- the module ----------------------------------------------------------------------------


def test_its_parameters_are_saved_but_not_trained() -> None:
    neuron = LIF(parameters(tau_mem_inv=250.0, v_th=0.5, v_leak=-0.25, v_reset=-1.0), DT)
    values = {name: value.item() for name, value in neuron.state_dict().items()}
    assert values == {"tau_mem_inv": 250.0, "v_th": 0.5, "v_leak": -0.25, "v_reset": -1.0}
    assert not list(neuron.parameters())
    assert repr(neuron) == "LIF(tau_mem=0.004 s, dt=0.001 s, v_th=0.5, surrogate=triangle)"


def test_it_does_not_share_memory_with_norses_parameters() -> None:
    p = parameters()
    neuron = LIF(p, DT)
    p.v_th.fill_(5.0)
    assert neuron.v_th.item() == 1.0


def test_an_unknown_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown surrogate 'super', choose from \['arctan'"):
        LIF(parameters(), DT, "super")


def test_a_subtractive_reset_is_refused() -> None:
    p = LIFBoxParameters(reset_method=reset_subtract)
    with pytest.raises(ValueError, match="resets to a value, got reset method 'reset_subtract'"):
        LIF(p, DT)


@pytest.mark.parametrize("shape", [(3, 2), (5, 2), ()])
def test_a_current_of_other_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"T = 4 or 1, got shape {re.escape(str(shape))}"):
        LIF(parameters(), DT)(torch.zeros(shape), 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_norses_bits_too() -> None:
    p = parameters(v_leak=-0.1, v_reset=0.2)
    current = current_like((6, 64, 8), p, DT, 3).cuda()
    on_gpu = LIFBoxParameters(
        *(getattr(p, name).cuda() for name in ("tau_mem_inv", "v_leak", "v_th", "v_reset")),
        method="triangle",
        alpha=1.0,
    )
    wanted, _ = norse_steps(current, on_gpu, DT)
    assert torch.equal(bits(LIF(p, DT).cuda()(current, 6)), bits(wanted))
