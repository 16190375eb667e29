"""Students against a second forward pass written here: one step of time after the other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from norse.torch.functional.lif_box import (
    LIFBoxFeedForwardState,
    LIFBoxParameters,
    lif_box_feed_forward_step,
)
from torch import Tensor, nn
from torch.nn import functional

from tser.config import NeuronConfig, StudentConfig
from tser.deploy.backends import NirBackend, TorchBackend
from tser.deploy.equivalence import compare
from tser.deploy.onnx_backend import OnnxBackend
from tser.errors import UsageError
from tser.export.graph import resolve
from tser.export.lower import lower
from tser.export.nir_file import read_nir, write_nir
from tser.export.onnx_file import compile_onnx
from tser.layers import Residual, Spiking, Student
from tser.neurons import LIF
from tser.students import build_student, make_neuron

SHAPE, CLASSES, BATCH = (2, 8, 7), 5, 3
LEAKY = {"v_th": 0.75, "v_leak": -0.125, "v_reset": 0.25, "dt": 1e-3, "tau_mem": 3e-3}


def some_student(
    timesteps: int = 4,
    width: int = 4,
    stages: int = 2,
    shape: tuple[int, int, int] = SHAPE,
    seed: int = 0,
    **neuron: Any,
) -> Student:
    """A student in eval mode whose weights and batch-norm statistics are all drawn."""
    torch.manual_seed(seed)
    config = StudentConfig(timesteps=timesteps, width=width, stages=stages)
    student = build_student(config, NeuronConfig(**neuron), shape, CLASSES)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    return student.eval()


def some_images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class StepByStep:
    """The network of `build_student` for a single step, from its weights by name."""

    def __init__(self, student: Student, stages: int, neuron: NeuronConfig) -> None:
        self.weights = {
            name.removeprefix("layers."): value for name, value in student.state_dict().items()
        }
        self.stages, self.dt = stages, neuron.dt
        self.parameters = LIFBoxParameters(
            tau_mem_inv=torch.tensor(1 / neuron.tau_mem),
            v_leak=torch.tensor(neuron.v_leak),
            v_th=torch.tensor(neuron.v_th),
            v_reset=torch.tensor(neuron.v_reset),
            method="triangle",
        )
        self.states: dict[str, LIFBoxFeedForwardState] = {}
        self.spikes: list[Tensor] = []

    def conv(self, x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        kernel = self.weights[f"{conv}.weight"]
        x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, variance, weight, bias = (
            self.weights[f"{bn}.{name}"].view(1, -1, 1, 1)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    def fire(self, current: Tensor, name: str) -> Tensor:
        rest = torch.zeros_like(current) + self.parameters.v_leak
        state = self.states.get(name, LIFBoxFeedForwardState(v=rest))
        z, self.states[name] = lif_box_feed_forward_step(current, state, self.parameters, self.dt)
        self.spikes.append(z)
        return z

    def step(self, image: Tensor) -> Tensor:
        x = self.fire(self.conv(image, "stem_conv", "stem_bn"), "stem")
        for stage in range(self.stages):
            block = f"block{stage + 1}"
            stride = 2 if stage else 1
            y = self.conv(x, f"{block}.main.conv1", f"{block}.main.bn1", stride)
            y = self.fire(y, f"{block}.inner")
            current = self.conv(y, f"{block}.main.conv2", f"{block}.main.bn2")
            if stage:
                x = self.conv(x, f"{block}.shortcut.conv", f"{block}.shortcut.bn", stride)
            x = self.fire(current + x, block)
        return x.mean((2, 3)) @ self.weights["readout.weight"].T + self.weights["readout.bias"]


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("neuron", [{}, LEAKY])
def test_logits_are_those_of_a_loop_over_time(stages: int, neuron: dict[str, float]) -> None:
    student = some_student(timesteps=5, stages=stages, **neuron)
    images = some_images(BATCH, *SHAPE)
    slow = StepByStep(student, stages, NeuronConfig(**neuron))
    with torch.no_grad():
        wanted = torch.stack([slow.step(images) for _ in range(5)])
        logits = student(images)
    assert logits.shape == (5, BATCH, CLASSES)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-6)
    assert len(slow.spikes) == 5 * (1 + 2 * stages)
    for spikes in slow.spikes[-2 * stages - 1 :]:
        assert 0 < float(spikes.mean()) < 1  # every layer takes part
    assert not torch.equal(logits[0], logits[-1])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (1, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("timesteps", [1, 4])
def test_shapes(shape: tuple[int, int, int], timesteps: int) -> None:
    stages = 1 if shape[1] == 1 else 2
    student = some_student(timesteps, stages=stages, shape=shape)
    assert student(some_images(6, *shape)).shape == (timesteps, 6, CLASSES)
    assert student.input_shape == shape
    assert student.timesteps == timesteps


def test_more_steps_only_add_steps() -> None:
    images = some_images(BATCH, *SHAPE)
    with torch.no_grad():
        short, long = some_student(3)(images), some_student(6)(images)
    torch.testing.assert_close(long[:3], short)


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    student = some_student()
    images = some_images(BATCH, *SHAPE)
    with torch.no_grad():
        together = student(images)
        alone = torch.cat([student(image.unsqueeze(0)) for image in images], 1)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


# --- the rules of a deployable student -----------------------------------------------------


def is_binary(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


@pytest.mark.parametrize("training", [False, True])
def test_only_spikes_cross_synapses(training: bool) -> None:
    student = some_student(stages=3).train(training)
    seen: dict[str, list[Tensor]] = {"spikes": [], "image": [], "synapse": []}
    for name, module in student.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _, args, out: seen["spikes"].append(out))
        if isinstance(module, nn.Conv2d | nn.AvgPool2d):
            kind = "image" if "stem" in name else "synapse"
            module.register_forward_hook(lambda _, args, out, kind=kind: seen[kind].append(args[0]))
    images = some_images(BATCH, *SHAPE)
    with torch.no_grad():
        student(images)
    assert [len(values) for values in seen.values()] == [7, 1, 3 * 2 + 2 + 1]
    assert torch.equal(seen["image"][0], images)
    for values in seen["spikes"] + seen["synapse"]:
        assert is_binary(values)
        assert 0 < float(values.mean()) < 1


def test_only_layers_that_can_be_deployed() -> None:
    ours = {Student, Spiking, Residual, LIF}
    linear = {nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d, nn.Flatten, nn.Linear}
    assert {type(module) for module in some_student(stages=3).modules()} == ours | linear


def test_the_part_before_the_first_neuron_runs_once_for_an_image() -> None:
    student = some_student(timesteps=6)
    rows: dict[str, list[int]] = {}
    for name, module in student.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear | nn.AvgPool2d):

            def count(_: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
                rows.setdefault(name.removeprefix("layers."), []).append(len(args[0]))

            module.register_forward_hook(count)
    student(some_images(BATCH, *SHAPE))
    assert rows.pop("stem_conv") == rows.pop("stem_bn") == [BATCH]
    assert len(rows) == 4 + 6 + 2
    assert set(map(tuple, rows.values())) == {(6 * BATCH,)}


def test_a_student_without_neurons_repeats_its_logits() -> None:
    linear = nn.Linear(6, 3)
    student = Student(Spiking([("flatten", nn.Flatten()), ("readout", linear)]), 4, (1, 2, 3))
    images = some_images(2, 1, 2, 3)
    assert torch.equal(student(images), linear(images.flatten(1)).expand(4, 2, 3))


# --- size, start and gradients -------------------------------------------------------------


def test_parameters_are_counted() -> None:
    student = build_student(StudentConfig(width=8, stages=2), NeuronConfig(), (1, 8, 8), 10)
    stem = 9 * 8 + 2 * 8
    first = 2 * (9 * 8 * 8 + 2 * 8)
    second = 9 * 8 * 16 + 2 * 16 + 9 * 16 * 16 + 2 * 16 + 8 * 16 + 2 * 16
    wanted = stem + first + second + 16 * 10 + 10
    assert sum(value.numel() for value in student.parameters()) == wanted == 5122


def test_every_block_has_the_shortcut_it_needs() -> None:
    student = some_student(stages=3)
    blocks = [module for module in student.modules() if isinstance(module, Residual)]
    assert [len(list(block.shortcut.children())) for block in blocks] == [0, 2, 2]
    strides = [block.main.get_submodule("conv1").stride for block in blocks]
    assert strides == [(1, 1), (2, 2), (2, 2)]


@pytest.mark.parametrize("neuron", [{}, {"tau_mem": 1e-2}, LEAKY])
def test_every_layer_fires_before_training(neuron: dict[str, float]) -> None:
    torch.manual_seed(0)
    student = build_student(StudentConfig(width=8), NeuronConfig(**neuron), SHAPE, CLASSES)
    rates = []
    for module in student.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _, args, out: rates.append(float(out.mean())))
    with torch.no_grad():
        student.train()(some_images(16, *SHAPE))
    assert len(rates) == 5
    assert all(0.02 < rate < 0.6 for rate in rates)


def test_every_parameter_gets_a_gradient() -> None:
    student = some_student(stages=3).train()
    student(some_images(16, *SHAPE)).square().sum().backward()
    for name, value in student.named_parameters():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
        assert (value.grad != 0).any(), name


def test_the_seed_decides_the_weights() -> None:
    weights = [
        torch.nn.utils.parameters_to_vector(some_student(seed=seed).parameters())
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_neuron_is_made_as_configured() -> None:
    config = NeuronConfig(surrogate="arctan", alpha=2.0, detach_reset=True, **LEAKY)
    neuron = make_neuron(config)
    values = {name: value.item() for name, value in neuron.state_dict().items()}
    assert values == pytest.approx(
        {"tau_mem_inv": 1 / 3e-3, "v_th": 0.75, "v_leak": -0.125, "v_reset": 0.25}
    )
    assert (neuron.dt, neuron.surrogate, neuron.alpha) == (1e-3, "arctan", 2.0)
    assert neuron.detach_reset


# --- choices of the configuration ------------------------------------------------------------


def test_norms_are_joint_or_of_every_step() -> None:
    for norm, wanted in (("joint", False), ("per-step", True)):
        config = StudentConfig.model_validate({"norm": norm, "width": 2})
        student = build_student(config, NeuronConfig(), SHAPE, CLASSES)
        containers = [module for module in student.modules() if isinstance(module, Spiking)]
        assert len(containers) == 1 + 2 * 2
        assert {container.norm_per_step for container in containers} == {wanted}


def _trained(student: Student, steps: int = 12) -> Student:
    """After some steps of training on noise."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.2)
    images, labels = some_images(16, *SHAPE), torch.arange(16) % CLASSES
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(student.train()(images).mean(0), labels).backward()
        optimizer.step()
    return student.eval()


