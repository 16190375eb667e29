"""What the files of a run hold, as typed models; keys that the report does not need may come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Mean = Annotated[float, Field(ge=0)]
OMITTABLE = "x-omittable"
"""Marks a field, for `deploy.schemas`, that is left out of a document where it does not apply."""


def omittable(**bounds: Any) -> Any:
    """A field that a document may lack: None is then what it holds."""
    return Field(default=None, json_schema_extra={OMITTABLE: True}, **bounds)


class Part(BaseModel):
    """What every value is: checked, and never changed."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="ignore",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Document(Part):
    """A JSON file as a whole; each kind reads one ``schema_version``."""

    schema_version: int
    """Of this kind of document; another one is refused."""


def as_long_as(timesteps: int, values: list[Any]) -> None:
    """Refuse a list that has not one entry a step.

    Raises:
        ValueError: it has not.
    """
    if len(values) != timesteps:
        raise ValueError(f"{len(values)} values for {timesteps} timesteps")


class Measured(Document):
    """What is known of every measurement on the test set."""

    data: str
    """Name of the data set."""
    samples: Annotated[int, Field(ge=1)]
    """Images that were measured."""
    timesteps: Annotated[int, Field(ge=1)]
    """T; lists with one entry a step have so many."""

    def per_step(self) -> Iterator[list[Any]]:
        """Every list that has one entry a step."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _as_long_as_timesteps(self) -> Measured:
        for values in self.per_step():
            as_long_as(self.timesteps, values)
        return self


class Epoch(Part):
    """One line of metrics.jsonl: one epoch of training."""

    schema_version: Literal[1] = 1
    """Of the line."""
    phase: Literal["teacher", "student"]
    """Which of the two networks is trained."""
    epoch: int = Field(ge=1, le=10**9)
    """From 1."""
    loss: float
    """Mean over the training images; its terms follow, of a student."""
    ce: float | None = omittable()
    """Cross-entropy [nat]."""
    kl: float | None = omittable()
    """Divergence from the teacher [nat], without its weight."""
    entropy: float | None = omittable()
    """Entropy of the student's answers [nat], without its weight."""
    self_kl: float | None = omittable()
    """Divergence of each step from the mean of all [nat], without its weight."""
    train_accuracy: Share
    """Share of the training images, augmented as they were seen."""
    lr: Mean | None = omittable()
    """Learning rate of the last step."""
    data_wait: Share | None = omittable()
    """Share of the time that training waited for data."""
    timesteps: int | None = omittable(ge=1)
    """T of this epoch, of a student."""
    val_accuracy: Annotated[list[Share], Field(min_length=1)]
    """Share of the validation images after each step; one entry for a teacher."""
    seconds: Mean = 0.0
    """Time of the epoch [s]."""


class Environment(Document):
    """environment.json: versions and machine."""

    schema_version: Literal[1]
    python: str
    """Version."""
    platform: str
    """Operating system, its version and the architecture."""
    processor: str
    """Its name, where the system knows it, else the architecture."""
    cpus: int | None
    """Processors that the system has; null: not known."""
    packages: dict[str, str | None]
    """Versions by name; null: not installed."""
    command: list[str]
    """The command line."""


class LayerRate(Part):
    """Firing of one layer of the student."""

    name: str
    """As in the exported graph."""
    neurons: Count
    """How many."""
    firing_rate: Share
    """Spikes a neuron and step, mean over images."""
    firing_rate_per_step: list[Share]
    """The same of each step."""


class Exit(Part):
    """What stopping at a confidence gives."""

    threshold: Share
    """Confidence (softmax of the mean logits so far) at which an image stops."""
    accuracy: Share
    """Share of right answers."""
    mean_steps: Annotated[float, Field(ge=1)]
    """Steps that an image takes, mean over images."""


class Mistake(Part):
    """One test image that was taken for another class."""

    index: Count
    """Its position among the images, from 0."""
    true: Count
    """Its class, from 0."""
    predicted: Count
    """The class that it was taken for, from 0."""
    confidence: Share
    """Of that class, after all steps."""


class Evaluation(Measured):
    """eval.json; None is what an earlier version of tser did not write."""

    schema_version: Literal[1]
    run: str = ""
    """The run folder, as it was named."""
    split: Literal["test"] = "test"
    """Which images."""
    student_weights: str | None = None
    """SHA-256 that student.safetensors carried; null: it carried none."""
    accuracy: list[Share]
    """Share of right answers after step 1..T."""
    calibration_error: list[Share] | None = None
    """Expected calibration error after step 1..T."""
    early_exit: list[Exit] | None = None
    """Thresholds in rising order."""
    teacher_accuracy: Share | None
    """Null: the teacher's weights are not at hand, or are not trusted."""
    layers: list[LayerRate]
    """Spiking layers in execution order."""
    class_names: list[str] | None = None
    """By class."""
    confusion: list[list[Count]] | None = None
    """Images; row: true class, column: what it is taken for after all steps; null: too many."""
    mistakes: list[Mistake] | None = None
    """The most confident ones first."""

    @model_validator(mode="after")
    def _square(self) -> Evaluation:
        rows = self.confusion or []
        if any(len(row) != len(rows) for row in rows):
            raise ValueError("the confusion matrix is not square")
        if rows and sum(map(sum, rows)) != self.samples:
            raise ValueError(f"the confusion matrix does not hold {self.samples} samples")
        return self

    @model_validator(mode="after")
    def _exits_in_time(self) -> Evaluation:
        for point in self.early_exit or []:
            if point.mean_steps > self.timesteps:
                raise ValueError(f"{point.mean_steps:g} mean steps of {self.timesteps} timesteps")
        return self

    def per_step(self) -> Iterator[list[Any]]:
        """Every list that has one entry a step."""
        yield self.accuracy
        yield from [] if self.calibration_error is None else [self.calibration_error]
        yield from (layer.firing_rate_per_step for layer in self.layers)
