"""Neurons through torch.compile: the same spikes but for rounding, and only where they train."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tser import compilation
from tser.compilation import compile_neurons
from tser.config import NeuronConfig
from tser.neurons import LIF, integrate_and_fire
from tser.students import make_neuron

T, SHAPE = 3, (4, 6)
NEURON = NeuronConfig(v_leak=0.1, v_reset=-0.2, tau_mem=3e-3)


class Spy:
    """Stands in for torch.compile: notes the shapes that it is given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def compile(self, function: Any, **options: Any) -> Any:
        assert function is integrate_and_fire
        assert options == {"dynamic": False}

        def run(current: Tensor, *arguments: Any) -> Tensor:
            self.shapes.append(tuple(current.shape))
            return function(current, *arguments)

        return run


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    with torch._dynamo.config.patch(recompile_limit=8):
        yield


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy()
    monkeypatch.setattr(compilation.torch, "compile", spy.compile)
    return spy


def currents(*shape: int) -> Tensor:
    return torch.randn(T, *shape, generator=torch.Generator().manual_seed(0)) * 3


def test_only_the_first_shape_of_training_is_compiled(spy: Spy) -> None:
    layer = make_neuron(NEURON)
    compile_neurons(layer)
    layer.eval()(currents(9, 9), T)
    assert spy.shapes == []
    layer.train()
    layer(currents(*SHAPE), T)
    layer(currents(2, 6), T)  # a smaller last batch
    layer(currents(*SHAPE), T)
    layer.eval()(currents(*SHAPE), T)
    assert spy.shapes == [(T, *SHAPE)] * 2


def test_every_number_of_steps_has_its_own_shape(spy: Spy) -> None:
    layer = make_neuron(NEURON)
    compile_neurons(layer)
    for timesteps, batch in ((T, 4), (2, 5), (2, 4), (2, 5), (T, 5), (T, 4)):
        layer(currents(batch, 6)[:timesteps], timesteps)
    assert spy.shapes == [(T, 4, 6), (2, 5, 6), (2, 5, 6), (T, 4, 6)]


def test_every_layer_has_its_own_shape(spy: Spy) -> None:
    layers = nn.ModuleList([make_neuron(NEURON), nn.Linear(2, 2), make_neuron(NEURON)])
    compile_neurons(layers)
    for layer, shape in ((layers[0], (4, 6)), (layers[2], (4, 2)), (layers[0], (4, 2))):
        layer(currents(*shape), T)
    assert spy.shapes == [(T, 4, 6), (T, 4, 2)]


def test_more_shapes_than_torch_allows_by_default(spy: Spy) -> None:
    compile_neurons(make_neuron(NEURON))
    assert torch._dynamo.config.recompile_limit >= 256


def test_all_arguments_are_handed_on(spy: Spy) -> None:
    config = NeuronConfig(surrogate="arctan", alpha=2.0, detach_reset=True, learn_tau=True)
    plain, compiled = make_neuron(config), make_neuron(config)
    compile_neurons(compiled)
    grads = []
    for layer in (plain, compiled):
        x = currents(*SHAPE).requires_grad_()
        layer(x, T).square().sum().backward()
        assert x.grad is not None
        grads.append((x.grad, layer.tau_logit.grad))
    assert spy.shapes == [(T, *SHAPE)]
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_a_compiled_neuron_fires_as_the_reference() -> None:
    layer = make_neuron(NEURON)
    compile_neurons(layer)
    results = []
    for neuron in (layer.train(), make_neuron(NEURON)):
        x = currents(*SHAPE).requires_grad_()
        out = neuron(x, T)
        out.sum().backward()
        results.append((out.detach(), x.grad))
    (ours, gradient), (wanted, reference) = results
    assert isinstance(layer, LIF)
    distances = _distances(currents(*SHAPE), layer)
    assert 0 < float(wanted.mean()) < 1
    assert (ours == wanted)[distances.abs() > 1e-6].all()
    assert (distances.abs() > 1e-6).all()  # so that all are compared
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


def _distances(current: Tensor, layer: LIF) -> Tensor:
    """``v - v_th`` in float64."""
    rate, v = layer.rate().double(), layer.v_leak.double()
    found = []
    for step in current.double():
        v = v + rate * (step + layer.v_leak.double() - v)
        found.append(v - layer.v_th.double())
        v = torch.where(found[-1] > 0, layer.v_reset.double(), v)
    return torch.stack(found)
