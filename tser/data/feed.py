"""How the images reach a model: training in shuffled batches, other splits once in order.

Where images are costly to prepare (decoded from files, AutoAugment), processes of their own
prepare whole batches ahead. What a batch holds does not depend on their number.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tser.augment import Draws, cutout, draw, view_numbers
from tser.config import DataConfig
from tser.data.batch import Batch
from tser.data.images import ImageData, Split, time_first
from tser.errors import TserError, UsageError
from tser.interrupt import SIGNALS

_CPU = torch.device("cpu")
_AHEAD = 2  # batches that each process prepares before they are asked for
_SIGNALS = frozenset(SIGNALS)


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process trains on.

    Attributes:
        rank: of this process, 0..world - 1.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1


ALONE = Share()


def batch_positions(
    size: int, batch_size: int, generator: torch.Generator, share: Share = ALONE
) -> list[Tensor]:
    """Positions of this process's images in every batch of one epoch, each image at most once.

    All processes get equally many of each batch, so that the mean of their gradients is that of
    the whole batch. A last batch is left out where it has not two images for each of them:
    batch norm cannot train on one.

    Args:
        size: of the training split.
        batch_size: images a batch, over all processes.
        generator: source of the order.
        share: of this process.
    """
    batches = []
    for index in torch.randperm(size, generator=generator).split(batch_size):
        even = len(index) // share.world * share.world
        if even >= 2 * share.world or size == 1:
            batches.append(index[share.rank : even : share.world])
    return batches


class TrainingFeed:
    """One epoch of augmented training batches; the same for the same arguments.

    Args:
        data: its training split is shown, and its number of workers prepares it.
        config: how to augment.
        batch_size: images a batch, over all processes.
        seed: of order and augmentation.
        share: of this process.
        device: where the batches are normalised and handed out.
    """

    def __init__(
        self,
        data: ImageData,
        config: DataConfig,
        batch_size: int,
        seed: int,
        share: Share = ALONE,
        device: torch.device = _CPU,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._data, self._config, self._device = data, config, device
        self._positions = batch_positions(len(data.train), batch_size, generator, share)
        self._draws = draw(len(data.train), config, generator)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._positions)

    def __iter__(self) -> Iterator[Batch]:
        """Batches in the order of the epoch; errors as for `starting_at`."""
        return self.starting_at(0)

    def starting_at(self, first: int) -> Generator[Batch, None, None]:
        """Batches from number ``first`` (from 0) on; those before it are not prepared.

        Raises:
            InputFileError: an image file is damaged.
            TserError: a process that prepares images has died.
        """
        data, rest = self._data, self._positions[first:]
        source = _Augmented(data.train, rest, self._draws, self._config)
        made = _in_order(source, data.workers, self._device)
        for positions, images in zip(rest, made, strict=True):
            draws = self._draws.select(positions)
            normal = cutout(data.normalise(images), draws, self._config.cutout)
            labels = data.train.labels[positions].to(self._device)
            views = None if data.train.lazy else view_numbers(positions, draws, self._config)
            yield Batch(time_first(normal), labels, views)


def batches_in_order(
    data: ImageData,
    split: Split,
    batch_size: int,
    samples: int | None = None,
    device: torch.device = _CPU,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Every image of ``split`` once, as it is.

    Yields normalised images, float32 ``[B, C, H, W]`` or, for frames, ``[T, B, C, H, W]``, on
    ``device``, and labels, int64 ``[B]``, on the CPU.

    Args:
        data: the set that ``split`` belongs to.
        split: what to show.
        batch_size: B.
        samples: only the first so many; None: all.
        device: where the images are normalised.

    Raises:
        InputFileError: an image file is damaged.
        TserError: a process that prepares images has died.
    """
    count = len(split) if samples is None else min(samples, len(split))
    positions = list(torch.arange(count).split(batch_size))
    workers = min(data.workers, len(positions)) if split.lazy else 0
    made = _in_order(_Plain(split, positions), workers, device)
    for at, images in zip(positions, made, strict=True):
        yield time_first(data.normalise(images)), split.labels[at]


