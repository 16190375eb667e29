"""Commands that are killed, or meet a full disk: each in a process forked from one that waits.

The server has imported everything and computed nothing, so a command starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests import processes
from tser.leftovers import is_leftover

_PRELOADED = (
    "h5py",
    "matplotlib.backends.backend_svg",
    "onnx.checker",
    "onnxruntime",
    "tser.cli.main",
    "tser.checkpoints",
    "tser.deploy.comparison",
    "tser.deploy.export_check",
    "tser.deploy.measure",
    "tser.deploy.memory_model",
    "tser.deploy.probing",
    "tser.deploy.report",
    "tser.deploy.run_graph",
    "tser.deploy.validation",
    "tser.distill",
    "tser.evaluate",
    "tser.export.export",
)


@dataclass(frozen=True)
class Job:
    """One command; its folders are absolute paths, neither within the other.

    Attributes:
        args: of ``tser``.
        folder: that it runs in.
        scratch: its TMPDIR.
        delay: seconds until it is killed; None: it is not.
        fatal: it dies before this event of its files, from 1; None: it does not.
        largest: bytes that a file of its may have; None: any number.
        stdout: where its data go.
    """

    args: Sequence[str]
    folder: str
    scratch: str
    delay: float | None = None
    fatal: int | None = None
    largest: int | None = None
    stdout: str = os.devnull


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        code: exit code, or minus the number of the signal that ended it.
        seconds: until then.
        stderr: what it said.
        events: seconds at which its files were touched, if it was neither killed nor died.
        writing: which of the events, from 1, were of temporary files beside results.
    """

    code: int
    seconds: float
    stderr: str
    events: list[float]
    writing: list[int]


class Server:
    """Runs jobs one at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def run(self, *args: str | Path, folder: Path, scratch: Path, **how: Any) -> Outcome:
        """Run ``tser ARGS``; ``how``: of `Job`."""
        self._connection.send(asdict(Job([*map(str, args)], str(folder), str(scratch), **how)))
        if not self._connection.poll(processes.TIMEOUT):
            raise TimeoutError(" ".join(map(str, args)))
        return Outcome(**self._connection.recv())


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A server, until the block ends."""
    ours, theirs = Pipe()
    process = processes.start(serve, theirs)
    theirs.close()
    try:
        yield Server(ours)
    finally:
        ours.close()
        assert processes.finish(process) == [0]


def serve(connection: Connection) -> None:
    """Run jobs until the other end is closed."""
    import importlib

    import torch

    for name in _PRELOADED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    from tser.export import nir_file

    nir_file.run_child = _forked_child
    while True:
        try:
            job = Job(**connection.recv())
        except EOFError:
            return
        connection.send(asdict(_run(job)))


def _run(job: Job) -> Outcome:
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as seen:
        started = time.monotonic()
        child = os.fork()
        if not child:
            _command(job, said.fileno(), seen.fileno(), started)
        if job.delay is not None:
            time.sleep(max(0.0, started + job.delay - time.monotonic()))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        seconds = time.monotonic() - started
        said.seek(0)
        seen.seek(0)
        events = json.loads(seen.read() or "[[], []]")
        text = said.read().decode(errors="replace")
        return Outcome(os.waitstatus_to_exitcode(status), seconds, text, *events)


def _command(job: Job, said: int, seen: int, started: float) -> None:
    code = 70
    try:
        os.dup2(os.open(job.stdout, os.O_WRONLY), 1)
        os.dup2(said, 2)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", closefd=False)
        os.environ["TMPDIR"], tempfile.tempdir = job.scratch, None
        os.chdir(job.folder)
        sys.argv = ["tser", *job.args]
        events, writing = _watch(job, started)
        if job.largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job.largest, resource.RLIM_INFINITY))
        from tser.cli.main import main

        try:
            main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        os.write(seen, json.dumps([events, writing]).encode())
    finally:
        os._exit(code)


def _watch(job: Job, started: float) -> tuple[list[float], list[int]]:
    """Take the times at which files below the job's folders are touched; die at one of them."""
    events: list[float] = []
    writing: list[int] = []
    ours = job.folder + os.sep, job.scratch + os.sep

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.chmod", "os.mkdir", "os.rmdir"):
            return
        if not isinstance(args[0], str | bytes):
            return
        path = Path.cwd() / os.fsdecode(args[0])
        if str(path).startswith(ours):
            events.append(time.monotonic() - started)
            if str(path).startswith(ours[0]) and any(map(is_leftover, (path, *path.parents))):
                writing.append(len(events))
            if len(events) == job.fatal:
                processes.die()

    sys.addaudithook(watch)
    return events, writing


def _forked_child(
    script: Path, arguments: Sequence[str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """`tser.child.run_child` for the parser of NIR, without starting a Python for each."""
    from tser.export import parse_child

    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            sys.stdout = os.fdopen(writer, "w")
            code = parse_child.main(*arguments[:2], str(2**40), arguments[3])
            sys.stdout.flush()
            os._exit(code)
        os._exit(71)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return subprocess.CompletedProcess(arguments, code, text, "")
