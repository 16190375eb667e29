"""The memory-aware model: arithmetic, memory accesses and addressing of every layer.

After E. Lemaire et al., An analytical estimation of spiking neural networks energy efficiency,
ICONIP 2022, arXiv 2210.13107: an event-driven layer reads a message, a weight and a potential for
each target of an event, and writes the potential back; every memory is on the chip, and an access
costs more the larger the memory is. Where the paper's choices are disputed, each is an option.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import nir

from tser.config_file import nearest
from tser.deploy.counting import LayerCount
from tser.deploy.energy import FirstLayer, charges
from tser.deploy.footprint import STATES, Widths, parameter_bits
from tser.deploy.synapses import RECEIVING, Synapse, find_synapses
from tser.deploy.target_files import Named
from tser.errors import UsageError
from tser.export.graph import Graph, Node
from tser.export.shapes import window

MESSAGES, MESSAGE_BITS = 1000, 32
"""Events that the queue before and behind a spiking layer holds, as in the paper."""


@dataclass(frozen=True)
class MemoryOptions:
    """The disputed choices; the first value of each is the default.

    Attributes:
        ram: energy of one access: ``linear`` in the size of the memory (1.09e-5 pJ a bit and
            13.2 pJ); ``interpolated`` between the published sizes (0 at no size, constant above
            the largest); ``word64``: 10 pJ for 64 bits, of which a value takes its own bits.
        taps: targets of an event: ``exact``, inside the feature map, as counted; ``formula``: those
            of the paper, ⌈k/s⌉² for operations and k² for accesses, borders and strides or not.
        state: potentials are read and written in every step by all neurons (``clocked``) or by
            those that an event has reached (``driven``).
        leak: one MAC an update: ``auto`` where the neuron leaks, ``always`` or ``never``.
        reset: one accumulation a spike (``count``) or ``none``.
        addressing: computing addresses is charged (``count``) or ``none``.
        reuse: reads of a layer with analog input, and of the ANN twin: ``none``, each operation
            reads its input and weight; ``full``, each value is read once an inference.
    """

    ram: Literal["linear", "interpolated", "word64"] = "linear"
    taps: Literal["exact", "formula"] = "exact"
    state: Literal["clocked", "driven"] = "clocked"
    leak: Literal["auto", "always", "never"] = "auto"
    reset: Literal["count", "none"] = "count"
    addressing: Literal["count", "none"] = "count"
    reuse: Literal["none", "full"] = "none"


def memory_options(pairs: list[str]) -> MemoryOptions:
    """Options from ``key=value`` texts.

    Raises:
        UsageError: an unknown option or value.
    """
    allowed = {name: get_args(hint) for name, hint in get_type_hints(MemoryOptions).items()}
    chosen: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in allowed:
            raise UsageError(
                f"--memory {pair}: there is no choice {key!r}{nearest(key, list(allowed))}; "
                f"choices are {', '.join(allowed)}"
            )
        if value not in allowed[key]:
            raise UsageError(f"--memory {pair}: {key} is one of {', '.join(allowed[key])}")
        chosen[key] = value
    return MemoryOptions(**chosen)


@dataclass(frozen=True)
class LayerShape:
    """What the model must know of a row beside its counts, in values of one inference and step.

    Attributes:
        inputs: of the weighted layer.
        outputs: of the weighted layer, or neurons.
        weights: weights and biases stored.
        reached: targets of one event by the paper's formula: operations, accesses.
        filters: output channels times kernel, of a convolution; else 0.
        states: that a neuron carries from step to step.
        leaky: whether the neuron leaks.
    """

    inputs: int
    outputs: int
    weights: int = 0
    reached: tuple[int, int] = (1, 1)
    filters: int = 0
    states: int = 1
    leaky: bool = False


def layer_shapes(graph: Graph) -> dict[str, LayerShape]:
    """Shapes by name of the row in the counts."""
    shapes = {synapse.name: _synapse_shape(synapse) for synapse in find_synapses(graph)}
    for node in graph.nodes.values():
        size = math.prod(node.output_shape)
        if isinstance(node.op, RECEIVING):
            leaky = not isinstance(node.op, nir.IF | nir.I | nir.Threshold)
            shapes[node.name] = LayerShape(size, size, states=STATES[type(node.op)], leaky=leaky)
        elif isinstance(node.op, nir.Delay):
            shapes[node.name] = LayerShape(size, size, states=0)
    return shapes


def _synapse_shape(synapse: Synapse) -> LayerShape:
    node = synapse.sink
    inputs, outputs = math.prod(node.input_shape), math.prod(node.output_shape)
    if synapse.kind == "identity":
        return LayerShape(inputs, outputs)
    weights = parameter_bits(node, Widths(1, 1))
    if synapse.kind == "linear":
        targets = node.output_shape[-1]
        return LayerShape(inputs, outputs, weights, (targets, targets))
    return LayerShape(inputs, outputs, weights, _conv_reach(node), _filters(node))


def _conv_reach(node: Node) -> tuple[int, int]:
    geometry = window(node.op)
    channels = node.output_shape[0] // geometry.groups
    steps = zip(geometry.kernel, geometry.stride, strict=True)
    return channels * math.prod(-(-k // s) for k, s in steps), channels * math.prod(geometry.kernel)


def _filters(node: Node) -> int:
    return int(node.output_shape[0]) * math.prod(window(node.op).kernel)


@dataclass(frozen=True)
class Use:
    """Operations or accesses of one row, over all samples.

    Attributes:
        item: the line of the bill.
        count: how many.
        charge: the charge of an operation; None for an access.
        bits: size of the memory of an access [bit].
    """

    item: str
    count: int
    charge: Named | None = None
    bits: int = 0


def spiking_uses(
    row: LayerCount,
    shape: LayerShape,
    samples: int,
    options: MemoryOptions,
    word: int,
    first_layer: FirstLayer,
) -> Iterator[Use]:
    """All that one row of a spiking network does, over all samples.

    Args:
        row: exact counts.
        shape: of the same layer.
        samples: that the row was counted over.
        options: the disputed choices.
        word: bits of a weight or potential.
        first_layer: see `Assumptions`.
    """
    queue, potentials = MESSAGES * MESSAGE_BITS, shape.outputs * word
    events = int(row.events.sum())
    if row.kind == "delay":
        return  # what it holds is read and written with the queues of its neighbours
    if row.kind == "neuron":
        updates = row.neuron_updates if options.state == "clocked" else row.neuron_updates_driven
        updates *= shape.states
        yield Use("read_potential", updates, bits=potentials * shape.states)
        yield Use("write_potential", updates, bits=potentials * shape.states)
        if options.leak == "always" or (options.leak == "auto" and shape.leaky):
            yield Use("leak", updates, "multiply_accumulate")
        if options.reset == "count":
            yield Use("reset", events, "accumulate")
        yield Use("write_output", events, bits=queue)
        return
    charged = charges(row, first_layer)
    yield Use("bias_add", charged["bias_add"], "bias_add")
    yield Use("read_bias", charged["bias_add"], bits=shape.weights * word)
    if row.operation == "MAC":
        taken = row.macs * samples // max(1, row.macs_once)  # steps of all samples
        passes = {"charge": taken, "once": samples, "host": 0}[first_layer]
        macs = charged["multiply_accumulate"]
        yield from dense_uses(macs, passes, row.kind == "conv", shape, options, word)
        return
    operations = accesses = int(row.sop_structural.sum())
    if options.taps == "formula":
        operations, accesses = events * shape.reached[0], events * shape.reached[1]
    yield Use("accumulate", operations, "accumulate")
    yield Use("read_input", events, bits=queue)
    if row.kind != "identity":
        yield Use("read_weight", accesses, bits=shape.weights * word)
    yield Use("read_potential", accesses, bits=potentials)
    yield Use("write_potential", accesses, bits=potentials)
    if options.addressing == "count":
        yield Use("address_accumulate", accesses, "address_accumulate")
        if row.kind == "conv":
            yield Use("address_multiply", 2 * events, "address_multiply_accumulate")


def dense_uses(
    macs: int, passes: int, conv: bool, shape: LayerShape, options: MemoryOptions, word: int
) -> Iterator[Use]:
    """All that a conventional layer does in ``passes`` passes with ``macs`` in all."""
    reads = passes * shape.weights if options.reuse == "full" else macs
    if not shape.weights:
        reads = 0  # a connection without weights
    inputs = macs if conv and options.reuse == "none" else passes * shape.inputs
    yield Use("multiply_accumulate", macs, "multiply_accumulate")
    yield Use("read_input", inputs, bits=shape.inputs * word)
    yield Use("read_weight", reads, bits=shape.weights * word)
    if options.addressing == "count":
        indices = passes * (shape.inputs + shape.outputs + shape.filters)
        yield Use("address_accumulate", indices, "address_accumulate")


def twin_uses(
    row: LayerCount, shape: LayerShape, options: MemoryOptions, word: int, bias: int
) -> Iterator[Use]:
    """All that the same layer does in one inference of a conventional network.

    Args:
        row: exact counts.
        shape: of the same layer.
        options: the disputed choices.
        word: bits of a value.
        bias: bias adds of one inference.
    """
    if not row.ann_macs:
        return
    yield from dense_uses(row.ann_macs, 1, row.kind == "conv", shape, options, word)
    yield Use("bias_add", bias, "bias_add")
    yield Use("read_bias", bias, bits=shape.weights * word)
    yield Use("write_output", shape.outputs, bits=shape.outputs * word)
