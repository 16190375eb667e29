"""What energy.json holds, as typed models; keys that the report does not need may come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tser.deploy.report_files import Count, Mean, Measured, Part, Share, as_long_as
from tser.deploy.target_files import Figure


class LayerOperations(Part):
    """Operations of one layer, means per inference, and what it holds."""

    name: str
    kind: str
    operation: Literal["AC", "MAC", ""]
    events: Mean
    sop_structural: Mean
    sop_effective: Mean
    dense: Mean
    macs: Mean
    bias_adds: Mean
    neuron_updates: Mean
    neuron_updates_driven: Mean
    parameter_bits: Count
    state_bits: Count
    sop_structural_per_step: list[Mean]


class Totals(Part):
    """Sums over layers, means per inference; sizes are of the network."""

    events: Mean
    spikes: Mean
    sop_structural: Mean
    sop_effective: Mean
    accumulates: Mean
    dense: Mean
    dense_padded: Mean
    macs: Mean
    bias_adds: Mean
    neuron_updates: Mean
    neuron_updates_driven: Mean
    parameter_bits: Mean
    state_bits: Mean


class Gap(Part):
    """A node whose operations are not counted."""

    name: str
    kind: str
    reason: str


class Amount(Part):
    """An energy [J] and its range; without a price all are None.

    ``joules`` alone is None where a figure in it is only a range.
    """

    joules: Mean | None
    low_joules: Mean | None
    high_joules: Mean | None


class PricedItem(Amount):
    """One line of a bill, per inference."""

    charge: str
    count: Mean
    figure: Figure | None


class LayerEnergy(Amount):
    """Energy of one layer per inference."""

    name: str


class _Total(Part):
    """The total of a bill [J]; None as in `Amount`."""

    energy_joules: Mean | None
    low_joules: Mean | None
    high_joules: Mean | None
    items: list[PricedItem]
    unpriced: list[str]
    left_out: list[str]

    @property
    def total(self) -> Amount:
        """The same as an `Amount`."""
        return Amount(
            joules=self.energy_joules, low_joules=self.low_joules, high_joules=self.high_joules
        )


class Twin(_Total):
    """The same architecture as a conventional network."""

    target: str
    title: str
    macs: Mean
    figure: Figure | None


class TargetBill(_Total):
    """Energy of one inference on one target."""

    name: str
    title: str
    kind: Literal["chip", "process"]
    priced_joules: Mean | None
    priced_low_joules: Mean
    priced_high_joules: Mean
    layers: list[LayerEnergy]
    inside: list[str]
    notes: list[str]
    after_step: list[Amount]
    ann_twin: Twin | None


class Rule(Part):
    """A published rule of when spiking takes less energy, held against the network."""

    name: str
    quantity: str
    value: float | None
    low: float
    high: float
    verdict: Literal["below", "between", "above", "not known"]
    applies: bool
    text: str
    source: str
    url: str = Field(pattern=r"^https://")


class Model(Part):
    """How operations were priced."""

    name: Literal["plain", "memory"]
    options: dict[str, Any]


class Setting(Part):
    """One way to run the network: all images take t steps, or each stops at a confidence.

    Attributes:
        kind: which of the two.
        t: steps, of the first.
        threshold: confidence, of the second.
        accuracy: share of right answers.
        mean_steps: used.
        sop: synaptic operations, mean per inference.
        energy: joules by target; None where there is no total.
    """

    kind: Literal["steps", "early-exit"]
    t: Annotated[int, Field(ge=1)] | None = None
    threshold: Share | None = None
    accuracy: Share
    mean_steps: Annotated[float, Field(ge=1)]
    sop: Mean
    energy: dict[str, Mean | None]

    @model_validator(mode="after")
    def _named(self) -> Setting:
        if (self.t if self.kind == "steps" else self.threshold) is None:
            raise ValueError(f"a setting of kind {self.kind!r} does not say which")
        return self


class Choice(Part):
    """The cheapest setting within an accuracy loss, on one target.

    Attributes:
        target: its name.
        max_drop: accuracy that may be lost, in percentage points.
        setting: its position; None where there is no total to choose by.
        text: the finding in words.
    """

    target: str
    max_drop: Mean
    setting: Count | None
    text: str


class EnergyResult(Measured):
    """energy.json."""

    schema_version: Literal[2]
    split: Literal["test", "val"] = "test"
    graph: str
    graph_digest: str | None = None
    first_layer: Literal["charge", "once", "host"]
    hops: Mean | None
    latency_seconds: Mean | None
    model: Model
    layers: list[LayerOperations]
    totals: Totals
    gaps: list[Gap]
    break_even: list[Rule]
    ann_twin: Twin
    targets: list[TargetBill]
    settings: list[Setting] | None = None
    choices: list[Choice] | None = None

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
