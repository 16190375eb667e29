"""What `tser inspect` says of graphs of known contents."""

import itertools
import json
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from tests.graphs import DT, conv, flatten, full, lif, network, pool
from tser.deploy.counting import count_operations
from tser.deploy.inspection import describe, inspect_nir, repair_nir
from tser.deploy.inspection_onnx import inspect_onnx
from tser.deploy.portable import RULES
from tser.errors import InputFileError, UsageError
from tser.export.graph import resolve
from tser.export.nir_file import write_nir
from tser.export.onnx_file import compile_onnx, write_onnx
from tser.files import to_json

PAPER = Path(__file__).parent.parent / "data" / "nir-paper"


def _portable(**parameters: Any) -> nir.NIRGraph:
    nodes = {
        "conv": conv(np.ones((2, 1, 3, 3)), (4, 4), padding=1),
        "lif": lif((2, 4, 4), **parameters),
        "pool": pool(nir.AvgPool2d, 2),
        "flat": nir.Flatten({"input": np.array([2, 2, 2])}, start_dim=-3, end_dim=-1),
        "fc": nir.Affine(full((3, 8), 1), full(3, 0)),
    }
    return network((1, 4, 4), nodes, timesteps=2, encoding="direct", producer="us")


def _describe(raw: nir.NIRGraph, dt: float | None = None) -> dict[str, Any]:
    return describe(raw, resolve(raw, dt, timeless=True), "absent")


def _rules(found: dict[str, Any]) -> dict[str, list[str]]:
    return {broken["rule"]: broken["nodes"] for broken in found["portable"]["violations"]}


# --- counts --------------------------------------------------------------------------------


def test_totals_by_hand() -> None:
    found = _describe(_portable())
    taps = 2 * (4 * 4 * 9 - 4 * 4 * 3 + 4)  # in-bounds: 16 places, minus a row or column each side
    assert found["totals"] == {
        "nodes": 7,
        "neurons": 32,
        "synapses": taps + 32 * 3,
        "synapses_effective": taps + 32 * 3,
        "parameters": 2 * 9 + 2 + 3 * 8 + 3,
    }
    (fc,) = [node for node in found["nodes"] if node["name"] == "fc"]
    assert (fc["type"], fc["inputs"]) == ("Affine", ["flat"])
    assert (fc["input_shape"], fc["output_shape"]) == ([8], [3])
    (neuron,) = [node for node in found["nodes"] if node["name"] == "lif"]
    assert neuron["constants"]["v_threshold"] == [1.0, 1.0]


def test_synapses_are_those_that_energy_counts() -> None:
    raw = _portable()
    raw.nodes["conv"].weight[0, 0, 0, 0] = 0
    found = _describe(raw)
    counts = count_operations(resolve(raw), [np.ones((1, 1, 4, 4), np.float32)])
    dense = sum(row.dense for row in counts.layers) / 2  # steps
    assert found["totals"]["synapses"] == dense
    assert found["totals"]["synapses_effective"] == dense - 9  # the zero falls in bounds 9 times


def test_what_cannot_be_counted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tser.deploy.composition.MOST_PAIRS", 0)
    nodes = {
        "pool": pool(nir.AvgPool2d, 3, 2),
        "flat": flatten(),
        "fc": nir.Linear(full((3, 4), 1)),
    }
    found = _describe(network((1, 5, 5), nodes))
    assert found["totals"]["synapses"] == 0
    assert [gap["name"] for gap in found["uncounted"]] == ["fc"]


def test_a_fork_that_doubles_again_and_again_is_refused() -> None:
    """Listing its 2**40 ways through would take for ever."""
    edges, nodes, last = [], {}, "input"
    for level in range(40):
        names = [f"{side}{level}" for side in "abc"]
        nodes |= {name: nir.Scale(full(2, 1)) for name in names}
        edges += [(last, names[0]), (last, names[1])]
        edges += [(names[0], names[2]), (names[1], names[2])]
        last = names[2]
    raw = network((2,), nodes | {"lif": lif(2)}, [*edges, (last, "lif"), ("lif", "output")], (2,))
    with pytest.raises(InputFileError, match="behind more pools, flattenings and scales"):
        _describe(raw)


