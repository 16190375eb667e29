"""What running an exported ONNX model takes, whichever runtime does it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tser.deploy.backends import Trace
from tser.errors import InputFileError, UsageError
from tser.export.onnx_external import copy_of
from tser.export.onnx_file import model_metadata, options_of
from tser.export.onnx_steps import step_name, step_names

Array = NDArray[Any]


@dataclass(frozen=True)
class StepState:
    """A state of the step form: what to give at first, and what to give back.

    Attributes:
        input: its name as an input of the model.
        output: its name as an output.
        shape: without the batch, which comes first.
        initial: before the first step, one number or an array of ``shape``.
    """

    input: str
    output: str
    shape: tuple[int, ...]
    initial: Array

    def start(self, batch: int) -> Array:
        """The state before the first step, ``[B, *shape]``."""
        return np.ascontiguousarray(np.broadcast_to(self.initial, (batch, *self.shape)))


def read_states(stated: dict[str, str], source: str) -> list[StepState]:
    """The states that the metadata of a step model list.

    Raises:
        InputFileError: they are not there, or not what tser writes.
    """
    try:
        return [
            StepState(
                str(one["input"]),
                str(one["output"]),
                tuple(int(size) for size in one["shape"]),
                np.broadcast_to(np.asarray(one["initial"], np.float32), one["shape"]),
            )
            for one in json.loads(stated["states"])
        ]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputFileError(
            f"{source}: its metadata do not list the states of a step; export it again"
        ) from error


class OnnxModel:
    """What running an ONNX model takes, whichever runtime does it.

    The spike tensors are made outputs of a copy of the model; the model as it is runs beside it,
    and its logits are the ones returned, so that what is judged is the unaltered file.

    Args:
        model: in any form; its tensors carry the names of NIR nodes.
        layers: names of the spiking layers, and their shapes without batch and time.
        source: where the model comes from.
        timesteps: T of a model that takes any; default: what it states.

    Attributes:
        plain: the model.
        form: of it.
        instrumented: the copy, whose outputs are the spikes of each layer and step, and in the
            step form the states.
        names: of the outputs of the copy, without the states.
        tensors: that hold the spikes of each layer, one a step, or one with T folded into B.
        states: of the step form: input, output, shape and initial value of each.

    Raises:
        InputFileError: the model lacks a layer's tensor, or contradicts what it says of itself.
        UsageError: another T than the one it was unrolled for.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: dict[str, tuple[int, ...]],
        source: str,
        timesteps: int | None = None,
    ) -> None:
        self.plain, self.source, self.layers = model, source, layers
        stated = model_metadata(model)
        self.form = options_of(model).form
        self._sequence = stated.get("encoding") == "sequence" and self.form != "step"
        inputs = model.graph.input[:1]  # fewer than one is refused where it is run
        self._rank = max((len(one.type.tensor_type.shape.dim) for one in inputs), default=0)
        try:
            own = int(stated.get("timesteps", "0"))
        except ValueError as error:
            raise InputFileError(f"{source}: its timesteps are not a number of steps") from error
        if self.form == "sequence" and timesteps not in (None, own):
            raise UsageError(
                f"{source} was unrolled for {own} time steps, not {timesteps}; leave out "
                "--timesteps, or export it with --form scan"
            )
        self._timesteps = timesteps or own
        self.states = read_states(stated, source) if self.form == "step" else []
        self.instrumented = copy_of(model)
        graph = self.instrumented.graph
        del graph.output[:]
        loops = [node for node in graph.node if node.op_type == "Scan" and self.form == "scan"]
        bodies = [a.g for node in loops for a in node.attribute if a.name == "body"]
        inner = bodies[0] if bodies else graph
        tensors = {output for node in inner.node for output in node.output}
        self.tensors = {name: self._names(name, tensors) for name in layers}
        self.names = [tensor for names in self.tensors.values() for tensor in names]
        if bodies:
            for name in self.names:
                inner.output.append(_untyped(name))
                loops[0].output.append(f"{name}.all")
            self.names = [f"{name}.all" for name in self.names]
        graph.output.extend(_untyped(name) for name in self.names)
        graph.output.extend(_untyped(state.output) for state in self.states)

    def _names(self, layer: str, tensors: set[str]) -> list[str]:
        """The tensors with the spikes of ``layer``: one a step, or one with T folded into B."""
        unrolled = self.form == "sequence"
        known = step_names(layer, self._timesteps) if unrolled else [step_name(layer)]
        for names in (known, [layer]):
            if names and tensors.issuperset(names):
                return names
        raise InputFileError(
            f"{self.source} has no tensor {layer!r}: it was not compiled from this graph"
        )

    def feed(self, x: Array) -> Array:
        """The model's input for a batch ``[B, C, H, W]`` or ``[T, B, C, H, W]``.

        Of the step form it is ``[T, B, C, H, W]``, to be given step by step.

        Raises:
            InputFileError: frames for a model that takes one image, or T is not known.
        """
        frames = self._frames(x)
        if frames and not self._sequence and self.form != "step":
            raise InputFileError(
                f"{self.source} takes one image for all steps, not a frame for each; "
                "export it with --encoding sequence"
            )
        if (self._sequence or self.form == "step") and not frames:
            x = np.broadcast_to(x, (self.timesteps(x), *x.shape))
        return x if self.form == "step" else np.ascontiguousarray(x, dtype=np.float32)

    def feeds(self, x: Array) -> dict[str, Array]:
        """All inputs of the sequence and the scan form for a batch."""
        found = {"input": self.feed(x)}
        if self.form == "scan" and not self._sequence:
            found["timesteps"] = np.array([self.timesteps(x)], np.int64)
        return found

    def timesteps(self, x: Array) -> int:
        """T for a batch.

        Raises:
            InputFileError: neither the batch nor the model says it.
        """
        if self._frames(x):
            return len(x)
        if self._timesteps < 1:
            raise InputFileError(
                f"{self.source} does not say how many time steps to run; pass --timesteps"
            )
        return self._timesteps

    def trace(self, x: Array, logits: Array, values: Sequence[Array]) -> Trace:
        """What a runtime did with a batch.

        Args:
            x: as given to ``feed``.
            logits: of the model, ``[T, B, K]``.
            values: of the copy, in the order of ``names``; of the step form over all steps.

        Raises:
            InputFileError: another T than stated, or spikes of another shape than the layers have.
        """
        if len(logits) != self.timesteps(x):
            raise InputFileError(
                f"{self.source} states {self.timesteps(x)} time steps and computes {len(logits)}; "
                "export it again"
            )
        batch = x.shape[1] if self._frames(x) else len(x)
        left, spikes = iter(values), {}
        for layer, shape in self.layers.items():
            value = np.concatenate([next(left) for _ in self.tensors[layer]])
            if value.shape[:2] == (len(logits), batch) and value.ndim == len(shape) + 2:
                value = value.reshape(-1, *value.shape[2:])
            if value.shape != (len(logits) * batch, *shape):
                raise InputFileError(
                    f"{self.source}: layer {layer!r} gives shape {value.shape[1:]}, not {shape}; "
                    "it is the export of another network"
                )
            spikes[layer] = (value > 0).reshape(len(logits), batch, *shape)
        return Trace(logits, spikes)

    def _frames(self, x: Array) -> bool:
        return x.ndim == self._rank + (not self._sequence)


def _untyped(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
