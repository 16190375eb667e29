"""OpenVINO on an exported ONNX model: the fastest runtime on a CPU, an optional extra."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tser.deploy.backends import Trace
from tser.deploy.onnx_model import OnnxModel
from tser.determinism import is_deterministic
from tser.errors import InputFileError, UsageError
from tser.export.onnx_file import session_source

Array = NDArray[Any]

SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
"""Without the first, OpenVINO computes in bfloat16 where the processor can, which moves spikes."""


class OpenVinoBackend:
    """OpenVINO on the CPU, in float32.

    Args:
        model: in the sequence form; its tensors carry the names of NIR nodes.
        layers: names of the spiking layers, and their shapes without batch and time.
        source: where the model comes from.

    Raises:
        InputFileError: the model lacks a layer's tensor.
        UsageError: the model is of another form, or OpenVINO is not installed.
    """

    name = "openvino"

    def __init__(
        self, model: onnx.ModelProto, layers: dict[str, tuple[int, ...]], source: str
    ) -> None:
        self.source, self._model = source, OnnxModel(model, layers, source)
        if self._model.form != "sequence":
            raise UsageError(
                f"{source} is of the {self._model.form} form, and OpenVINO is given the sequence "
                "form only; leave out --openvino"
            )
        self._core = make_core()
        self._programs: dict[tuple[int, ...], list[Any]] = {}

    def __call__(self, x: Array) -> Trace:
        """Run a batch ``[B, C, H, W]`` or ``[T, B, C, H, W]``."""
        feed = self._model.feed(x)
        try:
            if feed.shape not in self._programs:
                models = [self._model.plain, self._model.instrumented][
                    : 1 + bool(self._model.names)
                ]
                self._programs[feed.shape] = [
                    program(self._core, model, feed.shape) for model in models
                ]
            # Copies: the next run overwrites what a program puts out.
            results = [list(one({"input": feed}).values()) for one in self._programs[feed.shape]]
        except Exception as error:  # its exceptions share no public base class
            reason = " ".join(str(error).split())[:160]
            raise InputFileError(f"OpenVINO cannot run {self.source}: {reason}") from error
        logits, *values = (np.array(value) for outputs in results for value in outputs)
        return self._model.trace(x, logits, values)


def make_core() -> Any:
    """OpenVINO's entry point.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise UsageError(
            "the backend openvino needs a package that is not installed; "
            "run: pip install 'tser[openvino]'"
        ) from error
    return openvino.Core()


def program(
    core: Any, model: onnx.ModelProto, shape: tuple[int, ...], threads: int | None = None
) -> Any:
    """``model`` compiled for one shape of its input: a known batch saves every copy around neurons.

    Args:
        core: of `make_core`.
        model: as exported.
        shape: of the input, batch and all.
        threads: None: as many as OpenVINO likes, inside of `deterministic` one.

    Returns:
        A callable from ``{"input": array}`` to its outputs.
    """
    settings: dict[str, Any] = dict(SETTINGS)
    if threads is None and is_deterministic():
        threads = 1
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    with session_source(model) as content:
        read = core.read_model(content)
        read.reshape({"input": list(shape)})
        return core.compile_model(read, "CPU", settings)
