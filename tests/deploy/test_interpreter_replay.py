"""Replays: every layer by itself, on recorded spikes."""

from typing import Any

import nir
import numpy as np
import pytest

from tests.graphs import DT, TAU, Array, conv, dyadic, flatten, full, lif, network, pool, view
from tser.deploy.interpreter import replay, run
from tser.errors import InputFileError
from tser.export.graph import Graph, decay, resolve

STEPS, BATCH = 6, 3


def _cuba(size: Any, **values: float) -> nir.CubaLIF:
    known = {"tau_syn": 3e-3, "tau_mem": TAU, "r": 1, "v_leak": 0.125, "w_in": 2}
    known |= {"v_threshold": 0.3, "v_reset": -0.1} | values
    return nir.CubaLIF(**{name: full(size, value) for name, value in known.items()})


def _chain() -> Graph:
    """input - conv - "first" - pool - conv - "second" - fc - "third" - fc - LI, not dyadic."""
    rng = np.random.default_rng(0)
    nodes = {
        "conv1": conv(rng.normal(size=(3, 1, 3, 3)), (6, 6), padding=1, bias=rng.normal(size=3)),
        "first": lif((3, 6, 6), tau=3e-3, v_th=0.3, v_reset=-0.1),
        "pool": pool(nir.AvgPool2d, 2),
        "conv2": conv(rng.normal(size=(4, 3, 3, 3)), (3, 3), padding=1),
        "second": _cuba((4, 3, 3)),
        "flatten": flatten(),
        "fc1": nir.Affine(rng.normal(size=(7, 36)).astype(np.float32), full(7, 0.4)),
        "third": nir.IF(full(7, 0.5 / DT), full(7, 0.5), full(7, 0.1)),
        "fc2": nir.Linear(rng.normal(size=(2, 7)).astype(np.float32)),
        "li": nir.LI(full(2, 3e-3), full(2, 1), full(2, 0)),
    }
    return view((1, 6, 6), nodes, timesteps=STEPS)


def _loop() -> Graph:
    """Two layers that feed each other, one of them itself through a delay, and an LI loop."""
    rng, size = np.random.default_rng(1), 5
    weights = {name: rng.normal(size=(size, size)).astype(np.float32) for name in "abcd"}
    nodes: dict[str, Any] = {
        "first": lif(size, tau=3e-3, v_th=0.3),
        "forth": nir.Affine(weights["a"], full(size, 0.2)),
        "second": _cuba(size),
        "back": nir.Linear(weights["b"]),
        "late": nir.Delay(full(size, 2 * DT)),
        "self": nir.Linear(weights["c"]),
        "li": nir.LI(full(size, TAU), full(size, 1), full(size, 0)),
        "damp": nir.Linear(weights["d"] * np.float32(0.1)),
    }
    edges = [("input", "first"), ("first", "forth"), ("forth", "second"), ("second", "back")]
    edges += [("back", "first"), ("second", "self"), ("self", "late"), ("late", "second")]
    edges += [("first", "li"), ("li", "damp"), ("damp", "li"), ("li", "second")]
    return resolve(network((size,), nodes, [*edges, ("second", "output")], (size,)))


GRAPHS = {"chain": _chain, "loop": _loop}


def _recorded(graph: Graph, dtype: Any = np.float32) -> tuple[Array, dict[str, Array]]:
    """An input for every step, and the spikes that the graph fires on it."""
    rng = np.random.default_rng(2)
    x = rng.normal(0.3, 1, (STEPS, BATCH, *graph.input.output_shape)).astype(np.float32)
    names = [node.name for node in graph.spiking]
    _, kept = run(graph, x, dtype=dtype, record=names)
    for name in names:
        assert 0.05 < kept[name].mean() < 0.9, name
    return x, {name: value > 0 for name, value in kept.items()}


