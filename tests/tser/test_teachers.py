"""Teachers: sizes, shapes, published weights, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn

from tser.config import TeacherConfig
from tser.config_file import load_config
from tser.errors import UsageError
from tser.teachers import build_teacher
from tser.torchvision_ops import ensure_torchvision

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


# --- the convnet ---------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_stages_of_the_convnet(stages: int) -> None:
    config = TeacherConfig(width=4, stages=stages)
    teacher = build_teacher(config, (3, 8, 8), 5).eval()
    assert isinstance(teacher, nn.Sequential)
    x, shapes = torch.rand(2, 3, 8, 8), []
    for layer in teacher:
        x = layer(x)
        if type(layer).__name__ == "_Residual":
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4 * 2**s, 8 // 2**s, 8 // 2**s) for s in range(stages)]
    assert x.shape == (2, 5)


def test_the_convnet_of_a_run_made_before_there_were_stages() -> None:
    """Names and shapes of its weights are what they were."""
    state = build_teacher(TeacherConfig(width=4), (1, 8, 8), 10).state_dict()
    blocks = sorted({name.split(".")[0] for name in state if ".main." in name})
    assert blocks == ["3", "4"]
    assert state["3.main.0.weight"].shape == (4, 4, 3, 3)
    assert state["4.main.0.weight"].shape == (8, 4, 3, 3)
    assert state["7.weight"].shape == (10, 8)


@pytest.mark.parametrize(("size", "stages"), [(8, 5), (4, 4), (1, 2)])
def test_too_many_stages_are_refused(size: int, stages: int) -> None:
    message = f"'convnet' halves a {size}x{size} image {stages - 1} times"
    with pytest.raises(UsageError, match=message):
        build_teacher(TeacherConfig(stages=stages), (1, size, size), 10)
    build_teacher(TeacherConfig(stages=stages - 1, width=1), (1, size, size), 10)


# --- published weights ---------------------------------------------------------------------

IMAGENET = (3, 64, 64)
URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


def _published(arch: str = "resnet18", weights: str = "IMAGENET1K_V1", **more: Any) -> Any:
    values = {"arch": arch, "stem": "imagenet", "weights": weights, **more}
    return TeacherConfig.model_validate(values)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps what it has downloaded; nothing can be downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def download(url: str, *_: Any, **__: Any) -> None:
        raise URLError(f"no route to {url}")

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    return folder


def _file(cache: Path) -> Path:
    return cache / Path(URL).name


def _theirs() -> nn.Module:
    ensure_torchvision()
    from torchvision import models

    model: nn.Module = models.resnet18()
    return model


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT"])
def test_published_weights_are_read_from_the_cache(cache: Path, name: str) -> None:
    torch.manual_seed(7)
    theirs = _theirs()
    torch.save(theirs.state_dict(), _file(cache))
    teacher = build_teacher(_published(weights=name), IMAGENET, 1000)
    for key, value in theirs.state_dict().items():
        assert torch.equal(teacher.state_dict()[key], value), key
    x = torch.rand(2, *IMAGENET)
    assert torch.equal(teacher.eval()(x), theirs.eval()(x))


def test_a_teacher_without_its_published_weights_is_the_same_network() -> None:
    """So that a run's own file can be loaded into it."""
    with torch.device("meta"):
        ours = build_teacher(_published(weights=""), IMAGENET, 1000)
        theirs = _theirs()
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def _run_code(path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (path.parent / "ran",)

    torch.save(Evil(), path)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404</html>"),
    "code": _run_code,
    "another network": lambda path: torch.save({"weight": torch.zeros(2)}, path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_weights_that_cannot_be_had(cache: Path, damage: str) -> None:
    DAMAGE[damage](_file(cache))
    with pytest.raises(UsageError) as caught:
        build_teacher(_published(), IMAGENET, 1000)
    text = str(caught.value)
    assert text.startswith("the weights IMAGENET1K_V1 of resnet18 cannot be had (")
    assert f"put {URL} into {cache}, or name a file" in text
    assert "\n" not in text
    assert not (cache / "ran").exists()
    assert ("no route" in text) == (damage == "missing")


@pytest.mark.parametrize(
    ("config", "shape", "classes", "message"),
    [
        (
            _published(weights="IMAGENET1K_V9"),
            IMAGENET,
            1000,
            "no weights 'IMAGENET1K_V9' for resnet18; teacher.weights may be IMAGENET1K_V1, DE",
        ),
        (
            _published("resnet50", "V2"),
            IMAGENET,
            1000,
            "for resnet50; teacher.weights may be IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT",
        ),
        (_published(), IMAGENET, 10, "are for 1000 classes .*, not for 10 classes of 3 channels"),
        (_published(), (1, 64, 64), 1000, "not for 1000 classes of 1 channels with 'imagenet'"),
        (_published(stem="cifar"), IMAGENET, 1000, "teacher.stem = 'imagenet', not .* 'cifar'"),
        (
            TeacherConfig(weights="DEFAULT"),
            IMAGENET,
            1000,
            "teacher.weights needs a network of torchvision; set teacher.arch",
        ),
    ],
)
def test_weights_that_do_not_fit(
    cache: Path, config: TeacherConfig, shape: tuple[int, int, int], classes: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build_teacher(config, shape, classes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("DEFAULT") <= 1


# --- where the weights come from -----------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        ["teacher.train=false"],
        ["teacher.weights=DEFAULT", "teacher.path=t.safetensors"],
        ["teacher.weights=DEFAULT", 'teacher.factory="mine:make"'],
        ["teacher.weights=DEFAULT", "teacher.path=t", 'teacher.factory="mine:make"'],
    ],
)
def test_sources_that_contradict_each_other_are_refused(settings: list[str]) -> None:
    words = "train = false needs" if len(settings) == 1 else "weights and (path|factory) exclude"
    with pytest.raises(UsageError, match=f"bad value for teacher .*: .*{words}"):
        load_config("digits", settings)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["teacher.path=t.safetensors"],
        ["teacher.path=t.safetensors", "teacher.train=false"],
        ["teacher.weights=DEFAULT", "teacher.train=false"],
        ["teacher.weights=DEFAULT"],
        ['teacher.factory="mine:make"'],
        ['teacher.factory="mine:make"', "teacher.train=false"],
        ['teacher.factory="mine:make"', "teacher.path=t.safetensors"],
    ],
)
def test_sources_that_go_together(settings: list[str]) -> None:
    teacher = load_config("digits", settings).teacher
    assert teacher.train == ("teacher.train=false" not in settings)
