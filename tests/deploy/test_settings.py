"""Every way to run a network: the steps taken, what they cost, and the cheapest that will do."""

from typing import Any

import nir
import numpy as np
import pytest

from tests.graphs import DT, Array, full, lif, network
from tser.data import load_data
from tser.deploy.bills import first_steps
from tser.deploy.counting import OperationCount, count_operations
from tser.deploy.energy import Assumptions
from tser.deploy.measure import bills_per_step, choices, pricer
from tser.deploy.memory_model import MemoryOptions, layer_shapes
from tser.deploy.pareto import cheapest, front
from tser.deploy.settings import count_settings
from tser.deploy.target_files import load_target
from tser.errors import UsageError
from tser.evaluate import THRESHOLDS
from tser.export.graph import Graph, resolve

T, CLASSES = 5, 4
SUMMED = (
    "dense",
    "dense_padded",
    "macs",
    "macs_once",
    "bias_adds",
    "neuron_updates",
    "neuron_updates_driven",
)


def _weights(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(0, 1, shape).astype(np.float32)


def _chain() -> Graph:
    rng = np.random.default_rng(0)
    nodes: dict[str, Any] = {
        "fc1": nir.Affine(_weights(rng, 9, 6), full(9, 0.3)),
        "lif1": lif(9, tau=3e-3, v_th=0.4),
        "fc2": nir.Affine(_weights(rng, 7, 9), full(7, 0.2)),
        "lif2": lif(7, tau=3e-3, v_th=0.4),
        "head": nir.Linear(3 * _weights(rng, CLASSES, 7)),
    }
    return resolve(network((6,), nodes, timesteps=T))


def _loop() -> Graph:
    """A layer that feeds itself, once directly and once through a delay."""
    rng = np.random.default_rng(1)
    nodes: dict[str, Any] = {
        "fc1": nir.Affine(_weights(rng, 9, 6), full(9, 0.3)),
        "lif1": lif(9, tau=3e-3, v_th=0.4),
        "back": nir.Linear(_weights(rng, 9, 9)),
        "wait": nir.Delay(full(9, 2 * DT)),
        "late": nir.Linear(_weights(rng, 9, 9)),
        "head": nir.Linear(_weights(rng, CLASSES, 9)),
    }
    edges = [("input", "fc1"), ("fc1", "lif1"), ("lif1", "back"), ("back", "lif1")]
    edges += [("lif1", "wait"), ("wait", "late"), ("late", "lif1")]
    edges += [("lif1", "head"), ("head", "output")]
    return resolve(network((6,), nodes, edges, (CLASSES,), timesteps=T))


def _batch(count: int = 30) -> tuple[Array, Array]:
    rng = np.random.default_rng(2)
    return _weights(rng, count, 6), rng.integers(0, CLASSES, count)


def _alone(graph: Graph, x: Array, steps: Array) -> dict[tuple[str, str], float]:
    """Sums over samples that were counted one by one, each until it stops."""
    found: dict[tuple[str, str], float] = {}
    for sample, taken in zip(x, steps, strict=True):
        counts = first_steps(count_operations(graph, [sample[None]]), int(taken))
        for key, value in _flat(counts).items():
            found[key] = found.get(key, 0) + value
    return found


def _flat(counts: OperationCount) -> dict[tuple[str, str], float]:
    columns = (*SUMMED, "events", "sop_structural", "sop_effective")
    return {
        (row.name, column): float(np.sum(getattr(row, column)))
        for row in counts.layers
        for column in columns
    }


@pytest.mark.parametrize("make", [_chain, _loop])
def test_a_setting_counts_the_steps_that_each_sample_takes(make: Any) -> None:
    graph, (x, labels) = make(), _batch()
    whole, settings = count_settings(graph, [(x[:11], labels[:11]), (x[11:], labels[11:])])
    assert _flat(whole) == _flat(count_operations(graph, [x]))
    assert [way.t for way in settings] == [*range(1, T + 1), *[None] * len(THRESHOLDS)]
    assert [way.threshold for way in settings] == [*[None] * T, *THRESHOLDS]
    early = settings[T:]
    assert 1 < early[2].mean_steps < T  # neither all at once nor never
    logits = _logits(graph, x)
    for way in (settings[0], settings[2], settings[T - 1], *early[:3]):
        steps = np.full(len(x), way.t or 0)
        if way.threshold is not None:
            steps = _stops(logits, way.threshold)
        assert way.mean_steps == pytest.approx(steps.mean())
        answers = np.cumsum(logits, 0).argmax(-1)[steps - 1, np.arange(len(x))]
        assert way.accuracy == pytest.approx((answers == labels).mean())
        assert _flat(way.counts) == _alone(graph, x, steps)
        assert way.counts.samples == len(x)


def _logits(graph: Graph, x: Array) -> Array:
    from tser.deploy.interpreter import run

    return np.array(run(graph, x)[0])


def _stops(logits: Array, threshold: float) -> Array:
    """The first step that is sure enough, 1..T, one sample at a time."""
    found = []
    for sample in range(logits.shape[1]):
        stop = T
        for t in range(T, 0, -1):
            mean = logits[:t, sample].astype(np.float64).mean(0)
            share = np.exp(mean - mean.max())
            if (share / share.sum()).max() >= threshold:
                stop = t
        found.append(stop)
    return np.array(found)


def test_a_graph_without_logits_has_no_settings() -> None:
    graph = resolve(network((2, 3), {"lif": lif((2, 3))}, timesteps=2))
    with pytest.raises(UsageError, match="puts out no logits"):
        count_settings(graph, [(np.ones((1, 2, 3), np.float32), np.zeros(1, int))])


def test_the_front_and_the_cheapest() -> None:
    costs, shares = [1.0, 2.0, 3.0, 2.0, None], [0.5, 0.9, 0.8, 0.7, 1.0]
    assert front(costs, shares) == [0, 1]
    assert front([None], [1.0]) == []
    assert cheapest(costs, shares, 0.6) == 1  # of two that cost the same, the better
    assert cheapest(costs, shares, 0.95) is None


def test_the_choice_is_against_all_steps() -> None:
    def way(t: int, accuracy: float, joules: float | None) -> dict[str, Any]:
        energy = {"chip": joules}
        return {
            "t": t, "threshold": None, "accuracy": accuracy, "mean_steps": t, "energy": energy
        }  # fmt: skip

    document = {
        "timesteps": 3,
        "samples": 200,
        "targets": [{"name": "chip"}],
        "settings": [way(1, 0.8, 1.0), way(2, 0.895, 2.0), way(3, 0.9, 3.0)],
    }
    assert [one["setting"] for one in choices(document, 0.5)] == [1]
    assert [one["setting"] for one in choices(document, 0.4)] == [2]
    assert "66.7 % of the energy" in choices(document, 0.5)[0]["text"]
    document["settings"] = [way(3, 0.9, None)]
    assert choices(document, 1)[0]["setting"] is None


def test_images_for_validation_can_be_counted_on() -> None:
    from tser.deploy.inputs import image_batches

    data = load_data("digits")
    x, labels = next(image_batches(data, 5, split="val"))
    np.testing.assert_array_equal(labels, data.val.labels[:5].numpy())
    assert len(x) == 5


@pytest.mark.parametrize("first_layer", ["charge", "once", "host"])
@pytest.mark.parametrize("reuse", [None, "none", "full"])
def test_always_t_steps_costs_what_a_run_that_stops_there_does(
    first_layer: Any, reuse: Any
) -> None:
    """Two ways to the same number: counters of their own, and the first steps of all."""
    graph, (x, labels) = _chain(), _batch()
    target, known = load_target("cmos45"), Assumptions(first_layer)
    memory = None if reuse is None else MemoryOptions(reuse=reuse)
    bill = pricer(target, None if memory is None else layer_shapes(graph), memory)
    whole, settings = count_settings(graph, [(x, labels)])
    expected = [one.energy_joules for one in bills_per_step(whole, bill, known)]
    found = [bill(way.counts, known).energy_joules for way in settings[:T]]
    assert None not in expected
    assert found == pytest.approx(expected, rel=1e-12)