def _differing(one: dict[str, Array], other: dict[str, Array]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if (one[name] != other[name]).any()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", GRAPHS)
def test_its_own_spikes_come_out_again(name: str, dtype: type[np.floating[Any]]) -> None:
    graph = GRAPHS[name]()
    assert graph.recurrent == (name == "loop")
    x, spikes = _recorded(graph, dtype)
    again = replay(graph, x, spikes, dtype=dtype)
    assert not _differing(again, spikes)
    assert {value.dtype for value in again.values()} == {np.dtype(bool)}
    # As numbers they are the same spikes.
    numbers = {name: value.astype(np.float32) for name, value in spikes.items()}
    assert not _differing(replay(graph, x, numbers, STEPS, dtype=dtype), spikes)


def test_a_constant_input_takes_its_steps_from_the_spikes() -> None:
    graph = _chain()
    x = _recorded(graph)[0][0]
    _, kept = run(graph, x, 4, record=["first", "second", "third"])
    assert not _differing(replay(graph, x, kept), kept)


@pytest.mark.parametrize(
    ("name", "changed", "read_by"),
    [
        ("chain", "first", {"second"}),
        ("chain", "second", {"third"}),
        ("chain", "third", set()),
        # "second" reads "first" through "forth" and the LI; itself through "late".
        ("loop", "first", {"second"}),
        ("loop", "second", {"first", "second"}),
    ],
)
def test_a_flip_changes_only_the_layers_that_read_it(
    name: str, changed: str, read_by: set[str]
) -> None:
    graph = GRAPHS[name]()
    x, spikes = _recorded(graph)
    seen: set[str] = set()
    for place in np.ndindex(*graph.nodes[changed].output_shape):
        flipped = {**spikes, changed: spikes[changed].copy()}
        flipped[changed][0, 1][place] ^= True
        seen |= _differing(replay(graph, x, flipped), spikes)
    assert seen == read_by


def test_a_spike_goes_round_a_loop_in_one_step() -> None:
    """In "loop", `first` reads `second` through `back`, one step late."""
    graph = _loop()
    x, spikes = _recorded(graph)
    for t in range(STEPS):
        flipped = {**spikes, "second": spikes["second"].copy()}
        flipped["second"][t] ^= True
        fired = replay(graph, x, flipped)["first"]
        changed = (fired != spikes["first"]).any(axis=(1, 2))
        assert not changed[: t + 1].any()
        assert t + 1 == STEPS or changed[t + 1 :].any()


def _membranes(graph: Graph, spikes: dict[str, Array], x: Array) -> dict[str, Array]:
    """``v`` before every step of `first` and `third` of "chain", as the equations say."""
    names = {"first": "conv1", "third": "fc1"}
    found = {}
    for name, source in names.items():
        op = graph.nodes[name].op
        current = run(graph, x, record=[source])[1][source]
        leak = getattr(op, "v_leak", np.zeros((), np.float32))
        v = np.broadcast_to(leak, current.shape[1:])
        before = []
        for t in range(STEPS):
            before.append(v)
            if isinstance(op, nir.IF):
                v = v + np.float32(DT * np.float64(op.r[0])) * current[t]
            else:
                rate = decay(graph.dt, op.tau).astype(np.float32)
                v = v + rate * ((op.r * current[t] + leak) - v)
            v = np.where(spikes[name][t], op.v_reset, v)
        found[name] = np.stack(before)
    return found


def test_with_forced_states_each_step_is_by_itself() -> None:
    graph = _chain()
    x, spikes = _recorded(graph)
    states = _membranes(graph, spikes, x)
    assert not _differing(replay(graph, x, spikes, states=states), spikes)
    changed = {name: value.copy() for name, value in states.items()}
    for value in changed.values():
        value[2] += 20
    fired = replay(graph, x, spikes, states=changed)
    for name in changed:
        different = (fired[name] != spikes[name]).reshape(STEPS, -1).any(1)
        assert different.tolist() == [t == 2 for t in range(STEPS)]
        assert fired[name][2].all()
    assert not _differing({"second": fired["second"]}, {"second": spikes["second"]})  # runs free
    # Nothing was written into what belongs to the caller.
    fresh = _membranes(graph, spikes, x)
    assert all((states[name] == fresh[name]).all() for name in states)


def test_states_take_effect_in_loops_and_for_currents() -> None:
    graph = _loop()
    x, spikes = _recorded(graph)
    shape = spikes["second"].shape
    high, low = np.full(shape, 9.0), np.full(shape, -9.0)
    states = {"second": np.where(np.arange(STEPS)[:, None, None] % 2, high, low)}
    fired = replay(graph, x, spikes, states=states)
    assert fired["second"].mean((1, 2)).tolist() == [0, 1, 0, 1, 0, 1]
    assert (fired["first"] == spikes["first"]).all()


def test_the_current_of_a_cuba_neuron_runs_free_beside_a_forced_membrane() -> None:
    """Alone with tau_mem = dt the forced membrane is forgotten: the current decides."""
    op = _cuba(1, tau_syn=4 * DT, tau_mem=DT, w_in=4, v_leak=0, v_threshold=0.5)
    graph = view((1,), {"cuba": op})
    x = np.zeros((5, 1, 1), np.float32)
    x[0] = 1  # I = 1 and then 3/4 of it each step
    recorded = {"cuba": np.zeros((5, 1, 1), bool)}
    states = {"cuba": np.full((5, 1, 1), 7.0)}
    fired = replay(graph, x, recorded, states=states)["cuba"][:, 0, 0]
    assert fired.tolist() == [0.75**t > 0.5 for t in range(5)]


def test_a_layer_that_does_not_fire_runs_by_itself() -> None:
    """LI between two layers: its output follows the forced spikes, over time."""
    nodes = {
        "first": lif(2),
        "li": nir.LI(full(2, TAU), full(2, 1), full(2, 0)),
        "late": nir.Delay(full(2, DT)),
        "second": lif(2, tau=DT, v_th=0.4),
    }
    graph = view((2,), nodes)
    fired = np.zeros((4, 1, 2), bool)
    fired[0, 0] = [True, False]
    fired[1] = True
    recorded = {"first": fired, "second": np.ones_like(fired)}
    again = replay(graph, np.zeros((4, 1, 2), np.float32), recorded)
    assert not again["first"].any()  # silent itself
    # LI: 1/2, 3/4, 3/8 and 0, 1/2, 1/4; a step late through the delay.
    assert again["second"][:, 0].tolist() == [[0, 0], [1, 0], [1, 1], [0, 0]]


def test_what_was_not_recorded_is_named() -> None:
    graph = view((3,), {"lif": lif(3), "fc": nir.Linear(dyadic(np.random.default_rng(0), (2, 3)))})
    x, spikes = np.zeros((2, 3), np.float32), np.zeros((4, 2, 3), bool)
    with pytest.raises(InputFileError, match="no spikes of the layer 'lif' were recorded"):
        replay(graph, x, {}, 4)
    with pytest.raises(InputFileError, match=r"spikes of the layer 'lif' has shape \(4, 2, 3\)"):
        replay(graph, x, {"lif": spikes}, 5)
    with pytest.raises(InputFileError, match=r"membrane of the layer 'lif' has shape \(2, 3\)"):
        replay(graph, x, {"lif": spikes}, states={"lif": x})
    assert replay(graph, x, {"lif": spikes})["lif"].shape == (4, 2, 3)
