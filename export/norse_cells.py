"""Norse's cells as NIR nodes, parameter for parameter.

A cell (``LIFBoxCell``, ...) and its form over time (``LIF``, ...) share the step function that
they are told apart by. Time constants are chosen so that dt / tau comes out as the factor that
Norse multiplies by; Norse's own export writes dt / tau_mem_inv and drops v_reset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import torch
from norse.torch.functional.iaf import iaf_feed_forward_step
from norse.torch.functional.leaky_integrator import li_feed_forward_step
from norse.torch.functional.leaky_integrator_box import li_box_feed_forward_step
from norse.torch.functional.lif import lif_feed_forward_step, lif_step
from norse.torch.functional.lif_box import lif_box_feed_forward_step
from norse.torch.functional.reset import reset_value
from norse.torch.module.leaky_integrator import LILinearCell
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from numpy.typing import NDArray
from torch import Tensor

from tser.export.graph import decay
from tser.export.shapes import Shape

Array = NDArray[np.float32]


def time_constant(factor: Any, dt: float) -> Array:
    """The float32 tau [s] for which ``decay(dt, tau)`` is nearest to ``factor``.

    It is taken from the factor that the neuron multiplies by: the nearest float32 of 1 / tau_inv
    can miss it by one unit in the last place more.
    """
    return np.asarray(np.float32(dt) / np.asarray(factor, np.float64), np.float32)


_KINDS = (SNN, SNNCell, SNNRecurrent, SNNRecurrentCell)


def is_cell(module: Any) -> bool:
    """Whether `to_nir` knows the kind of neuron."""
    if type(module).forward is LILinearCell.forward:
        return True
    plain = type(module).forward in [kind.forward for kind in _KINDS]
    return plain and module.activation in _RULES


def synapses(cell: Any) -> dict[str, Tensor]:
    """Weights ``[neurons, inputs]`` that a cell itself holds, by "input" and "recurrent".

    Norse adds up ``input_weights @ x[t] + recurrent_weights @ z[t-1]``, with z = 0 before the
    first step.
    """
    names = {"input": "input_weights", "recurrent": "recurrent_weights"}
    return {key: getattr(cell, name) for key, name in names.items() if hasattr(cell, name)}


def to_nir(cell: Any, shape: Shape) -> Any:
    """The NIR node of a Norse cell over a feature map, without the synapses that it may hold.

    Args:
        cell: one for which `is_cell` holds.
        shape: of the neurons, without batch and time.

    Raises:
        ValueError: a parameter that NIR cannot express, in words that follow the layer's name.
    """
    linear = type(cell).forward is LILinearCell.forward
    rule = _li if linear else _RULES[cell.activation]
    return rule(cell, lambda value: _full(value, shape))


def _full(value: Any, shape: Shape) -> Array:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    try:
        return np.ascontiguousarray(np.broadcast_to(array, shape), np.float32)
    except ValueError as error:
        raise ValueError(
            f"has a parameter of shape {array.shape} that does not fit its neurons {shape}"
        ) from error


Fill = Callable[[Any], Array]


def _factor(cell: Any, inverse: Any) -> Any:
    """``dt * tau_inv`` as torch rounds it, which is in float64 where both are plain numbers."""
    return torch.as_tensor(cell.dt * inverse, dtype=torch.float32).detach().cpu().numpy()


def _tau(cell: Any, inverse: Any, fill: Fill) -> Array:
    factor = _factor(cell, inverse)
    if not (np.isfinite(factor) & (factor > 0)).all():
        raise ValueError("has an inverse time constant of 0 or below, or one that is not finite")
    return fill(time_constant(factor, cell.dt))


def _unit_gain(array: Array, gain: Callable[[Array], NDArray[np.float64]]) -> Array:
    """``array`` moved by at most one float32 so that ``gain(array)`` rounds to exactly 1."""
    for candidate in (array, np.nextafter(array, np.inf), np.nextafter(array, -np.inf)):
        value = np.asarray(candidate, np.float32)
        array = np.where(gain(value).astype(np.float32) == 1, value, array).astype(np.float32)
    return array


def _lif_box(cell: Any, fill: Fill) -> nir.LIF:
    if cell.p.reset_method is not reset_value:
        raise ValueError("does not reset to a value, and NIR has no other reset; use reset_value")
    return nir.LIF(
        tau=_tau(cell, cell.p.tau_mem_inv, fill),
        r=fill(1.0),
        v_leak=fill(cell.p.v_leak),
        v_threshold=fill(cell.p.v_th),
        v_reset=fill(cell.p.v_reset),
    )


def _li_box(cell: Any, fill: Fill) -> nir.LI:
    return nir.LI(tau=_tau(cell, cell.p.tau_mem_inv, fill), r=fill(1.0), v_leak=fill(cell.p.v_leak))


def _current_based(cell: Any, fill: Fill) -> dict[str, Array]:
    tau_syn = _tau(cell, cell.p.tau_syn_inv, fill)
    # Norse adds the input to the current as it is; NIR scales it by dt / tau_syn.
    w_in = _unit_gain(
        (1 / decay(cell.dt, tau_syn)).astype(np.float32), lambda w: decay(cell.dt, tau_syn) * w
    )
    return {
        "tau_mem": _tau(cell, cell.p.tau_mem_inv, fill),
        "tau_syn": tau_syn,
        "r": fill(1.0),
        "v_leak": fill(cell.p.v_leak),
        "w_in": w_in,
    }


def _lif(cell: Any, fill: Fill) -> nir.CubaLIF:
    return nir.CubaLIF(
        **_current_based(cell, fill), v_threshold=fill(cell.p.v_th), v_reset=fill(cell.p.v_reset)
    )


def _li(cell: Any, fill: Fill) -> nir.CubaLI:
    return nir.CubaLI(**_current_based(cell, fill))


def _iaf(cell: Any, fill: Fill) -> nir.IF:
    if torch.as_tensor(cell.p.v_reset).any():
        raise ValueError("starts from its v_reset, and NIR's IF from 0; set v_reset to 0")
    r = _unit_gain(fill(1 / cell.dt), lambda r: cell.dt * r.astype(np.float64))
    return nir.IF(r=r, v_threshold=fill(cell.p.v_th), v_reset=fill(cell.p.v_reset))


_RULES: dict[Any, Callable[[Any, Fill], Any]] = {
    lif_box_feed_forward_step: _lif_box,
    li_box_feed_forward_step: _li_box,
    lif_feed_forward_step: _lif,
    lif_step: _lif,
    li_feed_forward_step: _li,
    iaf_feed_forward_step: _iaf,
}
