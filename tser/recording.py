"""What the spiking layers of a model put out while it runs."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from norse.torch.functional.iaf import iaf_feed_forward_step
from norse.torch.functional.lif import lif_feed_forward_step, lif_step
from norse.torch.functional.lif_box import lif_box_feed_forward_step
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

from tser.neurons import LIF

_FIRING = (lif_box_feed_forward_step, lif_feed_forward_step, iaf_feed_forward_step, lif_step)
_CELLS = (SNNCell, SNNRecurrentCell)


def spiking_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of ``model`` that fire, by path: our LIF and Norse's cells."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, LIF)
        or (isinstance(module, (SNN, SNNRecurrent, *_CELLS)) and module.activation in _FIRING)
    }


class Recorder:
    """Keeps the spikes of layers while the model runs inside the ``with`` block.

    Args:
        layers: by name.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self._layers = layers
        self._parts: dict[str, list[Tensor]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        for name, layer in self._layers.items():
            self._parts[name] = []
            self._handles.append(layer.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, out: Any) -> None:
            spikes = out[0] if isinstance(out, tuple) else out
            step = isinstance(module, _CELLS)
            self._parts[name].append(spikes.detach().unsqueeze(0) if step else spikes.detach())

        return keep

    @property
    def steps(self) -> dict[str, int]:
        """How many steps each layer ran, by name, of the layers that ran."""
        return {name: sum(map(len, parts)) for name, parts in self._parts.items() if parts}

    @property
    def spikes(self) -> dict[str, Tensor]:
        """``[T, B, ...]`` by name, of the layers that ran."""
        return {name: torch.cat(parts) for name, parts in self._parts.items() if parts}
