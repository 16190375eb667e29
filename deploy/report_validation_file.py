"""What validation.json holds, as typed models; see ``tser.deploy.validation_document``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tser.deploy.report_files import Count, Document, Mean, Part, Share, as_long_as

Verdict = Literal["E0", "E1", "E2", "E3"]
Bit = Annotated[int, Field(ge=0, le=1)]


class Window(Part):
    """Spikes of neighbouring neurons, ``[neurons][T]``, and membranes of the one that differs."""

    first_neuron: Count
    position: Count
    reference: Annotated[list[list[Bit]], Field(min_length=1)]
    candidate: list[list[Bit]]
    threshold: float | None = None
    membrane_reference: list[float] | None = None
    membrane_candidate: list[float] | None = None

    @model_validator(mode="after")
    def _of_the_same_neurons(self) -> Window:
        if len(self.candidate) != len(self.reference):
            raise ValueError("reference and candidate have other numbers of neurons")
        if self.position >= len(self.reference):
            raise ValueError(f"position {self.position} of {len(self.reference)} neurons")
        return self

    @property
    def membranes(self) -> tuple[list[float], list[float], float] | None:
        """Of reference and candidate, and their threshold, where they are known."""
        a, b, threshold = self.membrane_reference, self.membrane_candidate, self.threshold
        return None if a is None or b is None or threshold is None else (a, b, threshold)

    def per_step(self) -> Iterator[list[Any]]:
        """Every list that has one entry a step."""
        yield from self.reference
        yield from self.candidate
        yield from (self.membranes or ())[:2]


class Divergence(Part):
    """The first spike that differs; all indices from 0."""

    sample: Count
    t: Count
    layer: str
    neuron: list[Count]
    reference: bool
    v_minus_threshold: float | None
    bound: float | None
    window: Window


class Explanation(Part):
    """What explains a layer that is wrong."""

    layer: str
    text: str


class LayerResult(Part):
    """One spiking layer in both runs; None is what could not be done."""

    name: str
    neurons: Count
    flips: list[Count]
    seeds: Count
    seeds_per_step: list[Count]
    uncertified_seeds: Count
    violations: Count
    replayed_flips: Count | None
    one_step_flips: Count | None
    certified_margin: Mean
    certified_bound: Mean
    rate_error: Mean
    best_lag: int
    firing_rate_reference: list[Share]
    firing_rate_candidate: list[Share]

    @property
    def all_flips(self) -> int:
        """Over all steps."""
        return sum(self.flips)

    @property
    def certified(self) -> bool:
        """Whether rounding explains everything that was held against it."""
        return not self.violations and not self.uncertified_seeds


class LogitDifference(Part):
    """How far logits are apart."""

    max_abs_difference: Mean
    outside_bound: Count


class BackendResult(Part):
    """One executor against the reference; without layers nothing could be compared."""

    name: str
    source: str
    verdict: Verdict
    reason: str
    flips: Count
    seeds: Count
    violations: Count
    neuron_steps: Count
    first_divergence: Divergence | None
    diagnosis: list[Explanation]
    remark: str
    uncertifiable: str
    not_replayed: str
    argmax_differences: Count
    logits: LogitDifference
    layers: list[LayerResult]

    @property
    def judged(self) -> bool:
        """Whether flips were held against what rounding can do; else no graph was at hand."""
        return not self.uncertifiable

    def per_step(self) -> Iterator[list[Any]]:
        """Every list that has one entry a step."""
        for layer in self.layers:
            yield from (layer.flips, layer.seeds_per_step)
            yield from (layer.firing_rate_reference, layer.firing_rate_candidate)
        if self.first_divergence is not None:
            yield from self.first_divergence.window.per_step()


class ProbeResult(Part):
    """One probe in one executor; a verdict of None: it could not be run."""

    network: str
    probe: str
    backend: str
    verdict: Verdict | None
    passed: bool | None
    flips: Count
    reason: str
    diagnosis: list[Explanation]
    counts: bool


class StaticCheck(Part):
    """Differences that show without running."""

    identical: bool
    differences: list[str]


class ValidationResult(Document):
    """validation.json."""

    schema_version: Literal[2]
    graph: str
    reference: str
    data: str | None
    split: str
    samples: Count
    timesteps: Annotated[int, Field(ge=1)]
    verdict: Verdict
    static: StaticCheck
    contradictions: list[str]
    student_digest: str | None
    graph_digest: str | None
    accuracy: dict[str, list[Share]]
    backends: list[BackendResult]
    probes: list[ProbeResult] | None

    @model_validator(mode="after")
    def _fits_timesteps(self) -> ValidationResult:
        for values in self.accuracy.values():
            as_long_as(self.timesteps, values)
        for backend in self.backends:
            for values in backend.per_step():
                as_long_as(self.timesteps, values)
            first = backend.first_divergence
            if first is not None and first.t >= self.timesteps:
                raise ValueError(f"a divergence at t {first.t} of {self.timesteps} timesteps")
        return self
