"""How long training waits for its data, and what would shorten that."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from tser.config import DataConfig
from tser.data.batch import Batch
from tser.data.images import ArraySplit, ImageData
from tser.data.resident import default_workers, usable_cores

TOO_LONG, WORTH_IT = 0.05, 1.0
"""Share of the time, and the seconds, from which on advice is given."""


@dataclass
class DataWait:
    """Time that a training loop spends, of this process [s].

    Each step ends with numbers that the CPU reads, so that on a GPU too its own time tells: it is
    at most by the optimiser's last kernels too long, which run while the next batch is made.

    Attributes:
        waited: for the next batch.
        total: in all, without validation.
    """

    waited: float = 0.0
    total: float = 0.0

    @property
    def share(self) -> float:
        """Part of the time that was spent waiting, 0..1."""
        return self.waited / self.total if self.total else 0.0

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """``batches``; what passes before each is waiting, what passes after it is work."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            came = time.perf_counter()
            self.waited += came - asked
            self.total += came - asked
            if batch is None:
                return
            yield batch
            self.total += time.perf_counter() - came

    def add(self, other: DataWait) -> None:
        """Add the time of other steps."""
        self.waited += other.waited
        self.total += other.total


def describe_wait(wait: DataWait, data: ImageData, config: DataConfig, device: torch.device) -> str:
    """One line on the share of the time that went into waiting.

    Above 5 %, where it is a second at least, it says what to change.

    Args:
        wait: of a whole phase.
        data: where training found it.
        config: section [data].
        device: of the training.
    """
    text = f"{100 * wait.share:.1f} % of the time was spent waiting for data"
    long = wait.share > TOO_LONG and wait.waited >= WORTH_IT
    return f"{text}; {_advice(data, config, device)}" if long else text


def _advice(data: ImageData, config: DataConfig, device: torch.device) -> str:
    lazy, policy, cores = data.train.lazy, config.auto_augment != "none", usable_cores()
    if isinstance(data.train, ArraySplit) and data.train.images.device.type != "cpu":
        return "the images are on the GPU already: use larger batches (train.batch_size)"
    if not data.workers and not lazy and not policy and device.type == "cpu":
        # A worker hands out a third of what this process makes itself (benchmarks/data_feeding.py).
        return (
            "that is the augmentation itself, which on a CPU is part of the work and slower in "
            "workers; --set data.shift=0 without data.flip and data.cutout would spare it"
        )
    if data.workers < cores and not (data.workers == 0 and cores == 1):
        more = min(cores, max(default_workers(), 2 * data.workers))
        who = f"{data.workers} processes prepare" if data.workers else "this process prepares"
        return f"{who} the images, and there are {cores} cores: --set data.workers={more}"
    if lazy:
        return (
            f"decoding keeps all {cores} cores busy: scale the files down once to about "
            f"{round(config.size * 256 / 224)} pixels, put them on a faster disk, or use a smaller "
            "data.size"
        )
    if policy:
        return (
            f"AutoAugment keeps all {cores} cores busy: use a machine with more of them, or "
            "--set data.auto_augment=none with data.cutout"
        )
    return f"all {cores} cores are busy: use a machine with more of them"
