"""What chips can hold: strict data files, one a chip, every limit with its source."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tser.deploy.data_files import load_shipped, read_own, shipped_names

T = TypeVar("T")
_STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

Neuron = Literal["IF", "LIF", "CubaLIF", "LI", "I", "CubaLI", "Threshold"]
Leak = Literal["none", "any", "bit_shift"]
Kind = Literal["conv", "linear", "identity"]


class Limit(BaseModel, Generic[T]):
    """One published limit."""

    model_config = _STRICT
    value: T
    """The limit."""
    unit: str
    """Of what."""
    source: str
    """Key of `Chip.sources`."""
    second_hand: bool
    """Not read in the source itself."""
    note: str = ""
    """What else to know."""


class Limits(BaseModel):
    """Limits by kind; a missing one is not published, or is in `Chip.unlimited`."""

    model_config = _STRICT
    neuron_models: Limit[tuple[Neuron, ...]] | None = None
    """NIR classes of neurons that the chip computes."""
    resets: Limit[tuple[Literal["zero", "value", "subtract"], ...]] | None = None
    """What a spike does to the membrane: to rest, to any value, or less the threshold."""
    leaks: Limit[tuple[Leak, ...]] | None = None
    """Decays: none, any factor, or 1 - 2^-k only."""
    decay_bits: Limit[int] | None = None
    """Bits of a decay factor: dt / tau is at least 2^-bits."""
    connections: Limit[tuple[Kind, ...]] | None = None
    """Kinds of connections."""
    recurrence: Limit[bool] | None = None
    """Whether groups of neurons may form cycles."""
    analog_input: Limit[bool] | None = None
    """Whether the chip takes other input than spikes."""
    readout: Limit[bool] | None = None
    """Whether sums without neurons can be read."""
    layers: Limit[int] | None = None
    """Least number of hidden and output layers."""
    inputs: Limit[int] | None = None
    """Input channels."""
    outputs: Limit[int] | None = None
    """Output neurons."""
    fan_in: Limit[int] | None = None
    """Connections into one neuron."""
    fan_out: Limit[int] | None = None
    """Connections from one neuron."""
    input_projection: Limit[int] | None = None
    """Hidden neurons that take input."""
    output_projection: Limit[int] | None = None
    """Hidden neurons that lead to outputs."""
    destinations: Limit[int] | None = None
    """Layers that the output of one layer goes to."""
    weight_bits: Limit[int] | None = None
    """Bits of a signed weight."""
    weight_values: Limit[int] | None = None
    """Different non-zero weights of one neuron."""
    state_bits: Limit[int] | None = None
    """Bits of a signed membrane potential."""
    kernels: Limit[tuple[int, ...]] | None = None
    """Sides of a square kernel."""
    strides: Limit[tuple[int, ...]] | None = None
    """Strides of a convolution."""
    paddings: Limit[tuple[int, ...]] | None = None
    """Paddings of a convolution."""
    pools: Limit[tuple[int, ...]] | None = None
    """Sides of a pool whose stride is its side."""
    dilation: Limit[int] | None = None
    """Dilation of a convolution."""
    channel_groups: Limit[int] | None = None
    """Channel groups of a convolution."""
    channels: Limit[int] | None = None
    """Output channels of a layer."""
    input_size: Limit[int] | None = None
    """Height and width that a layer takes."""
    output_size: Limit[int] | None = None
    """Height and width of a layer's neurons."""
    cores: Limit[int] | None = None
    """Cores of the chip."""
    neurons_per_core: Limit[int] | None = None
    """Neurons of one core."""
    neurons: Limit[int] | None = None
    """Neurons of the chip, without `outputs`."""
    axons_in: Limit[int] | None = None
    """Axons that arrive at one core."""
    axons_out: Limit[int] | None = None
    """Axons that leave one core."""
    synapses: Limit[int] | None = None
    """Synapses of the chip."""
    synaptic_memory: Limit[int] | None = None
    """Memory for synapses of one core."""
    kernel_memory: Limit[tuple[int, ...]] | None = None
    """Words for weights, core by core."""
    neuron_memory: Limit[tuple[int, ...]] | None = None
    """Words for membrane potentials, core by core."""
    bias_memory: Limit[tuple[int, ...]] | None = None
    """Words for biases, core by core."""


