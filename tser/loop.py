"""The training loop of one model: epochs, checkpoints, metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import nn

from tser.checkpoints import (
    describe,
    describe_teacher,
    save_checkpoint,
    save_weights,
    training_facts,
)
from tser.config import RunConfig, TrainConfig
from tser.data import ImageData, Split
from tser.data.batch import Batch
from tser.data.feed import TrainingFeed, batches_in_order
from tser.data.images import static
from tser.data.waiting import DataWait, describe_wait
from tser.distributed import current_share, gather, spread
from tser.errors import InputFileError, TserError, UsageError
from tser.metrics import correct_per_step
from tser.metrics_log import MetricsLog
from tser.optim import learning_rate, make_optimizer
from tser.progress import Reporter
from tser.runs import Run
from tser.step import (
    NotFinite,
    Phase,
    Tally,
    accumulate_gradients,
    check_finite,
    clip_gradients,
    is_out_of_memory,
    out_of_memory,
)
from tser.stopping import Stopped, Watch, stopping

Keep = Callable[[int, Tally], None]
"""(batches of this epoch done, their sums): writes a checkpoint within an epoch."""


def fit(
    phase: Phase, data: ImageData, config: RunConfig, run: Run, state: dict[str, Any] | None
) -> None:
    """Train one model to the end, with a checkpoint and a row of metrics after every epoch.

    All processes of a run call this; the first one writes. SIGINT and SIGTERM end it after the step
    that is being done, with a checkpoint.

    Args:
        phase: what to train.
        data: on what.
        config: how.
        run: where the files go.
        state: a checkpoint; it is continued if it is of this phase.

    Raises:
        InputFileError: the checkpoint is of another network.
        UsageError: there are too few images for the processes.
        TserError: the loss is no longer finite, or memory has run out.
        Stopped: it was asked to; ``tser.stopping`` says by whom and how.
    """
    train, share = config.train, current_share()
    optimizer = make_optimizer(phase.model, train, phase.lr)
    first, done, tally = _restore(phase, optimizer, run, state)

    def keep(epoch: int, step: int, tally: Tally) -> None:
        tallies = gather(tally.plain())
        if share.rank == 0:
            if phase.save:
                phase.save()
            save_checkpoint(
                {
                    "run": training_facts(config, data) | {"teacher": phase.taught_by},
                    "phase": phase.name,
                    "epoch": epoch,
                    "step": step,
                    "tallies": tallies,
                    "model": phase.model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
                run.checkpoint,
            )
        gather(None)  # who leaves next may end them all: torchrun does that

    per_epoch = len(make_feed(phase, data, config, first))
    if per_epoch == 0:
        raise UsageError(
            f"{len(data.train)} training images are too few for {share.world} processes: "
            "batch norm needs two for each"
        )
    steps = phase.epochs * per_epoch, first * per_epoch + done
    quiet, wait = share.rank > 0, DataWait()
    with (
        MetricsLog(run, tensorboard=train.tensorboard and not quiet) as log,
        Reporter(phase.name, *steps, quiet=quiet) as reporter,
        stopping() as watch,
    ):
        for epoch in range(first, phase.epochs):
            started = time.monotonic()
            row = train_epoch(
                phase,
                optimizer,
                data,
                config,
                epoch,
                reporter,
                done=done,
                tally=tally,
                keep=partial(keep, epoch),
                wait=wait,
                watch=watch,
            )
            try:
                row["val_accuracy"] = _validate(phase, data, train, watch)
            except Stopped:
                keep(epoch, per_epoch, tally)
                raise
            done, tally = 0, Tally()
            row |= {"phase": phase.name, "epoch": epoch + 1, "seconds": time.monotonic() - started}
            if share.rank == 0:
                log.write(row)
            shown = {key: value for key, value in row.items() if isinstance(value, float)}
            shown["val_accuracy"] = row["val_accuracy"][-1]
            del shown["seconds"], shown["lr"], shown["data_wait"]
            reporter.epoch(epoch + 1, phase.epochs, shown)
            keep(epoch + 1, 0, tally)
            if watch.agree():
                raise Stopped
        if first < phase.epochs:
            device = next(phase.model.parameters()).device
            longest = max(gather(wait), key=lambda waited: waited.share)
            reporter.note(describe_wait(longest, data, config.data, device))
        if share.rank == 0:
            if phase.name == "teacher":
                save_weights(phase.model, run.teacher, describe_teacher(config))
            else:
                about = describe(config, data) | {"teacher": phase.taught_by}
                save_weights(phase.model, run.student, about)
        if watch.agree():
            raise Stopped


def _restore(
    phase: Phase, optimizer: torch.optim.Optimizer, run: Run, state: dict[str, Any] | None
) -> tuple[int, int, Tally]:
    """Continue from ``state``; returns epochs done, batches of the next one done, their sums."""
    if state is None or state["phase"] != phase.name:
        return 0, 0, Tally()
    share, tally = current_share(), Tally()
    try:
        phase.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        # As many processes as before get each its own sums back, so that rounding is the same.
        for plain in state.get("tallies", [])[share.rank :: share.world]:
            tally.add(Tally(**plain))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputFileError(
            f"{run.checkpoint} is of another network than the configured {phase.name}; "
            "delete it to train this phase from its start"
        ) from error
    return state["epoch"], state.get("step", 0), tally


def make_feed(phase: Phase, data: ImageData, config: RunConfig, epoch: int) -> TrainingFeed:
    """The batches of this process in one epoch.

    Order and augmentation depend on seed, phase and epoch alone, so a resumed run repeats them.
    """
    seed = config.train.seed * 1_000_003 + epoch * 2 + (phase.name == "student")
    device = next(phase.model.parameters()).device
    return TrainingFeed(data, config.data, config.train.batch_size, seed, current_share(), device)


def train_epoch(
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    data: ImageData,
    config: RunConfig,
    epoch: int,
    reporter: Reporter,
    *,
    done: int = 0,
    tally: Tally | None = None,
    keep: Keep | None = None,
    wait: DataWait | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train for one epoch; returns its row of metrics.

    Among them is "data_wait", the share of the time, 0..1, that went into waiting for the next
    batch, in the process that waited longest.

    Args:
        phase: what to train.
        optimizer: of its parameters.
        data: on what.
        config: how.
        epoch: which, from 0.
        reporter: told of every step.
        done: batches that were trained on before the interruption.
        tally: their sums.
        keep: called after every ``checkpoint_steps`` batches, and before it stops.
        wait: the time of this epoch is added to it.
        watch: says whether to stop.

    Raises:
        TserError: the loss is no longer finite, or memory has run out.
        Stopped: ``watch`` said so.
    """
    train = config.train
    feed = make_feed(phase, data, config, epoch)
    tally = tally or Tally()
    timesteps = _timesteps(phase, train, epoch)
    phase.model.train()
    number, spent = done, DataWait()

    def rate(number: int) -> float:
        progress = epoch + number / len(feed)
        return learning_rate(phase.lr, progress, phase.epochs, train.warmup_epochs)

    lr = rate(done - 1) if done else 0.0  # where only the validation is left to be done
    try:
        with closing(feed.starting_at(done)) as batches:
            for number, batch in enumerate(spent.over(batches), done):
                if timesteps != phase.timesteps:
                    batch = batch.still()  # one step sees the mean of all frames
                if train.channels_last:
                    batch = batch.channels_last()
                lr = rate(number)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                _seed_step(phase, train.seed, epoch, number)
                tally.add(_optimise(phase, optimizer, batch, train))
                reporter.step()
                steps = number + 1
                due = train.checkpoint_steps and steps % train.checkpoint_steps == 0
                kept = keep is not None and due and steps < len(feed)
                if keep and kept:
                    keep(steps, tally)
                if watch and watch.poll():
                    if keep and not kept:
                        keep(steps, tally)
                    raise Stopped
        # The last step has no next loss to show what it did, and its weights are what is saved.
        spread(phase.model, parameters=False)
        state = phase.model.state_dict().values()
        finite = all(bool(value.isfinite().all()) for value in state)
        check_finite({"weights": 0.0 if finite else math.nan})
    except NotFinite as error:
        key = "teacher.lr" if phase.name == "teacher" else "train.lr"
        raise TserError(
            f"training the {phase.name} broke in epoch {epoch + 1}, step {number + 1}: "
            f"'{error}' is not finite; lower the learning rate (--set {key}=…) and train again"
        ) from error
    if wait:
        wait.add(spent)
    whole = Tally()
    for part in gather(tally):
        whole.add(part)
    row = whole.means() | {"lr": lr, "data_wait": max(gather(spent.share))}
    return row | ({} if timesteps is None else {"timesteps": timesteps})


