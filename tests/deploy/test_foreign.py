"""Other libraries as backends, with those that are installed."""

import itertools
import sys
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import nn

from tests.graphs import Array, conv, full, lif, network, pool
from tser.deploy.backends import Backend, Replayable
from tser.deploy.foreign import FOREIGN, ForeignBackend, Tool, quiet
from tser.deploy.graph_file import open_nir
from tser.deploy.interpreter import replay, run
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph, resolve
from tser.export.nir_file import write_nir

STEP, STEPS, BATCH = 1e-4, 8, 5
TAU = 2e-4
FIXTURES = Path(__file__).parents[1] / "data" / "interop"


@pytest.fixture
def open_in(tmp_path: Path):
    """A graph in a library; nothing but the file connects the two."""

    def make(name: str, graph: nir.NIRGraph) -> ForeignBackend:
        _need(name)
        path = tmp_path / "model.nir"
        write_nir(graph, path)
        return ForeignBackend(name, path, resolve(graph), STEPS)

    return make


def _need(name: str) -> None:
    with quiet():
        pytest.importorskip(FOREIGN[name].module, reason=f"{name} is not installed")


def _affine(outputs: int, inputs: int, seed: int = 0) -> nir.Affine:
    rng = np.random.default_rng([seed, outputs, inputs])
    return nir.Affine(rng.normal(size=(outputs, inputs)).astype(np.float32), full(outputs, 0.1))


def _lif(shape: Any, **parameters: Any) -> nir.LIF:
    return lif(shape, **{"tau": TAU, "v_th": 0.3, **parameters})


def _cuba(shape: int, gain: float = 1) -> nir.CubaLIF:
    """``gain``: of the input on the way to the synapse."""
    values = {"tau_syn": 4e-4, "tau_mem": TAU, "r": TAU / STEP, "v_leak": 0, "v_reset": 0}
    known = {name: full(shape, value) for name, value in values.items()}
    return nir.CubaLIF(**known, w_in=full(shape, gain * 4), v_threshold=full(shape, 0.6))


def _if(shape: int) -> nir.IF:
    return nir.IF(full(shape, 1 / STEP), full(shape, 1), full(shape, 0))


def _chain(first: Any = None, last: Any = None, **metadata: Any) -> nir.NIRGraph:
    nodes = {
        "a": _affine(6, 4),
        "first": first or _lif(6),
        "b": _affine(5, 6),
        "last": last or _lif(5),
    }
    return network((4,), nodes, **{"dt": STEP, **metadata})


def _convolved() -> nir.NIRGraph:
    rng = np.random.default_rng(0)
    pairs = {"padding": (1, 1), "stride": (1, 1), "dilation": (1, 1)}
    nodes = {
        "conv": conv(rng.normal(size=(3, 2, 3, 3)), (6, 6), **pairs),
        "first": _lif((3, 6, 6)),
        "pool": pool(nir.AvgPool2d, 2),
        "flat": nir.Flatten({"input": np.array([3, 3, 3])}, -3, -1),
        "fc": _affine(4, 27),
        "last": _lif(4),
    }
    return network((2, 6, 6), nodes, dt=STEP)


def _recurrent() -> nir.NIRGraph:
    nodes = {"fc": _affine(4, 4), "lif": _lif(4), "back": nir.Linear(_affine(4, 4, 1).weight)}
    edges = [("input", "fc"), ("fc", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "output")]
    return network((4,), nodes, edges, (4,), dt=STEP)


def _images(graph: nir.NIRGraph, *leading: int) -> Array:
    shape = (*leading, *resolve(graph).input.output_shape)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _spikes(view: Graph, x: Array) -> dict[str, Array]:
    names = [node.name for node in view.spiking]
    return {name: value > 0 for name, value in run(view, x, STEPS, record=names)[1].items()}


def _random(view: Graph, rate: float = 0.4) -> dict[str, Array]:
    rng = np.random.default_rng(2)
    shapes = {node.name: (STEPS, BATCH, *node.output_shape) for node in view.spiking}
    return {name: rng.random(shape) < rate for name, shape in shapes.items()}


def _same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == bool
        np.testing.assert_array_equal(found[name], value, err_msg=name)


EVERY = list(FOREIGN)
CASES: list[tuple[str, Any]] = [
    *[(name, _chain) for name in EVERY],
    *[(name, _convolved) for name in EVERY if name != "norse"],
    *[(name, lambda: _chain(_cuba(6), _cuba(5))) for name in EVERY],
    *[(name, lambda: _chain(_if(6), _if(5))) for name in EVERY if name != "snntorch"],
    *[(name, _recurrent) for name in ("nirtorch", "spikingjelly", "norse")],
    *[(name, lambda: _chain(_lif(6, r=2.0))) for name in EVERY if name != "norse"],
    ("nirtorch", lambda: _chain(_cuba(6, 3), _lif(5, v_leak=0.1, v_reset=-0.3))),
    ("snntorch", lambda: _chain(_cuba(6, 0.5))),
]
"""Library and a graph that it runs as it is meant."""


