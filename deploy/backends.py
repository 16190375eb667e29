"""Executors of one network on a batch: each returns logits and the spikes of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from tser.deploy.interpreter import replay, run
from tser.errors import InputFileError
from tser.export.graph import Graph
from tser.layers import Student
from tser.recording import Recorder, spiking_layers
from tser.user_models import UserStudent

Array = NDArray[Any]


class CannotCompare(InputFileError):
    """An executor that cannot run the graph, or computes arrays of another shape."""


@dataclass(frozen=True)
class Trace:
    """What one executor did on one batch.

    Attributes:
        logits: ``[T, B, K]``.
        spikes: per spiking layer (NIR node name) ``[T, B, ...]``, bool.
    """

    logits: Array
    spikes: dict[str, Array]


@runtime_checkable
class Backend(Protocol):
    """An executor with a name for tables and a source for people."""

    name: str
    source: str

    def __call__(self, x: Array) -> Trace:
        """Run a batch ``[B, C, H, W]``, or frames ``[T, B, C, H, W]``, float32."""
        ...


@runtime_checkable
class Replayable(Protocol):
    """An executor whose layers can be fed recorded spikes, each by itself."""

    def replay(
        self, x: Array, spikes: dict[str, Array], states: dict[str, Array] | None = None
    ) -> dict[str, Array]:
        """What every spiking layer fires when its inputs are recorded ones.

        Args:
            x: as given to the executor.
            spikes: of every spiking layer, bool ``[T, B, ...]``: what is read downstream of it, in
                place of what it fires. Edges that close a cycle read them a step later.
            states: per spiking layer the membrane potential before each step, that is after the
                reset of the step before, ``[T, B, ...]``; None: it runs free from its own past.

        Returns:
            What each layer fires, bool ``[T, B, ...]``.
        """
        ...


class TorchBackend:
    """The PyTorch student itself.

    Args:
        student: in eval mode.
        modules: path of each spiking layer by NIR node name.
        source: where its weights come from.

    Raises:
        KeyError: a path that is not a spiking layer.
    """

    name = "torch"

    def __init__(
        self, student: Student | UserStudent, modules: dict[str, str], source: str
    ) -> None:
        self.student, self.source = student, source
        firing = spiking_layers(student)
        self._layers = {name: firing[path] for name, path in modules.items()}

    def __call__(self, x: Array) -> Trace:
        """Run a batch ``[B, C, H, W]`` or ``[T, B, C, H, W]``."""
        with torch.inference_mode(), Recorder(self._layers) as recorder:
            logits = self.student(torch.from_numpy(np.ascontiguousarray(x)))
        spikes = {name: value.cpu().numpy() > 0 for name, value in recorder.spikes.items()}
        return Trace(logits.numpy(), spikes)


class NirBackend:
    """The NumPy interpreter on a NIR graph.

    Args:
        graph: the resolved view.
        timesteps: T.
        source: where the graph comes from.
        double: compute in float64.
    """

    def __init__(self, graph: Graph, timesteps: int, source: str, double: bool = False) -> None:
        self.name = "nir-f64" if double else "nir-f32"
        self.graph, self.timesteps, self.source = graph, timesteps, source
        self._dtype: type[np.floating[Any]] = np.float64 if double else np.float32

    def __call__(self, x: Array) -> Trace:
        """Run a batch ``[B, *input_shape]`` or ``[T, B, *input_shape]``."""
        names = [node.name for node in self.graph.spiking]
        logits, kept = run(self.graph, x, self.timesteps, dtype=self._dtype, record=names)
        return Trace(logits, {name: value > 0 for name, value in kept.items()})

    def replay(
        self, x: Array, spikes: dict[str, Array], states: dict[str, Array] | None = None
    ) -> dict[str, Array]:
        """See ``Replayable``."""
        return replay(self.graph, x, spikes, self.timesteps, dtype=self._dtype, states=states)
