"""What the files of a run hold, as typed models; keys that the report does not need may come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Mean = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    """What every value is: checked, and never changed."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class Document(Part):
    """A JSON file as a whole; each kind reads one ``schema_version``."""

    schema_version: int


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
    samples: Annotated[int, Field(ge=1)]
    timesteps: Annotated[int, Field(ge=1)]

    def per_step(self) -> Iterator[list[Any]]:
        """Every list that has one entry a step."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _as_long_as_timesteps(self) -> Measured:
        for values in self.per_step():
            as_long_as(self.timesteps, values)
        return self


class Epoch(Part):
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

    schema_version: Literal[1]
    python: str
    platform: str
    processor: str
    cpus: int | None
    packages: dict[str, str | None]
    command: list[str]


class LayerRate(Part):
    """Firing of one layer of the student."""

    name: str
    neurons: Count
    firing_rate: Share
    firing_rate_per_step: list[Share]


class Exit(Part):
    """What stopping at a confidence gives."""

    threshold: Share
    accuracy: Share
    mean_steps: Annotated[float, Field(ge=1)]


class Mistake(Part):
    """One test image that was taken for another class."""

    index: Count
    true: Count
    predicted: Count
    confidence: Share


class Evaluation(Measured):
    """eval.json; None is what an earlier version of tser did not write."""

    schema_version: Literal[1]
    split: Literal["test"] = "test"
    accuracy: list[Share]
    calibration_error: list[Share] | None = None
    early_exit: list[Exit] | None = None
    teacher_accuracy: Share | None
    layers: list[LayerRate]
    class_names: list[str] | None = None
    confusion: list[list[Count]] | None = None
    """Row: true class; column: what it is taken for after all steps."""
    mistakes: list[Mistake] | None = None

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
