"""Processes of their own for tests: some kill themselves, some train together.

They are forked from a server that has imported everything and computed nothing, so that each
starts at once.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import Tensor, nn

from tser.config import RunConfig, TrainConfig
from tser.data import load_configured
from tser.data.batch import Batch
from tser.distill import distill, student_phase
from tser.distributed import first, parallel, process_group
from tser.loop import make_feed, train_epoch
from tser.models import make_run_student, make_run_teacher
from tser.progress import Reporter
from tser.runs import Run
from tser.step import Phase, accumulate_gradients

ROOT = Path(__file__).parents[1]
TIMEOUT = 120


def start(target: Callable[..., None], *args: Any) -> Any:
    """Run ``target``, a function of this module, in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.processes"])
    process = context.Process(target=target, args=args, daemon=True)
    with pytest.MonkeyPatch.context() as patch:  # where the server finds this module
        patch.setenv("PYTHONPATH", str(ROOT))
        process.start()
    return process


def finish(*processes: Any) -> list[int]:
    """Wait for all; returns their exit codes (minus the signal's number for a killed one)."""
    codes = []
    for process in processes:
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
        codes.append(process.exitcode)
        process.close()
    return codes


# --- killed --------------------------------------------------------------------------------


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def train(config: RunConfig, run: Run, resume: bool, fatal: int) -> None:
    """Train; before the run folder is touched for the ``fatal``-th time, die.

    What counts is every opening, renaming, removing or changing of a file in it.
    """
    torch.set_num_threads(1)
    folder, count = str(run.path) + os.sep, 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.chmod") and str(args[0]).startswith(
            folder
        ):
            count += 1
            if count == fatal:
                die()

    sys.addaudithook(watch)
    distill(config, run, resume=resume)


def train_until_half_a_checkpoint(config: RunConfig, run: Run, number: int) -> None:
    """Train; die when half of the ``number``-th checkpoint has been written."""
    torch.set_num_threads(1)
    save, count = torch.save, 0

    def save_half(state: Any, file: BinaryIO) -> None:
        nonlocal count
        save(state, file)
        count += 1
        if count == number:
            file.truncate(file.tell() // 2)
            die()

    torch.save = save_half
    distill(config, run)


# --- together ------------------------------------------------------------------------------


def together(world: int, target: Callable[..., None], *args: Any) -> list[int]:
    """Run ``target`` in ``world`` processes that find each other as those of torchrun do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return finish(*(start(_joined, rank, world, port, target, *args) for rank in range(world)))


def _joined(rank: int, world: int, port: int, target: Callable[..., None], *args: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    target(*args)


def distil(config: RunConfig, run: Run, resume: bool = False) -> None:
    """`tser.distill.distill` itself."""
    distill(config, run, resume=resume)


def gradients(config: RunConfig, path: Path) -> None:
    """Save the gradients of a student's first batch; batch norm uses its running statistics.

    They are first made those of the training images: with those of a new network nothing fires.
    """
    data = load_configured(config.data)
    torch.manual_seed(0)
    teacher, student = make_run_teacher(config, data), make_run_student(config, data)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    student(data.normalise(data.train.images_at(torch.arange(len(data.train)))))
    with process_group():
        phase = student_phase(config, student.eval(), teacher.eval())
        batch = next(iter(make_feed(phase, data, config, 0)))
        accumulate_gradients(phase, batch, config.train.accumulate)
        found = {name: value.grad for name, value in student.named_parameters()}
        first(lambda: torch.save(found, path))


def one_epoch(config: RunConfig, path: Path) -> None:
    """Train for an epoch; each process writes its row of metrics and its batch statistics."""
    data = load_configured(config.data)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    with process_group() as share:

        def step(batch: Batch) -> tuple[Tensor, dict[str, float], Tensor]:
            logits = model(batch.images)
            return logits.square().mean(), {"loss": 1.0 + share.rank}, logits.unsqueeze(0)

        phase = Phase("teacher", model, step, epochs=1, lr=0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Reporter("", 4, quiet=True) as reporter:
            row = train_epoch(phase, optimizer, data, config, 0, reporter)
    found = {"row": row, "mean": model[1].running_mean.tolist()}
    (path / str(share.rank)).write_text(json.dumps(found))


def one_fails(path: Path) -> None:
    """The last of two processes fails while the first waits for it; each writes what it raised."""
    rank = os.environ["RANK"]
    try:
        with process_group() as share:
            if share.rank == 1:
                raise ValueError("the reason")
            torch.distributed.all_reduce(torch.zeros(1))
    except Exception as error:  # noqa: BLE001 - the test judges it
        (path / rank).write_text(f"{type(error).__name__}: {error}")


def leave_with_an_error(path: Path) -> None:
    """Each writes whether a network that outlives the group still owns a part of it."""
    network: Any = None
    with contextlib.suppress(ValueError), process_group():
        network = parallel(nn.Linear(2, 2), TrainConfig())
        assert network.reducer is not None
        raise ValueError
    (path / os.environ["RANK"]).write_text(str(network.reducer))


def first_refuses(path: Path) -> None:
    """An action of the first process fails; each writes how it was told to leave."""

    def refuse() -> None:
        raise ValueError("only once")

    rank = os.environ["RANK"]
    try:
        with process_group():
            first(refuse)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the test judges it
        (path / rank).write_text(f"{type(error).__name__}: {error}")
