"""One optimisation step: the gradient of a batch, in pieces where memory asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tser.config import TrainConfig
from tser.data.batch import Batch
from tser.distributed import current_share, unsynchronised
from tser.errors import TserError

Step = Callable[[Batch], tuple[Tensor, dict[str, float], Tensor]]
"""A batch -> loss to minimise, its parts for the log, logits ``[T, B, K]``."""


@dataclass(frozen=True)
class Phase:
    """One model being trained.

    Attributes:
        name: "teacher" or "student".
        model: on its device.
        step: the loss of one batch, a mean over its samples.
        epochs: how many.
        lr: peak learning rate.
        timesteps: T of a student; None for a teacher.
        network: what ``step`` calls, where that is a wrapper of ``model`` for several processes.
        save: writes what ``step`` gathers for later; called before every checkpoint.
        taught_by: digest of the teacher, of a student; kept in its checkpoints.
    """

    name: str
    model: nn.Module
    step: Step
    epochs: int
    lr: float
    timesteps: int | None = None
    network: nn.Module | None = None
    save: Callable[[], None] | None = None
    taught_by: str = ""


@dataclass
class Tally:
    """Sums over the samples of an epoch so far, in this process.

    Attributes:
        seen: samples.
        correct: right answers after all steps.
        totals: each part of the loss times its samples.
    """

    seen: int = 0
    correct: int = 0
    totals: dict[str, float] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Add the sums of other samples."""
        self.seen += other.seen
        self.correct += other.correct
        for name, value in other.totals.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The parts of the loss and the accuracy, as means over all samples."""
        means = {name: value / self.seen for name, value in self.totals.items()}
        return means | {"train_accuracy": self.correct / self.seen}

    def plain(self) -> dict[str, Any]:
        """For a checkpoint; ``Tally(**plain)`` is its inverse."""
        return asdict(self)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into pieces of nearly equal size, of two samples at least: batch norm needs two.

    Args:
        batch: of B samples.
        parts: number of pieces; fewer where the samples do not suffice.
    """
    return batch.split(max(1, min(parts, len(batch) // 2)))


def accumulate_gradients(phase: Phase, batch: Batch, parts: int) -> Tally:
    """Add the gradient of the mean loss over a batch to ``.grad``.

    With several processes it is the mean over all their batches, which are of equal size.

    Args:
        phase: whose loss.
        batch: on the model's device.
        parts: pieces in which the batch goes through the network.

    Raises:
        NotFinite: a part of the loss is not finite; its gradient is not taken.
    """
    tally = Tally()
    pieces = split_batch(batch, parts)
    for number, piece in enumerate(pieces, 1):
        alone = phase.network is not None and number < len(pieces)
        with unsynchronised(phase.network) if alone and phase.network else nullcontext():
            loss, named, logits = phase.step(piece)
            check_finite(named)
            count = len(piece)
            (loss * (count / len(batch))).backward()
        # On the CPU: a sum over time has no deterministic form on a GPU.
        answers = logits.detach().float().cpu().sum(0).argmax(-1)
        correct = int((answers == piece.labels.cpu()).sum())
        tally.add(Tally(count, correct, {name: value * count for name, value in named.items()}))
    return tally


class NotFinite(Exception):
    """A number that has to be finite is not; the message is its name."""


def check_finite(values: dict[str, float]) -> None:
    """See to it that all of ``values`` are finite.

    Raises:
        NotFinite: names the first part that is not, before the loss that they add up to.
    """
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise NotFinite(next((name for name in broken if name != "loss"), broken[0]))


def clip_gradients(model: nn.Module, limit: float) -> float:
    """Scale the gradients down to a norm of at most ``limit``; returns their norm before.

    Raises:
        NotFinite: it is not finite.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
    check_finite({"gradient": norm})
    return norm


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory, of a GPU or of the machine, has run out."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def out_of_memory(phase: Phase, train: TrainConfig, batch: Batch) -> TserError:
    """The error to raise after a batch that did not fit; smaller pieces are tried for it.

    Args:
        phase: whose step ran out of memory.
        train: how the batch was split.
        batch: of this process.
    """
    world = current_share().world
    held = train.batch_size // world // train.accumulate
    text = f"out of memory when training the {phase.name} on {held} images at a time ("
    text += f"train.batch_size = {train.batch_size}"
    if world > 1:
        text += f" over {world} processes"
    if train.accumulate > 1:
        text += f" in {train.accumulate} parts"
    if phase.timesteps is not None:
        text += f", T = {phase.timesteps}"
    if phase.network is not None and phase.network is not phase.model:
        # Trying would need the other processes to try as well.
        return TserError(f"{text}); try --set train.accumulate={2 * train.accumulate}")
    fitting = _fitting_parts(phase, train.accumulate, batch)
    if fitting:
        share = -(-len(batch) // fitting)
        return TserError(f"{text}); {share} at a time fit: --set train.accumulate={fitting}")
    smaller = "a smaller network" if phase.timesteps is None else "a smaller student.timesteps"
    return TserError(f"{text}); not even 2 at a time fit: use {smaller} or smaller images")


def _fitting_parts(phase: Phase, parts: int, batch: Batch) -> int | None:
    """The smallest number of pieces, in doublings of ``parts``, with which a step fits."""
    most = len(batch) // 2
    while parts < most:
        parts = min(2 * parts, most)
        phase.model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            loss, _, _ = phase.step(split_batch(batch, parts)[0])
            loss.backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return parts
    return None
