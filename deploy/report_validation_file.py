"""What validation.json holds, as typed models; see ``tser.deploy.validation_document``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tser.deploy.report_files import Count, Document, Mean, Part, Share, as_long_as, omittable

Verdict = Literal["E0", "E1", "E2", "E3"]
Bit = Annotated[int, Field(ge=0, le=1)]


class Window(Part):
    """Spikes of neighbouring neurons, ``[neurons][T]``, and membranes of the one that differs."""

    first_neuron: Count
    """Position of the first one shown in the flattened layer, from 0."""
    position: Count
    """Of the one that differs among those shown, from 0."""
    reference: Annotated[list[list[Bit]], Field(min_length=1)]
    """Spikes, a list of T for each neuron."""
    candidate: list[list[Bit]]
    """The same."""
    threshold: float | None = omittable()
    """Of the one that differs."""
    membrane_reference: list[float] | None = omittable()
    """Its potential as it meets the threshold, at each step."""
    membrane_candidate: list[float] | None = omittable()
    """The same."""

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
    """Image."""
    t: Count
    """Step."""
    layer: str
    """Name."""
    neuron: list[Count]
    """Index in the feature map."""
    reference: bool
    """Whether the reference fires there."""
    v_minus_threshold: float | None
    """Exact distance of its potential from the threshold; null: not known."""
    bound: float | None
    """Of what float32 rounding may add to that distance; null: not known."""
    window: Window
    """The neurons around it."""


class Explanation(Part):
    """What explains a layer that is wrong."""

    layer: str
    """Name."""
    rules: list[str] = Field(default=[])
    """Rules that differ from NIR's, by name."""
    alternatives: list[list[str]] = Field(default=[])
    """Other sets of rules that explain as much."""
    text: str
    """The same in words."""


class LayerResult(Part):
    """One spiking layer in both runs; None is what could not be done."""

    name: str
    """As in the graph."""
    neurons: Count
    """How many."""
    flips: list[Count]
    """Spikes that differ, at each step, over all images."""
    seeds: Count
    """Flips that no other flip explains."""
    seeds_per_step: list[Count]
    """The same at each step."""
    uncertified_seeds: Count
    """Seeds that rounding does not explain."""
    violations: Count
    """Recorded spikes that no rounding of the membrane explains."""
    replayed_flips: Count | None
    """Flips when fed the reference's spikes; null: nothing could be replayed."""
    one_step_flips: Count | None
    """Flips when the membrane before each step is forced too; null likewise."""
    certified_margin: Mean
    """Largest distance of a membrane from the threshold at a seed that rounding explains."""
    certified_bound: Mean
    """The bound on rounding there."""
    rate_error: Mean
    """Mean difference of the neurons' firing rates [spikes a neuron and step]."""
    best_lag: int
    """Steps by which the candidate is late, where that explains its flips; else 0."""
    firing_rate_reference: list[Share]
    """Spikes a neuron, at each step."""
    firing_rate_candidate: list[Share]
    """The same."""

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
    """Largest absolute difference."""
    outside_bound: Count
    """Values beyond what rounding may do."""


class BackendResult(Part):
    """One executor against the reference; without layers nothing could be compared."""

    name: str
    """As named by --backend."""
    source: str
    """The file it ran, or what was made of it."""
    verdict: Verdict
    """E0 the same spikes, E1 but for certified ties, E2 rates and predictions, E3 neither."""
    reason: str
    """Of the verdict, in words."""
    flips: Count
    """Spikes that differ."""
    seeds: Count
    """Flips that no other flip explains."""
    violations: Count
    """Recorded spikes that no rounding explains."""
    neuron_steps: Count
    """Neurons times steps times images that were compared."""
    first_divergence: Divergence | None
    """Null: no spike differs."""
    diagnosis: list[Explanation]
    """Of layers that are wrong."""
    remark: str
    """What else is to be known, in words; may be empty."""
    uncertifiable: str
    """Why flips were not held against rounding; empty: they were."""
    not_replayed: str
    """Why nothing was replayed; empty: it was, or there was no need."""
    argmax_differences: Count
    """Images that are predicted otherwise after all steps."""
    logits: LogitDifference
    """Of all steps."""
    layers: list[LayerResult]
    """In execution order."""

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
    """The graph given, or one made to show a rule."""
    probe: str
    """The input, by name."""
    backend: str
    """As named by --backend; all: it could be run in none."""
    verdict: Verdict | None
    """Null: not run."""
    passed: bool | None
    """Whether the verdict is E0 or E1; null: not run."""
    flips: Count
    """Spikes that differ."""
    reason: str
    """Of the verdict, in words."""
    diagnosis: list[Explanation]
    """Of layers that are wrong."""
    counts: bool
    """Whether it has a say in the verdict of the document."""


class StaticCheck(Part):
    """Differences that show without running."""

    identical: bool
    """Whether there are none."""
    differences: list[str]
    """In words."""


class ValidationResult(Document):
    """validation.json: whether a graph does what the student, or another graph, does."""

    schema_version: Literal[2]
    graph: str
    """The file that was judged."""
    against: str = ""
    """The run folder or file that it was judged against."""
    reference: str
    """What of it."""
    data: str | None
    """Name of what both were run on; null: probes only."""
    split: str
    """Which images; empty: no data set."""
    samples: Count
    """How many."""
    timesteps: Annotated[int, Field(ge=1)]
    """T."""
    verdict: Verdict
    """The worst of those that count; exit code 0 up to --require, else 3."""
    static: StaticCheck
    """Of parameters and structure."""
    contradictions: list[str]
    """What the file says of itself and is not so, in words."""
    student_digest: str | None
    """SHA-256 of the reference's graph; null: it has none."""
    student_weights: str | None = None
    """SHA-256 that student.safetensors carried; null: it carried none, or against a graph."""
    graph_digest: str | None
    """SHA-256 of the graph; null: an ONNX file that does not state it."""
    accuracy: dict[str, list[Share]]
    """Share of right answers after step 1..T, by backend."""
    backends: list[BackendResult]
    """In the order they ran."""
    probes: list[ProbeResult] | None
    """Null: not asked for."""

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
