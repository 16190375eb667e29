"""What energy.json holds, as typed models; keys that the report does not need may come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tser.deploy.report_files import (
    Count,
    Mean,
    Measured,
    Part,
    Share,
    as_long_as,
    omittable,
)
from tser.deploy.target_files import Figure


class LayerOperations(Part):
    """Operations of one layer, means per inference, and what it holds."""

    name: str
    """As in the graph."""
    kind: str
    """Of node: a synapse, or neuron."""
    source: str = ""
    """What sends to it."""
    operation: Literal["AC", "MAC", ""]
    """Of a synapse: accumulations for spikes, multiplications for analog values."""
    neurons: Count | None = None
    """How many."""
    firing_rate: Mean | None = None
    """Events of a source and step: of spikes at most 1."""
    events: Mean
    """Values that are not 0 and arrive; of neurons, spikes that they send."""
    sop_structural: Mean
    """Synaptic operations: events times the connections that they have."""
    sop_effective: Mean
    """Those of a weight that is not 0."""
    dense: Mean
    """Connections times steps: synaptic operations if everything fired."""
    dense_padded: Mean = 0.0
    """The same with connections to the padding."""
    macs: Mean
    """Multiplications and additions of analog input."""
    macs_once: Mean = 0.0
    """The same where a constant input is taken in once, not at every step."""
    bias_adds: Mean
    """Additions of biases."""
    neuron_updates: Mean
    """Neurons times steps."""
    neuron_updates_driven: Mean
    """Those that an event has reached."""
    parameter_bits: Count
    """Of the layer [bit]."""
    state_bits: Count
    """Of the layer [bit]."""
    events_per_step: list[Mean] = Field(default=[])
    """As above, at each step."""
    sop_structural_per_step: list[Mean]
    """As above, at each step."""
    sop_effective_per_step: list[Mean] = Field(default=[])
    """As above, at each step."""
    neuron_updates_driven_per_step: list[Mean] = Field(default=[])
    """As above, at each step."""


class Totals(Part):
    """Sums over layers, means per inference; sizes are of the network."""

    events: Mean
    """That arrive at synapses."""
    spikes: Mean
    """That neurons send."""
    sop_structural: Mean
    """Synaptic operations."""
    sop_effective: Mean
    """Those of a weight that is not 0."""
    accumulates: Mean
    """Synaptic operations of spikes."""
    dense: Mean
    """Synaptic operations if everything fired."""
    dense_padded: Mean
    """The same with connections to the padding."""
    macs: Mean
    """Multiplications and additions of analog input."""
    macs_once: Mean = 0.0
    """The same where a constant input is taken in once."""
    bias_adds: Mean
    """Additions of biases."""
    neuron_updates: Mean
    """Neurons times steps."""
    neuron_updates_driven: Mean
    """Those that an event has reached."""
    parameter_bits: Mean
    """Size [bit]."""
    state_bits: Mean
    """Size [bit]."""


class Gap(Part):
    """A node whose operations are not counted."""

    name: str
    """Of the node."""
    kind: str
    """Its class in NIR."""
    reason: str
    """In words."""


class Amount(Part):
    """An energy [J] and its range; without a price all are None.

    ``joules`` alone is None where a figure in it is only a range.
    """

    joules: Mean | None
    """Energy [J]."""
    low_joules: Mean | None
    """Lower end of its range [J]."""
    high_joules: Mean | None
    """Upper end of its range [J]."""


class PricedItem(Amount):
    """One line of a bill, per inference."""

    charge: str
    """What is counted."""
    count: Mean
    """Operations, mean; of static power seconds."""
    figure: Figure | None
    """That it is priced with; null: none is published."""


class LayerEnergy(Amount):
    """Energy of one layer per inference."""

    name: str
    """As in the graph."""


class _Total(Part):
    """The total of a bill [J]; None as in `Amount`."""

    energy_joules: Mean | None
    """Total [J]; null while something charged has no price, and where it is only a range."""
    low_joules: Mean | None
    """Lower end of its range [J]."""
    high_joules: Mean | None
    """Upper end of its range [J]."""
    items: list[PricedItem]
    """The lines of the bill."""
    unpriced: list[str]
    """What is charged and has no price, in words; there is no total then."""
    left_out: list[str]
    """What the total does not include, in words."""

    @property
    def total(self) -> Amount:
        """The same as an `Amount`."""
        return Amount(
            joules=self.energy_joules, low_joules=self.low_joules, high_joules=self.high_joules
        )


class Twin(_Total):
    """The same architecture as a conventional network."""

    target: str
    """That it is priced for."""
    title: str
    """Of that target."""
    macs: Mean
    """Multiplications and additions of an inference."""
    figure: Figure | None
    """Of one of them."""


class TargetBill(_Total):
    """Energy of one inference on one target."""

    name: str
    """As named by --target."""
    title: str
    """Full name."""
    kind: Literal["chip", "process"]
    """A process prices arithmetic, so an ANN as well."""
    priced_joules: Mean | None
    """Sum of the lines that have a price [J]; null where it is only a range."""
    priced_low_joules: Mean
    """Lower end of its range [J]."""
    priced_high_joules: Mean
    """Upper end of its range [J]."""
    layers: list[LayerEnergy]
    """In the order of the counts."""
    inside: list[str]
    """Charges that a figure holds already, in words."""
    notes: list[str]
    """What else a reader of the total must know."""
    after_step: list[Amount]
    """Of an inference that stops after step 1..T."""
    ann_twin: Twin | None
    """Null: the target is no process."""


class Rule(Part):
    """A published rule of when spiking takes less energy, held against the network."""

    name: str
    """Of the rule."""
    quantity: str
    """What is compared, with its unit."""
    value: float | None
    """Of this network; null: it has none."""
    low: float
    """Break-even under the best assumptions for the ANN."""
    high: float
    """Break-even under the worst."""
    verdict: Literal["below", "between", "above", "not known"]
    """Where the value lies."""
    applies: bool
    """Whether the rule was found for networks like this."""
    text: str
    """What follows, in words."""
    source: str
    """Publication."""
    url: str = Field(pattern=r"^https://")
    """Where it is."""


class Model(Part):
    """How operations were priced."""

    name: Literal["plain", "memory"]
    """Operations alone, or with memory accesses."""
    options: dict[str, Any]
    """Choices of the memory-aware model, by name; docs/energy.md explains them."""


class Setting(Part):
    """One way to run the network: all images take t steps, or each stops at a confidence."""

    kind: Literal["steps", "early-exit"]
    """Which of the two."""
    t: Annotated[int, Field(ge=1)] | None = None
    """Steps, of the first."""
    threshold: Share | None = None
    """Confidence, of the second."""
    accuracy: Share
    """Share of right answers."""
    mean_steps: Annotated[float, Field(ge=1)]
    """That an image takes."""
    sop: Mean
    """Synaptic operations, mean per inference."""
    energy: dict[str, Mean | None]
    """[J] by target, of a range the upper end; null: there is no total."""
    energy_low: dict[str, Mean | None] = Field(default={})
    """[J] by target, of a range the lower end; null: there is no total."""

    @model_validator(mode="after")
    def _named(self) -> Setting:
        if (self.t if self.kind == "steps" else self.threshold) is None:
            raise ValueError(f"a setting of kind {self.kind!r} does not say which")
        return self


class Choice(Part):
    """The cheapest setting within an accuracy loss, on one target."""

    target: str
    """Its name."""
    max_drop: Mean
    """Accuracy that may be lost [percentage points]."""
    setting: Count | None
    """Its position in settings, from 0; null: there is no total to choose by."""
    text: str
    """The finding in words."""


class EnergyResult(Measured):
    """energy.json: synaptic operations and energy, means per inference."""

    schema_version: Literal[2]
    split: Literal["test", "val"] = "test"
    """Which images."""
    graph: str
    """The file that was counted on."""
    graph_digest: str | None = None
    """SHA-256 of its content."""
    dt_seconds: float | None = None
    """Time step [s]."""
    first_layer: Literal["charge", "once", "host"]
    """Layers with analog input: at every step, once an inference, or on a host."""
    hops: Mean | None
    """Of a spike between cores, mean; null: not given."""
    latency_seconds: Mean | None
    """Of an inference [s]; null: not given."""
    model: Model
    """How operations were priced."""
    layers: list[LayerOperations]
    """Synapses and neurons, in execution order."""
    totals: Totals
    """Over all layers."""
    gaps: list[Gap]
    """What was not counted."""
    break_even: list[Rule]
    """Published rules."""
    ann_twin: Twin
    """The conventional network, on the first process among the targets, else on cmos45."""
    targets: list[TargetBill]
    """As they were named."""
    settings: list[Setting] | None = omittable()
    """With --settings or --max-drop."""
    choices: list[Choice] | None = omittable()
    """With --max-drop, by target."""

    @model_validator(mode="after")
    def _same_layers(self) -> EnergyResult:
        names = [layer.name for layer in self.layers]
        for target in self.targets:
            if [layer.name for layer in target.layers] != names:
                raise ValueError(f"target {target.name} is priced for other layers")
            as_long_as(self.timesteps, target.after_step)
        return self

    def per_step(self) -> Iterator[list[Any]]:
        """Every list that has one entry a step."""
        yield from (layer.sop_structural_per_step for layer in self.layers)

    @property
    def images(self) -> str:
        """How many of what, in words."""
        return f"{self.samples:,} {'test' if self.split == 'test' else 'validation'} images"

    @property
    def sop_after(self) -> list[float]:
        """Synaptic operations of an inference that stops after step 1..T, means."""
        steps = [
            sum(layer.sop_structural_per_step[t] for layer in self.layers)
            for t in range(self.timesteps)
        ]
        return [sum(steps[: t + 1]) for t in range(self.timesteps)]
