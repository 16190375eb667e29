"""The conventional network that teaches the student."""

from __future__ import annotations

from torch import Tensor, nn

from tser.config import TeacherConfig


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


def build_teacher(
    config: TeacherConfig, input_shape: tuple[int, int, int], num_classes: int
) -> nn.Sequential:
    """A small residual CNN from ``[B, C, H, W]`` normalised images to ``[B, K]`` logits.

    Args:
        config: its width.
        input_shape: (C, H, W) of one image.
        num_classes: K.
    """
    width = config.width
    return nn.Sequential(
        *_conv_bn(input_shape[0], width, 3, 1),
        nn.ReLU(),
        _Residual(width, width, 1),
        _Residual(width, 2 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )
