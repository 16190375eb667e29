"""Declared shapes that contradict are refused by name, and settled only when asked to."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from tests.graphs import DT, conv, full, lif, network
from tser.errors import InputFileError
from tser.export.graph import ContradictionError, resolve
from tser.export.nir_file import read_nir, write_nir
from tser.export.repair import repair


def _published() -> nir.NIRGraph:
    """As a published file is: Output (1, 1, 1) behind a layer of one neuron."""
    nodes = {"fc": nir.Affine(full((1, 1), 1), full(1, 0)), "lif": lif(1)}
    return network((1,), nodes, _chain("fc", "lif"), (1, 1, 1))


def _neurons_with_ones() -> nir.NIRGraph:
    nodes = {"fc": nir.Linear(full((3, 2), 1)), "lif": lif((1, 3))}
    return network((2,), nodes, _chain("fc", "lif"), (3,))


def _neurons_by_channel() -> nir.NIRGraph:
    op = lif((2, 1, 1), v_th=np.array([1, 2]).reshape(2, 1, 1))
    return network((2, 3, 3), {"lif": op}, _chain("lif"), (2, 3, 3))


def _size_of_another_image() -> nir.NIRGraph:
    return network(
        (1, 5, 5), {"conv": conv(np.ones((1, 1, 3, 3)), (9, 9))}, _chain("conv"), (1, 3, 3)
    )


def _length_of_another_signal() -> nir.NIRGraph:
    op = nir.Conv1d(9, np.ones((1, 1, 3), np.float32), 1, 0, 1, 1, full(1, 0))
    return network((1, 5), {"conv": op}, _chain("conv"), (1, 3))


def _flattening_with_batch() -> nir.NIRGraph:
    op = nir.Flatten({"input": np.array([7, 2, 3])}, start_dim=1, end_dim=-1)
    return network((2, 3), {"flat": op}, _chain("flat"), (6,))


def _port_inside() -> nir.NIRGraph:
    ports = nir.Input({"input": np.array([1, 2])}), nir.Output({"output": np.array([2, 1])})
    inner = {"in": ports[0], "lif": lif(2), "out": ports[1]}
    block = nir.NIRGraph(inner, list(itertools.pairwise(inner)), type_check=False)
    return network((2,), {"block": block}, _chain("block"), (2,))


def _chain(*names: str) -> list[tuple[str, str]]:
    return list(itertools.pairwise(["input", *names, "output"]))


CASES: dict[Callable[[], nir.NIRGraph], list[str]] = {
    _published: ["the shape of node 'output': (1, 1, 1) is now (1,)"],
    _neurons_with_ones: [
        f"{name} of node 'lif': shape (1, 3) is now shape (3,)"
        for name in ("tau", "r", "v_leak", "v_threshold", "v_reset")
    ],
    _neurons_by_channel: [
        f"{name} of node 'lif': shape (2, 1, 1) is now shape (2, 3, 3)"
        for name in ("tau", "r", "v_leak", "v_threshold", "v_reset")
    ],
    _size_of_another_image: ["input_shape of node 'conv': (9, 9) is now (5, 5)"],
    _length_of_another_signal: ["input_shape of node 'conv': 9 is now 5"],
    _flattening_with_batch: [
        "input_type of node 'flat': (7, 2, 3) is now (2, 3)",
        "start_dim of node 'flat': 1 is now 0",
        "end_dim of node 'flat': -1 is now -1",
    ],
    _port_inside: [
        "the shape of node 'block.in': (1, 2) is now (2,)",
        "the shape of node 'block.out': (2, 1) is now (2,)",
    ],
}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__.strip("_"))
def test_a_contradiction_is_refused_and_can_be_repaired(
    make: Callable[[], nir.NIRGraph], tmp_path: Path
) -> None:
    with pytest.raises(ContradictionError, match=r"the file: node .*'tser inspect FILE --repair"):
        resolve(make(), origin="the file")
    graph = make()
    view, changes = repair(graph)
    assert changes == [text for text in CASES[make] if "-1 is now -1" not in text]
    assert view.nodes.keys() == resolve(graph).nodes.keys()
    write_nir(graph, tmp_path / "fits.nir")
    resolve(read_nir(tmp_path / "fits.nir"))
    assert list(nir.read(tmp_path / "fits.nir").nodes) == sorted(graph.nodes)  # its type check too
    assert repair(graph)[1] == []


def test_a_repair_keeps_every_value() -> None:
    graph = _neurons_by_channel()
    before = graph.nodes["lif"].v_threshold.copy()
    repair(graph)
    after = graph.nodes["lif"].v_threshold
    np.testing.assert_array_equal(after, np.broadcast_to(before, (2, 3, 3)))
    assert after.dtype == before.dtype


def _wrong_weight() -> nir.NIRGraph:
    return network((3,), {"fc": nir.Linear(full((2, 4), 1))}, _chain("fc"), (2,))


def _as_many_but_turned() -> nir.NIRGraph:
    return network((2, 3), {"lif": lif((3, 2))}, _chain("lif"), (2, 3))


@pytest.mark.parametrize("make", [_wrong_weight, _as_many_but_turned])
def test_what_weights_contradict_is_beyond_repair(make: Any) -> None:
    with pytest.raises(InputFileError) as caught:
        repair(make())
    assert "--repair" not in str(caught.value)


def test_a_repair_states_the_time_step_it_is_given() -> None:
    graph = _published()
    del graph.metadata["dt"]
    _, changes = repair(graph, dt=DT)
    assert changes[-1] == f"the metadata state dt = {DT:g} s"
    assert resolve(graph).dt == DT


def test_what_is_not_stated_is_stated_where_a_copy_is_written(tmp_path: Path) -> None:
    nodes = {
        "conv": conv(np.ones((1, 1, 3, 3)), None),
        "flat": nir.Flatten({"input": None}, start_dim=-3, end_dim=-1),
    }
    assert repair(network((1, 4, 4), nodes))[1] == []
    graph = network((1, 4, 4), nodes, _chain("conv", "flat"), (1, 4))
    assert repair(graph)[1][1:] == [
        "the input of node 'conv', which was not stated, is now (1, 4, 4)",
        "the input of node 'flat', which was not stated, is now (1, 2, 2)",
    ]
    write_nir(graph, tmp_path / "x.nir")
    resolve(read_nir(tmp_path / "x.nir"))
