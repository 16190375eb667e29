"""What the files of a run hold, as typed models; keys that the report does not need may come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tser.deploy.energy import Figure

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Mean = Annotated[float, Field(ge=0)]
Verdict = Literal["E0", "E1", "E2", "E3"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class Document(_Part):
    """A JSON file as a whole."""

    schema_version: Literal[1]


class _Measured(Document):
    """What is known of every measurement on the test set."""

    data: str
    samples: Annotated[int, Field(ge=1)]
    timesteps: Annotated[int, Field(ge=1)]

    def _per_step(self) -> Iterator[list[Any]]:
        """Every list that has one entry a step."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _as_long_as_timesteps(self) -> _Measured:
        for values in self._per_step():
            if len(values) != self.timesteps:
                raise ValueError(f"{len(values)} values for {self.timesteps} timesteps")
        return self


class Epoch(_Part):
    """One line of metrics.jsonl."""

    phase: Literal["teacher", "student"]
    epoch: int
    loss: float
    ce: float | None = None
    kl: float | None = None
    entropy: float | None = None
    self_kl: float | None = None
    train_accuracy: Share
    val_accuracy: Annotated[list[Share], Field(min_length=1)]
    """After each step; one entry for a teacher."""
    seconds: Mean = 0.0


class Environment(Document):
    """environment.json."""

    python: str
    platform: str
    processor: str
    cpus: int | None
    packages: dict[str, str | None]
    command: list[str]


class LayerRate(_Part):
    """Firing of one layer of the student."""

    name: str
    neurons: Count
    firing_rate: Share
    firing_rate_per_step: list[Share]


class Exit(_Part):
    """What stopping at a confidence gives."""

    threshold: Share
    accuracy: Share
    mean_steps: Annotated[float, Field(ge=1)]


class Evaluation(_Measured):
    """eval.json; None is what an earlier version of tser did not write."""

    split: Literal["test"] = "test"
    accuracy: list[Share]
    calibration_error: list[Share] | None = None
    early_exit: list[Exit] | None = None
    teacher_accuracy: Share | None
    layers: list[LayerRate]

    @model_validator(mode="after")
    def _exits_in_time(self) -> Evaluation:
        for point in self.early_exit or []:
            if point.mean_steps > self.timesteps:
                raise ValueError(f"{point.mean_steps:g} mean steps of {self.timesteps} timesteps")
        return self

    def _per_step(self) -> Iterator[list[Any]]:
        yield self.accuracy
        yield from [] if self.calibration_error is None else [self.calibration_error]
        yield from (layer.firing_rate_per_step for layer in self.layers)


class Divergence(_Part):
    """The first spike that differs; all indices from 0."""

    sample: Count
    t: Count
    layer: str
    neuron: list[int]
    reference: bool
    v_minus_threshold: float | None
    bound: float | None


class LayerFlips(_Part):
    """Flips of one layer."""

    name: str
    neurons: Count
    flips: list[Count]
    seeds: Count
    violations: Count


class LogitDifference(_Part):
    """How far logits are apart."""

    max_abs_difference: Mean
    outside_bound: Count


class BackendResult(_Part):
    """One executor against the student."""

    name: str
    source: str
    verdict: Verdict
    reason: str
    flips: Count
    seeds: Count
    violations: Count
    neuron_steps: Count
    first_divergence: Divergence | None
    argmax_differences: Count
    logits: LogitDifference
    layers: list[LayerFlips]


class StaticCheck(_Part):
    """Differences that show without running."""

    identical: bool
    differences: list[str]


class ValidationResult(_Measured):
    """validation.json."""

    graph: str
    verdict: Verdict
    static: StaticCheck
    contradictions: list[str] = []
    student_digest: str
    graph_digest: str | None = None
    accuracy: dict[str, list[Share]]
    backends: list[BackendResult]

    def _per_step(self) -> Iterator[list[Any]]:
        yield from self.accuracy.values()
        yield from (layer.flips for backend in self.backends for layer in backend.layers)


class LayerOperations(_Part):
    """Operations of one layer, means per inference."""

    name: str
    kind: str
    operation: Literal["AC", "MAC", ""]
    events: Mean
    sop_structural: Mean
    sop_effective: Mean
    dense: Mean
    macs: Mean
    neuron_updates: Mean


class Totals(_Part):
    """Sums over layers, means per inference."""

    events: Mean
    spikes: Mean
    sop_structural: Mean
    sop_effective: Mean
    accumulates: Mean
    dense: Mean
    macs: Mean
    neuron_updates: Mean


class Gap(_Part):
    """A node whose operations are not counted."""

    name: str
    kind: str
    reason: str


class Twin(_Part):
    """The same architecture as a conventional network."""

    macs: Mean
    energy_joules: Mean
    figure: Figure


class PricedItem(_Part):
    """One line of a bill, per inference."""

    charge: str
    count: Mean
    joules: Mean | None
    figure: Figure | None


class LayerEnergy(_Part):
    """Energy of one layer per inference [J]; None while an operation of it has no figure."""

    name: str
    joules: Mean | None


class TargetBill(_Part):
    """Energy of one inference on one target [J]."""

    name: str
    title: str
    energy_joules: Mean | None
    priced_joules: Mean
    items: list[PricedItem]
    layers: list[LayerEnergy]
    unpriced: list[str]
    left_out: list[str]


class EnergyResult(_Measured):
    """energy.json."""

    graph: str
    graph_digest: str | None = None
    first_layer: Literal["charge", "host"]
    layers: list[LayerOperations]
    totals: Totals
    gaps: list[Gap]
    ann_twin: Twin
    targets: list[TargetBill]

    @model_validator(mode="after")
    def _same_layers(self) -> EnergyResult:
        names = [layer.name for layer in self.layers]
        for target in self.targets:
            if [layer.name for layer in target.layers] != names:
                raise ValueError(f"target {target.name} is priced for other layers")
        return self

    def _per_step(self) -> Iterator[list[Any]]:
        yield from ()
