"""Every architecture: its size, its shapes, and the way from PyTorch to NIR to ONNX Runtime."""

import numpy as np
import pytest
import torch
from torch import nn

from tser.config import NeuronConfig, StudentConfig
from tser.deploy.backends import NirBackend, TorchBackend
from tser.deploy.equivalence import compare
from tser.deploy.onnx_backend import OnnxBackend
from tser.errors import UsageError
from tser.export.graph import resolve
from tser.export.lower import lower
from tser.export.onnx_file import compile_onnx
from tser.layers import Student
from tser.neurons import LIF
from tser.students import ARCHITECTURES, build_student

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


def _student(arch: str, width: int, shape: tuple[int, int, int], classes: int = 10) -> Student:
    stem = "imagenet" if shape[1] > 64 else "cifar"
    config = StudentConfig.model_validate(
        {"arch": arch, "width": width, "stem": stem, "timesteps": 2}
    )
    return build_student(config, NeuronConfig(), shape, classes)


@pytest.mark.parametrize(
    ("arch", "width", "shape", "classes", "count"),
    [
        # The counts of the conventional networks: a LIF layer has no weights of its own.
        ("resnet18", 64, CIFAR, 10, 11_173_962),
        ("resnet34", 64, CIFAR, 10, 21_282_122),
        ("resnet18", 64, IMAGENET, 1000, 11_689_512),
        ("resnet34", 64, IMAGENET, 1000, 21_797_672),
        # Published forms with biases in front of batch norm have 2,752 and 4,224 more.
        ("vgg11", 64, CIFAR, 10, 9_231_114 - 2_752),
        ("vgg16", 64, CIFAR, 10, 14_728_266 - 4_224),
        ("resnet19", 128, CIFAR, 10, 12_698_250),
    ],
)
def test_parameter_counts(
    arch: str, width: int, shape: tuple[int, int, int], classes: int, count: int
) -> None:
    with torch.device("meta"):
        student = _student(arch, width, shape, classes)
    assert sum(parameter.numel() for parameter in student.parameters()) == count


def _liven(student: Student) -> None:
    """Batch statistics of random images, so that neurons of every layer fire."""
    torch.manual_seed(0)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    student.train()
    with torch.no_grad():
        for _ in range(2):
            student(torch.randn(8, *student.input_shape))
    student.eval()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_deploys(arch: str) -> None:
    torch.manual_seed(1)
    student = _student(arch, 8, CIFAR)
    _liven(student)
    lowered = lower(student)
    graph = resolve(lowered.graph)
    layers = {node.name: node.output_shape for node in graph.spiking}
    neurons = [module for module in student.modules() if isinstance(module, LIF)]
    assert len(layers) == len(neurons)
    x = torch.randn(3, *CIFAR).numpy()
    reference = TorchBackend(student, lowered.modules, "torch")
    assert reference(x).logits.shape == (2, 3, 10)
    candidates = [
        NirBackend(graph, 2, "nir"),
        OnnxBackend(compile_onnx(graph), layers, "onnx"),
    ]
    evidence = compare(graph, reference, candidates, [(x, None)], lowered.bias_magnitude)
    assert [comparison.verdict for comparison in evidence.comparisons] == ["E0", "E0"] or (
        evidence.verdict == "E1"
    )
    rates = [float(np.mean(spikes)) for spikes in reference(x).spikes.values()]
    assert min(rates) > 0, "a silent layer proves nothing"


def test_the_imagenet_stem_deploys() -> None:
    torch.manual_seed(2)
    student = _student("resnet18", 4, (3, 96, 96))
    _liven(student)
    graph = resolve(lower(student).graph)
    assert graph.nodes["stem_lif"].output_shape == (4, 48, 48)
    assert graph.nodes["stem_pool"].output_shape == (4, 24, 24)


@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if name != "convnet"])
def test_an_image_that_is_too_small_is_refused(arch: str) -> None:
    with pytest.raises(UsageError, match=f"'{arch}' halves a 3x3 image"):
        _student(arch, 4, (1, 3, 3))
