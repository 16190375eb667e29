"""The dyadic twin: exact sums, so all executors agree to the last bit and ties are no excuse."""

import itertools
from typing import Any, get_args

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import Array, conv, flatten, full, lif, network, pool
from tests.nodes import cuba
from tser.deploy.backends import NirBackend, Trace
from tser.deploy.certificate import Audit, violations
from tser.deploy.onnx_backend import OnnxBackend
from tser.deploy.twin import GRID, Variant, coarse, twin, twin_onnx
from tser.errors import UsageError
from tser.export.graph import Graph, resolve
from tser.export.onnx_file import OnnxOptions, compile_onnx
from tser.export.onnx_forms import Form

STEPS = 5
ANY = settings(deadline=None, derandomize=True, max_examples=25)
VARIANTS: tuple[Variant, ...] = get_args(Variant)


def _trained(seed: int = 0, dt: float = 1e-3, **neuron: Any) -> nir.NIRGraph:
    """Random weights of the sizes that training gives, and nothing dyadic about them."""
    rng = np.random.default_rng(seed)
    given = {"tau": 2.3e-3, "v_th": 0.97, "v_reset": -0.13, "v_leak": 0.07, "r": 1.1} | neuron
    nodes = {
        "conv": conv(
            rng.normal(0, 0.6, (4, 1, 3, 3)), (6, 6), padding=1, bias=rng.normal(0, 0.2, 4)
        ),
        "lif1": lif((4, 6, 6), **given),
        "pool": pool(nir.AvgPool2d, 2),
        "flat": flatten(),
        "fc1": nir.Affine(_normal(rng, (20, 36), 1.5), _normal(rng, 20, 0.6)),
        "lif2": lif(20, **given),
        "fc2": nir.Affine(_normal(rng, (5, 20), 0.5), _normal(rng, 5, 0.1)),
    }
    return network((1, 6, 6), nodes, dt=dt, timesteps=STEPS)


def _normal(rng: np.random.Generator, shape: Any, size: float) -> Array:
    return rng.normal(0, size, shape).astype(np.float32)


def _images(seed: int = 0, count: int = 8) -> Array:
    return coarse(np.random.default_rng(seed).normal(size=(count, 1, 6, 6)))


def _traces(graph: Graph, x: Array) -> list[Trace]:
    layers = {node.name: node.output_shape for node in graph.spiking}
    return [
        NirBackend(graph, STEPS, "f32")(x),
        NirBackend(graph, STEPS, "f64", double=True)(x),
        OnnxBackend(compile_onnx(graph, STEPS), layers, "onnx")(x),
    ]


def _same(a: Trace, b: Trace) -> None:
    np.testing.assert_array_equal(a.logits, b.logits)
    assert a.spikes.keys() == b.spikes.keys()
    for name, fired in a.spikes.items():
        np.testing.assert_array_equal(fired, b.spikes[name], name)


@pytest.mark.parametrize("variant", VARIANTS)
@ANY
@given(st.integers(0, 999))
def test_all_executors_agree_on_a_twin_to_the_last_bit(variant: Variant, seed: int) -> None:
    graph = resolve(twin(_trained(seed), variant=variant))
    first, *others = _traces(graph, _images(seed, 3))
    for other in others:
        _same(first, other)


def test_ties_are_frequent_and_leave_no_excuse() -> None:
    graph = resolve(twin(_trained(v_reset=0, v_leak=0), grid=2.0**-4))
    x = _images(count=100)
    trace = _traces(graph, x)[0]
    audit = Audit(graph, x, trace, {})
    for name, fired in trace.spikes.items():
        margins = audit.margins(graph.nodes[name])
        assert not margins.error.any(), name
        ties = margins.value == 0
        assert ties.sum() > 5, name
        assert not violations(margins, fired).any()
        inclusive = fired | ties
        spikes = trace.spikes | {name: inclusive}
        again = Audit(graph, x, Trace(trace.logits, spikes), {}).margins(graph.nodes[name])
        assert violations(again, inclusive)[ties].sum() > 5, name
        assert 0.02 < fired.mean() < 0.9, "the layer should be at work"


def test_numbers_are_dyadic_and_close_to_the_originals() -> None:
    before, after = _trained(), twin(_trained())
    for name in ("conv", "fc1", "fc2"):
        for key in ("weight", "bias"):
            old, new = getattr(before.nodes[name], key), getattr(after.nodes[name], key)
            assert (new % GRID == 0).all()
            assert np.abs(new - old).max() <= GRID / 2
    op, step = after.nodes["lif1"], np.float64(np.float32(1e-3))
    assert np.unique(step / op.tau.astype(np.float64)).tolist() == [0.5]
    assert [np.unique(v).tolist() for v in (op.r, op.v_threshold, op.v_reset, op.v_leak)] == [
        [1.0],
        [1.0],
        [-0.125],
        [0.125],
    ]
    assert list(after.edges) == list(before.edges)
    assert before.nodes["lif1"].tau[0, 0, 0] == np.float32(2.3e-3)


