"""Where all sums are exact, every executor fires the same spikes: nothing is a matter of rounding.

The plain loops of `tests.oracle` say whether float32 needs to round anywhere; only networks where
it does not are compared.
"""

import itertools
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from norse.torch.functional.lif_box import LIFBoxParameters
from torch import nn

from tests.graphs import DT, Array, dyadic
from tests.oracle import Result, simulate
from tser.deploy.backends import NirBackend, TorchBackend, Trace
from tser.deploy.certificate import Audit
from tser.deploy.onnx_backend import OnnxBackend
from tser.export.graph import Graph, resolve
from tser.export.lower import Lowered, lower
from tser.export.onnx_file import OnnxOptions, compile_onnx
from tser.export.onnx_forms import FORMS
from tser.layers import Residual, Spiking, Student
from tser.neurons import LIF
from tser.user_models import UserStudent

SHAPE, CLASSES = (2, 5, 5), 3
ANY = settings(deadline=None, derandomize=True, max_examples=30)
SEEDS = st.integers(0, 10**6)
Rng = np.random.Generator


def _parameters(rng: Rng) -> dict[str, Any]:
    chosen = {
        "tau_mem_inv": rng.choice([1, 1 / 2, 1 / 2, 1 / 4]) / DT,
        "v_leak": rng.choice([0, 0, 0.125]),
        "v_th": rng.choice([0.25, 0.5, 1]),
        "v_reset": rng.choice([0, 0, -0.25, 0.125]),
    }
    return {name: torch.tensor(float(value)) for name, value in chosen.items()}


def _student(rng: Rng) -> Student:
    """A convolution, perhaps a residual block and a pool, and one or two linear layers."""
    channels, stride, padding = (int(rng.integers(1, high)) for high in (4, 3, 2))
    kernel = int(rng.integers(1, 4))
    size = (SHAPE[1] + 2 * padding - kernel) // stride + 1
    layers: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(SHAPE[0], channels, kernel, stride, padding, bias=rng.random() < 0.5)),
        ("lif", _lif(rng)),
    ]
    if rng.random() < 0.5:
        main = [("conv", nn.Conv2d(channels, channels, 3, padding=1)), ("lif", _lif(rng))]
        main.append(("out", nn.Conv2d(channels, channels, 1, bias=False)))
        shortcut = [("conv", nn.Conv2d(channels, channels, 1))] if rng.random() < 0.5 else []
        layers.append(("block", Residual(Spiking(main), Spiking(shortcut), _lif(rng))))
    if size > 1 and rng.random() < 0.5:
        layers.append(("pool", nn.AvgPool2d(2)))
        size //= 2
    layers.append(("flatten", nn.Flatten()))
    features = channels * size * size
    if rng.random() < 0.5:
        layers += [("hidden", nn.Linear(features, 4)), ("hidden_lif", _lif(rng))]
        features = 4
    layers.append(("readout", nn.Linear(features, CLASSES)))
    return Student(Spiking(layers), int(rng.integers(1, 5)), SHAPE)


def _lif(rng: Rng) -> LIF:
    return LIF(LIFBoxParameters(**_parameters(rng)), DT)


def _norse(rng: Rng) -> UserStudent:
    """Cells of Norse, of the kind that becomes a LIF and of the one that becomes a CubaLIF."""

    def cell() -> nn.Module:
        values = _parameters(rng)
        if rng.random() < 0.5:
            return norse.LIFBoxCell(LIFBoxParameters(**values), dt=DT)
        values["v_leak"] = torch.tensor(0.0)
        known = norse.LIFParameters(tau_syn_inv=torch.tensor(0.5 / DT), **values)
        return norse.LIFCell(known, dt=DT)

    net = norse.SequentialState(
        nn.Conv2d(SHAPE[0], 2, 3, stride=2),
        cell(),
        nn.Flatten(),
        nn.Linear(8, 4),
        cell(),
        nn.Linear(4, CLASSES),
    )
    return UserStudent(net, int(rng.integers(2, 4)), SHAPE, CLASSES, "test")


