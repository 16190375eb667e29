"""Work on untrusted files in a process of its own, which may be killed or run out of memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_child(
    script: Path, arguments: Sequence[str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a script of ours by this Python, without the user's modules in its way.

    Args:
        script: it limits its memory itself, by one of the arguments.
        arguments: of the script.
        seconds: that it may take.

    Returns:
        The exit status and what it wrote.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    return subprocess.run(
        # -P: a module in the user's folder, or beside the script, must not be imported.
        [sys.executable, "-P", str(script), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env={
            **os.environ,
            # Every thread of a numeric library reserves address space, which is limited.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # HDF5 loads no library for a filter that a file asks for.
            "HDF5_PLUGIN_PRELOAD": "::",
        },
        timeout=seconds,
        check=False,
    )
