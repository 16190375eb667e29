"""Where images are kept while a run trains, and that it changes none of them."""

from dataclasses import replace

import pytest
import torch

from tser.augment import cutout, draw
from tser.config import DataConfig
from tser.data import ArraySplit, ImageData, load_data, resident
from tser.data.feed import TrainingFeed, batches_in_order
from tser.data.resident import default_workers, placed, room_on

META = torch.device("meta")  # a device of which every machine has one
TRAIN, VAL = 1097 * 64, 200 * 64


def where(data: ImageData) -> list[str]:
    splits = (data.train, data.val, data.test)
    return [split.images.device.type for split in splits if isinstance(split, ArraySplit)]


@pytest.fixture
def digits() -> ImageData:
    return load_data("digits")


@pytest.mark.parametrize(
    ("room", "wanted"),
    [
        (TRAIN + VAL, ["meta", "meta", "cpu"]),
        (TRAIN + VAL - 1, ["meta", "cpu", "cpu"]),
        (TRAIN, ["meta", "cpu", "cpu"]),
    ],
)
def test_what_fits_is_kept_on_the_device(
    room: int, wanted: list[str], digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "room_on", lambda device: room)
    data = placed(digits, DataConfig(), META)
    assert where(data) == wanted
    assert data.workers == 0
    assert torch.equal(data.train.labels, digits.train.labels)
    assert data.train.labels.device.type == "cpu"


def test_what_does_not_fit_is_prepared_by_workers(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "room_on", lambda device: TRAIN - 1)
    data = placed(digits, DataConfig(), META)
    assert where(data) == ["cpu"] * 3
    assert data.workers == default_workers() >= 1
    assert placed(digits, DataConfig(workers=0), META) is digits


def test_what_workers_prepare_stays_with_them(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "room_on", lambda device: 10**9)
    busy = replace(digits, workers=3)
    assert placed(busy, DataConfig(), META) is busy


def test_a_cpu_has_no_memory_of_its_own(digits: ImageData) -> None:
    assert room_on(torch.device("cpu")) is None
    assert placed(digits, DataConfig(), torch.device("cpu")) is digits


def test_a_quarter_of_the_free_memory_is_taken_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert room_on(torch.device("cuda:0")) == 250


def test_batches_are_made_where_the_images_are(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step of the preparation falls back to the CPU, or mixes two devices."""
    monkeypatch.setattr(resident, "room_on", lambda device: 10**9)
    config = DataConfig(shift=1, flip=True, cutout=3)
    data = placed(digits, config, META)
    draws = draw(8, config, torch.Generator())
    augmented = data.train.augmented_at(torch.arange(8), draws, config)
    normal = cutout(data.normalise(augmented), draws, config.cutout)
    assert (augmented.device.type, augmented.dtype) == ("meta", torch.uint8)
    assert (normal.device.type, normal.dtype) == ("meta", torch.float32)
    assert normal.shape == (8, 1, 8, 8)
    assert data.val.images_at(torch.arange(8)).device.type == "meta"
    batch = next(iter(TrainingFeed(data, DataConfig(flip=True), 8, 0, device=META)))
    assert batch.images.device.type == batch.labels.device.type == "meta"
    assert batch.views is not None
    assert batch.views.device.type == "cpu"
    images, labels = next(batches_in_order(data, data.val, 8, device=META))
    assert (images.device.type, labels.device.type) == ("meta", "cpu")
