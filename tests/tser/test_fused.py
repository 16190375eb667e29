"""The eager multi-step LIF against the plain loop: the same spikes, the same gradients."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tser import fused, neurons
from tser.neurons import SURROGATES, integrate_and_fire, integrate_and_fire_eagerly

CASES: dict[str, st.SearchStrategy[Any]] = {
    "shape": st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    "timesteps": st.integers(1, 6),
    "static": st.booleans(),
    "rate": st.floats(0.05, 1.0),
    "v_th": st.floats(0.3, 1.3),
    "v_leak": st.floats(-0.2, 0.2),
    "v_reset": st.one_of(st.just(0.0), st.floats(-1.0, 0.2)),
    "surrogate": st.sampled_from(sorted(SURROGATES)),
    "alpha": st.floats(0.25, 4.0),
    "detach": st.booleans(),
    "learned": st.booleans(),
    "piece": st.sampled_from([1, 7, 1 << 18]),
    "seed": st.integers(0, 2**31),
}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def results(
    integrate: Any, current: Tensor, rate: Tensor, timesteps: int, *rest: Any, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Spikes and the gradients of current and rate."""
    x, r = (y.detach().requires_grad_(y.requires_grad) for y in (current, rate))
    x.requires_grad_()
    spikes = integrate(x, timesteps, r, *rest)
    (spikes * weight).sum().backward()
    assert x.grad is not None
    return spikes.detach(), x.grad, r.grad


@settings(max_examples=200, deadline=None, derandomize=True)
@given(**CASES)
def test_spikes_are_the_loops_bit_for_bit_and_gradients_to_rounding(
    shape: tuple[int, ...],
    timesteps: int,
    static: bool,
    rate: float,
    v_th: float,
    v_leak: float,
    v_reset: float,
    surrogate: str,
    alpha: float,
    detach: bool,
    learned: bool,
    piece: int,
    seed: int,
) -> None:
    current = noise(1 if static else timesteps, *shape, seed=seed) * 2 + 0.5
    if len(shape) == 4:  # as a convolution in channels-last order leaves it
        current = current.transpose(2, -1).contiguous().transpose(2, -1)
    values = [torch.tensor(value) for value in (v_leak, v_th, v_reset)]
    dt_over_tau = torch.tensor(rate, requires_grad=learned)
    arguments = (current, dt_over_tau, timesteps, *values, surrogate, alpha, detach)
    weight = noise(timesteps, *shape, seed=seed + 1)
    wanted = results(integrate_and_fire, *arguments, weight=weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_PIECE", piece)
        found = results(integrate_and_fire_eagerly, *arguments, weight=weight)
    assert torch.equal(found[0], wanted[0])
    scale = float(wanted[1].abs().max())
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-6, atol=1e-6 * scale + 1e-12)
    assert (found[2] is None) == (wanted[2] is None) == (not learned)
    if found[2] is not None and wanted[2] is not None:
        # A sum over all neurons, in float64 here: the loop's own rounding decides.
        size = float((weight.abs() * 10).sum())
        torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-7 * size)


def test_the_gradients_are_exact_in_float64() -> None:
    """Smooth on both sides of the threshold, the surrogate taken for the step's slope."""
    arguments = [torch.tensor(v, dtype=torch.float64) for v in (0.1, 1.0, -0.3)]
    current = noise(5, 3, 40, seed=0).double() * 3
    rate = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    rest = (5, *arguments, "arctan", 2.0, False)
    weight = noise(5, 3, 40, seed=1).double()
    found = results(integrate_and_fire_eagerly, current, rate, *rest, weight=weight)
    wanted = results(integrate_and_fire, current, rate, *rest, weight=weight)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert 0.05 < float(found[0].mean()) < 0.6


def zeros_and(v_th: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(0.0), torch.tensor(v_th), torch.tensor(0.0)


def test_the_memory_order_of_the_current_is_kept() -> None:
    image = noise(6, 5, 4, 3, seed=0).contiguous(memory_format=torch.channels_last)
    current = image.unflatten(0, (2, 3))
    spikes = integrate_and_fire_eagerly(
        current, 2, torch.tensor(0.5), *zeros_and(), "triangle", 1.0, False
    )
    assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_only_the_membranes_are_kept_for_the_backward_pass() -> None:
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    current = noise(4, 2, 50, seed=0).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        spikes = integrate_and_fire_eagerly(
            current, 4, torch.tensor(0.5), *zeros_and(), "triangle", 1.0, False
        )
    assert sum(kept.values()) == 4 * current.numel()
    spikes.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_membranes_are_float32_where_currents_are_narrow(dtype: torch.dtype) -> None:
    current = (noise(6, 2, 300, seed=0) * 2).to(dtype)
    arguments = (6, torch.tensor(0.3), *zeros_and(), "triangle", 1.0, False)
    found, wanted = (
        f(x, *arguments)
        for f, x in (
            (integrate_and_fire_eagerly, current),
            (integrate_and_fire, current.float()),
        )
    )
    assert found.dtype == dtype
    assert torch.equal(found.float(), wanted)
    grads = [
        results(f, current, arguments[1], 6, *arguments[2:], weight=noise(6, 2, 300, seed=1))[1]
        for f in (integrate_and_fire_eagerly, integrate_and_fire)
    ]
    assert grads[0].dtype == dtype
    torch.testing.assert_close(grads[0].float(), grads[1].float(), rtol=2e-2, atol=1e-2)


def test_neurons_that_differ_take_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Tensor:
        raise AssertionError("one threshold for all was assumed")

    monkeypatch.setattr(neurons, "fire", refuse)
    thresholds = torch.tensor([0.5, 5.0])
    spikes = integrate_and_fire_eagerly(
        torch.full((1, 3, 2), 2.0),
        4,
        torch.tensor(0.5),
        torch.tensor(0.0),
        thresholds,
        torch.tensor(0.0),
        "triangle",
        1.0,
        False,
    )
    assert spikes[..., 0].all()
    assert not spikes[..., 1].any()


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    current = noise(4, 2, 50, seed=0)
    with torch.no_grad():
        silent = integrate_and_fire_eagerly(
            current.requires_grad_(), 4, torch.tensor(0.5), *zeros_and(), "triangle", 1.0, False
        )
    assert not silent.requires_grad
    assert silent.any()
