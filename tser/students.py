"""Spiking students that can be deployed by construction.

Every value that crosses a synapse is a binary spike, except the analog input image and the
output logits: residual sums add currents before a neuron, pooling is average pooling that a
following synapse absorbs, and batch norm follows a convolution that absorbs it at export.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from norse.torch.functional.lif_box import LIFBoxParameters
from torch import Tensor, nn

from tser.config import NeuronConfig, StudentConfig
from tser.errors import UsageError
from tser.neurons import LIF


class Spiking(nn.Module):
    """Layers in order over ``[T, B, ...]``; neurons see time, other layers ``[T*B, ...]``.

    The leading dimension is 1 for as long as nothing depends on time: with a static image the
    part before the first neuron is computed once, not T times.
    """

    def __init__(self, layers: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        for name, layer in layers:
            self.add_module(name, layer)

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """Run ``x`` ``[T or 1, B, ...]`` through the layers; returns ``[T or 1, B, ...]``."""
        for layer in self.children():
            if isinstance(layer, LIF | Spiking | Residual):
                x = layer(x, timesteps)
            else:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x


class Residual(nn.Module):
    """Two branches whose *currents* are summed into one layer of neurons.

    Args:
        main: layers from the block's input to a current.
        shortcut: the same for the second branch; empty passes the input spikes as current.
        neuron: fires on the sum of both.
    """

    def __init__(self, main: Spiking, shortcut: Spiking, neuron: LIF) -> None:
        super().__init__()
        self.main, self.shortcut, self.neuron = main, shortcut, neuron

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """Spikes ``[T, B, ...]`` for input ``x`` ``[T or 1, B, ...]``."""
        spikes: Tensor = self.neuron(
            self.main(x, timesteps) + self.shortcut(x, timesteps), timesteps
        )
        return spikes


class Student(nn.Module):
    """A spiking network from images to logits at every step.

    Args:
        layers: from the image to one logit a class.
        timesteps: T.
        input_shape: (C, H, W) of one image.
    """

    def __init__(self, layers: Spiking, timesteps: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layers, self.timesteps, self.input_shape = layers, timesteps, input_shape

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every step.

        Args:
            x: normalised images, ``[B, C, H, W]`` (the same at every step, "direct coding").

        Returns:
            ``[T, B, K]``.
        """
        logits: Tensor = self.layers(x.unsqueeze(0), self.timesteps)
        return logits.expand(self.timesteps, *logits.shape[1:])


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
    return LIF(parameters, config.dt, config.surrogate, config.alpha, config.detach_reset)


def build_student(
    config: StudentConfig,
    neuron: NeuronConfig,
    input_shape: tuple[int, int, int],
    num_classes: int,
) -> Student:
    """The small residual convnet: stem, residual stages, average pool, linear read-out.

    Args:
        config: T, width and number of stages.
        neuron: parameters of every LIF layer.
        input_shape: (C, H, W) of one image.
        num_classes: K.

    Raises:
        UsageError: the image is too small for so many stages.
    """
    channels, height, width = input_shape
    if min(height, width) < 2 ** (config.stages - 1):
        raise UsageError(
            f"student.stages = {config.stages} halves a {height}x{width} image to nothing; "
            "use fewer stages"
        )
    features = config.width
    layers: list[tuple[str, nn.Module]] = [
        ("stem_conv", _conv(channels, features, 3)),
        ("stem_bn", nn.BatchNorm2d(features)),
        ("stem_lif", make_neuron(neuron)),
    ]
    for stage in range(config.stages):
        stride = 1 if stage == 0 else 2
        out = features * stride
        layers.append((f"block{stage + 1}", _block(features, out, stride, neuron)))
        features = out
        height, width = -(-height // stride), -(-width // stride)
    layers += [
        ("pool", nn.AvgPool2d((height, width))),
        ("flatten", nn.Flatten()),
        ("readout", nn.Linear(features, num_classes)),
    ]
    student = Student(Spiking(layers), config.timesteps, input_shape)
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
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, gain)
