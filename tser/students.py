"""Spiking students that can be deployed by construction.

Every value that crosses a synapse is a binary spike, except the analog input image and the
output logits: residual sums add currents before a neuron, pooling is average pooling that a
following synapse absorbs, and batch norm follows a convolution that absorbs it at export.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from norse.torch.functional.lif_box import LIFBoxParameters
from torch import nn

from tser.config import NeuronConfig, StudentConfig
from tser.errors import UsageError
from tser.layers import Residual, Spiking, Student
from tser.neurons import LIF

Shape = tuple[int, int, int]


@dataclass
class Plan:
    """A student being put together, layer by layer.

    Attributes:
        neuron: parameters of every LIF layer.
        shape: (C, H, W) behind the last layer.
        layers: so far, by name.
    """

    neuron: NeuronConfig
    shape: Shape
    layers: list[tuple[str, nn.Module]]

    def conv(self, name: str, channels: int, kernel: int = 3, stride: int = 1) -> None:
        """Convolution, batch norm and neurons."""
        inputs, height, width = self.shape
        self.layers += [
            (f"{name}_conv", _conv(inputs, channels, kernel, stride)),
            (f"{name}_bn", nn.BatchNorm2d(channels)),
            (f"{name}_lif", make_neuron(self.neuron)),
        ]
        self.shape = channels, -(-height // stride), -(-width // stride)

    def block(self, name: str, channels: int, stride: int) -> None:
        """A basic residual block: two 3x3 convolutions and a shortcut."""
        inputs, height, width = self.shape
        self.layers.append((name, _block(inputs, channels, stride, self.neuron)))
        self.shape = channels, -(-height // stride), -(-width // stride)

    def pool(self, name: str, size: int | None = None) -> None:
        """Average over windows of ``size``, or over the whole map."""
        channels, height, width = self.shape
        window = (size, size) if size else (height, width)
        self.layers.append((name, nn.AvgPool2d(window)))
        self.shape = channels, height // window[0], width // window[1]

    def head(self, num_classes: int, hidden: int = 0) -> None:
        """Flatten and read out, with a layer of ``hidden`` neurons between if there are any.

        Its batch norm is our choice: pooled rates are too small a current to fire without it.
        """
        features = self.shape[0] * self.shape[1] * self.shape[2]
        self.layers.append(("flatten", nn.Flatten()))
        if hidden:
            self.layers += [
                ("hidden", nn.Linear(features, hidden, bias=False)),
                ("hidden_bn", nn.BatchNorm1d(hidden)),
                ("hidden_lif", make_neuron(self.neuron)),
            ]
        self.layers.append(("readout", nn.Linear(hidden or features, num_classes)))


Architecture = Callable[[Plan, StudentConfig, int], None]


def _convnet(plan: Plan, config: StudentConfig, num_classes: int) -> None:
    """Stem and ``stages`` residual blocks; each after the first halves the map."""
    plan.conv("stem", config.width)
    for stage in range(config.stages):
        plan.block(f"block{stage + 1}", config.width * 2**stage, 1 if stage == 0 else 2)
    plan.pool("pool")
    plan.head(num_classes)


def _resnet(blocks: tuple[int, ...], hidden: int = 0) -> Architecture:
    """He et al., CVPR 2016, basic blocks, with the CIFAR or the ImageNet stem."""

    def build(plan: Plan, config: StudentConfig, num_classes: int) -> None:
        if config.stem == "imagenet":
            plan.conv("stem", config.width, kernel=7, stride=2)
            plan.pool("stem_pool", 2)  # torchvision has an overlapping max-pool here
        else:
            plan.conv("stem", config.width)
        for stage, count in enumerate(blocks):
            for number in range(count):
                stride = 2 if stage and not number else 1
                name = f"stage{stage + 1}_block{number + 1}"
                plan.block(name, config.width * 2**stage, stride)
        plan.pool("pool")
        plan.head(num_classes, hidden * config.width // 128)

    return build


def _vgg(*stages: int) -> Architecture:
    """Simonyan & Zisserman, ICLR 2015, with batch norm and average pools, one linear layer."""

    def build(plan: Plan, config: StudentConfig, num_classes: int) -> None:
        for stage, count in enumerate(stages):
            for number in range(count):
                plan.conv(f"conv{stage + 1}_{number + 1}", config.width * min(2**stage, 8))
            plan.pool(f"pool{stage + 1}", 2)
        if plan.shape[1:] != (1, 1):
            plan.pool("pool")
        plan.head(num_classes)

    return build


ARCHITECTURES: dict[str, Architecture] = {
    "convnet": _convnet,
    "resnet18": _resnet((2, 2, 2, 2)),
    # The form of the SNN papers: three stages from 128 channels, 256 hidden neurons
    # (Zheng et al., AAAI 2021); width 128.
    "resnet19": _resnet((3, 3, 2), hidden=256),
    "resnet34": _resnet((3, 4, 6, 3)),
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
}
"""Name -> function that plans the layers."""

HALVINGS = {"resnet18": 3, "resnet19": 2, "resnet34": 3, "vgg11": 5, "vgg16": 5}
"""How often each architecture halves the map (one and a half more with the ImageNet stem)."""


def make_neuron(config: NeuronConfig) -> LIF:
    """A layer of LIF neurons as configured."""
    parameters = LIFBoxParameters(
        tau_mem_inv=torch.as_tensor(1 / config.tau_mem),
        v_leak=torch.as_tensor(config.v_leak),
        v_th=torch.as_tensor(config.v_th),
        v_reset=torch.as_tensor(config.v_reset),
        method=config.surrogate,
        alpha=config.alpha,
    )
    return LIF(
        parameters,
        config.dt,
        config.surrogate,
        config.alpha,
        config.detach_reset,
        config.learn_tau,
    )


def build_student(
    config: StudentConfig,
    neuron: NeuronConfig,
    input_shape: Shape,
    num_classes: int,
) -> Student:
    """The student as configured, with fresh weights.

    Args:
        config: architecture, T, width and so on.
        neuron: parameters of every LIF layer.
        input_shape: (C, H, W) of one image.
        num_classes: K.

    Raises:
        UsageError: the image is too small for the architecture.
    """
    halvings = HALVINGS.get(config.arch, config.stages - 1) + 2 * (config.stem == "imagenet")
    if min(input_shape[1:]) < 2**halvings:
        raise UsageError(
            f"the student {config.arch!r} halves a {input_shape[1]}x{input_shape[2]} image "
            f"{halvings} times, which leaves nothing; use larger images, fewer student.stages or "
            "another student.arch"
        )
    plan = Plan(neuron, input_shape, [])
    ARCHITECTURES[config.arch](plan, config, num_classes)
    student = Student(Spiking(plan.layers), config.timesteps, input_shape)
    for module in student.modules():
        if isinstance(module, Spiking):
            module.norm_per_step = config.norm == "per-step"
    _initialise(student, neuron)
    return student


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _block(inputs: int, outputs: int, stride: int, neuron: NeuronConfig) -> Residual:
    main = Spiking(
        [
            ("conv1", _conv(inputs, outputs, 3, stride)),
            ("bn1", nn.BatchNorm2d(outputs)),
            ("lif1", make_neuron(neuron)),
            ("conv2", _conv(outputs, outputs, 3)),
            ("bn2", nn.BatchNorm2d(outputs)),
        ]
    )
    shortcut: list[tuple[str, nn.Module]] = []
    if stride != 1 or inputs != outputs:
        shortcut = [("conv", _conv(inputs, outputs, 1, stride)), ("bn", nn.BatchNorm2d(outputs))]
    return Residual(main, Spiking(shortcut), make_neuron(neuron))


def _initialise(student: Student, neuron: NeuronConfig) -> None:
    """Start with currents large enough to fire.

    A LIF neuron scales its input by dt / tau_mem, so a unit-variance current hardly reaches the
    threshold; batch norm starts with the inverse gain (times the threshold) to undo that.
    """
    gain = neuron.tau_mem / neuron.dt * (neuron.v_th - neuron.v_leak)
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, gain)
