"""The multi-step LIF neuron of every student, defined by Norse's LIFBox equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from norse.torch.functional.lif_box import LIFBoxParameters
from torch import Tensor, nn

from tser.fused import Derivative, Dynamics, fire, fires_together


def _triangle(x: Tensor, alpha: float) -> Tensor:
    return alpha * torch.relu(1 - x.abs())


def _superspike(x: Tensor, alpha: float) -> Tensor:
    return 1 / (alpha * x.abs() + 1) ** 2


def _arctan(x: Tensor, alpha: float) -> Tensor:
    return alpha / 2 / (1 + (torch.pi / 2 * alpha * x) ** 2)


def _sigmoid(x: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(alpha * x)
    return alpha * s * (1 - s)


SURROGATES: dict[str, Derivative] = {
    "triangle": _triangle,  # Esser et al., PNAS 113 (2016); Norse's "triangle"
    "superspike": _superspike,  # Zenke & Ganguli, Neural Computation 30 (2018)
    "arctan": _arctan,  # Fang et al., ICCV 2021
    "sigmoid": _sigmoid,  # derivative of the logistic function
}
"""Surrogate derivatives dz/dx at x = v - v_th, by name; each takes (x, alpha)."""


class _Spike(torch.autograd.Function):
    """Heaviside step forward (1 where x > 0), surrogate derivative backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, derivative: Derivative, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.derivative, ctx.alpha = derivative, alpha
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.derivative(x, ctx.alpha), None, None


def spike(x: Tensor, surrogate: str = "triangle", alpha: float = 1.0) -> Tensor:
    """Spikes ``[x > 0]`` (strict) with the gradient of a surrogate.

    Args:
        x: distance to threshold ``v - v_th``, any shape.
        surrogate: a key of ``SURROGATES``.
        alpha: sharpness of the surrogate, passed to it.

    Returns:
        0.0 or 1.0 in the shape and dtype of ``x``.
    """
    if torch.compiler.is_compiling():
        # The same value and gradient in operators that torch's caches know: (s - s) is 0.
        slope = x * SURROGATES[surrogate](x, alpha).detach()
        return (x > 0).to(x.dtype) + (slope - slope.detach())
    result: Tensor = _Spike.apply(x, SURROGATES[surrogate], alpha)  # type: ignore[no-untyped-call]
    return result