ELSEWHERE: dict[str, frozenset[str]] = {
    "tiles": frozenset({"neurons", "kernel_memory", "neuron_memory", "bias_memory"}),
    "layer_a_core": frozenset(
        {"neurons_per_core", "neurons", "synapses", "synaptic_memory", "axons_in", "axons_out"}
    ),
    "one_pool": frozenset(
        {"cores", "neurons_per_core", "axons_in", "axons_out", "synaptic_memory"}
        | {"kernel_memory", "neuron_memory", "bias_memory"}
    ),
    "none": frozenset({"kernel_memory", "neuron_memory", "bias_memory"}),
}
"""Placement -> kinds of limits that such a chip states in another form, if at all."""


class Chip(BaseModel):
    """A chip and its limits."""

    model_config = _STRICT
    schema_version: Literal[1]
    """Version of this format."""
    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Short name, as typed after --target."""
    title: str
    """Full name."""
    exact: bool
    """Whether the rules that follow are those of the chip or of its mapping tool."""
    placement: Literal["tiles", "layer_a_core", "one_pool", "none"]
    """How layers come to cores: cut into tiles, one layer a core, one pool of hidden neurons, or
    not published."""
    axons: Literal["neuron", "position", "copy"] = "neuron"
    """What one axon carries: a neuron; all channels of a position of a map, with the weights of
    like positions stored once; or a neuron, which has one axon, so that it is copied for
    every further core it reaches."""
    sources: dict[str, str]
    """Publications and pages."""
    unlimited: dict[str, str]
    """Kinds of limits that the chip does not have, and why."""
    unchecked: dict[str, str]
    """What is known of limits that are not published in a form to check."""
    limits: Limits
    """Limits by kind."""

    @model_validator(mode="after")
    def _consistent(self) -> Chip:
        known = set(Limits.model_fields)
        stated = {kind for kind in known if getattr(self.limits, kind) is not None}
        for kind in stated:
            if (source := getattr(self.limits, kind).source) not in self.sources:
                raise ValueError(f"limits.{kind} names the source {source!r}, which is not there")
        for group, names in (("unlimited", self.unlimited), ("unchecked", self.unchecked)):
            for kind in names:
                if kind not in known:
                    raise ValueError(f"{group} names {kind!r}, which is no kind of limit")
                if kind in stated:
                    raise ValueError(f"{kind!r} is both in limits and in {group}")
        if both := self.unlimited.keys() & self.unchecked.keys():
            raise ValueError(f"{min(both)!r} is both in unlimited and in unchecked")
        return self._placeable()

    def _placeable(self) -> Chip:
        needs = {
            "tiles": ("cores", "neurons_per_core"),
            "layer_a_core": ("cores", "kernel_memory", "neuron_memory", "bias_memory"),
            "one_pool": ("neurons",),
            "none": (),
        }
        for kind in needs[self.placement]:
            if getattr(self.limits, kind) is None:
                raise ValueError(f"placement {self.placement!r} needs limits.{kind}")
        memories = (self.limits.kernel_memory, self.limits.neuron_memory, self.limits.bias_memory)
        if self.placement == "layer_a_core" and self.limits.cores is not None:
            for memory in memories:
                if memory is not None and len(memory.value) != self.limits.cores.value:
                    raise ValueError("a memory does not name one size for every core")
        return self


def chip_names() -> list[str]:
    """Names of the chips that ship with tser."""
    return shipped_names("limits")


def load_chip(name: str) -> Chip:
    """A chip that ships with tser.

    Raises:
        UsageError: no such chip.
    """
    return load_shipped("limits", name, Chip, "chip")


def load_chip_file(path: Path) -> Chip:
    """A chip of the user's own.

    Raises:
        InputFileError: missing, not TOML, or not of the format.
    """
    return read_own(path, Chip, "chip")
