"""The network of the training benchmark in other libraries, each as its own documentation has it.

The extra ``bench`` installs them; each is imported only when its builder is called.
"""

from __future__ import annotations

from typing import Any

import torch
from networks import CLASSES, NEURON, STAGES, Size, Variant, data, same_weights, stages
from torch import Tensor, nn


def norse(size: Size, device: torch.device, *, compiled: bool = False) -> Variant:
    """Norse: one step as a ``SequentialState``, the loop over time outside it.

    The same neuron, surrogate and reset gradient as the student's.
    """
    from norse.torch import LIFBoxCell, SequentialState
    from norse.torch.functional.lif_box import LIFBoxParameters

    def neuron() -> nn.Module:
        parameters = LIFBoxParameters(
            tau_mem_inv=torch.as_tensor(1 / NEURON.tau_mem, device=device),
            v_leak=torch.as_tensor(NEURON.v_leak, device=device),
            v_th=torch.as_tensor(NEURON.v_th, device=device),
            v_reset=torch.as_tensor(NEURON.v_reset, device=device),
            method=NEURON.surrogate,
            alpha=NEURON.alpha,
        )
        cell: nn.Module = LIFBoxCell(parameters, dt=NEURON.dt)
        return cell

    layers: list[nn.Module] = []
    for number, stage in enumerate(stages(size.width)):
        for inputs, outputs in stage:
            layers += [_conv(inputs, outputs), nn.BatchNorm2d(outputs), neuron()]
        layers.append(_pool(number))
    layers += [nn.Flatten(), nn.Linear(STAGES[-1][-1] * size.width, CLASSES)]
    net = same_weights(SequentialState(*layers), size.width).to(device)
    step = torch.compile(net, dynamic=False) if compiled else net

    def logits(images: Tensor) -> Tensor:
        state, total = None, torch.zeros((), device=device)
        for _ in range(size.timesteps):
            out, state = step(images, state)
            total = total + out
        return total / size.timesteps

    return Variant(net, *data(size, device), logits)


class SnnTorchNet(nn.Module):
    """Tutorial 6 of snnTorch: states made in ``forward``, which loops over time."""

    def __init__(self, size: Size) -> None:
        from snntorch import Leaky, surrogate

        super().__init__()
        self.timesteps = size.timesteps
        beta = 1 - NEURON.dt / NEURON.tau_mem
        layers: list[nn.Module] = []
        for number, stage in enumerate(stages(size.width)):
            for inputs, outputs in stage:
                neuron = Leaky(beta=beta, spike_grad=surrogate.fast_sigmoid(slope=25))
                layers += [_conv(inputs, outputs), nn.BatchNorm2d(outputs), neuron]
            layers.append(_pool(number))
        layers += [nn.Flatten(), nn.Linear(STAGES[-1][-1] * size.width, CLASSES)]
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Mean logits ``[B, K]`` of ``images`` ``[B, 3, H, W]``."""
        members: dict[int, Any] = {
            index: layer.init_leaky()
            for index, layer in enumerate(self.layers)
            if hasattr(layer, "init_leaky")
        }
        out = []
        for _ in range(self.timesteps):
            x = images
            for index, layer in enumerate(self.layers):
                if index in members:
                    x, members[index] = layer(x, members[index])
                else:
                    x = layer(x)
            out.append(x)
        return torch.stack(out).mean(0)


def snntorch(size: Size, device: torch.device, *, compiled: bool = False) -> Variant:
    """snnTorch: ``Leaky`` with a fast sigmoid."""
    net = same_weights(SnnTorchNet(size), size.width).to(device)
    run = torch.compile(net, dynamic=False) if compiled else net
    return Variant(net, *data(size, device), run)


def spikingjelly(size: Size, device: torch.device, *, compiled: bool = False) -> Variant:
    """SpikingJelly in multi-step mode; it picks its own kernels: CUDA, Triton or torch."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    layers: list[nn.Module] = []
    for number, stage in enumerate(stages(size.width)):
        for inputs, outputs in stage:
            layers += [
                layer.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                layer.BatchNorm2d(outputs),
                neuron.LIFNode(tau=NEURON.tau_mem / NEURON.dt, surrogate_function=surrogate.ATan()),
            ]
        last = number == len(STAGES) - 1
        layers.append(layer.AdaptiveAvgPool2d(1) if last else layer.AvgPool2d(2))
    layers += [layer.Flatten(), layer.Linear(STAGES[-1][-1] * size.width, CLASSES)]
    net = same_weights(nn.Sequential(*layers), size.width).to(device)
    functional.set_step_mode(net, "m")
    run = torch.compile(net, dynamic=False) if compiled else net

    def logits(images: Tensor) -> Tensor:
        functional.reset_net(net)
        steps: Tensor = run(images.unsqueeze(0).repeat(size.timesteps, 1, 1, 1, 1))
        return steps.mean(0)

    return Variant(net, *data(size, device), logits)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def _pool(stage: int) -> nn.Module:
    return nn.AdaptiveAvgPool2d(1) if stage == len(STAGES) - 1 else nn.AvgPool2d(2)
