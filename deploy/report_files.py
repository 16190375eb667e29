"""The files a report is made from, read through typed models: what is wrong is said by name."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tser.config import RunConfig
from tser.deploy.energy import Figure
from tser.deploy.graph_file import open_nir
from tser.errors import InputFileError
from tser.export.graph import Graph
from tser.runs import Run, find_run

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Mean = Annotated[float, Field(ge=0)]
Verdict = Literal["E0", "E1", "E2", "E3"]
Freshness = Literal["current", "stale", "unknown"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class _Document(_Part):
    schema_version: Literal[1]


class _Measured(_Document):
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
    train_accuracy: Share
    val_accuracy: Annotated[list[Share], Field(min_length=1)]
    """After each step; one entry for a teacher."""
    seconds: Mean = 0.0


class Environment(_Document):
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


class Evaluation(_Measured):
    """eval.json."""

    accuracy: list[Share]
    teacher_accuracy: Share | None
    layers: list[LayerRate]

    def _per_step(self) -> Iterator[list[Any]]:
        yield self.accuracy
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


class TargetBill(_Part):
    """Energy of one inference on one target [J]."""

    name: str
    title: str
    energy_joules: Mean | None
    priced_joules: Mean
    items: list[PricedItem]
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

    def _per_step(self) -> Iterator[list[Any]]:
        yield from ()


@dataclass(frozen=True)
class Results:
    """All that is known of a run; None or empty where a file is not there.

    Attributes:
        run: the folder.
        config: every value.
        config_text: the same, as written.
        epochs: of the teacher and of the student, in order of training.
        environment: versions, machine and command.
        evaluation: accuracy and firing rates of the student.
        validation: the spike-by-spike verdict.
        energy: operations and energy.
        graph: the exported NIR graph.
    """

    run: Run
    config: RunConfig
    config_text: str
    epochs: list[Epoch]
    environment: Environment | None
    evaluation: Evaluation | None
    validation: ValidationResult | None
    energy: EnergyResult | None
    graph: Graph | None

    @property
    def digest(self) -> str | None:
        """sha256 that the exported graph carries."""
        return None if self.graph is None else self.graph.metadata.get("sha256")

    @property
    def evaluation_is(self) -> Freshness:
        """Whether eval.json can be of this student: the same data and T."""
        found, wanted = self.evaluation, self.config
        if found is None:
            return "unknown"
        same = (found.data, found.timesteps) == (wanted.data.name, wanted.student.timesteps)
        return "current" if same else "stale"

    @property
    def validation_is(self) -> Freshness:
        """Whether validation.json is of the graph that is in the folder now."""
        found = self.validation
        if found is None:
            return "unknown"
        # Before graph_digest was written: an identical graph has the student's digest.
        own = found.student_digest if found.static.identical else None
        return self._freshness(found.graph_digest or own)

    @property
    def energy_is(self) -> Freshness:
        """Whether energy.json is of the graph that is in the folder now."""
        return self._freshness(None if self.energy is None else self.energy.graph_digest)

    def _freshness(self, measured: str | None) -> Freshness:
        if measured is None or self.digest is None:
            return "unknown"
        return "current" if measured == self.digest else "stale"


@dataclass(frozen=True)
class Commands:
    """The command lines that make the files of a run, quoted for a shell."""

    run: Run

    def _line(self, *words: str | Path) -> str:
        return shlex.join(["tser", *map(str, words)])

    @property
    def evaluate(self) -> str:
        """Makes eval.json."""
        return self._line("eval", self.run.path)

    @property
    def export_nir(self) -> str:
        """Makes model.nir."""
        return self._line("export", self.run.path, "--format", "nir")

    @property
    def export_onnx(self) -> str:
        """Makes model.onnx."""
        return self._line("export", self.run.path, "--format", "onnx")

    @property
    def validate(self) -> str:
        """Makes validation.json."""
        return self._line("validate", self.run.nir, "--against", self.run.path)

    @property
    def energy(self) -> str:
        """Makes energy.json."""
        return self._line("energy", self.run.nir, "--against", self.run.path)

    @property
    def report(self) -> str:
        """Makes report.html."""
        return self._line("report", self.run.path)


def read_results(run: Run) -> Results:
    """Read everything there is in a finished run.

    Raises:
        UsageError: not a run, not finished, or its configuration is not valid.
        InputFileError: a file is damaged or of another version.
    """
    run = find_run(run.path)
    commands = Commands(run)

    def again(command: str) -> str:
        return f"make it again with '{command}'"

    return Results(
        run=run,
        config=run.config(),
        config_text=run.config_file.read_text(encoding="utf-8"),
        epochs=_read_epochs(run.metrics),
        environment=_read(run.environment, Environment, "delete it to report without it"),
        evaluation=_read(run.evaluation, Evaluation, again(commands.evaluate)),
        validation=_read(run.validation, ValidationResult, again(commands.validate)),
        energy=_read(run.energy, EnergyResult, again(commands.energy)),
        graph=open_nir(run.nir) if run.nir.exists() else None,
    )


Document = TypeVar("Document", bound=_Document)


def _read(path: Path, kind: type[Document], remedy: str) -> Document | None:
    if not path.exists():
        return None
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputFileError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise InputFileError(f"{path} {_fault(error)}; {remedy}") from error


def _read_epochs(path: Path) -> list[Epoch]:
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputFileError(f"cannot read {path}: {error.strerror}") from error
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            epochs.append(Epoch.model_validate_json(line))
        except ValidationError as error:
            raise InputFileError(
                f"{path}, line {number}, {_fault(error)}; delete that line, or the file to report "
                "without learning curves"
            ) from error
    return epochs


def _fault(error: ValidationError) -> str:
    """What is wrong with a file, in words that follow its name."""
    problems = error.errors(include_url=False)
    for problem in problems:
        if problem["loc"] == ("schema_version",):
            given = problem["input"]
            if problem["type"] == "literal_error":
                return f"has schema_version {given!r}, this version of tser reads 1"
            return "states no schema_version"
    first = problems[0]
    if first["type"] == "json_invalid":
        return "is damaged: it is not JSON"
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"is damaged: {f'{where}: ' if where else ''}{message}"
