"""Executors of one network on a batch: each returns logits and the spikes of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tser.deploy.interpreter import run
from tser.errors import InputFileError
from tser.export.graph import Graph
from tser.export.onnx_file import model_metadata
from tser.layers import Student
from tser.recording import Recorder, spiking_layers
from tser.user_models import UserStudent

Array = NDArray[Any]


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


class OnnxBackend:
    """ONNX Runtime on a model whose tensors carry the names of NIR nodes.

    The spike tensors are made outputs of a copy of the model; the model as it is runs beside it,
    and its logits are the ones returned, so that what is judged is the unaltered file.

    Args:
        model: in direct or sequence form.
        layers: names of the spiking layers, and their shapes without batch and time.
        source: where the model comes from.

    Raises:
        InputFileError: ONNX Runtime refuses the model, or it lacks a layer's tensor.
    """

    name = "onnx"

    def __init__(
        self, model: onnx.ModelProto, layers: dict[str, tuple[int, ...]], source: str
    ) -> None:
        self.source, self._layers = source, layers
        self._sequence = model_metadata(model).get("encoding") == "sequence"
        inputs = model.graph.input[:1]  # fewer than one is refused where it is run
        self._rank = max((len(one.type.tensor_type.shape.dim) for one in inputs), default=0)
        try:
            self._timesteps = int(model_metadata(model).get("timesteps", "0"))
        except ValueError as error:
            raise InputFileError(f"{source}: its timesteps are not a number of steps") from error
        tensors = {output for node in model.graph.node for output in node.output}
        for name in layers:
            if name not in tensors:
                raise InputFileError(
                    f"{source} has no tensor {name!r}: it was not compiled from this graph"
                )
        self._plain = session(model, source)
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for name in layers:
            copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        self._instrumented = session(copy, source)

    def __call__(self, x: Array) -> Trace:
        """Run a batch ``[B, C, H, W]`` or ``[T, B, C, H, W]``."""
        frames = x.ndim == self._rank + (not self._sequence)
        if frames and not self._sequence:
            raise InputFileError(
                f"{self.source} takes one image for all steps, not a frame for each; "
                "export it with --encoding sequence"
            )
        batch = x.shape[1] if frames else len(x)
        feed = np.repeat(x[None], self._timesteps, 0) if self._sequence and not frames else x
        feeds = {"input": np.ascontiguousarray(feed, dtype=np.float32)}
        try:
            (logits,) = self._plain.run(["logits"], feeds)
            # An empty list of names would mean all outputs.
            values: Sequence[Array] = (
                self._instrumented.run(list(self._layers), feeds) if self._layers else []
            )
        except Exception as error:  # its exceptions share no public base class
            reason = " ".join(str(error).split())[:160]
            raise InputFileError(f"ONNX Runtime cannot run {self.source}: {reason}") from error
        spikes = {}
        for (name, shape), value in zip(self._layers.items(), values, strict=True):
            if value.shape != (len(logits) * batch, *shape):
                raise InputFileError(
                    f"{self.source}: layer {name!r} gives shape {value.shape[1:]}, not {shape}; "
                    "it is the export of another network"
                )
            spikes[name] = (value > 0).reshape(len(logits), batch, *shape)
        return Trace(logits, spikes)


def session(model: onnx.ModelProto, source: str) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU.

    Raises:
        InputFileError: ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions share no public base class
        reason = " ".join(str(error).split())[:160]
        raise InputFileError(f"ONNX Runtime cannot load {source}: {reason}") from error
