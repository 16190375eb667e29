"""Computing that gives the same bits every time, or says what stands in the way."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Final

from threadpoolctl import threadpool_limits

from tser.errors import TserError, UsageError

TIME_FIELDS: Final = MappingProxyType({"metrics.jsonl": ("seconds", "data_wait")})
"""Times that a run's files state, by file: all that may differ between two runs that were made by
the same commands with ``--deterministic`` on one machine, but for `UNCOMPARED`."""

UNCOMPARED: Final = frozenset({"checkpoint.pt", "tensorboard"})
"""What is no result: the state to continue from, and what TensorBoard shows, which holds times."""

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_active: ContextVar[bool] = ContextVar("deterministic", default=False)


def is_deterministic() -> bool:
    """Whether this is inside of a block of `deterministic`."""
    return _active.get()


def without_times(path: Path) -> bytes:
    """The content of a file of a run, without the times that it states (`TIME_FIELDS`)."""
    times = TIME_FIELDS.get(path.name, ())
    if not times:
        return path.read_bytes()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [{key: value for key, value in row.items() if key not in times} for row in rows]
    return "".join(json.dumps(row) + "\n" for row in kept).encode()


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let PyTorch and NumPy compute with so many threads, for the length of the block.

    Args:
        count: 0 leaves them as they are.
    """
    if not count:
        yield
        return
    import torch  # here, so that asking for help does not wait for it

    before = torch.get_num_threads()
    with threadpool_limits(count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def deterministic(enabled: bool, threads: int = 0) -> Iterator[None]:
    """Let torch use deterministic operations only, for the length of the block.

    How many threads share a sum decides its last bits, so their number is fixed too, whatever
    OMP_NUM_THREADS or a batch system say.

    Args:
        enabled: false does nothing but to set ``threads``.
        threads: of the CPU; 0: one if ``enabled``, else as many as there are.

    Raises:
        TserError: an operation has no deterministic form on this device.
        UsageError: the environment asks cuBLAS for something else.
    """
    with cpu_threads(threads or int(enabled)):
        if not enabled:
            yield
            return
        with _deterministic_torch():
            yield


@contextmanager
def _deterministic_torch() -> Iterator[None]:
    import torch

    cudnn = torch.backends.cudnn
    mode = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    given = os.environ.get(_CUBLAS)
    os.environ.setdefault(_CUBLAS, ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    token = _active.set(True)
    try:
        yield
    except RuntimeError as error:
        explained = _explained(error)
        if explained is None:
            raise
        raise explained from error
    finally:
        _active.reset(token)
        torch.use_deterministic_algorithms(mode, warn_only=warn)
        cudnn.deterministic, cudnn.benchmark = flags
        if given is None:
            os.environ.pop(_CUBLAS, None)


def _explained(error: RuntimeError) -> TserError | None:
    text = str(error)
    found = re.match(r"(\S+) does not have a deterministic implementation", text)
    if found:
        return TserError(
            f"the operation {found[1]} has no deterministic form on this device; use another "
            "network or device, or leave out --deterministic"
        )
    if _CUBLAS in text:
        return UsageError(
            f"{_CUBLAS} = {os.environ.get(_CUBLAS)} is not deterministic; unset it or use :4096:8, "
            "or leave out --deterministic"
        )
    return None