# --- time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "given", "dt", "origin"),
    [(DT, None, DT, "metadata"), (None, 0.5, 0.5, "option"), (None, None, None, "missing")],
)
def test_dt_and_where_it_comes_from(stated: Any, given: Any, dt: Any, origin: str) -> None:
    found = _describe(network((2,), {"lif": lif(2)}, dt=stated), given)
    assert (found["dt_seconds"], found["dt_origin"]) == (dt, origin)
    assert ("dt" in _rules(found)) == (stated is None)


def test_a_graph_without_time() -> None:
    found = _describe(network((2,), {"fc": nir.Linear(full((2, 2), 1))}, dt=None))
    assert (found["dt_seconds"], found["dt_origin"]) == (None, "not needed")
    assert "dt" not in _rules(found)


def test_cycles_and_graphs_inside() -> None:
    ports = nir.Input({"input": np.array([2])}), nir.Output({"output": np.array([2])})
    inner = {"in": ports[0], "lif": lif(2), "w": nir.Linear(full((2, 2), 1)), "out": ports[1]}
    edges = [("in", "lif"), ("lif", "w"), ("w", "lif"), ("lif", "out")]
    block = nir.NIRGraph(inner, edges, type_check=False)
    chain = list(itertools.pairwise(["input", "rnn", "output"]))
    found = _describe(network((2,), {"rnn": block}, chain, (2,)))
    assert found["cycles"] == [{"source": "rnn.lif", "target": "rnn.w"}]
    assert found["nested"] == ["rnn"]
    assert {"feed-forward", "flat", "names"} <= _rules(found).keys()
    assert "flatten" not in _rules(found)  # the ports of the inner graph are no flattenings


# --- conformance ---------------------------------------------------------------------------


def test_a_portable_graph() -> None:
    found = _describe(_portable())
    assert found["portable"] == {"conforms": True, "violations": []}


def _broken(change: str) -> nir.NIRGraph:
    raw = _portable(v_leak=0.5 * (change == "zero-leak"), v_reset=0.5 * (change == "zero-reset"))
    nodes = raw.nodes
    if change == "classes":
        nodes["pool"] = pool(nir.SumPool2d, 2)
    elif change == "uniform":
        nodes["lif"].tau[0] *= 2
    elif change == "full-shape":
        nodes["lif"] = lif(1)
    elif change == "float32":
        nodes["fc"].weight = nodes["fc"].weight.astype(np.float64)
    elif change == "input-shape":
        nodes["conv"].input_shape = None
    elif change == "flatten":
        nodes["flat"] = nir.Flatten({"input": None}, 0, -1)
    elif change == "dt":
        del raw.metadata["dt"]
    elif change == "ungrouped":
        nodes["conv"] = conv(np.ones((2, 1, 3, 3)), (4, 4), padding=1, groups=2)
        nodes["input"] = nir.Input({"input": np.array([2, 4, 4])})
    elif change == "typed":
        nodes["conv"] = conv(np.ones((2, 1, 3, 5)), (4, 4), padding=(1, 2))
    elif change == "post-add":
        raw.edges = [*raw.edges, ("lif", "both"), ("conv", "both")]
        raw.edges[raw.edges.index(("lif", "pool"))] = ("both", "pool")
        nodes["both"] = nir.Scale(full((2, 4, 4), 1))
    elif change == "feed-forward":
        raw.edges = [*raw.edges, ("lif", "lif")]
    elif change == "names":
        raw.nodes = {{"fc": "f.c"}.get(name, name): node for name, node in nodes.items()}
        raw.edges = [tuple({"fc": "f.c"}.get(n, n) for n in edge) for edge in raw.edges]
    return raw


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "flat"])
def test_a_broken_rule_is_named(rule: str) -> None:
    found = _describe(_broken(rule))
    also = {"post-add": {"classes"}, "ungrouped": {"typed"}, "full-shape": {"typed"}}
    assert _rules(found).keys() == {rule} | also.get(rule, set())
    assert not found["portable"]["conforms"]
    assert all(_rules(found).values())


