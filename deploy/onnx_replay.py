"""An exported model whose layers read given spikes in place of those fired upstream."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tser.deploy.onnx_model import OnnxModel
from tser.export.onnx_external import copy_of

Array = NDArray[Any]


class ReplayModel:
    """A copy in which every reader of a spike tensor reads an input of the model instead.

    Args:
        model: in the sequence or the step form.
        states: whether the membranes that the next step starts from are inputs too.

    Attributes:
        proto: the copy; its outputs are the spikes that each layer fires.

    Raises:
        NotImplementedError: the form hides its steps in a loop, or the membranes carry no names
            that are known here.
    """

    def __init__(self, model: OnnxModel, states: bool) -> None:
        if model.form == "scan":
            raise NotImplementedError("the scan form keeps its steps inside a loop")
        self._model, self._states = model, states
        self.proto = copy_of(model.instrumented)
        self._inputs: dict[str, tuple[str, int]] = {}
        """Input -> layer and step, of spikes; the steps of a membrane are in `_membranes`."""
        self._membranes: dict[str, tuple[str, int]] = {}
        renamed: dict[str, str] = {}
        for layer, tensors in model.tensors.items():
            for t, tensor in enumerate(tensors):
                renamed[tensor] = self._given(tensor, layer)
                self._inputs[renamed[tensor]] = (layer, t)
            if states and model.form == "sequence":
                for t, tensor in enumerate(self._after(layer)):
                    renamed[tensor] = self._given(tensor, layer)
                    self._membranes[renamed[tensor]] = (layer, t + 1)
        for node in self.proto.graph.node:
            for number, name in enumerate(node.input):
                node.input[number] = renamed.get(name, name)

    def _given(self, tensor: str, layer: str) -> str:
        name = f"given/{tensor}"
        shape: list[str | int | None] = ["N", *self._model.layers[layer]]
        self.proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def _after(self, layer: str) -> list[str]:
        """The membrane after each step but the last, as `onnx_neurons` calls it."""
        pattern = re.compile(re.escape(layer) + r"\.after(\.\d+)?")
        found = [
            output
            for node in self.proto.graph.node
            for output in node.output
            if pattern.fullmatch(output)
        ]
        steps = len(self._model.tensors[layer])
        if steps > 1 and len(found) not in (steps - 1, steps):
            raise NotImplementedError(f"the membranes of {layer!r} are not where tser puts them")
        return found[: steps - 1]

    def feeds(self, spikes: dict[str, Array], states: dict[str, Array] | None) -> dict[str, Array]:
        """What the sequence form takes beside its own inputs."""
        found = {}
        for name, (layer, t) in self._inputs.items():
            whole = len(self._model.tensors[layer]) == 1
            value = spikes[layer].reshape(-1, *self._model.layers[layer]) if whole else None
            found[name] = _float(spikes[layer][t] if value is None else value)
        for name, (layer, t) in self._membranes.items():
            found[name] = _float((states or {})[layer][t])
        return found

    def step_feeds(
        self, t: int, spikes: dict[str, Array], states: dict[str, Array] | None
    ) -> dict[str, Array]:
        """What the step form takes at step ``t``, over the states that it carries itself."""
        found = {name: _float(spikes[layer][t]) for name, (layer, _) in self._inputs.items()}
        carried = {state.input for state in self._model.states}
        for layer, fired in spikes.items():
            if f"{layer}.last" in carried:
                before = fired[t - 1] if t else np.zeros_like(fired[0])
                found[f"{layer}.last"] = _float(before)
            if states is not None and f"{layer}.v" in carried:
                found[f"{layer}.v"] = _float(states[layer][t])
        return found


def _float(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32)
