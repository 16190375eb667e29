"""The measurements of ``interop.py``: our files in other libraries, and their graphs in tser."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporting
import nir
import norse.torch
import numpy as np
import torch
from document import Row
from torch import nn

from tser.config import NeuronConfig, StudentConfig
from tser.deploy.backends import NirBackend, Trace
from tser.deploy.equivalence import compare
from tser.deploy.foreign import FOREIGN, ForeignBackend
from tser.deploy.graph_file import open_nir
from tser.deploy.onnx_backend import OnnxBackend
from tser.errors import InputFileError
from tser.export.graph import Graph
from tser.export.lower import lower
from tser.export.nir_file import write_nir
from tser.export.onnx_file import compile_onnx
from tser.export.variants import Variant, vary
from tser.layers import Student
from tser.students import build_student
from tser.user_models import UserStudent

STEPS, BATCH, CLASSES = 4, 4, 10
OPTIONS = {
    "": Variant(),
    "--dt 1e-4": Variant(dt=1e-4),
    "--gain unit": Variant("unit"),
    "--gain unit --dt 1e-4": Variant("unit", 1e-4),
}
"""Of ``tser export`` -> what they make of a network."""
FITS = {"snntorch": "--dt 1e-4"}
"""Library -> options that it needs to read a file as it is meant; the others need none."""
KEPT = {
    "snntorch": ("snnTorch", "conv"),
    "snntorch_recurrent": ("snnTorch", "recurrent"),
    "spikingjelly": ("SpikingJelly", "conv"),
}
"""Fixtures: file -> library and network."""


def versions() -> dict[str, str]:
    """Of all libraries that take part."""
    found = {tool.title: importlib.metadata.version(tool.module) for tool in FOREIGN.values()}
    return found | {name: importlib.metadata.version(name) for name in ("nir", "torch")}


# --- our networks --------------------------------------------------------------------------


def boxes() -> UserStudent:
    """A user's model that needs no more than linear layers and neurons."""
    torch.manual_seed(0)
    values = norse.torch.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(0.3))
    cells = [norse.torch.LIFBoxCell(values, dt=1e-3) for _ in range(2)]
    net = norse.torch.SequentialState(
        nn.Flatten(), nn.Linear(64, 32), cells[0], nn.Linear(32, 32), cells[1],
        nn.Linear(32, CLASSES),
    )  # fmt: skip
    return UserStudent(net, STEPS, (1, 8, 8), CLASSES, "benchmarks:boxes").eval()


def student(arch: Any, width: int, shape: tuple[int, int, int]) -> Student:
    """A student of the zoo in which every layer fires."""
    torch.manual_seed(0)
    config = StudentConfig(arch=arch, width=width, timesteps=STEPS)
    net = build_student(config, NeuronConfig(), shape, CLASSES)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of what is seen, without the start values
    with torch.no_grad():
        net.train()(torch.randn(16, *shape))
    return net.eval()


NETWORKS: dict[str, Callable[[int], Student | UserStudent]] = {
    "linear layers": lambda width: boxes(),
    "convnet": lambda width: student("convnet", 8, (1, 8, 8)),
    "ResNet-18": lambda width: student("resnet18", width, (3, 32, 32)),
}
"""Name -> the network; the width is that of the ResNet-18."""


# --- our files in other libraries ----------------------------------------------------------


def opened(width: int) -> list[Row]:
    """Every network in every library: as it should be exported, and the small ones otherwise."""
    rows = []
    for network, make in NETWORKS.items():
        graph = lower(make(width)).graph
        for options, variant in OPTIONS.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.nir"
                write_nir(vary(graph, variant), path)
                rows += [
                    {"network": network, "library": tool.title, "options": options}
                    | {"fits": options == FITS.get(name, ""), **outcome(name, path)}
                    for name, tool in FOREIGN.items()
                    if network != "ResNet-18" or options == FITS.get(name, "")
                ]
    return rows


def outcome(name: str, path: Path) -> Row:
    """What a library does with a file on random images, compared with our interpreter."""
    graph = open_nir(path)
    x = np.random.default_rng(0).normal(size=(BATCH, *graph.input.output_shape))
    reference = NirBackend(graph, STEPS, "interpreter")
    batches = [(x.astype(np.float32), None)]
    try:
        library = ForeignBackend(name, path, graph, STEPS)
        (found,) = compare(graph, reference, [library], batches).comparisons
    except InputFileError as error:
        return {"error": str(error).replace(str(path), "the file")}
    return {
        "compared": found.neuron_steps,
        "differ": found.flips,
        "verdict": found.verdict,
        "logits": found.logits_max_difference,
        "spikes": {name: int(layer.reference.sum()) for name, layer in found.layers.items()},
    }


# --- graphs of other libraries in tser -----------------------------------------------------


def read() -> list[Row]:
    """Every network of `exporting`, in our interpreter and in ONNX Runtime."""
    rows = []
    for library, cases in exporting.CASES.items():
        for name, case in cases.items():
            written = exporting.write(library, case)
            # Norse writes dt * tau where tau is meant, so that dt * dt stands for dt / tau.
            for dt in [written.dt, written.dt**2] if library == "Norse" else [written.dt]:
                row = {"library": library, "network": name, "says": case.says, "dt": dt}
                rows.append({**row, **differences(as_read(written.graph, dt), written)})
    return rows


def as_read(graph: nir.NIRGraph, dt: float) -> Graph:
    """The view of a graph, through a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.nir"
        nir.write(path, graph, compression=None)  # compressed, scalars are not written
        return open_nir(path, dt)


def differences(graph: Graph, written: exporting.Written) -> Row:
    """How many spikes of a library's network are others in tser and in ONNX Runtime."""
    interpreter = NirBackend(graph, len(written.x), "graph")(written.x)
    return {
        "compared": sum(value.size for value in written.spikes.values()),
        "interpreter": differing(written.spikes, interpreter.spikes),
        "onnx": differing(written.spikes, onnx_trace(graph, written.x).spikes),
    }


def onnx_trace(graph: Graph, x: np.ndarray) -> Trace:
    """The graph compiled to ONNX, in ONNX Runtime."""
    model = compile_onnx(graph, len(x), "sequence")
    shapes = {node.name: node.output_shape for node in graph.spiking}
    return OnnxBackend(model, shapes, "compiled")(x)


def differing(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> int:
    """Spikes that are not the same, over all layers."""
    return sum(int((found[name] != value).sum()) for name, value in expected.items())


def write_fixtures(folder: Path) -> None:
    """Graphs as the libraries wrote them, and beside them what the libraries' own networks did."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (library, case) in KEPT.items():
        written = exporting.write(library, exporting.CASES[library][case])
        nir.write(folder / f"{name}.nir", written.graph, compression=None)
        spikes = {f"spikes_{node}": value for node, value in written.spikes.items()}
        np.savez_compressed(folder / f"{name}.npz", dt=written.dt, x=written.x, **spikes)
