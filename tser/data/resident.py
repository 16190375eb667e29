"""Where the images of a run are kept while it trains.

Sets of arrays are bytes in memory and are augmented a whole batch at a time. A GPU with room for
them holds them itself, so that nothing is left to copy and the augmentation runs there. Images
that are costly to prepare (decoded from files, AutoAugment), and arrays for which the GPU has no
room, are prepared by processes of their own and copied from pinned memory while it computes.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from tser.config import DataConfig
from tser.data.images import ArraySplit, ImageData

_MOST_WORKERS = 8
_SHARE = 4  # a data set may take one part in so many of the memory that is free


def usable_cores() -> int:
    """Cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


def default_workers() -> int:
    """Processes that prepare images: one a core, 8 at most."""
    return min(usable_cores(), _MOST_WORKERS)


def room_on(device: torch.device) -> int | None:
    """Bytes that a data set may take on ``device``; None where it has no memory of its own."""
    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] // _SHARE


def placed(data: ImageData, config: DataConfig, device: torch.device) -> ImageData:
    """``data`` where training on ``device`` reads it fastest; every value stays the same.

    Args:
        data: training and validation split are placed.
        config: section [data]; a number of workers given there is kept.
        device: to train on.

    Returns:
        The splits that fit on the device, the training split first; for arrays without room
        there, workers beside this process.
    """
    room = room_on(device)
    if room is None or data.workers or not isinstance(data.train, ArraySplit):
        return data
    if data.train.images.nbytes > room:
        return replace(data, workers=default_workers()) if config.workers < 0 else data
    room -= data.train.images.nbytes
    data = replace(data, train=_moved(data.train, device))
    if isinstance(data.val, ArraySplit) and data.val.images.nbytes <= room:
        data = replace(data, val=_moved(data.val, device))
    return data


def _moved(split: ArraySplit, device: torch.device) -> ArraySplit:
    return ArraySplit(split.images.to(device), split.labels)