def _optimise(
    phase: Phase, optimizer: torch.optim.Optimizer, batch: Batch, train: TrainConfig
) -> Tally:
    """One step of the optimiser."""
    optimizer.zero_grad(set_to_none=True)
    try:
        tally = accumulate_gradients(phase, batch, train.accumulate)
        if train.clip_norm:
            norm = clip_gradients(phase.model, train.clip_norm)
            tally.totals["grad_norm"] = norm * tally.seen
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return tally
    # Here, not above: what the failed step held is free once its error is forgotten.
    raise out_of_memory(phase, train, batch)


def _timesteps(phase: Phase, train: TrainConfig, epoch: int) -> int | None:
    """T of a student in this epoch, which is set in the model; None for a teacher."""
    if phase.timesteps is None:
        return None
    timesteps = 1 if epoch < train.curriculum_epochs else phase.timesteps
    phase.model.timesteps = timesteps  # type: ignore[assignment]
    return timesteps


def _seed_step(phase: Phase, seed: int, epoch: int, number: int) -> None:
    """Make the randomness inside a network (dropout) a function of the step and the process."""
    place = [seed, epoch, phase.name == "student", number, current_share().rank]
    torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))


def _validate(phase: Phase, data: ImageData, train: TrainConfig, watch: Watch) -> list[float]:
    """Accuracy on the validation split, of the network as it will be used: all T steps, float32."""
    if phase.timesteps is not None:
        phase.model.timesteps = phase.timesteps  # type: ignore[assignment]
    held = train.batch_size // current_share().world // train.accumulate
    still = phase.timesteps is None
    return accuracy(phase.model, data, data.val, held, still=still, watch=watch)