def integrate_and_fire(
    current: Tensor,
    timesteps: int,
    rate: Tensor,
    v_leak: Tensor,
    v_th: Tensor,
    v_reset: Tensor,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> Tensor:
    """Spikes ``[T, B, ...]`` of `LIF` for ``current`` ``[T or 1, B, ...]``; ``rate`` is dt/tau.

    The reference, and what torch.compile turns into one pass over memory; `tser.fused` is the
    same for eager PyTorch. Membranes are float32 where autocast gives currents of half the width;
    their spikes, 0 or 1, are of the current's dtype again, as the next layer would make them.
    """
    dtype = current.dtype
    if dtype in (torch.bfloat16, torch.float16):
        current = current.float()
    driven = (current + v_leak).expand(timesteps, *current.shape[1:])
    v = v_leak.expand(current.shape[1:])
    spikes = []
    for step in driven.unbind(0):
        v = v + rate * (step - v)
        z = spike(v - v_th, surrogate, alpha)
        spikes.append(z.to(dtype))
        gate = z.detach() if detach_reset else z
        v = (1 - gate) * v + gate * v_reset
    return torch.stack(spikes)


def integrate_and_fire_eagerly(
    current: Tensor,
    timesteps: int,
    rate: Tensor,
    v_leak: Tensor,
    v_th: Tensor,
    v_reset: Tensor,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> Tensor:
    """`integrate_and_fire` by `tser.fused` where that applies; the same spikes bit for bit."""
    whole = fires_together(rate, v_leak, v_th, v_reset) and current.ndim > 1
    if torch.compiler.is_compiling() or not whole:
        return integrate_and_fire(
            current, timesteps, rate, v_leak, v_th, v_reset, surrogate, alpha, detach_reset
        )
    derivative = SURROGATES[surrogate]
    dynamics = Dynamics(rate, v_leak, v_th, v_reset, derivative, alpha, detach_reset)
    return fire(current, timesteps, dynamics)


class LIF(nn.Module):
    r"""Leaky integrate-and-fire neurons over T steps, in Norse's ``LIFBox`` update order.

    .. math::
        v[t] &= v[t-1] + dt \, \tau_{mem}^{-1} ((i[t] + v_{leak}) - v[t-1]) \\
        z[t] &= [v[t] - v_{th} > 0] \\
        v[t] &\leftarrow (1 - z[t]) v[t] + z[t] v_{reset}

    starting from ``v = v_leak``. One step equals ``norse.torch.lif_box_feed_forward_step``
    bit for bit; only the surrogate gradient is our own (Norse 1.1.0 ignores alpha in "super").
    The gradient flows through the reset, as in Norse, unless ``detach_reset`` is set.

    Args:
        parameters: Norse's ``tau_mem_inv`` [1/s], ``v_leak``, ``v_th``, ``v_reset``;
            its ``method`` and ``alpha`` are not read, use the two arguments below.
        dt: time step [s].
        surrogate: a key of ``SURROGATES``.
        alpha: sharpness of the surrogate.
        detach_reset: stop the gradient at the reset.
        learn_tau: learn ``dt / tau_mem = sigmoid(w)``, one w for the layer, starting from
            ``tau_mem_inv`` (Fang et al., "Incorporating learnable membrane time constant", ICCV
            2021).

    Raises:
        ValueError: an unknown surrogate, Norse parameters with another reset than to a value, or
            a learned tau_mem that starts at dt or below.
    """

    tau_mem_inv: Tensor | None
    v_leak: Tensor
    v_th: Tensor
    v_reset: Tensor

    def __init__(
        self,
        parameters: LIFBoxParameters,
        dt: float,
        surrogate: str = "triangle",
        alpha: float = 1.0,
        detach_reset: bool = False,
        learn_tau: bool = False,
    ) -> None:
        super().__init__()
        if surrogate not in SURROGATES:
            raise ValueError(f"unknown surrogate {surrogate!r}, choose from {sorted(SURROGATES)}")
        if parameters.reset_method.__name__ != "reset_value":
            raise ValueError(
                f"LIF resets to a value, got reset method {parameters.reset_method.__name__!r}"
            )
        for name in ("tau_mem_inv", "v_leak", "v_th", "v_reset"):
            value = torch.as_tensor(getattr(parameters, name), dtype=torch.float32)
            self.register_buffer(name, value.detach().clone())
        if learn_tau:
            if not 0 < dt * parameters.tau_mem_inv < 1:
                raise ValueError("a tau_mem that is learned must start longer than dt")
            self.tau_logit = nn.Parameter(torch.logit(dt * parameters.tau_mem_inv.double()).float())
            self.tau_mem_inv = None
        self.dt, self.surrogate, self.alpha = dt, surrogate, alpha
        self.detach_reset = detach_reset
        self.integrate: Callable[..., Tensor] = integrate_and_fire_eagerly

    def rate(self) -> Tensor:
        """``dt / tau_mem``, float32, a scalar unless Norse's parameters were arrays."""
        if self.tau_mem_inv is None:
            return torch.sigmoid(self.tau_logit)
        # Norse multiplies the two scalars first; the order decides the last bit.
        return self.dt * self.tau_mem_inv

    def forward(self, current: Tensor, timesteps: int) -> Tensor:
        """Integrate ``current`` and fire.

        Args:
            current: input current, ``[T, B, ...]``, or ``[1, B, ...]`` for one that is constant
                over time.
            timesteps: T.

        Returns:
            Spikes 0.0 or 1.0, ``[T, B, ...]``.

        Raises:
            ValueError: a current of another number of steps.
        """
        if current.ndim < 2 or current.shape[0] not in (1, timesteps):
            raise ValueError(
                f"current must be [T, B, ...] with T = {timesteps} or 1, "
                f"got shape {tuple(current.shape)}"
            )
        spikes: Tensor = self.integrate(
            current,
            timesteps,
            self.rate(),
            self.v_leak,
            self.v_th,
            self.v_reset,
            self.surrogate,
            self.alpha,
            self.detach_reset,
        )
        return spikes

    def extra_repr(self) -> str:
        """Parameters for ``repr``."""
        return (
            f"tau_mem={self.dt / self.rate().item():g} s, dt={self.dt:g} s, "
            f"v_th={self.v_th.item():g}, surrogate={self.surrogate}"
        )
