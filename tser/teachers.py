"""The conventional network that teaches the student."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from torch import Tensor, nn

from tser.config import TeacherConfig
from tser.errors import UsageError
from tser.torchvision_ops import ensure_torchvision


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *_conv_bn(inputs, outputs, 3, stride), nn.ReLU(), *_conv_bn(outputs, outputs, 3, 1)
        )
        self.shortcut = nn.Sequential(*_conv_bn(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.relu(self.main(x) + self.shortcut(x))
        return result


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs)


def _convnet(config: TeacherConfig, channels: int, num_classes: int) -> nn.Module:
    widths = [config.width * 2**stage for stage in range(config.stages)]
    blocks = [
        _Residual(widths[max(0, stage - 1)], width, 2 if stage else 1)
        for stage, width in enumerate(widths)
    ]
    return nn.Sequential(
        *_conv_bn(channels, widths[0], 3, 1),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], num_classes),
    )


def _torchvision(config: TeacherConfig, channels: int, num_classes: int) -> nn.Module:
    """A network of torchvision; the CIFAR stem keeps small images at full size."""
    ensure_torchvision()
    from torchvision import models

    if config.weights:
        return _published(config, channels, num_classes)
    model: Any = getattr(models, config.arch)(num_classes=num_classes)
    if config.arch.startswith("vgg"):
        first = model.features[0]
        model.features[0] = nn.Conv2d(channels, first.out_channels, 3, padding=1)
        if config.stem == "cifar":
            model.avgpool = nn.AdaptiveAvgPool2d(1)
            model.classifier = nn.Linear(512, num_classes)
    elif config.stem == "cifar":
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    else:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    result: nn.Module = model
    return result


def _published(config: TeacherConfig, channels: int, num_classes: int) -> nn.Module:
    """The network with weights that torchvision publishes, downloaded once to torch's cache."""
    from torchvision import models

    known: Any = models.get_model_weights(config.arch)
    names = list(known.__members__)
    if config.weights not in names:
        raise UsageError(
            f"torchvision has no weights {config.weights!r} for {config.arch}; "
            f"teacher.weights may be {', '.join(names)}"
        )
    weights = known[config.weights]
    classes = len(weights.meta["categories"])
    if (classes, channels, config.stem) != (num_classes, 3, "imagenet"):
        raise UsageError(
            f"the weights {config.weights} of {config.arch} are for {classes} classes of colour "
            f"images with teacher.stem = 'imagenet', not for {num_classes} classes of "
            f"{channels} channels with {config.stem!r}; leave out teacher.weights"
        )
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        model: nn.Module = getattr(models, config.arch)(num_classes=num_classes)
        model.load_state_dict(state)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"the weights {config.weights} of {config.arch} cannot be had ({reason[:120]}); put "
            f"{weights.url} into {torch.hub.get_dir()}/checkpoints, or name a file with --teacher"
        ) from error
    return model


def build_teacher(
    config: TeacherConfig, input_shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """The teacher as configured, from ``[B, C, H, W]`` normalised images to ``[B, K]`` logits.

    Args:
        config: "convnet", a small residual CNN of a given width, or a network of torchvision.
        input_shape: (C, H, W) of one image.
        num_classes: K.

    Raises:
        UsageError: the image is too small for the architecture, or published weights that do
            not fit or cannot be downloaded.
    """
    if config.weights and config.arch == "convnet":
        raise UsageError("teacher.weights needs a network of torchvision; set teacher.arch")
    halvings = {"convnet": config.stages - 1, "vgg11_bn": 5, "vgg16_bn": 5}.get(config.arch, 3)
    halvings += 2 * (config.stem == "imagenet" and config.arch.startswith("resnet"))
    if min(input_shape[1:]) < 2**halvings:
        raise UsageError(
            f"the teacher {config.arch!r} halves a {input_shape[1]}x{input_shape[2]} image "
            f"{halvings} times, which leaves nothing; use larger images or another teacher.arch"
        )
    build = _convnet if config.arch == "convnet" else _torchvision
    return build(config, input_shape[0], num_classes)
