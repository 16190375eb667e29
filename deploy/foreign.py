"""Other libraries as backends: each runs a ``.nir`` file by its own import function.

A file is run as the library runs it, right or wrong: what it is known to do otherwise is in
`ForeignBackend.remark`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tser.deploy.backends import Trace
from tser.deploy.facts import Facts
from tser.deploy.foreign_tools import FOREIGN, Hold, Tool
from tser.deploy.importers import judge, load_importers
from tser.deploy.interpreter import Forced, prepare
from tser.errors import InputFileError, TserError, UsageError
from tser.export.graph import Graph, Node

__all__ = ["FOREIGN", "ForeignBackend", "Tool", "known_departures", "quiet"]

Array = NDArray[Any]


class ForeignBackend:
    """A library that runs a file step by step, its spikes recorded at its modules.

    The file is imported once; every run starts from a fresh state.

    Args:
        name: of `FOREIGN`.
        path: the ``.nir`` file.
        graph: the resolved view of that file.
        timesteps: T.

    Attributes:
        name: as given.
        source: what is run in what.
        remark: what the library is known to do otherwise than the file says, or "".

    Raises:
        UsageError: no such backend, or the library is not installed.
        InputFileError: the library cannot read the file, or drops a layer.
    """

    def __init__(self, name: str, path: Path, graph: Graph, timesteps: int) -> None:
        if name not in FOREIGN:
            raise UsageError(f"there is no backend {name!r}; choose from {', '.join(FOREIGN)}")
        self.name, self._tool, self._path = name, FOREIGN[name], path
        self._graph, self._timesteps = graph, timesteps
        self._title = self._tool.title
        with self._explained():
            importlib.import_module(self._tool.module)
            self._network = self._tool.load(path, graph.dt)
            self._title += f" {importlib.metadata.version(self._tool.module)}"
        self._layers = {node.name: self._module(node) for node in graph.spiking}
        self.source = f"{path} in {self._title}"
        self.remark = known_departures(self._tool, graph)

    def __call__(self, x: Array) -> Trace:
        """Run a batch ``[B, *input_shape]`` or ``[T, B, *input_shape]``.

        Raises:
            InputFileError: the library ends in an error, does not run a layer, or gives another
                shape than the file says.
        """
        logits, spikes = self._run(x)
        return Trace(logits, spikes)

    def replay(
        self, x: Array, spikes: dict[str, Array], states: dict[str, Array] | None = None
    ) -> dict[str, Array]:
        """What every spiking layer fires when its inputs are recorded ones, bool ``[T, B, ...]``.

        Args:
            x: as for a run.
            spikes: of every spiking layer, bool ``[T, B, ...]``: what its module hands on, in
                place of what it fires.
            states: per spiking layer the membrane potential before each step ``[T, B, ...]``, in
                the units of the file; a layer that is not named runs free from its own past, as
                the synaptic current of a CubaLIF does anyway.

        Raises:
            InputFileError: as for a run, or ``spikes`` or ``states`` of another shape.
            NotImplementedError: there is no membrane that could be set.
        """
        return self._run(x, Forced(spikes, states or {}))[1]

    def _run(self, x: Array, forced: Forced | None = None) -> tuple[Array, dict[str, Array]]:
        values, steps = prepare(self._graph, x, self._timesteps, np.float32)
        batch = values.shape[1]
        if forced is not None:
            forced.check(self._graph, steps, batch)
        taps = {node.name: self._tap(node, forced) for node in self._graph.spiking}
        fired = {
            node.name: np.zeros((steps, batch, *node.output_shape), bool)
            for node in self._graph.spiking
        }
        logits = np.zeros((steps, batch, *self._graph.output.output_shape), np.float32)
        with self._explained(), torch.no_grad(), contextlib.ExitStack() as hooks:
            for name, tap in taps.items():
                for handle in tap.attach(self._layers[name]):
                    hooks.callback(handle.remove)
            for module in self._network.modules():
                if hasattr(module, "reset_mem"):  # snnTorch keeps the state in its modules
                    module.reset_mem()
            state: Any = None
            for t in range(steps):
                for tap in taps.values():
                    tap.begin(t)
                step = torch.from_numpy(values[t if len(values) > 1 else 0])
                out, state = self._network(step, state)
                logits[t] = self._of_shape(_first(out), logits.shape[1:], "the output")
                for name, tap in taps.items():
                    fired[name][t] = self._spikes(name, tap.outputs, fired[name].shape[1:])
        return logits, fired

    def _tap(self, node: Node, forced: Forced | None) -> _Tap:
        if forced is None:
            return _Tap()
        membrane = forced.states.get(node.name)
        hold = None
        if membrane is not None:
            hold = self._tool.holder(self._layers[node.name], node.op)
        return _Tap(forced.spikes[node.name], membrane, hold)

    def _spikes(self, name: str, outputs: list[Tensor], shape: tuple[int, ...]) -> Array:
        if len(outputs) != 1:
            often = f"{len(outputs)} times a step" if outputs else "not at all"
            raise InputFileError(f"{self._title} runs layer {name!r} of {self._path} {often}")
        values = self._of_shape(outputs[0], shape, f"layer {name!r}")
        spikes = np.asarray(values == 1)
        if not (spikes | (values == 0)).all():
            raise InputFileError(
                f"{self._title} gives layer {name!r} of {self._path} other outputs than 0 and 1, "
                "which cannot be compared as spikes"
            )
        return spikes

    def _of_shape(self, value: Any, shape: tuple[int, ...], what: str) -> Array:
        if tuple(value.shape) != shape:
            raise InputFileError(
                f"{self._title} gives {what} of {self._path} the shape {tuple(value.shape)}, "
                f"the file says {shape} (samples first)"
            )
        return np.asarray(value.numpy())

    def _module(self, node: Node) -> nn.Module:
        """The module of a layer: names are the file's, but for what Python does not allow."""
        known: dict[str, nn.Module] = dict(self._network.named_modules())
        flat = node.name.replace(".", "_")
        for path in (node.name, flat, f"nir_node_{flat}"):
            if path in known:
                return known[path]
        raise InputFileError(f"{self._title} drops layer {node.name!r} of {self._path}")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever a library raises into one sentence, and let it print nothing."""
        try:
            with quiet():
                yield
        except ImportError as error:
            raise UsageError(
                f"the backend {self.name} needs a package that is not installed; "
                "run: pip install 'tser[interop]'"
            ) from error
        except (TserError, MemoryError):
            raise
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise InputFileError(f"{self._title} cannot run {self._path}: {text}") from error


class _Tap:
    """What hangs on the module of a layer: it records and, in a replay, replaces.

    Args:
        spikes: ``[T, B, ...]`` to hand on in place of the module's; None: its own.
        membrane: ``[T, B, ...]`` to set before each step.
        hold: how.

    Attributes:
        outputs: what the module itself put out in this step, once a call.
    """

    def __init__(
        self, spikes: Array | None = None, membrane: Array | None = None, hold: Hold | None = None
    ) -> None:
        self._spikes, self._membrane, self._hold, self._t = spikes, membrane, hold, 0
        self.outputs: list[Tensor] = []

    def attach(self, module: nn.Module) -> Iterator[Any]:
        """Hook in; yields handles, to be removed."""
        yield module.register_forward_hook(self._after)
        if self._membrane is not None:
            yield module.register_forward_pre_hook(self._before, with_kwargs=True)

    def begin(self, t: int) -> None:
        """Start step ``t``."""
        self._t, self.outputs = t, []

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._hold is None or self._membrane is None:
            return None
        return self._hold(self._membrane[self._t], (args, kwargs))

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        out = _first(output)
        self.outputs.append(out)
        if self._spikes is None:
            return None
        read = torch.from_numpy(np.asarray(self._spikes[self._t])).to(out.dtype)
        return (read, *output[1:]) if isinstance(output, tuple) else read


def _first(output: Any) -> Any:
    """The output of a module that may hand on its state beside it."""
    while isinstance(output, tuple):
        output = output[0]
    return output


def known_departures(tool: Tool, graph: Graph) -> str:
    """What importers.toml says the library does otherwise than the graph, or ""."""
    table = {importer.name: importer for importer in load_importers()}
    importer = table[tool.title]
    # The file was read, so what could only end in an error does not count here.
    unread = importer.unread == "fails"
    kinds = tuple({node.kind for node in graph.nodes.values()}) if unread else importer.reads
    rules = tuple(rule for rule in importer.rules if rule.effect != "fails")
    known = importer.model_copy(update={"reads": kinds, "rules": rules})
    reasons = judge(known, Facts(graph, (), "")).reasons
    return f"{tool.title} {importer.version}: {'; '.join(reasons)}" if reasons else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to themselves what the libraries print, log and warn of."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    out = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
