"""ONNX Runtime on an exported model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from tser.deploy.backends import Trace
from tser.deploy.onnx_model import OnnxModel
from tser.deploy.onnx_replay import ReplayModel
from tser.determinism import is_deterministic
from tser.errors import InputFileError
from tser.export.graph import Graph
from tser.export.onnx_file import OnnxOptions, compile_onnx, session_source

Array = NDArray[Any]

MOST_UNROLLED = 32
"""T from which on a NIR graph is run as a loop."""


class OnnxBackend:
    """ONNX Runtime.

    Args:
        model: in any form; its tensors carry the names of NIR nodes.
        layers: names of the spiking layers, and their shapes without batch and time.
        source: where the model comes from.
        timesteps: T of a model that takes any; default: what it states.
        optimised: False turns the graph optimisations of ONNX Runtime off.

    Raises:
        InputFileError: ONNX Runtime refuses the model, or it lacks a layer's tensor.
        UsageError: another T than the one the model was unrolled for.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: dict[str, tuple[int, ...]],
        source: str,
        timesteps: int | None = None,
        optimised: bool = True,
    ) -> None:
        self.name = "onnx" if optimised else "onnx-noopt"
        self.source, self._model = source, OnnxModel(model, layers, source, timesteps)
        self._optimised = optimised
        self._plain = session(model, source, optimised)
        self._instrumented = (
            session(self._model.instrumented, source, optimised) if layers else None
        )
        self._replays: dict[bool, tuple[ReplayModel, onnxruntime.InferenceSession]] = {}

    def __call__(self, x: Array) -> Trace:
        """Run a batch ``[B, C, H, W]`` or ``[T, B, C, H, W]``."""
        (logits,) = self._run(self._plain, ["logits"], x)
        values: Sequence[Array] = []
        if self._instrumented is not None:
            values = self._run(self._instrumented, self._model.names, x)
        return self._model.trace(x, logits, values)

    def replay(
        self, x: Array, spikes: dict[str, Array], states: dict[str, Array] | None = None
    ) -> dict[str, Array]:
        """See ``Replayable``.

        Raises:
            NotImplementedError: the scan form.
        """
        forced = states is not None
        if forced not in self._replays:
            model = ReplayModel(self._model, forced)
            self._replays[forced] = model, session(model.proto, self.source, self._optimised)
        model, program = self._replays[forced]
        if self._model.form == "step":

            def more(t: int) -> dict[str, Array]:
                return model.step_feeds(t, spikes, states)

        else:
            given = model.feeds(spikes, states)

            def more(t: int) -> dict[str, Array]:
                return given

        values = self._run(program, self._model.names, x, more)
        steps = len(next(iter(spikes.values())))
        logits = np.empty((steps, next(iter(spikes.values())).shape[1], 0), np.float32)
        return self._model.trace(x, logits, values).spikes

    def _run(
        self,
        program: onnxruntime.InferenceSession,
        names: list[str],
        x: Array,
        more: Callable[[int], dict[str, Array]] = lambda t: {},
    ) -> list[Array]:
        """The named outputs, of the step form each stacked over the steps.

        Args:
            program: to run.
            names: of its outputs.
            x: the batch.
            more: inputs beside those of the model, by step.

        Raises:
            InputFileError: ONNX Runtime fails.
        """
        try:
            if self._model.form == "step":
                return self._run_steps(program, names, x, more)
            found: list[Array] = program.run(names, self._model.feeds(x) | more(0))
            return found
        except InputFileError:
            raise
        except Exception as error:  # its exceptions share no public base class
            reason = " ".join(str(error).split())[:160]
            raise InputFileError(f"ONNX Runtime cannot run {self.source}: {reason}") from error

    def _run_steps(
        self,
        program: onnxruntime.InferenceSession,
        names: list[str],
        x: Array,
        more: Callable[[int], dict[str, Array]],
    ) -> list[Array]:
        frames = self._model.feed(x)
        state = {one.input: one.start(frames.shape[1]) for one in self._model.states}
        asked = [*names, *(one.output for one in self._model.states)]
        history: list[list[Array]] = []
        for t, frame in enumerate(frames):
            given = np.ascontiguousarray(frame, dtype=np.float32)
            results = program.run(asked, {"input": given, **state} | more(t))
            state = dict(zip(state, results[len(names) :], strict=True))
            history.append(results[: len(names)])
        return [np.stack(parts) for parts in zip(*history, strict=True)]


def compile_for(graph: Graph, timesteps: int, frames: bool) -> onnx.ModelProto:
    """The form of a NIR graph that is fastest for T steps.

    Args:
        graph: the resolved view.
        timesteps: T.
        frames: whether inputs have one frame a step.
    """
    form = OnnxOptions("sequence" if timesteps <= MOST_UNROLLED else "scan")
    return compile_onnx(graph, timesteps, "sequence" if frames else "direct", form)


def session(
    model: onnx.ModelProto, source: str, optimised: bool = True
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU.

    Raises:
        InputFileError: ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if is_deterministic():
        options.use_deterministic_compute = True
        options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with session_source(model) as content:
            return onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
    except Exception as error:  # its exceptions share no public base class
        reason = " ".join(str(error).split())[:160]
        raise InputFileError(f"ONNX Runtime cannot load {source}: {reason}") from error
