"""The network that every variant of the training benchmark trains, written once for each library.

Six times convolution 3x3 - batch norm - neuron, with two average pools between and one over the
whole map behind, then a linear readout. All variants start from the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tser.compilation import compile_neurons, compiled_network
from tser.config import NeuronConfig
from tser.layers import Spiking, Student
from tser.students import Plan

CLASSES = 10
NEURON = NeuronConfig()
STAGES = ((1, 1), (2, 2), (4, 4))
"""Channels of the convolutions over the width, stage by stage; a pool follows each stage."""


@dataclass(frozen=True)
class Size:
    """What is trained on.

    Attributes:
        width: channels of the first convolution.
        timesteps: T.
        batch: B, images.
        side: H = W of the images.
    """

    width: int
    timesteps: int
    batch: int = 32
    side: int = 32

    def neuron_steps(self) -> int:
        """T * B * neurons: how often a neuron is updated in one forward pass."""
        sides = [self.side // 2**stage for stage in range(len(STAGES))]
        neurons = sum(
            factor * self.width * side**2
            for stage, side in zip(STAGES, sides, strict=True)
            for factor in stage
        )
        return self.timesteps * self.batch * neurons


@dataclass(frozen=True)
class Variant:
    """One way to train the network.

    Attributes:
        module: holds the parameters.
        images: what it is fed, ``[B, 3, H, W]``, or ``[T * B, 3, H, W]`` for the network without
            time.
        labels: one for each row of the logits, ``[B]`` or ``[T * B]``.
        logits: from images to logits, ``[B, K]`` or ``[T * B, K]``.
        trains: False for a teacher, of which only the forward pass is run.
    """

    module: nn.Module
    images: Tensor
    labels: Tensor
    logits: Callable[[Tensor], Tensor]
    trains: bool = True


def stages(width: int) -> list[list[tuple[int, int]]]:
    """(inputs, outputs) of every convolution, stage by stage."""
    inputs, result = 3, []
    for stage in STAGES:
        pairs = []
        for factor in stage:
            pairs.append((inputs, factor * width))
            inputs = factor * width
        result.append(pairs)
    return result


def ann(width: int) -> nn.Sequential:
    """The network without time, seeded: the weights that all variants start from.

    Batch norm starts with the gain that lets LIF neurons fire (dt / tau_mem scales their input).
    """
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number, stage in enumerate(stages(width)):
        for inputs, outputs in stage:
            norm = nn.BatchNorm2d(outputs)
            nn.init.constant_(norm.weight, NEURON.tau_mem / NEURON.dt)
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm, nn.ReLU()]
        last = number == len(STAGES) - 1
        layers.append(nn.AdaptiveAvgPool2d(1) if last else nn.AvgPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(STAGES[-1][-1] * width, CLASSES))


def same_weights(module: nn.Module, width: int) -> nn.Module:
    """``module`` with the weights of `ann`; its layers come in the same order."""
    source = ann(width).state_dict()
    wanted = [value for value in source.values() if value.ndim]  # not the count of batches
    # snnTorch and SpikingJelly keep numbers of theirs in buffers; they are scalars or empty.
    own = [value for value in module.state_dict().values() if value.ndim and value.numel()]
    with torch.no_grad():
        for value, new in zip(own, wanted, strict=True):
            value.copy_(new)
    return module


def data(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images ``[B, 3, H, W]`` and labels ``[B]``, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size.batch, 3, size.side, size.side, generator=generator)
    labels = torch.randint(CLASSES, (size.batch,), generator=generator)
    return images.to(device), labels.to(device)


def build_ann(size: Size, device: torch.device, *, compiled: bool = False) -> Variant:
    """The floor: ReLU for LIF, channels-last, on T * B images."""
    images, labels = data(size, device)
    net = ann(size.width).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Variant(
        net,
        images.repeat(size.timesteps, 1, 1, 1).contiguous(memory_format=torch.channels_last),
        labels.repeat(size.timesteps),
        torch.compile(net, dynamic=False) if compiled else net,
    )


def build_student(size: Size, device: torch.device, *, mode: str) -> Variant:
    """A student of tser; ``mode`` as in `prepare`."""
    images, labels = data(size, device)
    net = same_weights(student(size), size.width)
    net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Variant(
        net,
        images.contiguous(memory_format=torch.channels_last),
        labels,
        prepare(net, mode, size.batch),
    )


def build_teacher(size: Size, device: torch.device, *, compiled: bool = False) -> Variant:
    """The forward pass of a teacher with four times the student's multiplications, on B images."""
    images, labels = data(size, device)
    net = ann(2 * size.width).eval().to(device)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = torch.compile(net, dynamic=False) if compiled else net
    images = images.contiguous(memory_format=torch.channels_last)
    return Variant(net, images, labels, run, trains=False)


def student(size: Size) -> Student:
    """The network as a student, with weights of its own."""
    shape = (3, size.side, size.side)
    plan = Plan(NEURON, shape, [])
    for number, stage in enumerate(stages(size.width)):
        for index, (_, outputs) in enumerate(stage):
            plan.conv(f"conv{number + 1}_{index + 1}", outputs)
        plan.pool(f"pool{number + 1}", None if number == len(STAGES) - 1 else 2)
    plan.head(CLASSES)
    return Student(Spiking(plan.layers), size.timesteps, shape)


class Wrapped(nn.Module):
    """A network in a frame of its own: torch.compile would else reuse an equal network's code."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """As the network."""
        logits: Tensor = self.net(images)
        return logits


def prepare(net: nn.Module, mode: str, batch: int) -> Callable[[Tensor], Tensor]:
    """Mean logits ``[B, K]`` of a student that is compiled as ``mode`` says.

    Modes: off, neuron, step, and low-memory, which is step with fewer values kept for backward.
    """
    run: Callable[[Tensor], Tensor] = net
    if mode == "neuron":
        compile_neurons(net, frozenset({batch}))
    elif mode == "step":
        run = compiled_network(net, frozenset({batch}))
    elif mode == "low-memory":
        run = compiled_network(Wrapped(net), frozenset({batch}), low_memory=True)
    return lambda images: run(images).mean(0)
