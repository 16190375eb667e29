"""The table of importers, against the importers themselves where they are installed."""

import contextlib
import copy
import importlib
import io
import itertools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.graphs import Array, conv, dyadic, flatten, full, lif, network, pool, spikes
from tser.deploy.facts import FACTS, gather
from tser.deploy.importers import Rule, judge, load_importers
from tser.deploy.interpreter import run
from tser.export.graph import decay, resolve

STEP, TAU = 1e-4, 2e-4
STEPS, SAMPLES = 40, 8
TABLE = {importer.name: importer for importer in load_importers()}


def _affine(outputs: int, inputs: int, seed: int = 0) -> nir.Affine:
    rng = np.random.default_rng([seed, outputs, inputs])
    weight = rng.normal(size=(outputs, inputs)).astype(np.float32)
    return nir.Affine(weight, full(outputs, 0))


def _lif(shape: Any, **parameters: Any) -> nir.LIF:
    return lif(shape, **{"tau": TAU, "v_th": 0.4, **parameters})


def _chain(dt: float = STEP, **parameters: Any) -> nir.NIRGraph:
    return network((4,), {"fc": _affine(5, 4), "lif": _lif(5, **parameters)}, dt=dt)


def _one(op: Any, shape: tuple[int, ...] = (4,)) -> nir.NIRGraph:
    return network(shape, {"op": op, "fc": _affine(4, 4), "lif": _lif(4)}, dt=STEP)