def check_fits(data: ImageData, config: DataConfig) -> None:
    """Refuse an augmentation that these images cannot go through.

    Raises:
        UsageError: naming the setting.
    """
    channels, height, width = data.image_shape
    if not data.train.lazy and config.shift >= min(height, width):
        raise UsageError(
            f"data.shift = {config.shift} moves a {height}x{width} image out of itself; "
            "use a smaller shift"
        )
    if config.cutout >= min(height, width):
        raise UsageError(
            f"data.cutout = {config.cutout} can erase all of a {height}x{width} image; "
            "use a smaller square"
        )
    if config.auto_augment == "none":
        return
    wrong = ""
    if data.frames is not None:
        wrong = "samples of several frames"
    elif channels not in (1, 3):
        wrong = f"{channels} channels"
    elif data.max_value != 255:
        wrong = f"pixel values of 0..{data.max_value}"
    if wrong:
        raise UsageError(
            f"data.auto_augment = {config.auto_augment!r} changes images of 1 or 3 channels and "
            f"values of 0..255, and {data.name} has {wrong}; set it to 'none'"
        )


def check_timesteps(data: ImageData, timesteps: int) -> None:
    """Refuse a student whose number of steps is not that of the frames.

    Raises:
        UsageError: naming both.
    """
    if data.frames not in (None, timesteps):
        raise UsageError(
            f"student.timesteps is {timesteps} and the samples of {data.name} have {data.frames} "
            f"frames, one a step; set student.timesteps={data.frames}"
        )


class _Augmented(Dataset[Tensor | TserError]):
    """The training batches of an epoch before normalisation, by number.

    An error is returned, not raised: a worker's exception would arrive as a traceback.
    """

    def __init__(
        self, split: Split, positions: list[Tensor], draws: Draws, config: DataConfig
    ) -> None:
        self._split, self._positions, self._config = split, positions, config
        self._draws = draws

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, number: int) -> Tensor | TserError:
        positions = self._positions[number]
        draws = self._draws.select(positions)
        return _or_error(lambda: self._split.augmented_at(positions, draws, self._config))


class _Plain(Dataset[Tensor | TserError]):
    """The batches of a split as they are, by number; errors as for `_Augmented`."""

    def __init__(self, split: Split, positions: list[Tensor]) -> None:
        self._split, self._positions = split, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, number: int) -> Tensor | TserError:
        return _or_error(lambda: self._split.images_at(self._positions[number]))


def _or_error(make: Callable[[], Tensor]) -> Tensor | TserError:
    try:
        return make()
    except TserError as error:
        return error


def _in_order(source: _Augmented | _Plain, workers: int, device: torch.device) -> Iterator[Tensor]:
    """The batches of ``source`` on ``device``, made here or by ``workers`` processes.

    They are copied as they are stored: bytes are a quarter of the float32 that they become.
    """
    pinned = device.type == "cuda"
    batches = _loaded(source, workers, pinned) if workers else _made(source)
    # Closed at once: workers that the garbage collector ends take five seconds each to go.
    with contextlib.closing(batches):
        for batch in batches:
            if isinstance(batch, TserError):
                raise batch
            yield batch.to(device, non_blocking=pinned)


def _made(source: _Augmented | _Plain) -> Generator[Tensor | TserError, None, None]:
    for number in range(len(source)):
        yield source[number]


def _end_with_parent(worker: int) -> None:
    """In a process that prepares images: heed no signal to stop but that of its parent.

    Ctrl-C and schedulers send theirs to all processes, and the parent finishes its step first. It
    was forked with all of them blocked.
    """
    for number in _SIGNALS - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_await_end, args=(os.getppid(),), daemon=True).start()


def _await_end(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _loaded(
    source: _Augmented | _Plain, workers: int, pinned: bool
) -> Generator[Tensor | TserError, None, None]:
    with warnings.catch_warnings():
        # More of them than cores is for the user to decide.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader: DataLoader[Tensor | TserError] = DataLoader(
            source,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_AHEAD,
            pin_memory=pinned,
            # Its own, or starting the workers would draw from the generator of everybody else.
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_end_with_parent,
        )
        # The workers inherit the mask: a signal to all processes must not end one that has only
        # just been forked. Ours come when all are there.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            batches = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield from batches
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise TserError(
            "a process that prepares images has died, often for want of memory; "
            "use fewer (--set data.workers=…) or smaller batches"
        ) from error
