"""Try an ONNX model from a file where it can do no harm, before this process loads it.

A model that is valid ONNX can ask ONNX Runtime for any amount of memory or time, or end the
process that runs it. So a model that was read from a file first runs on one sample of zeros in a
process of its own, with limits on both.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import onnx

from tser.child import run_child
from tser.errors import InputFileError
from tser.export.onnx_external import too_large
from tser.export.onnx_file import session_source
from tser.files import scratch

SCRIPT = Path(__file__).with_name("trial_child.py")
TIME_LIMIT = 30.0
"""Seconds that loading and one sample may compute, plus one for every 5 MB of the model."""
MEMORY_LIMIT = 4 * 1024**3
"""Bytes of address space that they may use beyond eight times the model."""


def tried(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """``model``, once it has run.

    Args:
        model: read from ``path``.
        path: for messages.

    Raises:
        InputFileError: it does not load, does not run, ends its process, or asks for more time or
            memory than a model of its size needs.
    """
    with scratch() as folder, session_source(model) as content:
        source = folder / "model.onnx"
        if isinstance(content, bytes):
            source.write_bytes(content)
        else:
            source = Path(content)
        size = 2**31 if too_large(model) else source.stat().st_size
        limit = MEMORY_LIMIT + 8 * size
        try:
            child = run_child(SCRIPT, [str(source), str(limit)], TIME_LIMIT + size / 5e6)
        except subprocess.TimeoutExpired as error:
            raise InputFileError(
                f"ONNX Runtime cannot run {path}: it did not end in {error.timeout:.0f} s with "
                "one sample"
            ) from error
    if child.returncode != 0:
        reason = child.stdout.strip().splitlines()
        text = reason[-1] if reason else f"it ended ONNX Runtime with status {child.returncode}"
        raise InputFileError(f"ONNX Runtime cannot run {path}: {text[:160]}")
    return model
