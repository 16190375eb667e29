"""Training in the several processes that ``torchrun`` has started, one for each GPU.

Without torchrun there is one process, it is the first, and nothing here does anything. Only the
first process reads and writes the run folder, so that machines need not share a disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tser.config import TrainConfig
from tser.data.feed import ALONE, Share
from tser.errors import TserError, UsageError

R = TypeVar("R")

_wrappers: WeakSet[DistributedDataParallel] = WeakSet()
_PAUSE = 0.2
"""Seconds, of which gloo's threads need some millionths."""
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def process_group() -> Iterator[Share]:
    """Join the other processes for the length of the block; inside another one, only say which.

    Raises:
        TserError: another process of the run has stopped.
    """
    launched = all(name in os.environ for name in _LAUNCHED) and os.environ["WORLD_SIZE"] != "1"
    if dist.is_initialized() or not launched:
        yield current_share()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield current_share()
    except BaseException as error:
        # NCCL waits for the others when it is asked to end in order.
        if torch.cuda.is_available() and dist.group.WORLD is not None:
            dist.group.WORLD.abort()
        if isinstance(error, RuntimeError) and _connection_lost(error):
            raise TserError(
                "another process of this run has stopped, which ends this one too; "
                "its own message says why"
            ) from error
        raise
    finally:
        _let_go()
        dist.destroy_process_group()


def _let_go() -> None:
    """Take the group from the wrappers of `parallel`, which an error's frames may keep alive.

    As its last owner a wrapper would end the group while it holds Python's lock, which a thread of
    gloo may be waiting for to let go of the tensors of the last exchange: neither would go on.
    ``destroy_process_group`` gives the lock up for that, since PyTorch 2.8 (its pull request
    154976); before, those threads are given time.
    """
    for wrapper in _wrappers:
        wrapper.reducer = wrapper.logger = None  # type: ignore[assignment]
    if torch.__version__ < "2.8":
        time.sleep(_PAUSE)


def _connection_lost(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text


def current_share() -> Share:
    """Which of how many processes this is."""
    if not dist.is_initialized():
        return ALONE
    return Share(dist.get_rank(), dist.get_world_size())


def first(action: Callable[[], R]) -> R:
    """Run ``action`` in the first process only; every process gets what it returned.

    If it fails there it raises there, and the other processes leave with its exit code, silently:
    one message is enough.
    """
    share = current_share()
    if share.world == 1:
        return action()
    box: list[Any] = [None, None]
    failure: Exception | None = None
    if share.rank == 0:
        try:
            box[0] = action()
        except Exception as error:  # noqa: BLE001 - raised below, when the others know
            failure = error
            box[1] = getattr(error, "exit_code", 1)
    dist.broadcast_object_list(box, src=0)
    if failure is not None:
        raise failure
    if box[1] is not None:
        raise SystemExit(box[1])
    result: R = box[0]
    return result


def gather(value: R) -> list[R]:
    """The ``value`` of every process, by rank; a plain object, not a tensor."""
    share = current_share()
    if share.world == 1:
        return [value]
    values: list[Any] = [None] * share.world
    dist.all_gather_object(values, value)
    return values


def largest(*values: float) -> list[float]:
    """The largest of each of the ``values`` over all processes."""
    found = torch.tensor(values, dtype=torch.float64)
    if current_share().world > 1:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    result: list[float] = found.tolist()
    return result


@torch.no_grad()
def spread(module: nn.Module, *, parameters: bool = True) -> None:
    """Copy the first process's state of ``module`` to all others.

    Args:
        module: the same network in every process.
        parameters: the whole state; otherwise only buffers such as batch-norm statistics.
    """
    if current_share().world == 1:
        return
    tensors = module.state_dict().values() if parameters else module.buffers()
    for tensor in tensors:
        whole = tensor.contiguous()  # not so if the channels are innermost
        dist.broadcast(whole, src=0)
        tensor.copy_(whole)


def parallel(model: nn.Module, train: TrainConfig) -> nn.Module:
    """``model`` behind a wrapper that averages gradients over the processes.

    Args:
        model: on its device; with ``sync_bn`` its batch norms are replaced in place.
        train: how it is trained.

    Returns:
        The wrapper, or ``model`` itself where there is one process.
    """
    if current_share().world == 1:
        return model
    device = next(model.parameters()).device
    if train.sync_bn:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    wrapper = DistributedDataParallel(model, [device] if device.type == "cuda" else None)
    _wrappers.add(wrapper)
    return wrapper


def unsynchronised(network: nn.Module) -> AbstractContextManager[None]:
    """A block in which gradients stay in this process, to be averaged with later ones."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


def check_share(train: TrainConfig, share: Share) -> None:
    """Refuse a batch that cannot be split evenly, with two images for each forward pass.

    Raises:
        UsageError: the batch size does not fit the number of processes.
    """
    size, world = train.batch_size, share.world
    if size % world:
        near = max(size // world, 1) * world
        raise UsageError(
            f"train.batch_size = {size} is over all processes and cannot be split over {world}; "
            f"use {near} or {near + world}"
        )
    if size // world < 2 * train.accumulate:
        raise UsageError(
            f"train.batch_size = {size} over {world} processes and train.accumulate = "
            f"{train.accumulate} leaves fewer than two images at a time; use at least "
            f"{2 * world * train.accumulate}"
        )


def own_device(name: str) -> str:
    """The device of this process, where ``name`` is that of the configuration.

    Raises:
        UsageError: one device for several processes, or more processes than GPUs.
    """
    share = current_share()
    if share.world == 1 or name == "cpu":
        return name
    if name not in ("auto", "cuda"):
        raise UsageError(
            f"train.device = {name!r} is one device, and there are {share.world} processes; "
            "use cuda, cpu or auto"
        )
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    local, count = int(os.environ.get("LOCAL_RANK", share.rank)), torch.cuda.device_count()
    if local >= count:
        raise UsageError(
            f"there is no GPU for process {local + 1} on this machine, which has {count}; "
            "use --nproc-per-node with the number of GPUs, or --device cpu"
        )
    return f"cuda:{local}"
