"""Exports with one mistake each, made as a faulty tool would make it, and the student behind them.

Nothing here uses the code that names mistakes (`tser.deploy.conventions`, ``graph_mistakes``):
numbers are changed in the NIR graph, rules in the operators of the ONNX graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mutant_rules as rules
import nir
import numpy as np
import onnx
from torch import nn

from tser.config import NeuronConfig
from tser.layers import Spiking, Student
from tser.students import Plan

Array = np.ndarray[Any, np.dtype[Any]]
FACTORY = "mutants:student"
WIDTH = 8
RESET = -0.2
"""After a spike; not where the neurons rest, so that a forgotten reset value shows."""
GAIN = 2.0
"""Of batch norm at first: tau_mem / dt, which the Euler step takes away again."""


def student(timesteps: int, input_shape: tuple[int, int, int], num_classes: int) -> Student:
    """What every mutation finds a place in: pools, both kinds of shortcut, maps that are flattened.

    Spiking layers in order: stem_lif, second_lif, block1_main_lif1, block1_neuron,
    block2_main_lif1, block2_neuron, hidden_lif.
    """
    plan = Plan(NeuronConfig(v_reset=RESET), input_shape, [])
    plan.conv("stem", WIDTH)
    plan.pool("pool1", 2)
    plan.conv("second", 2 * WIDTH)
    plan.block("block1", 2 * WIDTH, 1)
    plan.block("block2", 4 * WIDTH, 2)
    plan.head(num_classes, hidden=4 * WIDTH)
    net = Student(Spiking(plan.layers), timesteps, input_shape)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, GAIN)
    return net


@dataclass(frozen=True)
class Made:
    """A faultless export.

    Attributes:
        graph: the NIR graph.
        model: the ONNX model, unrolled.
        raw: weights of the convolutions before batch norm is folded in, by NIR node.
    """

    graph: nir.NIRGraph
    model: onnx.ModelProto
    raw: dict[str, Array]


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: as the issue and the table call it.
        where: the node, or "everywhere".
        layers: spiking layers that are wrong then; the first counts; "logits" if none is.
        rule: what the diagnosis calls it; "" where it knows no such rule.
        change: makes the faulty graph or model.
    """

    name: str
    where: str
    layers: tuple[str, ...]
    rule: str
    change: Callable[[Made], nir.NIRGraph | onnx.ModelProto]


# --- numbers of the NIR graph --------------------------------------------------------------


def _copied(made: Made) -> nir.NIRGraph:
    nodes = {name: copy.copy(op) for name, op in made.graph.nodes.items()}
    metadata = {key: value for key, value in made.graph.metadata.items() if key != "sha256"}
    return nir.NIRGraph(nodes, list(made.graph.edges), metadata=metadata, type_check=False)


def _nir(change: Callable[[nir.NIRGraph], None]) -> Callable[[Made], nir.NIRGraph]:
    def make(made: Made) -> nir.NIRGraph:
        graph = _copied(made)
        change(graph)
        return graph

    return make


def _number(node: str, key: str, value: Callable[[Array], Any]) -> Callable[[Made], nir.NIRGraph]:
    """A parameter of a node replaced."""

    def change(graph: nir.NIRGraph) -> None:
        op = graph.nodes[node]
        before = getattr(op, key)
        after = value(before)
        is_array = isinstance(before, np.ndarray)
        setattr(op, key, np.asarray(after, before.dtype) if is_array else after)

    return _nir(change)


def _swapped(axis: int) -> Callable[[Array], Array]:
    """The first two channels the other way round."""

    def swap(weight: Array) -> Array:
        order = [1, 0, *range(2, weight.shape[axis])]
        return np.take(weight, order, axis)

    return swap


def _nudged(weight: Array) -> Array:
    """The largest weight, a thousand units in the last place larger."""
    after = weight.copy()
    place = np.unravel_index(np.abs(weight).argmax(), weight.shape)
    after[place] += 1000 * np.spacing(after[place])
    return after


