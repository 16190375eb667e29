"""Teachers: sizes, shapes, and what is refused."""

import pytest
import torch

from tser.config import TeacherConfig
from tser.errors import UsageError
from tser.teachers import build_teacher

CIFAR = (3, 32, 32)


@pytest.mark.parametrize(
    ("arch", "stem", "shape", "classes", "count"),
    [
        ("resnet18", "cifar", CIFAR, 10, 11_173_962),
        ("resnet34", "cifar", CIFAR, 10, 21_282_122),
        ("resnet50", "cifar", CIFAR, 10, 23_520_842),
        ("vgg16_bn", "cifar", CIFAR, 10, 14_728_266),
        ("resnet34", "imagenet", (3, 224, 224), 1000, 21_797_672),
        ("resnet50", "imagenet", (3, 224, 224), 1000, 25_557_032),
    ],
)
def test_parameter_counts_are_the_published_ones(
    arch: str, stem: str, shape: tuple[int, int, int], classes: int, count: int
) -> None:
    config = TeacherConfig.model_validate({"arch": arch, "stem": stem})
    with torch.device("meta"):
        teacher = build_teacher(config, shape, classes)
    assert sum(parameter.numel() for parameter in teacher.parameters()) == count


@pytest.mark.parametrize("arch", ["convnet", "resnet18", "vgg11_bn"])
def test_images_become_logits(arch: str) -> None:
    config = TeacherConfig.model_validate({"arch": arch, "width": 4})
    teacher = build_teacher(config, (1, 32, 32), 7).eval()
    assert teacher(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("arch", ["resnet34", "vgg16_bn"])
def test_an_image_that_is_too_small_is_refused(arch: str) -> None:
    config = TeacherConfig.model_validate({"arch": arch})
    with pytest.raises(UsageError, match=f"'{arch}' halves a 4x4 image"):
        build_teacher(config, (1, 4, 4), 10)