# --- runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "make"), CASES)
def test_spikes_and_outputs_are_the_interpreters(name: str, make: Any, open_in) -> None:
    graph = make()
    backend, view = open_in(name, graph), resolve(graph)
    assert isinstance(backend, Backend)
    assert isinstance(backend, Replayable)
    assert backend.name == name
    for leading in ((BATCH,), (STEPS, BATCH)):
        x = _images(graph, *leading)
        expected, trace = _spikes(view, x), backend(x)
        assert all(0.02 < value.mean() < 0.95 for value in expected.values()), "it shows nothing"
        _same(trace.spikes, expected)
        np.testing.assert_allclose(trace.logits, run(view, x, STEPS)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_every_run_starts_afresh(name: str, open_in) -> None:
    graph = _chain()
    backend, x = open_in(name, graph), _images(graph, BATCH)
    first = backend(x)
    kept = {layer: value.copy() for layer, value in first.spikes.items()}
    backend(_images(graph, BATCH) + 1)
    backend(_images(graph, 2))
    backend.replay(x, kept, {"first": np.full((STEPS, BATCH, 6), 9, np.float32)})
    again = backend(x)
    np.testing.assert_array_equal(again.logits, first.logits)
    _same(again.spikes, kept)
    _same(first.spikes, kept)


@pytest.mark.parametrize(
    ("stored", "name"),
    list(itertools.product(["snntorch", "spikingjelly"], ["spikingjelly", "nirtorch"])),
)
def test_a_file_that_a_library_wrote_itself(name: str, stored: str) -> None:
    _need(name)
    path = FIXTURES / f"{stored}.nir"
    with np.load(path.with_suffix(".npz")) as arrays:
        x, dt = arrays["x"], float(arrays["dt"])
        expected = {key[7:]: arrays[key] for key in arrays.files if key.startswith("spikes_")}
    backend = ForeignBackend(name, path, open_nir(path, dt), len(x))
    _same(backend(x).spikes, expected)
    _same(backend.replay(x, expected), expected)


@pytest.mark.parametrize("stored", ["snntorch", "snntorch_recurrent"])
def test_snntorch_cannot_open_its_own_files(stored: str) -> None:
    """A pool of one number for both directions; a cycle, once it has been through a file."""
    _need("snntorch")
    path = FIXTURES / f"{stored}.nir"
    with pytest.raises(InputFileError, match="^snnTorch cannot run "):
        ForeignBackend("snntorch", path, open_nir(path, STEP), STEPS)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_printed(name: str, open_in, capfd, caplog) -> None:
    graph = _chain(_lif(6, r=3.0), last=_if(5)) if name == "norse" else _chain()
    backend = open_in(name, graph)
    backend(_images(graph, BATCH))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_names_that_python_does_not_allow(open_in) -> None:
    rng = np.random.default_rng(0)
    inner = {
        "in": nir.Input({"input": np.array([4])}),
        "lif": _lif(4),
        "out": nir.Output({"output": np.array([4])}),
    }
    block = nir.NIRGraph(inner, [("in", "lif"), ("lif", "out")], type_check=False)
    weight = rng.normal(size=(4, 4)).astype(np.float32)
    nodes = {"0": nir.Linear(weight), "block": block, "b": nir.Linear(weight), "if": _lif(4)}
    nodes |= {"c": nir.Linear(weight), "d.lif": _lif(4)}
    names = ["input", *nodes, "output"]
    graph = network((4,), nodes, list(itertools.pairwise(names)), (4,), dt=STEP)
    expected = _spikes(resolve(graph), _images(graph, BATCH))
    assert expected.keys() == {"block.lif", "if", "d.lif"}
    for name in EVERY:
        _same(open_in(name, graph)(_images(graph, BATCH)).spikes, expected)


MAPPED: dict[str, tuple[Any, tuple[int, ...]]] = {
    "LI": (nir.LI(full(4, TAU), full(4, 1.5), full(4, 0.2)), (4,)),
    "I": (nir.I(full(4, 2e3)), (4,)),
    "CubaLI": (nir.CubaLI(*(full(4, v) for v in (4e-4, TAU, 1.5, 0.2)), full(4, 2)), (4,)),
    "IF": (nir.IF(full(4, 5e3), full(4, 0.5), full(4, -0.25)), (4,)),
    "CubaLIF": (
        nir.CubaLIF(
            *(full(4, v) for v in (4e-4, TAU, 1.5, 0.2, 0.4)), full(4, -0.1), w_in=full(4, 2)
        ),
        (4,),
    ),
    "AvgPool2d with padding": (pool(nir.AvgPool2d, 3, 2, 1), (2, 5, 6)),
    "SumPool2d with padding": (pool(nir.SumPool2d, (2, 3), (1, 2), (1, 0)), (2, 5, 6)),
    "Flatten from the first": (nir.Flatten({"input": np.array([2, 5, 6])}, 0, 1), (2, 5, 6)),
    "Flatten from the last": (nir.Flatten({"input": np.array([2, 5, 6])}, -2, -1), (2, 5, 6)),
}


@pytest.mark.parametrize("op", MAPPED)
def test_our_maps_for_nirtorch(op: str, open_in) -> None:
    node, shape = MAPPED[op]
    graph = network(shape, {"op": node}, dt=STEP)
    x = _images(graph, STEPS, BATCH)
    expected, _ = run(resolve(graph), x)
    np.testing.assert_allclose(open_in("nirtorch", graph)(x).logits, expected, 1e-5, 1e-6)


# --- replays -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "make"), CASES)
def test_own_spikes_give_own_spikes(name: str, make: Any, open_in) -> None:
    graph = make()
    backend, x = open_in(name, graph), _images(graph, STEPS, BATCH)
    spikes = backend(x).spikes
    _same(backend.replay(x, spikes), spikes)


@pytest.mark.parametrize(("name", "make"), CASES)
def test_a_layer_reads_what_was_recorded(name: str, make: Any, open_in) -> None:
    graph = make()
    backend, view, x = open_in(name, graph), resolve(graph), _images(graph, BATCH)
    spikes = _random(view)
    _same(backend.replay(x, spikes), replay(view, x, spikes))


@pytest.mark.parametrize(("name", "make"), CASES)
def test_membranes_are_set_before_each_step(name: str, make: Any, open_in) -> None:
    graph = make()
    backend, view, x = open_in(name, graph), resolve(graph), _images(graph, BATCH)
    spikes, rng = _random(view), np.random.default_rng(3)
    states = {
        layer: rng.uniform(-1, 0.9, value.shape) * view.nodes[layer].op.v_threshold.max()
        for layer, value in spikes.items()
    }
    free = replay(view, x, spikes)
    for chosen in (states, {layer: states[layer] for layer in list(states)[:1]}):
        expected = replay(view, x, spikes, states=chosen)
        assert any((expected[layer] != free[layer]).any() for layer in chosen)
        _same(backend.replay(x, spikes, chosen), expected)


@pytest.mark.parametrize("name", ["snntorch", "norse"])
def test_a_wrong_rule_shows_in_its_own_layer_only(name: str, open_in) -> None:
    graph = _chain(_lif(6, v_reset=-0.2))  # which both ignore
    backend, x = open_in(name, graph), _images(graph, BATCH)
    expected = _spikes(resolve(graph), x)
    found, free = backend.replay(x, expected), backend(x).spikes
    assert (free["last"] != expected["last"]).any()
    assert (found["first"] != expected["first"]).any()
    np.testing.assert_array_equal(found["last"], expected["last"])


def test_snntorch_does_not_tell_its_units_by_a_threshold_of_0(open_in) -> None:
    graph = _chain(_lif(6, v_th=0))
    backend, x = open_in("snntorch", graph), _images(graph, BATCH)
    spikes = backend(x).spikes
    _same(backend.replay(x, spikes), spikes)
    states = {layer: np.zeros(value.shape, np.float32) for layer, value in spikes.items()}
    with pytest.raises(NotImplementedError, match="units of snnTorch"):
        backend.replay(x, spikes, states)


def test_recordings_of_another_shape_are_refused(open_in) -> None:
    graph = _chain()
    backend, x = open_in("nirtorch", graph), _images(graph, BATCH)
    spikes = backend(x).spikes
    with pytest.raises(InputFileError, match="spikes of the layer 'last'"):
        backend.replay(x, {**spikes, "last": spikes["first"]})


# --- what a library is known to do ---------------------------------------------------------


def test_a_remark_says_what_is_known_to_differ(open_in) -> None:
    slow = _chain(_lif(6, tau=2e-3), _lif(5, tau=2e-3), dt=1e-3)
    remark = open_in("snntorch", slow).remark
    assert remark.startswith("snnTorch 1.0.0: dt is 0.0001 s whatever the file says; ")
    assert "export with --dt 1e-4 (first, last)" in remark
    assert open_in("snntorch", _chain()).remark == ""
    assert "v_reset is ignored (first)" in open_in("norse", _chain(_lif(6, v_reset=0.2))).remark


def test_what_our_own_maps_know_is_no_remark(open_in) -> None:
    last = nir.CubaLI(full(5, TAU), full(5, TAU), full(5, 1), full(5, 0), full(5, 1))
    assert open_in("nirtorch", _chain(_if(6), last)).remark == ""
    padded = network((2, 5, 6), {"pool": MAPPED["SumPool2d with padding"][0]}, dt=STEP)
    assert open_in("nirtorch", padded).remark == ""


@pytest.mark.parametrize(
    ("name", "node", "reason"),
    [
        ("snntorch", _lif(6, v_leak=0.1), "AssertionError: v_leak not supported"),
        ("spikingjelly", _lif(6, v_leak=0.1), "ValueError: nir.LIF.v_leak must equal v_reset."),
        ("spikingjelly", nir.Scale(full(6, 2)), "ValueError: Unknown node type"),
        ("nirtorch", nir.Threshold(full(6, 2)), "ValueError: Unknown node type"),
    ],
)
def test_a_file_that_ends_in_an_error(name: str, node: Any, reason: str, open_in) -> None:
    with pytest.raises(InputFileError) as caught:
        open_in(name, _chain(node))
    text = str(caught.value)
    assert text.startswith(f"{FOREIGN[name].title} cannot run ")
    assert f"model.nir: {reason}" in text
    assert "\n" not in text


def test_what_a_library_has_not_implemented_is_a_refusal(open_in) -> None:
    fine = {"padding": (1, 1), "stride": (1, 1), "dilation": (1, 1)}
    nodes = {"conv": conv(np.ones((2, 1, 3, 3)), (4, 4), groups=2, **fine), "lif": _lif((2, 4, 4))}
    graph = network((2, 4, 4), nodes, dt=STEP)
    with pytest.raises(InputFileError, match="SpikingJelly cannot run "):
        open_in("spikingjelly", graph)


@pytest.mark.parametrize("name", EVERY)
def test_without_the_library_the_message_names_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, FOREIGN[name].module, None)
    with pytest.raises(UsageError, match=rf"{name} .*pip install 'tser\[interop\]'"):
        ForeignBackend(name, Path("model.nir"), resolve(_chain()), STEPS)


