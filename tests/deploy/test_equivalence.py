"""Verdicts: rounding ties are forgiven, every real difference is found and located."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from tests.graphs import DT, TAU, Array, dyadic, full, lif, network, view
from tser.config import NeuronConfig, StudentConfig
from tser.deploy.backends import Backend, NirBackend, TorchBackend, Trace
from tser.deploy.certificate import Audit
from tser.deploy.equivalence import compare
from tser.deploy.onnx_backend import OnnxBackend, session
from tser.deploy.tally import Comparison, Evidence
from tser.errors import InputFileError
from tser.export.graph import Graph, resolve
from tser.export.lower import lower
from tser.export.onnx_file import compile_onnx
from tser.layers import Student
from tser.students import build_student

T = 5
SIZES = {"fc1": (12, 24), "fc2": (24, 24), "fc3": (24, 4)}
EDGES = [
    ("input", "fc1"),
    ("fc1", "lif1"),
    ("lif1", "fc2"),
    ("fc2", "lif2"),
    ("lif1", "lif2"),  # a residual: the identity shortcut
    ("lif2", "fc3"),
    ("fc3", "output"),
]


def _nodes(seed: int, weights: Callable[..., Array]) -> dict[str, Any]:
    """Two layers of neurons; the read-out always prefers the first class."""
    rng = np.random.default_rng(seed)
    nodes: dict[str, Any] = {}
    for name, (inputs, outputs) in SIZES.items():
        nodes[name] = nir.Affine(weights(rng, (outputs, inputs)), weights(rng, outputs))
        if name != "fc3":
            nodes[name.replace("fc", "lif")] = lif(outputs, v_th=0.75)
    nodes["fc3"].bias[0] = 1e3
    return nodes


def _normal(rng: np.random.Generator, shape: Any) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def _graph(nodes: dict[str, Any], edges: list[tuple[str, str]] | None = None) -> Graph:
    return resolve(network((12,), nodes, edges or EDGES, (4,), timesteps=T))


def _changed(nodes: dict[str, Any], name: str, parameter: str, value: Any) -> dict[str, Any]:
    """A copy of ``nodes`` with one parameter replaced."""
    arrays = {k: v for k, v in nodes[name].to_dict().items() if isinstance(v, np.ndarray)}
    arrays[parameter] = np.asarray(value, arrays[parameter].dtype)
    return {**nodes, name: type(nodes[name])(**arrays)}


@dataclass
class Program:
    """The two-layer network written out, right or wrong in a chosen way.

    ``order`` seeds the order of every sum; the rest are the usual mistakes.
    """

    nodes: dict[str, Any]
    order: int = 0
    at_threshold: tuple[str, ...] = ()
    subtract: tuple[str, ...] = ()
    name: str = "program"
    source: str = "written out"

    def __call__(self, x: Array) -> Trace:
        rng = np.random.default_rng(self.order)
        spikes: dict[str, Array] = {}
        value = np.broadcast_to(x[None], (T, *x.shape))
        for name in ("lif1", "lif2"):
            drive = self._affine(name.replace("lif", "fc"), value, rng)
            if name == "lif2":
                drive = drive + value
            value = self._neurons(name, drive)
            spikes[name] = value > 0
        return Trace(self._affine("fc3", value, rng), spikes)

    def _affine(self, name: str, x: Array, rng: np.random.Generator) -> Array:
        op = self.nodes[name]
        total = np.zeros((*x.shape[:2], len(op.bias)), np.float32)
        for place in rng.permutation(x.shape[-1]):
            total = total + x[..., place, None] * op.weight[:, place]
        return total + op.bias

    def _neurons(self, name: str, drive: Array) -> Array:
        op, out = self.nodes[name], np.empty_like(drive)
        v = np.zeros_like(drive[0])
        for t in range(T):
            v = v + np.float32(DT / TAU) * (drive[t] - v)
            fired = v >= op.v_threshold if name in self.at_threshold else v > op.v_threshold
            after = v - op.v_threshold if name in self.subtract else op.v_reset
            v = np.where(fired, after, v)
            out[t] = fired
        return out


def _judge(graph: Graph, reference: Any, candidate: Any, x: Array) -> Comparison:
    (comparison,) = compare(graph, reference, [candidate], [(x, None)]).comparisons
    return comparison


def _violations(comparison: Comparison) -> dict[str, int]:
    return {layer.name: layer.violations for layer in comparison.layers.values()}


# --- what is forgiven ----------------------------------------------------------------------


def _near_ties(seed: int) -> tuple[dict[str, Any], Array]:
    """A network whose first-layer thresholds are what the membranes reach, to a rounding."""
    nodes, x = _nodes(seed, _normal), _normal(np.random.default_rng(seed + 1000), (8, 12))
    drive = x[0].astype(np.float64) @ nodes["fc1"].weight.T.astype(np.float64) + nodes["fc1"].bias
    return _changed(nodes, "lif1", "v_threshold", np.abs(drive) * DT / TAU), x


CANDIDATES: dict[str, Callable[[dict[str, Any], Graph], Any]] = {
    "float64": lambda nodes, graph: NirBackend(graph, T, "the graph", double=True),
    "another order": lambda nodes, graph: Program(nodes, order=7),
    "ONNX Runtime": lambda nodes, graph: _onnx(graph),
}


def _onnx(graph: Graph, **options: Any) -> OnnxBackend:
    layers = {node.name: node.output_shape for node in graph.spiking}
    return OnnxBackend(compile_onnx(graph, **options), layers, "compiled")


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_rounding_is_forgiven(candidate: str) -> None:
    flips = 0
    for seed in range(25):
        nodes, x = _near_ties(seed)
        graph = _graph(nodes)
        other = CANDIDATES[candidate](nodes, graph)
        comparison = _judge(graph, NirBackend(graph, T, "the graph"), other, x)
        assert comparison.verdict == ("E1" if comparison.flips else "E0"), comparison.reason()
        assert not any(_violations(comparison).values())
        seeds = {layer.name: layer.seeds for layer in comparison.layers.values()}
        assert (seeds["lif1"] > 0) == (comparison.flips > 0)
        assert sum(seeds.values()) <= comparison.flips
        if comparison.flips:
            first = comparison.first_divergence
            assert first is not None
            assert abs(first["v_minus_threshold"]) <= first["bound"] < 1e-4
            assert first["layer"] == "lif1"
            assert "all certified as rounding ties" in comparison.reason()
        flips += comparison.flips
    # The ties are real: something was forgiven. ONNX Runtime may add up as NumPy does.
    assert flips > 10 or candidate == "ONNX Runtime"


def test_the_written_out_program_is_the_interpreter() -> None:
    """So that the mistakes built into it below are the only ones."""
    for seed in range(5):
        nodes = _nodes(seed, dyadic)
        graph, x = _graph(nodes), dyadic(np.random.default_rng(seed), (8, 12))
        comparison = _judge(graph, NirBackend(graph, T, "the graph"), Program(nodes, seed), x)
        assert (comparison.verdict, comparison.logits_max_difference) == ("E0", 0)


# --- what is not ---------------------------------------------------------------------------


def _with_delay(nodes: dict[str, Any]) -> Graph:
    edges = [edge for edge in EDGES if edge != ("lif1", "fc2")]
    edges += [("lif1", "late"), ("late", "fc2")]
    return _graph({**nodes, "late": nir.Delay(full(24, DT))}, edges)


def _on(graph: Graph) -> NirBackend:
    return NirBackend(graph, T, "changed")


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "threshold + 1 %": (
        lambda n: _on(_graph(_changed(n, "lif2", "v_threshold", n["lif2"].v_threshold * 1.01))),
        "lif2",
    ),
    "tau x 1.01": (
        lambda n: _on(_graph(_changed(n, "lif1", "tau", n["lif1"].tau * 1.01))),
        "lif1",
    ),
    "no reset to 0": (
        lambda n: _on(_graph(_changed(n, "lif1", "v_reset", n["lif1"].v_reset + 0.01))),
        "lif1",
    ),
    "residual edge dropped": (
        lambda n: _on(_graph(n, [edge for edge in EDGES if edge != ("lif1", "lif2")])),
        "lif2",
    ),
    "bias dropped": (lambda n: _on(_graph(_changed(n, "fc2", "bias", n["fc2"].bias * 0))), "lif2"),
    "channels swapped": (
        lambda n: _on(_graph(_changed(n, "fc1", "weight", n["fc1"].weight[[1, 0, *range(2, 24)]]))),
        "lif1",
    ),
    "one weight pruned": (lambda n: _on(_graph(_pruned(n))), "lif2"),
    "one step late": (lambda n: _on(_with_delay(n)), "lif2"),
    "subtractive reset": (lambda n: Program(n, subtract=("lif2",)), "lif2"),
}


def _pruned(nodes: dict[str, Any]) -> dict[str, Any]:
    weight = nodes["fc2"].weight.copy()
    weight[:, np.abs(weight).sum(0).argmax()] = 0
    return _changed(nodes, "fc2", "weight", weight)


@pytest.mark.parametrize("case", WRONG)
def test_a_real_difference_is_found_and_located(case: str) -> None:
    make, layer = WRONG[case]
    found = 0
    for seed in range(6):
        nodes, x = _nodes(seed, _normal), _normal(np.random.default_rng(seed), (60, 12))
        graph = _graph(nodes)
        comparison = _judge(graph, NirBackend(graph, T, "the graph"), make(nodes), x)
        if not comparison.flips:
            continue
        found += 1
        assert comparison.verdict in ("E2", "E3"), comparison.reason()
        assert _violations(comparison)[layer] > 0
        assert "rounding cannot explain" in comparison.reason()
        first = comparison.first_divergence
        assert first is not None
        assert first["layer"] == layer
        if layer == "lif2":
            assert not comparison.layers["lif1"].flips.any()
    assert found >= 5


@pytest.mark.parametrize("layer", ["lif1", "lif2"])
def test_a_spike_at_the_threshold_is_a_mistake_where_sums_are_exact(layer: str) -> None:
    """>= in place of > shows in exact ties alone, which no rounding can excuse."""
    found = 0
    for seed in range(6):
        nodes, x = _nodes(seed, dyadic), dyadic(np.random.default_rng(seed), (20, 12))
        graph, wrong = _graph(nodes), Program(nodes, at_threshold=(layer,))
        comparison = _judge(graph, NirBackend(graph, T, "the graph"), wrong, x)
        if comparison.flips:
            found += 1
            assert comparison.verdict in ("E2", "E3")
            first = comparison.first_divergence
            assert first is not None
            assert (first["layer"], first["v_minus_threshold"], first["bound"]) == (layer, 0, 0)
            assert first["reference"] is False
    assert found == 6


def test_a_mistake_behind_a_tie_is_not_masked() -> None:
    """The first divergence is a harmless tie in the first layer; the second layer is wrong."""
    masked = 0
    for seed in range(25):
        nodes, x = _near_ties(seed)
        graph = _graph(nodes)
        wrong = _changed(nodes, "lif2", "v_threshold", nodes["lif2"].v_threshold * 1.05)
        candidate = NirBackend(_graph(wrong), T, "changed", double=True)
        comparison = _judge(graph, NirBackend(graph, T, "the graph"), candidate, x)
        if comparison.layers["lif1"].flips.any() and comparison.layers["lif2"].flips.any():
            masked += 1
            assert comparison.layers["lif1"].violations == 0
            assert comparison.layers["lif2"].violations > 0
            assert comparison.verdict in ("E2", "E3")
    assert masked >= 5


def test_a_mistake_that_no_output_shows_is_not_masked() -> None:
    """The neurons that differ reach nothing: the logits are the same bits."""
    nodes = _nodes(0, _normal)
    nodes = _changed(nodes, "fc3", "weight", nodes["fc3"].weight * 0)
    graph, x = _graph(nodes), _normal(np.random.default_rng(0), (20, 12))
    wrong = _graph(_changed(nodes, "lif2", "v_threshold", nodes["lif2"].v_threshold * 1.05))
    comparison = _judge(graph, _on(graph), _on(wrong), x)
    assert comparison.logits_max_difference == 0
    assert comparison.argmax_differences == 0
    assert comparison.verdict in ("E2", "E3")


def test_logits_are_held_to_their_bound() -> None:
    nodes, x = _nodes(0, _normal), _normal(np.random.default_rng(0), (20, 12))
    graph = _graph(nodes)
    for share, verdict in ((0, "E0"), (1e-4, "E2")):
        bias = nodes["fc3"].bias + np.float32(share)
        other = _on(_graph(_changed(nodes, "fc3", "bias", bias)))
        comparison = _judge(graph, _on(graph), other, x)
        assert (comparison.flips, comparison.verdict) == (0, verdict)
        assert bool(comparison.logits_outside_bound) == (share > 0)
    assert "logits that rounding cannot explain" in comparison.reason()
    double = _judge(graph, _on(graph), NirBackend(graph, T, "the graph", double=True), x)
    assert 0 < double.logits_max_difference < 1e-4
    assert double.verdict == "E0"


# --- counting, by made-up recordings -------------------------------------------------------


@dataclass
class Recorded:
    """Plays back one trace a batch."""

    traces: list[Trace]
    name: str = "recorded"
    source: str = "a tape"
    played: int = field(default=0)

    def __call__(self, x: Array) -> Trace:
        self.played += 1
        return self.traces[self.played - 1]


def _silence(batch: int, classes: int = 4) -> Trace:
    layers = {name: np.zeros((T, batch, 24), bool) for name in ("lif1", "lif2")}
    return Trace(np.zeros((T, batch, classes), np.float32), layers)


def _fired(batch: int, *places: tuple[str, int, int, int]) -> Trace:
    """Silence but for spikes at (layer, sample, t, neuron)."""
    trace = _silence(batch)
    for layer, sample, t, neuron in places:
        trace.spikes[layer][t, sample, neuron] = True
    return trace


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([("lif1", 2, 0, 0), ("lif2", 1, 4, 9)], (1, 4, "lif2", [9])),
        ([("lif1", 1, 3, 0), ("lif2", 1, 2, 9)], (1, 2, "lif2", [9])),
        ([("lif2", 1, 2, 0), ("lif1", 1, 2, 9)], (1, 2, "lif1", [9])),
        ([("lif1", 1, 2, 7), ("lif1", 1, 2, 6)], (1, 2, "lif1", [6])),
    ],
)
def test_the_first_divergence_is_by_sample_step_layer_neuron(
    places: list[tuple[str, int, int, int]], expected: tuple[Any, ...]
) -> None:
    graph, x = _graph(_nodes(0, _normal)), np.zeros((3, 12), np.float32)
    comparison = _judge(graph, Recorded([_silence(3)]), Recorded([_fired(3, *places)]), x)
    first = comparison.first_divergence
    assert first is not None
    assert tuple(first[key] for key in ("sample", "t", "layer", "neuron")) == expected
    assert first["reference"] is False


def test_batches_add_up() -> None:
    graph, x = _graph(_nodes(0, _normal)), np.zeros((3, 12), np.float32)
    reference = Recorded([_silence(3), _fired(3, ("lif1", 0, 1, 1), ("lif1", 0, 3, 2))])
    candidate = Recorded([_silence(3), _fired(3, ("lif1", 0, 1, 1), ("lif2", 2, 4, 5))])
    evidence = compare(graph, reference, [candidate], [(x, None), (x, None)])
    (comparison,) = evidence.comparisons
    assert (comparison.samples, evidence.samples) == (6, 6)
    assert comparison.neuron_steps == 6 * T * 48
    tallies = comparison.layers
    assert tallies["lif1"].flips.tolist() == [0, 0, 0, 1, 0]
    assert tallies["lif2"].flips.tolist() == [0, 0, 0, 0, 1]
    assert tallies["lif1"].reference.tolist() == [0, 1, 0, 1, 0]
    assert tallies["lif1"].candidate.tolist() == [0, 1, 0, 0, 0]
    first = comparison.first_divergence
    assert first is not None
    assert (first["sample"], first["t"], first["layer"]) == (3, 3, "lif1")
    assert evidence.correct == {}


def test_seeds_are_flips_that_nothing_before_explains() -> None:
    """Neuron 0 flips on its own, later again for its own past, and makes the next layer flip."""
    graph, x = _graph(_nodes(0, _normal)), np.zeros((1, 12), np.float32)
    places = [("lif1", 0, 1, 0), ("lif1", 0, 3, 0), ("lif1", 0, 3, 5), ("lif2", 0, 1, 2)]
    comparison = _judge(graph, Recorded([_silence(1)]), Recorded([_fired(1, *places)]), x)
    seeds = {layer.name: layer.seeds for layer in comparison.layers.values()}
    assert seeds == {"lif1": 2, "lif2": 0}
    alone = [("lif1", 0, 3, 0), ("lif2", 0, 1, 2)]  # the second layer flipped first
    comparison = _judge(graph, Recorded([_silence(1)]), Recorded([_fired(1, *alone)]), x)
    assert [layer.seeds for layer in comparison.layers.values()] == [1, 1]


def _rates(extra: int, of: int) -> tuple[Trace, Trace]:
    """Two recordings of ``of`` spikes in each layer; the second has ``extra`` more."""
    rng = np.random.default_rng(0)
    traces = (_silence(100), _silence(100))
    for trace, count in zip(traces, (of, of + extra), strict=True):
        for fired in trace.spikes.values():
            fired.reshape(-1)[rng.permutation(fired.size)[:count]] = True
    return traces


@pytest.mark.parametrize(("extra", "verdict"), [(0, "E2"), (10, "E2"), (11, "E3"), (-10, "E2")])
def test_e2_is_equal_rates_to_one_per_cent(extra: int, verdict: str) -> None:
    graph, x = _graph(_nodes(0, _normal)), np.zeros((100, 12), np.float32)
    a, b = _rates(extra, 1000)
    assert _judge(graph, Recorded([a]), Recorded([b]), x).verdict == verdict


@pytest.mark.parametrize(("wrong", "verdict"), [(0, "E2"), (1, "E2"), (2, "E3")])
def test_e2_is_equal_predictions_to_one_per_cent(wrong: int, verdict: str) -> None:
    graph, x = _graph(_nodes(0, _normal)), np.zeros((100, 12), np.float32)
    a, b = _rates(0, 1000)
    a.logits[:, :, 1] = b.logits[:, :, 1] = 1
    b.logits[-1, :wrong, 2] = 7  # the last step decides: predictions are over all of them
    comparison = _judge(graph, Recorded([a]), Recorded([b]), x)
    assert (comparison.argmax_differences, comparison.verdict) == (wrong, verdict)


def test_the_verdict_is_that_of_the_worst() -> None:
    nodes, x = _nodes(0, _normal), _normal(np.random.default_rng(0), (20, 12))
    graph = _graph(nodes)
    wrong = _graph(_changed(nodes, "lif1", "v_threshold", nodes["lif1"].v_threshold * 2))
    evidence = compare(graph, _on(graph), [_on(graph), _on(wrong)], [(x, None)])
    assert [comparison.verdict for comparison in evidence.comparisons] == ["E0", "E3"]
    assert evidence.verdict == "E3"
    assert Evidence([]).verdict == "E3"


def test_accuracy_after_every_step() -> None:
    graph, x = _graph(_nodes(0, _normal)), np.zeros((2, 12), np.float32)
    trace = _silence(2)
    trace.logits[:, 0, 1] = [1, 1, 1, 1, 1]
    trace.logits[:, 1, 1] = [3, 0, 0, 0, 0]
    trace.logits[:, 1, 2] = [0, 1, 1, 2, 1]  # the sum overtakes at the fourth step
    evidence = compare(graph, Recorded([trace]), [], [(x, np.array([1, 2]))])
    assert evidence.correct["recorded"].tolist() == [1, 1, 1, 2, 2]


def test_logits_of_another_shape_are_another_network() -> None:
    graph, x = _graph(_nodes(0, _normal)), np.zeros((2, 12), np.float32)
    wrong, right = Recorded([_silence(2, classes=7)] * 2), Recorded([_silence(2)] * 2)
    evidence = compare(graph, right, [wrong, right], [(x, None)])
    broken, good = evidence.comparisons
    assert "a tape gives logits of shape (5, 2, 7)" in broken.reason()
    assert (broken.verdict, broken.layers, good.verdict) == ("E3", {}, "E0")
    assert evidence.verdict == "E3"


# --- neurons without a bound ---------------------------------------------------------------


def test_a_layer_without_a_bound_is_equal_or_not_certified() -> None:
    nodes = _nodes(0, _normal)
    graph, x = _with_delay(nodes), _normal(np.random.default_rng(0), (20, 12))
    assert _judge(graph, _on(graph), _onnx(graph), x).verdict == "E0"
    wrong = _on(_with_delay(_changed(nodes, "lif2", "v_threshold", full(24, 0.76))))
    comparison = _judge(graph, _on(graph), wrong, x)
    assert comparison.flips > 0
    assert comparison.verdict in ("E2", "E3")
    assert "no rounding bound is derived for Delay ('late')" in comparison.reason()
    first = comparison.first_divergence
    assert first is not None
    assert (first["layer"], first["v_minus_threshold"], first["bound"]) == ("lif2", None, None)


# --- neurons with a synaptic current, and a membrane as the answer -------------------------


def _current_based(**changes: Any) -> Graph:
    """CubaLIF, CubaLIF and a CubaLI read-out; ``changes`` multiply "layer_parameter"."""
    rng = np.random.default_rng(0)
    values = {"tau_mem": 3 * DT, "tau_syn": 2.5 * DT, "w_in": 2.5, "r": 1, "v_leak": 0.125}
    nodes: dict[str, Any] = {}
    for name, (inputs, outputs) in SIZES.items():
        nodes[name] = nir.Affine(_normal(rng, (outputs, inputs)), _normal(rng, outputs))
        kind = nir.CubaLI if name == "fc3" else nir.CubaLIF
        given = values if name == "fc3" else {**values, "v_threshold": 0.75, "v_reset": 0}
        layer = name.replace("fc", "cuba")
        factors = {key: changes.get(f"{layer}_{key}", 1) for key in given}
        arrays = {key: full(outputs, given[key] * factors[key]) for key in given}
        nodes[layer] = kind(**arrays)
    return resolve(network((12,), nodes, timesteps=T))


def test_current_based_neurons_are_certified() -> None:
    graph, x = _current_based(), _normal(np.random.default_rng(0), (200, 12))
    reference, double = _on(graph), NirBackend(graph, T, "the graph", double=True)
    for candidate in (double, _onnx(graph), _onnx(graph, encoding="sequence")):
        comparison = _judge(graph, reference, candidate, x)
        assert comparison.verdict in ("E0", "E1"), comparison.reason()
        assert all(layer.reference.any() for layer in comparison.layers.values())
    assert _judge(graph, reference, double, x).logits_max_difference > 0


@pytest.mark.parametrize("name", ["tau_mem", "tau_syn", "w_in", "r", "v_leak"])
@pytest.mark.parametrize("layer", ["cuba1", "cuba2", "cuba3"])
def test_a_changed_parameter_of_a_current_based_neuron_is_found(layer: str, name: str) -> None:
    graph, x = _current_based(), _normal(np.random.default_rng(0), (200, 12))
    # A membrane shows every difference; a spike needs one that reaches the threshold.
    factor = 1.0005 if layer == "cuba3" else 1.05
    wrong = _on(_current_based(**{f"{layer}_{name}": factor}))
    comparison = _judge(graph, _on(graph), wrong, x)
    assert comparison.verdict in ("E2", "E3")
    found = {name for name, count in _violations(comparison).items() if count}
    assert found == ({layer} if layer != "cuba3" else set())
    # Logits are held against the recorded spikes, whichever they are.
    assert bool(comparison.logits_outside_bound) == (layer == "cuba3")


# --- students ------------------------------------------------------------------------------


def _student(dyadic_weights: bool) -> Student:
    torch.manual_seed(0)
    neuron = NeuronConfig(dt=DT, tau_mem=TAU, v_reset=0.25) if dyadic_weights else NeuronConfig()
    student = build_student(StudentConfig(timesteps=4, width=4), neuron, (1, 8, 8), 10).eval()
    rng = np.random.default_rng(0)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            if dyadic_weights:
                module.eps = 0.0  # the variance is 1: the scale is exact
                nn.init.constant_(module.weight, 1.0)
                module.bias.data = torch.from_numpy(dyadic(rng, module.bias.shape))
            else:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
        elif isinstance(module, nn.Conv2d | nn.Linear) and dyadic_weights:
            weight = dyadic(rng, tuple(module.weight.shape), bits=2)
            module.weight.data = torch.from_numpy(weight)
            if module.bias is not None:
                module.bias.data = torch.from_numpy(dyadic(rng, tuple(module.bias.shape)))
    return student


def _everywhere(student: Student, x: Array) -> tuple[Evidence, Graph, TorchBackend]:
    """PyTorch against the interpreter in both precisions and ONNX Runtime in both forms."""
    lowered = lower(student)
    graph = resolve(lowered.graph)
    reference = TorchBackend(student, lowered.modules, "the student")
    candidates: list[Backend] = [
        NirBackend(graph, 4, "the graph"),
        NirBackend(graph, 4, "the graph", double=True),
        _onnx(graph),
        _onnx(graph, encoding="sequence"),
    ]
    evidence = compare(graph, reference, candidates, [(x, None)], lowered.bias_magnitude)
    return evidence, graph, reference


def test_a_dyadic_student_is_the_same_bits_everywhere() -> None:
    x = dyadic(np.random.default_rng(1), (16, 1, 8, 8))
    evidence, graph, reference = _everywhere(_student(dyadic_weights=True), x)
    assert [comparison.verdict for comparison in evidence.comparisons] == ["E0"] * 4
    for comparison in evidence.comparisons:
        assert comparison.logits_max_difference == 0
        for layer in comparison.layers.values():
            rate = layer.reference.sum() / (layer.neurons * 4 * 16)
            assert 0.02 < rate < 0.98, layer.name
    # Ties are where programs differ; there are some, in every layer.
    audit = Audit(graph, x, reference(x), {})
    for node in graph.spiking:
        assert (audit.margins(node).value == 0).any()


def test_a_student_is_certified_everywhere() -> None:
    x = _normal(np.random.default_rng(1), (16, 1, 8, 8))
    evidence, _, _ = _everywhere(_student(dyadic_weights=False), x)
    for comparison in evidence.comparisons:
        assert comparison.verdict in ("E0", "E1"), comparison.reason()
        assert all(layer.reference.any() for layer in comparison.layers.values())


def test_what_is_not_a_neuron_has_no_spikes() -> None:
    student = _student(dyadic_weights=True)
    with pytest.raises(KeyError, match=r"layers.pool"):
        TorchBackend(student, {"pool": "layers.pool"}, "the student")


# --- ONNX models of other networks ---------------------------------------------------------


def test_a_model_of_another_network_is_refused() -> None:
    graph = view((3,), {"lif": lif(3)}, timesteps=2)
    other = compile_onnx(view((4,), {"lif": lif(4)}, timesteps=2))
    layers = {"lif": (3,)}
    with pytest.raises(InputFileError, match=r"m.onnx has no tensor 'neurons'"):
        OnnxBackend(other, {"neurons": (3,)}, "m.onnx")
    with pytest.raises(InputFileError, match=r"ONNX Runtime cannot run m.onnx"):
        OnnxBackend(other, layers, "m.onnx")(np.zeros((1, 3), np.float32))
    with pytest.raises(InputFileError, match=r"layer 'lif' gives shape \(4,\), not \(3,\)"):
        OnnxBackend(other, layers, "m.onnx")(np.zeros((1, 4), np.float32))
    model = compile_onnx(graph)
    next(p for p in model.metadata_props if p.key == "timesteps").value = "two"
    with pytest.raises(InputFileError, match="its timesteps are not a number"):
        OnnxBackend(model, layers, "m.onnx")


def test_a_model_that_onnx_runtime_cannot_load_is_refused() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="nowhere")
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([node], "g", [value], [result]), ir_version=8)
    assert isinstance(model, onnx.ModelProto)
    with pytest.raises(InputFileError, match="ONNX Runtime cannot load m.onnx") as caught:
        session(model, "m.onnx")
    assert "\n" not in str(caught.value)


def test_a_model_without_a_layer_that_fires_has_no_spikes() -> None:
    graph = view((3,), {"fc": nir.Affine(full((2, 3), 1), full(2, 0))}, timesteps=2)
    trace = OnnxBackend(compile_onnx(graph), {}, "a model")(np.ones((5, 3), np.float32))
    assert trace.spikes == {}
    assert trace.logits.shape == (2, 5, 2)
