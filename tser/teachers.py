"""The conventional network that teaches the student."""

from __future__ import annotations

from typing import Any

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
    width = config.width
    return nn.Sequential(
        *_conv_bn(channels, width, 3, 1),
        nn.ReLU(),
        _Residual(width, width, 1),
        _Residual(width, 2 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )


def _torchvision(config: TeacherConfig, channels: int, num_classes: int) -> nn.Module:
    """A network of torchvision; the CIFAR stem keeps small images at full size."""
    ensure_torchvision()
    from torchvision import models

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


def build_teacher(
    config: TeacherConfig, input_shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """The teacher as configured, from ``[B, C, H, W]`` normalised images to ``[B, K]`` logits.

    Args:
        config: "convnet", a small residual CNN of a given width, or a network of torchvision.
        input_shape: (C, H, W) of one image.
        num_classes: K.

    Raises:
        UsageError: the image is too small for the architecture.
    """
    halvings = {"convnet": 1, "vgg11_bn": 5, "vgg16_bn": 5}.get(config.arch, 3)
    halvings += 2 * (config.stem == "imagenet" and config.arch.startswith("resnet"))
    if min(input_shape[1:]) < 2**halvings:
        raise UsageError(
            f"the teacher {config.arch!r} halves a {input_shape[1]}x{input_shape[2]} image "
            f"{halvings} times, which leaves nothing; use larger images or another teacher.arch"
        )
    build = _convnet if config.arch == "convnet" else _torchvision
    return build(config, input_shape[0], num_classes)
