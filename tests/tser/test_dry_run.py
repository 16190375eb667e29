"""The dry run: every preset takes a step, says what it would cost and leaves nothing behind."""

import math
from pathlib import Path

import pytest

from tser import dry_run as module
from tser.config_file import load_config, preset_names
from tser.data import load_data
from tser.dry_run import PUBLISHED, dry_run
from tser.errors import UsageError

PARAMETERS = {
    "cifar10-resnet18": 11_173_962,
    "cifar10-resnet19": 12_698_250,
    "cifar100-resnet18": 11_220_132,
    "cifar100-resnet19": 12_721_380,
    "cifar100-vgg16": 14_770_212,
    "imagenet-resnet34": 21_797_672,
}

LOW = ("train.lr=0.001", "teacher.lr=0.001")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "TSER_DATA", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_runs_dry(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    outlook = dry_run(config)
    shape, classes, images = PUBLISHED[config.data.name]
    assert (outlook.image_shape, outlook.num_classes) == (shape, classes)
    assert (outlook.training_images, outlook.loaded) == (images, False)
    assert outlook.steps_per_epoch == math.ceil(images / config.train.batch_size)
    assert outlook.timesteps == config.student.timesteps
    last = outlook.layers[-1]
    assert (last.kind, last.shape[-1]) == ("Linear", classes)
    assert sum(layer.parameters for layer in outlook.layers) == outlook.student.parameters
    assert outlook.student.parameters == PARAMETERS.get(name, outlook.student.parameters)
    firing = [layer for layer in outlook.layers if layer.kind == "LIF"]
    assert {layer.shape[0] for layer in firing} == {outlook.timesteps}
    assert (outlook.teacher is None) == (not config.teacher.train)
    assert all(math.isfinite(value) for value in outlook.loss.values())
    assert outlook.student.epoch_seconds > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_the_table_of_published_sets_is_right(name: str) -> None:
    if name == "fashion-mnist" and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Fashion-MNIST is not installed here")
    data = load_data(name)
    assert PUBLISHED[name] == (data.image_shape, data.num_classes, len(data.train))


def test_memory_scales_with_the_batch_and_its_parts() -> None:
    def kept(*settings: str) -> int:
        return dry_run(load_config("digits", ["student.width=4", *settings])).student.kept_bytes

    small, large = kept("train.batch_size=8"), kept("train.batch_size=16")
    assert large == pytest.approx(2 * small, rel=0.05)
    assert kept("train.batch_size=16", "train.accumulate=2") == pytest.approx(small, rel=0.05)
    assert kept("train.batch_size=8", "student.timesteps=8") > 1.5 * small


def test_weights_gradients_and_momentum_are_counted() -> None:
    cost = dry_run(load_config("digits", ["student.width=4"])).student
    assert cost.state_bytes >= 3 * 4 * cost.parameters
    adam = dry_run(
        load_config("digits", ["student.width=4", "train.optimizer=adamw", *LOW])
    ).student
    assert adam.state_bytes - cost.state_bytes >= 4 * cost.parameters


def test_what_training_refuses_is_refused() -> None:
    with pytest.raises(UsageError, match=r"data.shift = 8 moves a 8x8 image"):
        dry_run(load_config("digits", ["data.shift=8"]))
    with pytest.raises(UsageError, match="device 'cuda:99' cannot be used here"):
        dry_run(load_config("digits", ["train.device=cuda:99"]))


def test_what_would_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tser.compilation.missing_compiler", lambda device: None)
    assert dry_run(load_config("digits", ["student.width=2", "train.epochs=1"])).compile == "off"
    long = load_config("digits", ["student.width=8", "train.epochs=1000000"])
    assert dry_run(long).compile == "step"
