"""Files of ours in other libraries, by each library's own import function.

The extra ``interop`` installs them; each is imported only when its function is called.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import nn

from tser.deploy.backends import Trace


@dataclass(frozen=True)
class Tool:
    """A library that reads NIR.

    Attributes:
        module: what Python imports.
        call: the library's import function as a user writes it.
        load: the network of a file for a time step [s].
        options: of ``tser export``, for a file that the library reads as it is meant.
        dt: time step [s] that these options give; None: the network's own.
    """

    module: str
    call: str
    load: Callable[[Path, float], Any]
    options: str = ""
    dt: float | None = None


def _nirtorch(path: Path, dt: float) -> Any:
    import nirtorch

    from tser.deploy.nirtorch_maps import node_maps

    return nirtorch.nir_to_torch(nir.read(path), node_maps(dt))


def _spikingjelly(path: Path, dt: float) -> Any:
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return import_from_nir(path, dt=dt)


def _snntorch(path: Path, _: float) -> Any:
    from snntorch.import_nir import import_from_nir

    return import_from_nir(nir.read(path))


def _norse(path: Path, dt: float) -> Any:
    import norse.torch

    return norse.torch.from_nir(nir.read(path), dt=dt)


TOOLS = {
    "nirtorch": Tool("nirtorch", "nir_to_torch(nir.read(path), node_maps(dt))", _nirtorch),
    "SpikingJelly": Tool("spikingjelly", "import_from_nir(path, dt=dt)", _spikingjelly),
    "snnTorch": Tool("snntorch", "import_from_nir(nir.read(path))", _snntorch, "--dt 1e-4", 1e-4),
    "Norse": Tool("norse", "from_nir(nir.read(path), dt=dt)", _norse),
}


class ToolBackend:
    """A library that runs a file of ours, step by step, for `tser.deploy.equivalence.compare`.

    The file is imported afresh for every batch, because snnTorch keeps the state in its modules.

    Args:
        name: of `TOOLS`.
        path: the file.
        dt: time step [s] to tell the library.
        timesteps: T.
        layers: nodes whose spikes are recorded.
    """

    def __init__(self, name: str, path: Path, dt: float, timesteps: int, layers: list[str]) -> None:
        self.name, self.source = name, str(path)
        self._dt, self._timesteps, self._layers = dt, timesteps, layers

    def __call__(self, x: np.ndarray) -> Trace:
        """Run a batch ``[B, *input_shape]``, the same at every step."""
        spikes: dict[str, list[np.ndarray]] = {layer: [] for layer in self._layers}
        with quiet(), torch.no_grad():
            network = TOOLS[self.name].load(Path(self.source), self._dt)
            for layer, kept in spikes.items():
                network.get_submodule(layer).register_forward_hook(_keep(kept))
            state, logits = None, []
            for _ in range(self._timesteps):
                out, state = _pair(network(torch.from_numpy(x), state))
                logits.append(out.numpy())
        return Trace(np.stack(logits), {name: np.stack(kept) for name, kept in spikes.items()})


def _keep(kept: list[np.ndarray]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(_pair(output)[0].numpy() > 0)

    return hook


def _pair(result: Any) -> tuple[Any, Any]:
    return result if isinstance(result, tuple) else (result, None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to themselves what the libraries print, log and warn of."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
