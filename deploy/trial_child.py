"""Load and run an ONNX model once: ``python -P trial_child.py MODEL MEMORY``.

MEMORY is the address space it may use, in bytes. The inputs are zeros, of one sample and few time
steps; a reason for failure goes to stdout as one line.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime

_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
_STEPS = 2


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows; the time limit still holds
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]  # may be lowered only
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _zeros(given: Any) -> Any:
    """A value for an input; a size that the model leaves open is 1, or T."""
    shape = [
        size if isinstance(size, int) else _STEPS if size == "T" else 1 for size in given.shape
    ]
    fill = _STEPS if given.name == "timesteps" else 0
    return np.full(shape, fill, _TYPES[given.type])


def main(source: str, memory: str) -> int:
    """Run the model in ``source``; returns the exit status."""
    _limit_memory(int(memory))
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        session.run(None, {given.name: _zeros(given) for given in session.get_inputs()})
    except KeyError as error:
        sys.stdout.write(f"it takes an input of type {error}\n")
        return 1
    except MemoryError:
        sys.stdout.write("it asks for more memory than a model of its size needs\n")
        return 1
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises any type
        text = " ".join(str(error).split())
        if "bad_alloc" in text or "Failed to allocate" in text:
            text = "it asks for more memory than a model of its size needs"
        sys.stdout.write(text[:200] + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
