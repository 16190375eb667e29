"""The multi-step LIF in few passes over memory, for eager PyTorch.

Run operator by operator, the plain loop of `tser.neurons` reads and writes every membrane some
thirty times, and autograd keeps four tensors of them. Here each direction is one
``autograd.Function`` that works in place on pieces that stay in the processor's cache and keeps
the membranes alone; the spikes follow from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Derivative = Callable[[Tensor, float], Tensor]

_PIECE = 1 << 18
"""Neurons at a time on a CPU: the handful of buffers of 1 MB each stay in its cache."""


@dataclass(frozen=True)
class Dynamics:
    """What the neurons of one layer do, all tensors of one element.

    Attributes:
        rate: dt / tau.
        v_leak: leak potential, where the membrane starts.
        v_th: threshold.
        v_reset: potential after a spike.
        derivative: of the surrogate, from (v - v_th, alpha).
        alpha: sharpness of the surrogate.
        detach_reset: stop the gradient at the reset.
    """

    rate: Tensor
    v_leak: Tensor
    v_th: Tensor
    v_reset: Tensor
    derivative: Derivative
    alpha: float
    detach_reset: bool


def fires_together(*parameters: Tensor) -> bool:
    """Whether all neurons share their parameters, which `fire` needs."""
    return all(value.numel() == 1 for value in parameters)


def fire(current: Tensor, timesteps: int, dynamics: Dynamics) -> Tensor:
    """Spikes as of `tser.neurons.integrate_and_fire`, bit for bit in float32.

    Args:
        current: ``[T or 1, B, ...]``.
        timesteps: T.
        dynamics: of the neurons.

    Returns:
        ``[T, B, ...]``, in the dtype and memory order of ``current``.
    """
    order = _memory_order(current)
    flat = current.permute(order).flatten(1)
    spikes: Tensor = _Fire.apply(flat, timesteps, dynamics.rate, dynamics)  # type: ignore[no-untyped-call]
    ordered: Tensor = spikes.unflatten(1, [current.shape[axis] for axis in order[1:]])
    return ordered.permute([order.index(axis) for axis in range(current.ndim)])


def _memory_order(x: Tensor) -> list[int]:
    """Time, then the other axes from the slowest to the fastest in memory."""
    return [0, *sorted(range(1, x.ndim), key=x.stride, reverse=True)]


class _Fire(torch.autograd.Function):
    """(current ``[T or 1, N]``, T, rate, dynamics) -> spikes ``[T, N]``.

    ``rate`` is that of the dynamics, named apart because it can have a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, timesteps: int, rate: Tensor, dynamics: Dynamics
    ) -> Tensor:
        keep = any(ctx.needs_input_grad)
        narrow = current.dtype in (torch.bfloat16, torch.float16)
        wide = torch.float32 if narrow else current.dtype
        spikes = current.new_empty(timesteps, current.shape[1])
        membranes = current.new_empty(timesteps if keep else 1, current.shape[1], dtype=wide)
        for piece in _pieces(current):
            _forward(current[:, piece], membranes[:, piece], spikes[:, piece], dynamics)
        if keep:
            learned = [current] if ctx.needs_input_grad[2] else []
            ctx.save_for_backward(membranes, *learned)
            ctx.dynamics, ctx.static = dynamics, len(current) == 1 and timesteps > 1
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        membranes, *learned = ctx.saved_tensors
        dynamics: Dynamics = ctx.dynamics
        steps, count = membranes.shape
        current_grad = grads[0].new_empty(1 if ctx.static else steps, count)
        rate_grad = torch.zeros_like(dynamics.rate, dtype=torch.float64) if learned else None
        for piece in _pieces(membranes):
            _backward(
                grads[0][:, piece],
                membranes[:, piece],
                current_grad[:, piece],
                dynamics,
                learned[0][:, piece] if learned else None,
                rate_grad,
            )
        rate = None if rate_grad is None else rate_grad.to(dynamics.rate.dtype)
        return current_grad, None, rate, None


def _pieces(x: Tensor) -> list[slice]:
    length = _PIECE if x.device.type == "cpu" else max(1, x.shape[1])
    return [slice(start, start + length) for start in range(0, x.shape[1], length)]


def _resets_to_zero(dynamics: Dynamics) -> bool:
    # Asking a GPU would wait for it.
    return dynamics.v_reset.device.type == "cpu" and not dynamics.v_reset.any()


def _forward(current: Tensor, membranes: Tensor, spikes: Tensor, dynamics: Dynamics) -> None:
    """Fill ``spikes`` ``[T, N]`` and ``membranes`` (before the reset; one row: the last only)."""
    zero = _resets_to_zero(dynamics)
    after = dynamics.v_leak.to(membranes.dtype).expand(membranes.shape[1]).clone()
    fired = torch.empty_like(after) if spikes.dtype != membranes.dtype else None
    for t in range(len(spikes)):
        v = membranes[min(t, len(membranes) - 1)]
        v.copy_(current[min(t, len(current) - 1)])
        v.add_(dynamics.v_leak).sub_(after).mul_(dynamics.rate).add_(after)
        z = spikes[t] if fired is None else fired
        torch.gt(v, dynamics.v_th, out=z)  # a comparison that writes floats is the fast one
        torch.addcmul(v, v, z, value=-1, out=after)
        if not zero:
            after.addcmul_(z, dynamics.v_reset)
        if fired is not None:
            spikes[t].copy_(fired)


def _backward(
    grad: Tensor,
    membranes: Tensor,
    current_grad: Tensor,
    dynamics: Dynamics,
    current: Tensor | None,
    rate_grad: Tensor | None,
) -> None:
    """Fill ``current_grad`` and add to ``rate_grad``, from the last step to the first."""
    d, static = dynamics, len(current_grad) < len(membranes)
    kept = torch.empty_like(membranes[0])  # gradient of the membrane after the reset
    z, total = torch.empty_like(kept), torch.zeros_like(kept) if static else None
    for t in reversed(range(len(membranes))):
        v, last = membranes[t], t == len(membranes) - 1
        g = grad[t].to(v.dtype, copy=True)
        if not last and not d.detach_reset:
            g.addcmul_(kept, d.v_reset - v)
        g.mul_(d.derivative(v - d.v_th, d.alpha))
        if not last:
            torch.gt(v, d.v_th, out=z)
            g.add_(kept.addcmul_(kept, z, value=-1))
        if current is not None and rate_grad is not None:
            driven = current[min(t, len(current) - 1)].to(v.dtype) + d.v_leak
            rate_grad += (g * driven.sub_(_before(membranes, t, d))).sum(dtype=torch.float64)
        torch.mul(g, d.rate, out=z)
        torch.sub(g, z, out=kept)
        if total is not None:
            total += z
        else:
            current_grad[t].copy_(z)
    if total is not None:
        current_grad[0].copy_(total)


def _before(membranes: Tensor, t: int, dynamics: Dynamics) -> Tensor:
    """The membrane from which step t started, after the reset of the step before."""
    if t == 0:
        return dynamics.v_leak
    v = membranes[t - 1]
    return torch.where(v > dynamics.v_th, dynamics.v_reset, v)
