"""Small counts and graphs for the tests of energy."""

import itertools
from typing import Any

import nir
import numpy as np

from tests.graphs import Array, conv, flatten, full, lif, network
from tser.deploy.counting import LayerCount, OperationCount, count_operations
from tser.export.graph import Graph, resolve

NONE = np.zeros(2, np.int64)


def row(name: str, **values: Any) -> LayerCount:
    """A row of 2 steps that holds nothing but ``values``."""
    known: dict[str, Any] = {"kind": "conv", "source": "", "operation": "AC"}
    counts = {"events": NONE, "sop_structural": NONE, "sop_effective": NONE}
    return LayerCount(name, **(known | counts | {"driven_per_step": NONE} | values))


def counts_of(macs: int, accumulates: int, samples: int = 1) -> OperationCount:
    """One layer of ``macs``, one of ``accumulates``, T = 2."""
    half = np.array([accumulates // 2, accumulates - accumulates // 2])
    rows = [
        row("analog", operation="MAC", macs=macs, sop_structural=np.array([10**15, 0])),
        row("spiking", sop_structural=half),
    ]
    return OperationCount(rows, samples, 2)


def residual() -> Graph:
    """Two convolutions with a shortcut over the second, and a linear readout."""
    rng = np.random.default_rng(0)
    nodes = {
        "stem": conv(rng.normal(size=(2, 1, 3, 3)), (4, 4), padding=1),
        "lif1": lif((2, 4, 4), v_th=0.2),
        "conv": conv(rng.normal(size=(2, 2, 3, 3)), (4, 4), padding=1),
        "lif2": lif((2, 4, 4), v_th=0.2),
        "flatten": flatten(),
        "fc": nir.Affine(rng.normal(size=(3, 32)).astype(np.float32), full(3, 0.5)),
    }
    edges = [*itertools.pairwise(["input", *nodes, "output"]), ("lif1", "lif2")]
    return resolve(network((1, 4, 4), nodes, edges, (3,)))


def residual_counts(x: Array | None = None) -> OperationCount:
    """Counts of `residual` for 5 images, analog ones of T = 3 unless given."""
    images = np.random.default_rng(1).normal(size=(5, 1, 4, 4)) if x is None else x
    return count_operations(residual(), [images], 3 if x is None else len(x))