def _conv(channels: int, inputs: int, size: int, kernel: int = 3, **options: Any) -> nir.Conv2d:
    rng = np.random.default_rng([channels, inputs, kernel])
    pairs = {"stride": (1, 1), "dilation": (1, 1), "padding": (kernel // 2,) * 2, **options}
    per_group = inputs // pairs.get("groups", 1)
    weight = rng.normal(size=(channels, per_group, kernel, kernel)) / kernel
    return conv(weight, (size, size), **pairs)


def _convnet(kind: type = nir.AvgPool2d, flat: Any = None, **options: Any) -> nir.NIRGraph:
    nodes = {
        "conv": _conv(4, 2, 8, **options),
        "lif": _lif((4, 8, 8)),
        "pool": pool(kind, 2),
        "flat": flat or flatten(),
        "fc": _affine(3, 64),
        "last": _lif(3, v_th=0.3),
    }
    return network((2, 8, 8), nodes, dt=STEP)


def _residual() -> nir.NIRGraph:
    nodes = {
        "stem": _conv(4, 2, 8),
        "first": _lif((4, 8, 8)),
        "a": _conv(4, 4, 8),
        "mid": _lif((4, 8, 8)),
        "b": _conv(4, 4, 8),
        "sum": _lif((4, 8, 8)),
        "c": _conv(4, 4, 8, stride=(2, 2)),
        "shortcut": _conv(4, 4, 8, kernel=1, stride=(2, 2)),
        "last": _lif((4, 4, 4)),
    }
    chain = list(itertools.pairwise(["input", *list(nodes)[:7], "last", "output"]))
    edges = [*chain, ("first", "sum"), ("sum", "shortcut"), ("shortcut", "last")]
    return network((2, 8, 8), nodes, edges, (4, 4, 4), dt=STEP)


def _recurrent() -> nir.NIRGraph:
    nodes = {"fc": _affine(4, 4), "lif": _lif(4), "back": nir.Linear(_affine(4, 4, 1).weight)}
    edges = [("input", "fc"), ("fc", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "output")]
    return network((4,), nodes, edges, (4,), dt=STEP)


def _nested() -> nir.NIRGraph:
    ports = [nir.Input({"input": np.array([4])}), nir.Output({"output": np.array([4])})]
    inner = {"in": ports[0], "fc": _affine(4, 4), "lif": _lif(4), "out": ports[1]}
    block = nir.NIRGraph(inner, list(itertools.pairwise(inner)), type_check=False)
    return network((4,), {"block": block}, [("input", "block"), ("block", "output")], (4,), dt=STEP)


def _cuba(r: float, w_in: float) -> nir.NIRGraph:
    values = {"tau_syn": TAU, "tau_mem": TAU, "r": r, "v_leak": 0, "v_reset": 0, "w_in": w_in}
    op = nir.CubaLIF(**{k: full(4, v) for k, v in values.items()}, v_threshold=full(4, 0.4))
    return network((4,), {"fc": _affine(4, 4), "cuba": op}, dt=STEP)


def _integrate(r: float) -> nir.NIRGraph:
    op = nir.IF(r=full(4, r), v_threshold=full(4, r * STEP), v_reset=full(4, 0))
    return network((4,), {"fc": _affine(4, 4), "if": op}, dt=STEP)


def _coarse() -> nir.NIRGraph:
    fc = nir.Affine(dyadic(np.random.default_rng(0), (40, 4), bits=1), full(40, 0))
    return network((4,), {"fc": fc, "lif": _lif(40, v_th=0.5)}, dt=STEP)


GRAPHS: dict[str, Callable[[], nir.NIRGraph]] = {
    "one LIF": _chain,
    "dt = 1 ms": lambda: _chain(dt=1e-3, tau=2e-3),
    "r = tau/dt": lambda: _chain(r=2.0),
    "r = 3": lambda: _chain(r=3.0),
    "v_reset": lambda: _chain(v_reset=0.2),
    "v_leak": lambda: _chain(v_leak=0.1),
    "v_leak and v_reset": lambda: _chain(v_leak=0.3, v_reset=0.3),
    "tau of each": lambda: _chain(tau=np.linspace(2e-4, 4e-4, 5)),
    "threshold of each": lambda: _chain(v_th=np.linspace(0.2, 0.4, 5)),
    "tau = dt": lambda: _chain(tau=STEP),
    "convnet": _convnet,
    "sum pool": lambda: _convnet(nir.SumPool2d),
    "groups": lambda: _convnet(groups=2),
    "flatten from the first": lambda: _convnet(flat=nir.Flatten({"input": None}, 0, -1)),
    "residual": _residual,
    "recurrent": _recurrent,
    "nested": _nested,
    "IF, r = 1": lambda: _integrate(1),
    "IF, r = 1/dt": lambda: _integrate(1 / STEP),
    "CubaLIF": lambda: _cuba(2, 2),
    "CubaLIF, r = 1": lambda: _cuba(1, 1),
    "LI": lambda: _one(nir.LI(full(4, TAU), full(4, 1), full(4, 0))),
    "delay": lambda: _one(nir.Delay(full(4, TAU))),
    "scale": lambda: _one(nir.Scale(full(4, 0.5))),
    "coarse weights": _coarse,
}


# --- the importers -------------------------------------------------------------------------


class _OwnLIF(torch.nn.Module):
    """What a user writes for nirtorch, which has no neurons of its own."""

    def __init__(self, op: nir.LIF, dt: float) -> None:
        super().__init__()
        names = ("r", "v_leak", "v_threshold", "v_reset")
        self.values = [torch.from_numpy(getattr(op, name)) for name in names]
        self.rate = torch.from_numpy(decay(dt, op.tau).astype(np.float32))

    def forward(self, x: Any, state: Any = None) -> Any:
        r, leak, threshold, reset = self.values
        v = leak.expand_as(x) if state is None else state
        v = v + self.rate * ((r * x + leak) - v)
        fired = v > threshold
        return fired.float(), torch.where(fired, reset, v)


def _affine_map(op: nir.Affine) -> Any:
    layer = torch.nn.Linear(*op.weight.T.shape)
    layer.weight.data, layer.bias.data = torch.from_numpy(op.weight), torch.from_numpy(op.bias)
    return layer


def _nirtorch(graph: nir.NIRGraph, dt: float) -> Any:
    maps = {
        nir.LIF: lambda op: _OwnLIF(op, dt),
        nir.Affine: _affine_map,
        nir.Flatten: lambda op: torch.nn.Flatten(op.start_dim, op.end_dim),
    }
    return importlib.import_module("nirtorch").nir_to_torch(graph, maps)


def _spikingjelly(graph: nir.NIRGraph, dt: float) -> Any:
    found = importlib.import_module("spikingjelly.activation_based.nir_exchange")
    return found.import_from_nir(graph, dt=dt)


def _snntorch(graph: nir.NIRGraph, dt: float) -> Any:
    return importlib.import_module("snntorch.import_nir").import_from_nir(graph)


def _norse(graph: nir.NIRGraph, dt: float) -> Any:
    return importlib.import_module("norse.torch").from_nir(graph, dt=dt)


TOOLS = {
    "nirtorch": ("nirtorch", _nirtorch),
    "SpikingJelly": ("spikingjelly", _spikingjelly),
    "snnTorch": ("snntorch", _snntorch),
    "Norse": ("norse", _norse),
}


def _outcome(load: Callable[[nir.NIRGraph, float], Any], raw: nir.NIRGraph) -> str:
    """What the tool does to the graph, in the words of the table."""
    view = resolve(raw)
    shape = (STEPS, SAMPLES, *view.input.output_shape)
    x = spikes(np.random.default_rng(0), shape, 0.5)
    expected, _ = run(view, x)
    assert 0 < expected.mean() < 1, "a graph that shows nothing"
    try:
        given = _run(load, raw, view.dt, x)
    except Exception:  # noqa: BLE001 - whatever the tool raises
        return "fails"
    return "correct" if np.array_equal(given, expected) else "differs"


def _run(load: Callable[..., Any], raw: nir.NIRGraph, dt: float, x: Array) -> Array:
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), torch.no_grad():
        warnings.simplefilter("ignore")
        checked = nir.NIRGraph(copy.deepcopy(raw.nodes), list(raw.edges), metadata={})
        model, state, out = load(checked, dt), None, []
        for step in torch.from_numpy(x):
            result = model(step, state)
            value, state = result if isinstance(result, tuple) else (result, None)
            out.append(np.asarray(value))
    return np.stack(out)


def _judge(name: str, raw: nir.NIRGraph) -> Any:
    return judge(TABLE[name], gather(raw, resolve(raw, timeless=True)))


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_table_says_what_the_tool_does(
    name: str, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, load = TOOLS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(module)
    monkeypatch.setattr(logging.root, "disabled", True)
    raw = GRAPHS[graph]()
    outcome, judged = _outcome(load, raw), _judge(name, raw)
    if name == "Norse" and outcome != "correct":
        # What it drops may or may not leave shapes that fit, from one process to the next.
        assert judged.verdict in ("differs", "fails")
    else:
        assert outcome == judged.verdict, judged.reasons


def test_every_verdict_was_met() -> None:
    met = {_judge(name, make()).verdict for name in TOOLS for make in GRAPHS.values()}
    assert met == {"correct", "differs", "fails"}


# --- the table and its rules ---------------------------------------------------------------


def _facts(raw: nir.NIRGraph) -> Any:
    return gather(raw, resolve(raw, timeless=True))


HOLD = {
    "spiking": _chain,
    "reset_not_zero": GRAPHS["v_reset"],
    "leak_not_zero": GRAPHS["v_leak"],
    "reset_not_leak": GRAPHS["v_leak"],
    "gain_not_one": GRAPHS["r = 3"],
    "gain_not_unit": GRAPHS["one LIF"],
    "gain_neither": GRAPHS["r = 3"],
    "if_gain_not_one": GRAPHS["IF, r = 1/dt"],
    "if_gain_not_rate": GRAPHS["IF, r = 1"],
    "cuba_gain_not_unit": GRAPHS["CubaLIF, r = 1"],
    "cuba_input_gain_not_unit": GRAPHS["CubaLIF, r = 1"],
    "not_uniform": GRAPHS["tau of each"],
    "threshold_not_uniform": GRAPHS["threshold of each"],
    "tau_not_above_dt": GRAPHS["tau = dt"],
    "cycle": _recurrent,
    "nested": _nested,
    "flatten_positive": GRAPHS["flatten from the first"],
    "groups": GRAPHS["groups"],
    "ties": _coarse,
    "refused_by_nir": GRAPHS["groups"],
    "name": lambda: network((2,), {"a-b": _lif(2)}),
    "no_input_shape": lambda: network((2, 8, 8), {"c": conv(np.ones((1, 2, 3, 3)), None)}),
    "pool_padding": lambda: network((2, 8, 8), {"p": pool(nir.SumPool2d, 2, 2, 1)}),
    "cuba_leak_not_zero": lambda: _leaking(_cuba(2, 2)),
}


def _leaking(raw: nir.NIRGraph) -> nir.NIRGraph:
    raw.nodes["cuba"].v_leak = full(4, 0.1)
    return raw


def test_every_fact_has_an_example() -> None:
    assert HOLD.keys() == FACTS.keys()


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_holds_of_its_example_alone(fact: str) -> None:
    assert FACTS[fact](_facts(HOLD[fact]()))
    plain = network(
        (4,), {"fc": _affine(5, 4), "flat": flatten(1), "out": nir.Linear(full(5, 1)[None])}
    )
    assert not FACTS[fact](_facts(plain))


def test_without_dt_what_depends_on_it_is_unknown() -> None:
    raw = _chain()
    del raw.metadata["dt"]
    assert _judge("snnTorch", raw).verdict == "unknown"
    assert any("depends on dt" in reason for reason in _judge("snnTorch", raw).reasons)
    assert _judge("Norse", raw).verdict == "correct"


def test_the_worst_comes_first() -> None:
    raw = _chain(v_leak=0.1, v_reset=0.2, dt=1e-3, tau=2e-3)
    judged = _judge("snnTorch", raw)
    assert judged.verdict == "fails"
    assert judged.reasons[0] == "v_leak must be 0 (lif)"
    assert len(judged.reasons) == 3


def test_the_nodes_of_a_reason_are_named_but_not_all() -> None:
    nodes = {f"lif{i}": _lif(4, v_leak=0.1) for i in range(5)}
    judged = _judge("snnTorch", network((4,), nodes, dt=STEP))
    assert judged.reasons[0] == "v_leak must be 0 (lif0, lif1, lif2 and 2 more)"


@pytest.mark.parametrize(
    "wrong",
    [
        {"when": "moon"},
        {"when": "sums"},
        {"when": "cycle", "least": 2},
        {"when": "is"},
        {"when": "dt_other"},
        {"when": "cycle", "effect": "explodes"},
        {"when": "cycle", "colour": "red"},
    ],
)
def test_a_wrong_rule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rule.model_validate({"effect": "fails", "why": "it does", **wrong})


def test_no_two_importers_have_the_same_name() -> None:
    assert len(TABLE) == len(load_importers())
    assert TOOLS.keys() <= TABLE.keys()
