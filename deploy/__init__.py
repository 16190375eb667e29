"""Run exported graphs, check them spike by spike, count and price their operations."""

import os

# ONNX Runtime, from 1.31 on, reports its use to its makers, and keeps an identifier of the
# machine in the user's cache, unless it is told not to before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
