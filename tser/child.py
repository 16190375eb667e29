"""Work on untrusted files in a process of its own, which may be killed or run out of memory."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

WAITING = 4
"""Times as long as it may compute, a child may take: a busy machine lets it wait for its turn."""


def run_child(
    script: Path, arguments: Sequence[str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a script of ours by this Python, without the user's modules in its way.

    Args:
        script: it limits its memory itself, by one of the arguments.
        arguments: of the script.
        seconds: that it may compute; it may take `WAITING` times as long.

    Returns:
        The exit status and what it wrote.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    # -P: a module in the user's folder, or beside the script, must not be imported.
    command = [sys.executable, "-P", str(script), *arguments]
    environment = {
        **os.environ,
        # Every thread of a numeric library reserves address space, which is limited.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # HDF5 loads no library for a filter that a file asks for.
        "HDF5_PLUGIN_PRELOAD": "::",
    }
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
    ) as child:
        try:
            _limit_computing(child.pid, seconds)
            out, err = child.communicate(timeout=WAITING * seconds)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise subprocess.TimeoutExpired(command, seconds) from error
        except BaseException:
            child.kill()
            raise
    if child.returncode == -signal.SIGXCPU:
        raise subprocess.TimeoutExpired(command, seconds)
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def _limit_computing(process: int, seconds: float) -> None:
    # Elsewhere than on Linux the limit of time alone holds. It may have ended already.
    with suppress(ImportError, AttributeError, ProcessLookupError, PermissionError, ValueError):
        import resource

        whole = math.ceil(seconds)
        resource.prlimit(process, resource.RLIMIT_CPU, (whole, whole + 1))
