"""The libraries that read NIR: how each imports a file, and where it keeps its membranes.

Each is imported only when its function is called; the extra ``interop`` installs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a module, by place and by name."""
Hold = Callable[[Array, Call], Call]
"""The membrane ``[B, ...]`` before a step, in the units of the file, and the arguments of a layer's
module -> the arguments with that membrane among them, or the same where the module keeps it."""


@dataclass(frozen=True)
class Tool:
    """A library that reads NIR.

    Attributes:
        title: as its authors write it, and as in importers.toml.
        module: what Python imports, and what pip calls it.
        load: the network of a file for a time step [s]; ``y, state = network(x, state)`` is a step.
        holder: (module of a layer, its NIR node) -> how its membrane is set before a step. Raises
            NotImplementedError where it cannot be.
    """

    title: str
    module: str
    load: Callable[[Path, float], Any]
    holder: Callable[[Any, Any], Hold]


def _norse(path: Path, dt: float) -> Any:
    import norse.torch

    return norse.torch.from_nir(nir.read(path), dt=dt)


def _hold_norse(module: Any, op: Any) -> Hold:
    """Cells take and return named tuples; those of a CubaLIF lie side by side in another."""
    current_based = isinstance(op, nir.CubaLIF)
    cell = module.lif if current_based else module

    def hold(v: Array, call: Call) -> Call:
        (x, *given), names = call
        state = given[0] if given else None
        synapse, state = (state or (None, None)) if current_based else (None, state)
        if state is None:
            state = cell.state_fallback(x)
        state = state._replace(v=_tensor(v))
        return (x, (synapse, state) if current_based else state), names

    return hold


def _snntorch(path: Path, _: float) -> Any:
    from snntorch.import_nir import import_from_nir

    return import_from_nir(nir.read(path))


def _hold_snntorch(module: Any, op: Any) -> Hold:
    """Its membrane has other units: it divides the threshold by the gain of the input."""
    threshold = float(np.asarray(op.v_threshold, np.float64).flat[0])
    unit = float(module.threshold) / threshold if threshold else np.nan
    if not np.isfinite(unit):
        raise NotImplementedError(
            "the units of snnTorch's membrane are known by its threshold, and a threshold of "
            f"{threshold:g} does not tell them"
        )

    def hold(v: Array, call: Call) -> Call:
        module.mem = _tensor(np.asarray(v, np.float64) * unit)
        return call

    return hold


def _spikingjelly(path: Path, dt: float) -> Any:
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return import_from_nir(path, dt=dt)


def _hold_spikingjelly(module: Any, op: Any) -> Hold:
    from spikingjelly.activation_based.base import extract_memories

    def hold(v: Array, call: Call) -> Call:
        inputs, names = call
        state = names.get("state")
        _, *rest = extract_memories(module.module) if state is None else state
        return inputs, {**names, "state": (_tensor(v), *rest)}

    return hold


def _nirtorch(path: Path, dt: float) -> Any:
    import nirtorch

    from tser.deploy.nirtorch_maps import node_maps

    return nirtorch.nir_to_torch(nir.read(path), node_maps(dt))


def _hold_nirtorch(module: Any, op: Any) -> Hold:
    def hold(v: Array, call: Call) -> Call:
        inputs, names = call
        _, *rest = names.get("state") or module.start(inputs[0])
        return inputs, {**names, "state": (_tensor(v), *rest)}

    return hold


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


FOREIGN = {
    "nirtorch": Tool("nirtorch", "nirtorch", _nirtorch, _hold_nirtorch),
    "spikingjelly": Tool("SpikingJelly", "spikingjelly", _spikingjelly, _hold_spikingjelly),
    "snntorch": Tool("snnTorch", "snntorch", _snntorch, _hold_snntorch),
    "norse": Tool("Norse", "norse", _norse, _hold_norse),
}
"""Name of the backend -> the library."""