@pytest.mark.parametrize(
    ("variant", "moved"),
    [("v_reset", "v_reset"), ("v_reset_below", "v_reset"), ("v_leak", "v_leak")],
)
def test_a_variant_moves_one_number_by_a_quarter_of_the_threshold(
    variant: Variant, moved: str
) -> None:
    plain, other = twin(_trained()), twin(_trained(), variant=variant)
    for name in ("lif1", "lif2"):
        for key in ("tau", "r", "v_threshold", "v_reset", "v_leak"):
            change = getattr(other.nodes[name], key) - getattr(plain.nodes[name], key)
            expected = 0.0 if key != moved else -0.25 if variant.endswith("below") else 0.25
            assert np.unique(change).tolist() == [expected], key


def test_small_weights_do_not_vanish() -> None:
    weight = np.array([[1e-3, -2e-3, 2e-3]], np.float32)
    graph = network((3,), {"fc": nir.Affine(weight, full(1, 0)), "lif": lif(1, v_th=1e-3)})
    after = twin(graph)
    assert after.nodes["fc"].weight.tolist() == [[0, -GRID, GRID]]
    assert not after.nodes["fc"].bias.any()
    assert after.nodes["lif"].v_threshold.tolist() == [0.125]


def _every_neuron() -> nir.NIRGraph:
    rng = np.random.default_rng(3)
    values = {"tau_syn": 1.9e-3, "tau_mem": 3.7e-3, "v_leak": 0.1, "w_in": 1.7, "r": 1.8}
    fc = [nir.Affine(_normal(rng, (3, 3), 0.8), _normal(rng, 3, 0.5)) for _ in range(5)]
    fc[2].bias += 1  # a layer that a third of the neurons can fire in
    nodes: dict[str, Any] = {
        "fc1": fc[0],
        "if": nir.IF(full(3, 1 / 1e-3), full(3, 0.9), full(3, -0.2)),
        "fc2": fc[1],
        "cuba": cuba(nir.CubaLIF, v_threshold=0.7, v_reset=0.1, **values),
        "scale": nir.Scale(np.array([0.9, 1.2, -2.2], np.float32)),
        "inner": network(
            (3,), {"fc": fc[2], "lif": lif(3, tau=[np.inf, 2e-3, 1e-3], v_th=[0.7, 0.4, np.inf])}
        ),
        "fc3": fc[3],
        "li": nir.LI(full(3, 1.7e-3), full(3, 1), full(3, 0.3)),
    }
    return network((3,), nodes, output_shape=(3,), edges=_chain(nodes), dt=1e-3, timesteps=STEPS)


def _chain(nodes: dict[str, Any]) -> list[tuple[str, str]]:
    names = ["input", *nodes, "output"]
    return list(itertools.pairwise(names))


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("make", [_trained, _every_neuron])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_twin_of_the_onnx_model_is_the_model_of_the_twin(
    make: Any, form: Form, variant: Variant
) -> None:
    graph = make()
    if variant.startswith("v_reset") and make is _every_neuron:
        graph.nodes["inner"].nodes["lif"].v_reset[:] = 0.3
    movable = make is _trained or variant != "v_leak"
    options = OnnxOptions(form=form)
    model = compile_onnx(resolve(graph), STEPS, options=options)
    if not movable:
        with pytest.raises(UsageError, match="holds no v_"):
            twin_onnx(model, variant=variant)
        return
    view = resolve(twin(graph, variant=variant))
    layers = {node.name: node.output_shape for node in view.spiking}
    shape = view.input.output_shape
    x = coarse(np.random.default_rng(0).normal(0, 2, (20, *shape)))
    made = OnnxBackend(twin_onnx(model, variant=variant), layers, "twin", STEPS)(x)
    expected = OnnxBackend(compile_onnx(view, STEPS, options=options), layers, "model", STEPS)(x)
    _same(made, expected)
    _same(expected, NirBackend(view, STEPS, "graph")(x))
    for name, fired in expected.spikes.items():
        assert 0 < fired.mean() < 1, name


def test_the_twin_of_a_model_without_resets_and_with_float16_is_refused() -> None:
    model = compile_onnx(resolve(_trained(v_reset=0, v_leak=0)), STEPS)
    for variant in VARIANTS[1:]:
        with pytest.raises(UsageError, match="compile the twin"):
            twin_onnx(model, variant=variant)
    half = compile_onnx(resolve(_trained()), STEPS, options=OnnxOptions(weights="float16"))
    with pytest.raises(UsageError, match="float32"):
        twin_onnx(half)
    half.producer_name = "another"
    with pytest.raises(UsageError, match="tser exported"):
        twin_onnx(half)


def test_what_cannot_be_a_twin_is_refused() -> None:
    with pytest.raises(UsageError, match="power of two"):
        twin(_trained(), grid=0.1)
    with pytest.raises(UsageError, match="no layer"):
        twin(network((2,), {"fc": nir.Linear(np.eye(2))}), variant="v_leak")
    with pytest.raises(UsageError, match="no layer"):
        twin(network((2,), {"fc": nir.Linear(np.eye(2))}), variant="v_reset")
