"""What commands print with ``--json`` about runs, recipes and chips, as typed models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tser.config import RunConfig
from tser.deploy.documents_fit import FitDocument
from tser.deploy.report_energy_file import EnergyResult
from tser.deploy.report_files import (
    Count,
    Document,
    Environment,
    Epoch,
    Evaluation,
    Mean,
    Part,
)
from tser.deploy.report_validation_file import ValidationResult
from tser.deploy.target_files import Target

Size = Annotated[int, Field(ge=1)]


class PrintedEvaluation(Evaluation):
    """eval.json, and what ``tser eval --json`` and ``tser distill --json`` print."""

    split: Literal["test", "val"]  # type: ignore[assignment]  # eval.json: always the first
    """Which images; eval.json is of the test images."""


# --- tser distill --dry-run ------------------------------------------------------------------


class OutlookLayer(Part):
    """One layer that has parameters or neurons."""

    name: str
    """Path in the student."""
    kind: str
    """Class."""
    shape: list[Count]
    """Of its output: [T or 1, B, ...] of neurons, [T * B or B, ...] of others."""
    parameters: Count
    """How many."""


class OutlookCost(Part):
    """One training step of a network, scaled to the configured batch."""

    parameters: Count
    """How many."""
    state_bytes: Count
    """Parameters, their gradients and the optimiser's state [byte]."""
    kept_bytes: Count
    """Activations kept for the backward pass of one part of a batch [byte]."""
    step_seconds: Mean
    """Of one step [s]."""
    epoch_seconds: Mean
    """Of the steps of one epoch, without waiting for data [s]."""
    measured_on: Count
    """Images of the step that was measured."""
    epochs: Count
    """As configured."""


class OutlookDocument(Document):
    """What ``tser distill --dry-run --json`` prints."""

    schema_version: Literal[1]
    data: str
    """Name of the data set."""
    image_shape: list[Count]
    """[C, H, W]."""
    num_classes: Size
    """K."""
    training_images: Count
    """In an epoch."""
    loaded: bool
    """Whether the data set was read; otherwise the step saw random images."""
    timesteps: Size
    """T."""
    batch_size: Size
    """Images a step."""
    steps_per_epoch: Size
    """Optimisation steps."""
    layers: list[OutlookLayer]
    """Of the student, in execution order."""
    student: OutlookCost
    """Its cost."""
    teacher: OutlookCost | None
    """Its cost; null: it is not trained."""
    device: str
    """Where the step was taken."""
    loss: dict[str, float]
    """Of the step, by part."""
    compile: Literal["neuron", "step", "off"]
    """What of the student would be compiled, which the step was not."""
    low_memory: bool
    """Whether less would be kept for the backward pass than the step kept."""


# --- lists -----------------------------------------------------------------------------------


class TargetsDocument(Document):
    """What ``tser targets --json`` prints."""

    schema_version: Literal[2]
    targets: list[Target]
    """Chips and processes."""


class PresetsDocument(Document):
    """What ``tser presets --json`` and ``tser presets show NAME --json`` print."""

    schema_version: Literal[1]
    presets: dict[str, RunConfig]
    """Configurations by name, with every value."""


# --- tser report, tser compare ---------------------------------------------------------------


class ReportFile(Document):
    """What ``tser report --json`` prints."""

    schema_version: Literal[1]
    format: Literal["html", "md", "json", "csv"]
    """Of the file."""
    file: str
    """That was written."""


class ReportDocument(Document):
    """What ``tser report --format json`` writes: all measurements of a run."""

    schema_version: Literal[1]
    run: str
    """The folder."""
    config: dict[str, Any]
    """config.toml."""
    graph_digest: str | None
    """SHA-256 of the content of model.nir; null: not exported."""
    environment: Environment | None
    """Null: the run has no such file."""
    evaluation: PrintedEvaluation | None
    """eval.json; null: the run has no such file."""
    validation: ValidationResult | None
    """validation.json; null: the run has no such file."""
    energy: EnergyResult | None
    """energy.json; null: the run has no such file."""
    fit: FitDocument | None
    """On every chip; null: not exported."""
    epochs: list[Epoch]
    """metrics.jsonl."""


class CompareDocument(Document):
    """What ``tser compare --format json`` prints or writes."""

    schema_version: Literal[1]
    runs: list[ReportDocument]
    """As they were named."""