def test_a_learned_tau_is_one_for_each_layer() -> None:
    torch.manual_seed(0)
    config, neuron = StudentConfig(width=4), NeuronConfig(learn_tau=True, tau_mem=4e-3)
    student = build_student(config, neuron, SHAPE, CLASSES)
    layers = [module for module in student.modules() if isinstance(module, LIF)]
    assert len([name for name, _ in student.named_parameters() if "tau" in name]) == 5
    assert {round(layer.rate().item(), 6) for layer in layers} == {0.25}
    _trained(student)
    rates = [layer.rate().item() for layer in layers]
    assert len(set(rates)) == 5
    assert all(0 < rate < 1 and abs(rate - 0.25) > 1e-5 for rate in rates)


def test_learned_taus_are_exported_layer_by_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    neuron = NeuronConfig(learn_tau=True, v_reset=0.125)
    student = _trained(build_student(StudentConfig(width=4), neuron, SHAPE, CLASSES))
    lowered = lower(student)
    write_nir(lowered.graph, tmp_path / "model.nir")
    graph = resolve(read_nir(tmp_path / "model.nir"))
    taus = {}
    for name, path in lowered.modules.items():
        layer, stored = student.get_submodule(path), np.unique(graph.nodes[name].op.tau)
        assert isinstance(layer, LIF)
        assert stored.size == 1
        taus[name] = float(stored[0])
        assert taus[name] == pytest.approx(neuron.dt / layer.rate().item(), rel=3e-7)
    assert len(set(taus.values())) == 5
    evidence = compare(
        graph,
        TorchBackend(student, lowered.modules, "the student"),
        [NirBackend(graph, 4, "NIR"), OnnxBackend(
            compile_onnx(graph), {node.name: node.output_shape for node in graph.spiking}, "ONNX"
        )],
        [(some_images(32, *SHAPE).numpy(), None)],
        lowered.bias_magnitude,
    )  # fmt: skip
    assert evidence.verdict in ("E0", "E1")
    assert all(layer.reference.any() for layer in evidence.comparisons[0].layers.values())


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "stages", "fits"),
    [
        ((1, 8, 8), 4, True),
        ((1, 8, 8), 5, False),
        ((3, 7, 32), 3, True),
        ((3, 7, 32), 4, False),
        ((3, 32, 7), 4, False),
        ((1, 1, 1), 1, True),
        ((1, 1, 1), 2, False),
    ],
)
def test_too_many_stages_are_refused(shape: tuple[int, int, int], stages: int, fits: bool) -> None:
    config = StudentConfig(width=1, stages=stages)
    if fits:
        student = build_student(config, NeuronConfig(), shape, CLASSES).eval()
        assert student(some_images(1, *shape)).shape == (4, 1, CLASSES)
        return
    message = rf"'convnet' halves a {shape[1]}x{shape[2]} image {stages - 1} times.*student\.stages"
    with pytest.raises(UsageError, match=message):
        build_student(config, NeuronConfig(), shape, CLASSES)