def _pool_sums(graph: nir.NIRGraph) -> None:
    op = graph.nodes["pool1"]
    graph.nodes["pool1"] = nir.SumPool2d(op.kernel_size, op.stride, op.padding)


def _flat_order(graph: nir.NIRGraph) -> None:
    """Maps flattened as H, W, C under weights for C, H, W."""
    op = graph.nodes["hidden"]
    side = round((op.weight.shape[1] / (4 * WIDTH)) ** 0.5)
    read = op.weight.reshape(-1, side, side, 4 * WIDTH).transpose(0, 3, 1, 2)
    op.weight = np.ascontiguousarray(read.reshape(op.weight.shape))


def _weights_order(graph: nir.NIRGraph) -> None:
    """Weights written as H, W, C under maps that are flattened as C, H, W."""
    op = graph.nodes["hidden"]
    side = round((op.weight.shape[1] / (4 * WIDTH)) ** 0.5)
    written = op.weight.reshape(-1, 4 * WIDTH, side, side).transpose(0, 2, 3, 1)
    op.weight = np.ascontiguousarray(written.reshape(op.weight.shape))


def _lost_edge(graph: nir.NIRGraph) -> None:
    graph.edges.remove(("second_lif", "block1_neuron"))


def _time_step(factor: float) -> Callable[[nir.NIRGraph], None]:
    def change(graph: nir.NIRGraph) -> None:
        graph.metadata["dt"] = factor * graph.metadata["dt"]

    return change


def _half(graph: nir.NIRGraph) -> None:
    for op in graph.nodes.values():
        for key in ("weight", "bias"):
            if getattr(op, key, None) is not None:
                setattr(op, key, getattr(op, key).astype(np.float16).astype(np.float32))


def _not_folded(node: str) -> Callable[[Made], nir.NIRGraph]:
    """The convolution as it was before its batch norm, which is gone."""

    def make(made: Made) -> nir.NIRGraph:
        graph = _copied(made)
        op = graph.nodes[node]
        op.weight, op.bias = made.raw[node], np.zeros_like(op.bias)
        return graph

    return make


# --- rules of the ONNX graph ---------------------------------------------------------------


def _onnx(edit: rules.Edit) -> Callable[[Made], onnx.ModelProto]:
    def make(made: Made) -> onnx.ModelProto:
        program = rules.Program(made.model)
        edit(program)
        return program.done()

    return make


def _each(
    layers: tuple[str, ...], edit: Callable[[rules.Program, rules.Moment], None]
) -> Callable[[Made], onnx.ModelProto]:
    """``edit`` made in every step of some layers."""

    def change(program: rules.Program) -> None:
        for layer in layers:
            for moment in program.moments(layer):
                edit(program, moment)

    return _onnx(change)


# --- the list ------------------------------------------------------------------------------