# --- files ---------------------------------------------------------------------------------


def test_a_published_file() -> None:
    found = inspect_nir(PAPER / "lif_norse.nir", 1e-4)
    assert (found["manifest"], found["dt_origin"], found["problem"]) == ("absent", "option", "")
    assert found["totals"]["neurons"] == found["totals"]["synapses"] == 1
    verdicts = {tool["name"]: tool["verdict"] for tool in found["importers"]}
    assert (verdicts["Norse"], verdicts["snnTorch"]) == ("correct", "correct")
    assert verdicts["Sinabs"] == "differs"
    assert json.loads(to_json(found)) == found


def test_infinities_are_json(tmp_path: Path) -> None:
    write_nir(network((1,), {"lif": lif(1, tau=np.inf)}), tmp_path / "x.nir")
    found = inspect_nir(tmp_path / "x.nir")
    assert found["nodes"][1]["constants"]["tau"] == ["inf", "inf"]
    to_json(found)


def test_a_manifest_that_is_wrong_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.nir"
    write_nir(_portable(), path)
    assert inspect_nir(path)["manifest"] == "ok"
    with h5py.File(path, "r+") as file:
        file["node/nodes/fc/bias"][0] = 7
    found = inspect_nir(path)
    assert found["manifest"] == "wrong"
    assert found["problem"].startswith(f"{path} is damaged")
    with pytest.raises(InputFileError, match="is damaged"):
        repair_nir(path, tmp_path / "out.nir")
    assert not (tmp_path / "out.nir").exists()


def test_repair_writes_a_copy_or_nothing(tmp_path: Path) -> None:
    path, out = tmp_path / "x.nir", tmp_path / "out.nir"
    raw = _portable()
    raw.nodes["output"] = nir.Output({"output": np.array([1, 3])})
    nir.write(path, raw)
    before = path.read_bytes()
    with pytest.raises(InputFileError, match="--repair"):
        inspect_nir(path)
    changes = repair_nir(path, out)
    assert changes == ["the shape of node 'output': (1, 3) is now (3,)"]
    found = inspect_nir(out)
    assert found["manifest"] == "ok"
    assert path.read_bytes() == before
    assert repair_nir(out, tmp_path / "again.nir") == []
    assert not (tmp_path / "again.nir").exists()


@pytest.mark.parametrize("name", ["x.nir", "out.txt"])
def test_where_a_repair_is_not_written(tmp_path: Path, name: str) -> None:
    nir.write(tmp_path / "x.nir", _portable())
    with pytest.raises(UsageError, match="--repair writes"):
        repair_nir(tmp_path / "x.nir", tmp_path / name)


# --- ONNX ----------------------------------------------------------------------------------


def test_an_onnx_file_of_ours(tmp_path: Path) -> None:
    raw = _portable()
    write_nir(raw, tmp_path / "x.nir")
    write_onnx(compile_onnx(resolve(raw)), tmp_path / "x.onnx")
    found = inspect_onnx(tmp_path / "x.onnx")
    assert found["ours"]
    assert found["neurons"] == 32
    assert found["opsets"]["ai.onnx"] >= 18
    assert [port["name"] for port in found["inputs"]] == ["input"]
    assert found["inputs"][0]["shape"][1:] == [1, 4, 4]
    assert found["outputs"][0]["shape"][-1] == 3
    assert found["operators"]["Greater"] == 2
    assert found["metadata"]["nir_sha256"] == raw.metadata["sha256"]
    to_json(found)


def test_an_onnx_file_of_others(tmp_path: Path) -> None:
    model = compile_onnx(resolve(_portable()))
    model.producer_name = "pytorch"
    write_onnx(model, tmp_path / "x.onnx")
    found = inspect_onnx(tmp_path / "x.onnx")
    assert (found["ours"], found["neurons"]) == (False, None)