def _made(
    build: Callable[[Rng], Student | UserStudent], seed: int
) -> tuple[Student | UserStudent, Lowered, Graph, Array]:
    """A network with dyadic weights, its graph, and images."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    student = build(rng).eval()
    with torch.no_grad():
        for weight in student.parameters():
            weight.copy_(torch.from_numpy(dyadic(rng, tuple(weight.shape), bits=2)))
    lowered = lower(student)
    return student, lowered, resolve(lowered.graph), dyadic(rng, (2, *SHAPE), bits=1, most=2)


def _expected(graph: Graph, x: Array) -> Result:
    assert graph.timesteps is not None
    return simulate(graph, np.repeat(x[None], graph.timesteps, 0))


def _traces(
    student: Student | UserStudent, lowered: Lowered, graph: Graph, x: Array
) -> dict[str, Trace]:
    steps = graph.timesteps
    assert steps is not None
    shapes = {node.name: node.output_shape for node in graph.spiking}
    executors: dict[str, Callable[[Array], Trace]] = {
        "torch": TorchBackend(student, lowered.modules, "torch"),
        "nir-f32": NirBackend(graph, steps, "nir"),
        "nir-f64": NirBackend(graph, steps, "nir", double=True),
    }
    model = compile_onnx(graph)
    for optimised in (True, False):
        name = "onnx" if optimised else "onnx-noopt"
        executors[name] = OnnxBackend(model, shapes, "onnx", optimised=optimised)
    return {name: executor(x) for name, executor in executors.items()}


@pytest.mark.parametrize("build", [_student, _norse], ids=["student", "norse"])
def test_all_executors_agree_to_the_last_bit(build: Callable[[Rng], Any]) -> None:
    @ANY
    @given(SEEDS)
    def check(seed: int) -> None:
        student, lowered, graph, x = _made(build, seed)
        expected = _expected(graph, x)
        assume(expected.is_exact_in(np.float32))
        logits = expected.outputs[graph.output.name]
        for name, trace in _traces(student, lowered, graph, x).items():
            np.testing.assert_array_equal(trace.logits, logits, err_msg=name)
            assert trace.spikes.keys() == expected.fired.keys()
            for layer, fired in expected.fired.items():
                np.testing.assert_array_equal(trace.spikes[layer], fired, f"{name}, {layer}")

    check()


def test_wide_layers_too() -> None:
    """Runtimes have other kernels for them; here the certificate says that nothing is rounded."""
    rng = np.random.default_rng(0)
    layers: list[tuple[str, nn.Module]] = []
    for number, (inputs, outputs) in enumerate([(2, 16), (16, 32), (32, 64)]):
        layers.append((f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1)))
        values = _parameters(rng) | {"tau_mem_inv": torch.tensor(0.5 / DT)}
        layers.append((f"lif{number}", LIF(LIFBoxParameters(**values), DT)))
    layers += [("flatten", nn.Flatten()), ("readout", nn.Linear(64 * 25, CLASSES))]
    student, lowered, graph, x = _made(lambda _: Student(Spiking(layers), 4, SHAPE), 0)
    traces = _traces(student, lowered, graph, x)
    audit = Audit(graph, x, traces["nir-f64"], {})
    for node in graph.spiking:
        assert not audit.margins(node).error.any()
        expected = traces["nir-f64"].spikes[node.name]
        assert 0.05 < expected.mean() < 0.95
        for name, trace in traces.items():
            np.testing.assert_array_equal(trace.spikes[node.name], expected, f"{name}, {node.name}")
    for trace in traces.values():
        np.testing.assert_array_equal(trace.logits, traces["nir-f64"].logits)


@pytest.mark.parametrize("form", FORMS)
def test_so_does_every_form_of_the_onnx_file(form: Any) -> None:
    """The rolled and the step-wise form are other programs for the same sums."""
    for seed in range(6):
        _, _, graph, x = _made(_student, seed)
        expected = _expected(graph, x)
        assert expected.is_exact_in(np.float32)
        shapes = {node.name: node.output_shape for node in graph.spiking}
        model = compile_onnx(graph, options=OnnxOptions(form))
        trace = OnnxBackend(model, shapes, "onnx")(x)
        np.testing.assert_array_equal(trace.logits, expected.outputs["output"])
        for layer, fired in expected.fired.items():
            np.testing.assert_array_equal(trace.spikes[layer], fired, layer)


def test_these_networks_are_worth_it() -> None:
    """Most of them need no rounding, they fire, and membranes do stand on the threshold."""
    exact, ties, rates = 0, 0, []
    for build, seed in itertools.product((_student, _norse), range(10)):
        _, _, graph, x = _made(build, seed)
        expected = _expected(graph, x)
        exact += expected.is_exact_in(np.float32)
        rates.append(np.mean([fired.mean() for fired in expected.fired.values()]))
        # The same neurons with >= for > fire where a membrane is exactly at the threshold.
        for node in graph.spiking:
            node.op.v_threshold = np.nextafter(node.op.v_threshold, np.float32(-np.inf))
        lower_threshold = simulate(graph, np.repeat(x[None], graph.timesteps or 1, 0))
        first = graph.spiking[0].name
        ties += int((lower_threshold.fired[first] != expected.fired[first]).sum())
    assert exact >= 16
    assert ties > 10
    assert 0.05 < np.mean(rates) < 0.8