def accuracy(
    model: nn.Module,
    data: ImageData,
    split: Split,
    batch_size: int,
    *,
    still: bool = False,
    watch: Watch | None = None,
) -> list[float]:
    """Accuracy after each step (one entry for a teacher), shared out among the processes.

    Args:
        model: on its device, the same in every process.
        data: the set that ``split`` belongs to.
        split: which images.
        batch_size: of training; four times as many fit here, where no gradient is taken.
        still: show the mean of the frames instead of the frames.
        watch: says whether to stop.

    Raises:
        Stopped: ``watch`` said so.
    """
    device, share = next(model.parameters()).device, current_share()
    model.eval()
    mine = split
    if share.world > 1:
        mine = split.select(torch.arange(share.rank, len(split), share.world))
    correct: list[int] = []
    held = 4 * batch_size
    common = len(split) // share.world // held  # batches that every process has
    if watch:
        watch.restart()
    batches = batches_in_order(data, mine, held, device=device)
    with torch.inference_mode(), closing(batches):
        for number, (images, labels) in enumerate(batches):
            logits = model(static(images) if still else images)
            logits = logits if logits.ndim == 3 else logits.unsqueeze(0)
            right = correct_per_step(logits.cpu(), labels).tolist()
            correct = [a + b for a, b in zip_longest(correct, right, fillvalue=0)]
            if watch and (number < common or share.world == 1) and watch.poll():
                raise Stopped
    sums = [sum(counts) for counts in zip_longest(*gather(correct), fillvalue=0)]
    return [count / len(split) for count in sums]