LAYERS = (
    "stem_lif",
    "second_lif",
    "block1_main_lif1",
    "block1_neuron",
    "block2_main_lif1",
    "block2_neuron",
    "hidden_lif",
)
_B1, _B2 = "block1_neuron", "block2_main_lif1"
MUTANTS = (
    Mutant("tau × 1.01", _B1, (_B1,), "", _number(_B1, "tau", lambda tau: tau * 1.01)),
    Mutant("threshold + 1 %", "hidden_lif", ("hidden_lif",), "other_threshold",
           _number("hidden_lif", "v_threshold", lambda v: v * 1.01)),
    Mutant("reset subtractive", "second_lif", ("second_lif",), "subtractive_reset",
           _each(("second_lif",), rules.subtractive)),
    Mutant("reset value forgotten (0)", _B1, (_B1,), "reset_to_zero",
           _number(_B1, "v_reset", np.zeros_like)),
    Mutant("reset value another (-0.25)", _B2, (_B2,), "",
           _number(_B2, "v_reset", lambda v: np.full_like(v, -0.25))),
    Mutant("no reset", "hidden_lif", ("hidden_lif",), "no_reset",
           _each(("hidden_lif",), rules.never)),
    Mutant("reset a step late", _B1, (_B1,), "late_reset", _onnx(rules.late_reset(_B1))),
    Mutant("one-step delay of the input", _B2, (_B2,), "one_step_delay",
           _onnx(rules.late_input(_B2))),
    Mutant("one-step delay of a synapse", "block1_main_conv2", (_B1,),
           "late_edge:block1_main_lif1->block1_main_conv2",
           _onnx(rules.late_spikes("block1_main_lif1", "block1_main_conv2"))),
    Mutant("≥ for >", "second_lif", ("second_lif",), "at_threshold",
           _each(("second_lif",), rules.inclusive)),
    Mutant("≥ for >", "hidden_lif", ("hidden_lif",), "at_threshold",
           _each(("hidden_lif",), rules.inclusive)),
    Mutant("missing gain", "block2_neuron", ("block2_neuron",), "no_gain",
           _each(("block2_neuron",), rules.no_gain)),
    Mutant("missing gain", "everywhere", LAYERS, "no_gain", _each(LAYERS, rules.no_gain)),
    Mutant("exponential decay", "hidden_lif", ("hidden_lif",), "exponential_decay",
           _each(("hidden_lif",), rules.exponential)),
    Mutant("dropped bias", "second_conv", ("second_lif",), "no_bias:second_conv",
           _number("second_conv", "bias", np.zeros_like)),
    Mutant("dropped bias", "readout", ("logits",), "no_bias:readout",
           _number("readout", "bias", np.zeros_like)),
    Mutant("swapped channels (inputs)", "block1_main_conv2", (_B1,), "",
           _number("block1_main_conv2", "weight", _swapped(1))),
    Mutant("swapped channels (outputs)", "stem_conv", ("stem_lif",), "",
           _number("stem_conv", "weight", _swapped(0))),
    Mutant("reversed channels", "second_conv", ("second_lif",), "reversed_channels:second_conv",
           _number("second_conv", "weight", lambda weight: weight[:, ::-1].copy())),
    Mutant("padding left out", "block1_main_conv1", ("block1_main_lif1",), "",
           _number("block1_main_conv1", "padding", lambda padding: (0, 0))),
    Mutant("padding below and right", "block2_main_conv1", (_B2,), "",
           _onnx(rules.padding_at_the_end("block2_main_conv1"))),
    Mutant("stride left out", "block2_main_conv1", (_B2,), "",
           _number("block2_main_conv1", "stride", lambda stride: (1, 1))),
    Mutant("stride left out, map cut", "block2_shortcut_conv", ("block2_neuron",), "",
           _onnx(rules.stride_lost("block2_shortcut_conv", 2))),
    Mutant("pool kind: sum", "pool1", ("second_lif",), "pool_kind:pool1", _nir(_pool_sums)),
    Mutant("pool kind: max", "pool1", ("second_lif",), "", _onnx(rules.max_pool("pool1"))),
    Mutant("flatten order", "hidden", ("hidden_lif",), "flatten_order:hidden", _nir(_flat_order)),
    Mutant("flatten order of the weights", "hidden", ("hidden_lif",), "flatten_order:hidden",
           _nir(_weights_order)),
    Mutant("lost residual edge", _B1, (_B1,), f"lost_edge:second_lif->{_B1}", _nir(_lost_edge)),
    Mutant("BN not folded", "block2_main_conv2", ("block2_neuron",), "",
           _not_folded("block2_main_conv2")),
    Mutant("wrong dt: × 2", "everywhere", LAYERS, "dt_times_2", _nir(_time_step(2))),
    Mutant("wrong dt: × 0.1", "everywhere", LAYERS, "dt_times_0.1", _nir(_time_step(0.1))),
    Mutant("one weight + 1000 ulp", "block1_main_conv1", ("block1_main_lif1",), "",
           _number("block1_main_conv1", "weight", _nudged)),
    Mutant("float16 weights", "everywhere", LAYERS, "float16_weights:stem_conv", _nir(_half)),
)  # fmt: skip
