"""Collects the operators and constants of one ONNX graph, under names that stay put."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tser.export.graph import Graph, Node
from tser.export.lower import ExportError
from tser.export.onnx_external import INLINE

Array = NDArray[Any]


class Emitter:
    """Operators and constants of a graph, in the order in which they were asked for.

    What depends on no time step is kept apart on request, so that it can stand outside a loop.

    Args:
        graph: the NIR view.
        half: store the weights of synapses as float16, cast to float32 where they are used.
        apart: put what is the same at every step into ``once`` and not into ``nodes``.

    Attributes:
        nodes: the operators.
        once: those that are the same at every step; the same list unless ``apart``.
        contents: of large initialisers, which get them last: a message is copied into each one
            around it, and over 2 GB it cannot be.
        steady: tensors that are the same at every step; constants are among them.
        ones: constants that are 1 for every neuron, so that a product with them costs nothing.
    """

    def __init__(self, graph: Graph, *, half: bool = False, apart: bool = False) -> None:
        self.graph, self.half = graph, half
        self.nodes: list[onnx.NodeProto] = []
        self.once: list[onnx.NodeProto] = [] if apart else self.nodes
        self.initialisers: dict[str, onnx.TensorProto] = {}
        self.contents: dict[str, Array] = {}
        self.steady: set[str] = set()
        self.ones: set[str] = set()
        self._used: set[str] = set()
        self._kept: set[str] = set()
        self._made: dict[tuple[Any, ...], list[str]] = {}

    def claim(self, name: str) -> str:
        """Take exactly ``name``, on which others rely, before anything is emitted; returns it.

        The suffixes of these names differ from each other and from those that are kept for the
        outputs of nodes, so no two ask for the same.
        """
        self._used.add(name)
        return name

    def keep(self, names: Iterable[str]) -> None:
        """Keep ``names`` for the outputs of NIR nodes: other operators get others."""
        self._kept.update(names)

    def release(self, name: str) -> str:
        """``name`` is what the next operator is to be called; returns it."""
        self._kept.discard(name)
        return name

    def emit(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add one operator with one output; returns the output's name."""
        return self.emit_many(kind, inputs, [name], **attributes)[0]

    def emit_many(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Add one operator; its outputs get ``outputs`` as names, made unique.

        The same work on what is the same at every step is done once.
        """
        if not self.steady.issuperset(inputs):
            return self._add(self.nodes, kind, inputs, outputs, attributes)
        key = (kind, *inputs, None, *outputs)
        if key not in self._made:
            self._made[key] = self._add(self.once, kind, inputs, outputs, attributes)
            self.steady.update(self._made[key])
        return self._made[key]

    def port(self, value: str, name: str) -> str:
        """``value`` under exactly ``name``, which was claimed; always stands in ``nodes``."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        return name

    def constant(self, name: str, value: Array) -> str:
        """The initialiser ``name``, added on its first use; returns its name."""
        if name not in self.initialisers:
            array = np.asarray(value, order="C")
            if array.nbytes <= INLINE:
                self.initialisers[name] = numpy_helper.from_array(array, name)
            else:
                kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                empty = onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
                self.initialisers[name], self.contents[name] = empty, array
            self.steady.add(name)
        return name

    def weight(self, name: str, value: Any) -> str:
        """Weights or biases of synapses, as float32.

        Raises:
            ExportError: they do not fit into float16, which was asked for.
        """
        exact = float32(value)
        if not self.half:
            return self.constant(name, exact)
        if name not in self.initialisers:
            if np.abs(exact).max(initial=0) > np.finfo(np.float16).max:
                raise ExportError(f"{name} exceeds what float16 can hold; use --weights float32")
            self.constant(name, exact.astype(np.float16))
        return self.emit("Cast", [name], f"{name}.float32", to=TensorProto.FLOAT)

    def parameter(self, node: Node, name: str, value: Any) -> str | None:
        """A per-neuron parameter as a constant, collapsed where uniform; None if all zero."""
        array = uniform(value)
        if not array.any():
            return None
        constant = self.constant(f"{node.name}.{name}", array)
        if (array == 1).all():
            self.ones.add(constant)
        return constant

    def live(self, *outputs: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Operators and initialisers that ``outputs`` depend on; the last reset is not one."""
        needed, nodes = needed_for(self.nodes, outputs)
        if self.once is not self.nodes:
            needed, before = needed_for(self.once, needed)
            nodes = before + nodes
        return nodes, [value for key, value in self.initialisers.items() if key in needed]

    def _add(
        self,
        place: list[onnx.NodeProto],
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: dict[str, Any],
    ) -> list[str]:
        names = [self.unique(output) for output in outputs]
        place.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names

    def unique(self, name: str) -> str:
        """Take ``name``, or the first free ``name.1``, ``name.2``, ... that nothing relies on."""
        chosen, number = name, 0
        while chosen in self._used or chosen in self._kept:
            number += 1
            chosen = f"{name}.{number}"
        self._used.add(chosen)
        return chosen


def needed_for(
    nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]
) -> tuple[set[str], list[onnx.NodeProto]]:
    """The tensors that ``outputs`` depend on, and those of ``nodes`` that make them."""
    needed, live = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            live.append(node)
    return needed, live[::-1]


def float32(value: Any) -> Array:
    """``value`` as a float32 array."""
    return np.asarray(value, np.float32)


def uniform(value: Any) -> Array:
    """``value`` as float32, one number where all are the same."""
    array = float32(value)
    return array.reshape(-1)[:1] if (array == array.flat[0]).all() else array
