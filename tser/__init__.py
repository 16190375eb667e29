"""Distil spiking networks, export them to NIR and ONNX, and check what was exported."""

__version__ = "0.1.0"