def test_an_unknown_backend() -> None:
    with pytest.raises(UsageError, match="'sinabs'; choose from .*snntorch"):
        ForeignBackend("sinabs", Path("model.nir"), resolve(_chain()), STEPS)


# --- a library that goes wrong -------------------------------------------------------------


class Layer(nn.Module):
    """Does what a test needs."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outputs(x)


class Network(nn.Module):
    """A layer "lif" that is called so many times a step."""

    def __init__(self, outputs: Any, times: int = 1, out: Any = lambda x: x) -> None:
        super().__init__()
        self.lif, self.times, self.out = Layer(outputs), times, out

    def forward(self, x: torch.Tensor, state: Any) -> Any:
        for _ in range(self.times):
            y = self.lif(x)
        return self.out(y if self.times else x), state


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch):
    """A library that has imported one layer as a given network."""

    def make(net: nn.Module, layer: str = "lif") -> ForeignBackend:
        tool = Tool("nirtorch", "torch", lambda path, dt: net, FOREIGN["nirtorch"].holder)
        monkeypatch.setitem(FOREIGN, "toy", tool)
        view = resolve(network((3,), {layer: _lif(3)}, dt=STEP))
        return ForeignBackend("toy", Path("toy.nir"), view, 2)

    return make


ONES = np.ones((2, 3), np.float32)


def test_a_layer_that_is_not_there(toy) -> None:
    with pytest.raises(InputFileError, match=r"^nirtorch .* drops layer 'other' of toy\.nir$"):
        toy(Network(lambda x: x), "other")


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Network(lambda x: x, 0), "runs layer 'lif' of toy.nir not at all"),
        (Network(lambda x: x, 2), "runs layer 'lif' of toy.nir 2 times a step"),
        (Network(lambda x: x[:, :2], out=lambda x: torch.ones(2, 3)), r"layer 'lif' .*\(2, 2\)"),
        (Network(lambda x: x, out=lambda x: x[:1]), r"the output of toy.nir the shape \(1, 3\)"),
        (Network(lambda x: 2 * x), "other outputs than 0 and 1"),
        (Network(lambda x: x * torch.nan), "other outputs than 0 and 1"),
        (Network(lambda x: x @ x), "cannot run toy.nir: RuntimeError: "),
        (Network(lambda x: x, out=lambda x: 3), "cannot run toy.nir: AttributeError: "),
    ],
)
def test_a_run_that_goes_wrong(net: nn.Module, reason: str, toy) -> None:
    backend = toy(net)
    with pytest.raises(InputFileError, match=f"^nirtorch .*{reason}"):
        backend(ONES)
    assert not net.lif._forward_hooks, "a hook stayed behind"


def test_a_fault_of_ours_is_not_the_librarys(toy) -> None:
    with pytest.raises(InputFileError, match=r"the graph takes \[B, "):
        toy(Network(lambda x: x))(np.ones((2, 4), np.float32))
