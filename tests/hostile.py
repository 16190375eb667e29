"""Graphs that are well-formed files and ask for what no machine has, or for what makes no sense."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from tests.graphs import DT, conv, full, lif, network, pool

Make = Callable[[Path], None]


def _chain(*names: str) -> list[tuple[str, str]]:
    return list(itertools.pairwise(["input", *names, "output"]))


def _graph(
    shape: tuple[int, ...], nodes: dict[str, Any], output: tuple[int, ...], **metadata: Any
) -> Make:
    def write(path: Path) -> None:
        nir.write(path, network(shape, nodes, _chain(*nodes), output, **metadata))

    return write


def _edges(nodes: dict[str, Any], edges: list[tuple[str, str]]) -> Make:
    return lambda path: nir.write(path, network((2,), nodes, edges, (2,)))


def _text(path: Path, key: str) -> None:
    _plain(path)
    with h5py.File(path, "r+") as file:
        del file[key]
        file[key] = "three"


def _plain(path: Path) -> None:
    nodes = {"fc": nir.Linear(full((2, 2), 1)), "lif": lif(2)}
    nir.write(path, network((2,), nodes))


def _zeros(path: Path) -> None:
    """Four gigabytes of zeros in a file of kilobytes."""
    _plain(path)
    with h5py.File(path, "r+") as file:
        del file["node/nodes/fc/weight"]
        file.create_dataset(
            "node/nodes/fc/weight", (2**15, 2**15), np.float32, chunks=(2**10, 2**10)
        )


def _same_again(path: Path) -> None:
    """One array of 64 MB under a hundred names."""
    _plain(path)
    with h5py.File(path, "r+") as file:
        one = file.create_dataset("node/metadata/one", (2**24,), np.float32, chunks=(2**20,))
        for number in range(100):
            file[f"node/metadata/m{number}"] = one


def _outside(path: Path) -> None:
    _plain(path)
    with h5py.File(path, "r+") as file:
        file["node/nodes/fc/bias"] = h5py.ExternalLink("../../../etc/passwd", "/x")


HUGE = 2**20
HOSTILE: dict[str, Make] = {
    "a huge image": _graph((1, HUGE, HUGE), {"lif": lif(1)}, (1, HUGE, HUGE)),
    "a huge image, negative": _graph((1, -HUGE, HUGE), {"lif": lif(1)}, (1, HUGE, HUGE)),
    "many large layers": _graph((2**23,), {f"lif{i}": lif(1) for i in range(20)}, (2**23,)),
    "huge padding": _graph(
        (1, 4, 4), {"c": conv(np.ones((1, 1, 3, 3)), (4, 4), padding=HUGE, stride=HUGE)}, (1, 2, 2)
    ),
    "a huge window": _graph((1, 4, 4), {"p": pool(nir.SumPool2d, 2**13, 2**13, 2**12)}, (1, 1, 1)),
    "a stride of nothing": _graph((1, 4, 4), {"p": pool(nir.SumPool2d, 2, (0, 1))}, (1, 1, 1)),
    "a long delay": _graph((2,), {"d": nir.Delay(full(2, 1e9 * DT))}, (2,)),
    "endless time": _graph((2,), {"lif": lif(2)}, (2,), timesteps=10**12),
    "time in words": _graph((2,), {"lif": lif(2)}, (2,), timesteps="many"),
    "a cycle without delay": _edges(
        {"a": nir.Linear(full((2, 2), 1)), "b": nir.Scale(full(2, 1))},
        [("input", "a"), ("a", "b"), ("b", "a"), ("a", "output")],
    ),
    "an edge to nowhere": _edges({"a": lif(2)}, [("input", "a"), ("a", "b"), ("a", "output")]),
    "words for weights": lambda path: _text(path, "node/nodes/fc/weight"),
    "words for time constants": lambda path: _text(path, "node/nodes/lif/tau"),
    "words for a shape": lambda path: _text(path, "node/nodes/input/shape"),
    "no number": _graph((2,), {"fc": nir.Linear(full((2, 2), np.nan))}, (2,)),
    "four gigabytes of zeros": _zeros,
    "one array a hundred times": _same_again,
    "a link out of the file": _outside,
}
"""Writers of files that have to be refused by whatever reads them."""
