"""Bounds in graphs with recurrence and with thresholds; both come from users' models."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import pytest

from tests.graphs import Array, full, lif, network, pool, view
from tser.deploy.backends import NirBackend, Trace
from tser.deploy.certificate import Audit, NotCertifiable, violations
from tser.export.graph import Graph, resolve

STEPS, BATCH = 6, 5


def _recurrent() -> Graph:
    rng = np.random.default_rng(0)
    nodes: dict[str, Any] = {
        "fc": nir.Linear(weight=rng.normal(size=(4, 3)).astype(np.float32)),
        "lif": lif(4),
        "back": nir.Linear(weight=2 * rng.normal(size=(4, 4)).astype(np.float32)),
    }
    edges = [("input", "fc"), ("fc", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "output")]
    return resolve(network((3,), nodes, edges, (4,)))


def _trace(graph: Graph, x: Array) -> Trace:
    return NirBackend(graph, STEPS, "the graph")(x)


def _images(*shape: int) -> Array:
    rng = np.random.default_rng(1)
    return rng.normal(0.5, 2, (STEPS, BATCH, *shape)).astype(np.float32)


def test_a_cycle_carries_the_spikes_of_the_step_before() -> None:
    graph, x = _recurrent(), _images(3)
    trace = _trace(graph, x)
    spikes = trace.spikes["lif"]
    assert 0.1 < spikes.mean() < 0.9
    audit = Audit(graph, x, trace, {})
    current = audit.current(graph.nodes["lif"])
    before = np.concatenate([np.zeros_like(spikes[:1]), spikes[:-1]]).astype(np.float64)
    back, fc = (graph.nodes[name].op.weight.astype(np.float64) for name in ("back", "fc"))
    np.testing.assert_allclose(current.value, x @ fc.T + before @ back.T, rtol=1e-9, atol=1e-12)
    assert not violations(audit.margins(graph.nodes["lif"]), spikes).any()


def test_a_spike_that_the_cycle_does_not_explain_is_a_violation() -> None:
    graph, x = _recurrent(), _images(3)
    trace = _trace(graph, x)
    graph.nodes["back"].op.weight[:] *= -1
    audit = Audit(graph, x, trace, {})
    assert violations(audit.margins(graph.nodes["lif"]), trace.spikes["lif"]).any()


def test_a_cycle_without_spikes_is_not_certified() -> None:
    weight = np.eye(3, dtype=np.float32) / 2
    li = nir.LI(tau=full(3, 2e-3), r=full(3, 1), v_leak=full(3, 0))
    nodes = {"li": li, "back": nir.Linear(weight=weight), "lif": lif(3)}
    edges = [("input", "li"), ("li", "back"), ("back", "li"), ("li", "lif"), ("lif", "output")]
    graph = resolve(network((3,), nodes, edges, (3,)))
    x = _images(3)
    with pytest.raises(NotCertifiable, match="the cycle through 'li' has no layer that fires"):
        Audit(graph, x, _trace(graph, x), {}).margins(graph.nodes["lif"])


def test_the_threshold_of_a_max_pool_is_exact() -> None:
    nodes = {
        "a": lif((2, 4, 4)),
        "sum": pool(nir.SumPool2d, 2),
        "or": nir.Threshold(full((2, 2, 2), 0.5)),
        "b": lif((2, 2, 2)),
    }
    graph, x = view((2, 4, 4), nodes), _images(2, 4, 4)
    trace = _trace(graph, x)
    current = Audit(graph, x, trace, {}).current(graph.nodes["b"])
    a = trace.spikes["a"].reshape(STEPS, BATCH, 2, 2, 2, 2, 2)
    np.testing.assert_array_equal(current.value, a.max((4, 6)))
    assert not current.error.any()
    assert 0.1 < current.value.mean() < 0.95


def test_a_value_that_rounding_may_put_on_either_side_is_undecided() -> None:
    """The inputs are not exact sums; within their bound of the threshold anything may happen."""
    weight = np.array([[0.1, 0.2, 0.3]], np.float32)
    threshold = np.float32(weight.sum(dtype=np.float64))
    nodes = {
        "fc": nir.Linear(weight=weight),
        "step": nir.Threshold(np.array([threshold])),
        "lif": lif(1),
    }
    graph = view((3,), nodes)
    x = np.array([[1, 1, 1], [1.1, 1, 1], [0.9, 1, 1]], np.float32)
    trace = NirBackend(graph, STEPS, "the graph")(x)
    current = Audit(graph, x, trace, {}).current(graph.nodes["lif"])
    assert current.error[0, :, 0].tolist() == [1, 0, 0]
    assert current.value[0, 1:, 0].tolist() == [1, 0]
