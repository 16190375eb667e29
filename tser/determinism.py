"""Training that gives the same bits every time, or says what stands in the way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tser.errors import TserError, UsageError

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Let torch use deterministic operations only, for the length of the block.

    Args:
        enabled: false does nothing.

    Raises:
        TserError: an operation has no deterministic form on this device.
        UsageError: the environment asks cuBLAS for something else.
    """
    if not enabled:
        yield
        return
    cudnn = torch.backends.cudnn
    mode = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    given = os.environ.get(_CUBLAS)
    os.environ.setdefault(_CUBLAS, ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        explained = _explained(error)
        if explained is None:
            raise
        raise explained from error
    finally:
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
            "network or device, or train without --deterministic"
        )
    if _CUBLAS in text:
        return UsageError(
            f"{_CUBLAS} = {os.environ.get(_CUBLAS)} is not deterministic; unset it or use :4096:8, "
            "or train without --deterministic"
        )
    return None
