"""What the spiking layers of a model put out, whatever library they are from."""

from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import nn

from tser.config import NeuronConfig
from tser.layers import Spiking, Student
from tser.recording import Recorder, spiking_layers
from tser.students import make_neuron
from tser.user_models import UserStudent

T, BATCH, SHAPE = 3, 2, (1, 4, 4)


def cells() -> UserStudent:
    layers = [nn.Flatten(), norse.LIFBoxCell(), nn.Linear(16, 6), norse.LIFCell(), norse.LICell()]
    return UserStudent(norse.SequentialState(*layers), T, SHAPE, 6, "mine:make").eval()


def over_time() -> UserStudent:
    layers = [norse.Lift(norse.IAFCell()), norse.Lift(nn.Flatten()), nn.Linear(16, 6), norse.LIF()]
    return UserStudent(norse.SequentialState(*layers), T, SHAPE, 6, "mine:make").eval()


def ours() -> Student:
    layers: list[tuple[str, nn.Module]] = [
        ("lif1", make_neuron(NeuronConfig())),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(16, 6)),
        ("lif2", make_neuron(NeuronConfig())),
    ]
    return Student(Spiking(layers), T, SHAPE).eval()


MODELS: dict[str, tuple[Any, list[str]]] = {
    "cells": (cells, ["model.1", "model.3"]),
    "over time": (over_time, ["model.0.lifted_module", "model.3"]),
    "ours": (ours, ["layers.lif1", "layers.lif2"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_layers_that_fire_are_found(case: str) -> None:
    make, paths = MODELS[case]
    model = make()
    assert list(spiking_layers(model)) == paths
    assert all(layer is model.get_submodule(path) for path, layer in spiking_layers(model).items())


def test_other_neurons_are_not_taken_for_layers_that_fire() -> None:
    layers = [
        norse.LICell(),
        norse.LI(),
        norse.LIBoxCell(),
        nn.ReLU(),
        norse.LIFAdExRecurrentCell(2, 2),
    ]
    assert spiking_layers(nn.Sequential(*layers)) == {}


@pytest.mark.parametrize("case", MODELS)
def test_spikes_are_kept_for_all_steps_in_order(case: str) -> None:
    torch.manual_seed(0)
    make, paths = MODELS[case]
    model = make()
    x = torch.rand(BATCH, *SHAPE) * 40
    with Recorder(spiking_layers(model)) as recorder, torch.no_grad():
        model(x)
    assert list(recorder.spikes) == paths
    assert recorder.steps == dict.fromkeys(paths, T)
    first, second = recorder.spikes.values()
    assert first.shape[:2] == (T, BATCH)
    assert first[0, 0].numel() == 16
    assert second.shape == (T, BATCH, 6)
    assert ((first == 0) | (first == 1)).all()
    assert first.any()
    # Later steps follow from earlier ones, and only the first differs from rest.
    with Recorder(spiking_layers(model)) as again, torch.no_grad():
        model(torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)]))
    assert torch.equal(again.spikes[paths[0]][0], first[0])
    assert not again.spikes[paths[0]][1:].any()


def test_nothing_is_kept_after_the_block() -> None:
    model = ours()
    layers = spiking_layers(model)
    with Recorder(layers) as recorder:
        model(torch.rand(BATCH, *SHAPE))
    model(torch.rand(BATCH, *SHAPE))
    assert recorder.steps == {"layers.lif1": T, "layers.lif2": T}
    assert not any(layer._forward_hooks for layer in layers.values())


def test_hooks_are_gone_after_a_failure() -> None:
    model = ours()
    with pytest.raises(RuntimeError), Recorder(spiking_layers(model)):
        model(torch.rand(BATCH, 1, 5, 5))
    assert not any(layer._forward_hooks for layer in spiking_layers(model).values())


def test_a_layer_that_does_not_run_is_left_out() -> None:
    model, spare = cells(), norse.LIFCell()
    with Recorder({**spiking_layers(model), "spare": spare}) as recorder:
        model(torch.rand(BATCH, *SHAPE))
    assert list(recorder.spikes) == list(recorder.steps) == ["model.1", "model.3"]


def test_recorded_spikes_carry_no_gradient() -> None:
    model = cells().train()
    with Recorder(spiking_layers(model)) as recorder:
        model(torch.rand(BATCH, *SHAPE)).sum().backward()
    assert not any(value.requires_grad for value in recorder.spikes.values())


def test_recurrent_neurons_fire_too() -> None:
    """Step by step and over time: the same spikes, `[T, B, N]`."""
    torch.manual_seed(0)
    cell, x = norse.LIFRecurrentCell(3, 4), 20 * torch.rand(5, 2, 3)
    over_time = norse.LIFRecurrent(3, 4)
    over_time.load_state_dict(cell.state_dict())
    layers = nn.ModuleDict({"cell": cell, "over_time": over_time})
    assert list(spiking_layers(layers)) == ["cell", "over_time"]
    with torch.no_grad(), Recorder(spiking_layers(layers)) as recorder:
        state = None
        for step in x:
            _, state = cell(step, state)
        over_time(x)
    assert recorder.steps == {"cell": 5, "over_time": 5}
    spikes = recorder.spikes
    assert torch.equal(spikes["cell"], spikes["over_time"])
    assert 0 < spikes["cell"].mean() < 1
