"""How images reach a model: batches, shares of processes, frames, and what does not fit."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tser.config import DataConfig
from tser.data import ArraySplit, ImageData, load_configured, load_data
from tser.data.feed import (
    Share,
    TrainingFeed,
    batch_positions,
    batches_in_order,
    check_fits,
    check_timesteps,
)
from tser.data.images import make_image_data, static, time_first
from tser.errors import TserError, UsageError

PLAIN = DataConfig(shift=0)


def made_data(*shape: int, dtype: torch.dtype = torch.uint8, count: int = 30) -> ImageData:
    """A set of random images (or frames) of the given shape, the same in every split."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (count, *shape), generator=generator).to(dtype)
    split = ArraySplit(images, torch.arange(count) % 3)
    return make_image_data(
        "made", ("a", "b", "c"), train=split, val=split, test=split, max_value=255
    )


# --- batches -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_shows_every_image_once_with_its_label(workers: int) -> None:
    config = DataConfig(shift=0, workers=workers)
    data = load_configured(config)
    feed = TrainingFeed(data, config, 100, seed=3)
    batches = list(feed)
    assert len(feed) == len(batches) == 11
    shown = torch.cat([batch.images for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    wanted = data.normalise(data.train.images_at(torch.arange(1097)))
    order = TrainingFeed(data, config, 1097, seed=3)._positions[0]
    assert torch.equal(shown, wanted[order])
    assert torch.equal(labels, data.train.labels[order])
    assert sorted(order.tolist()) == list(range(1097))


def test_an_epoch_may_be_taken_up_in_its_middle() -> None:
    config = DataConfig(shift=2, flip=True, cutout=3)
    feed = TrainingFeed(load_data("digits", limit_train=64), config, 16, seed=1)
    whole, rest = list(feed), list(feed.starting_at(3))
    assert len(rest) == 1
    assert torch.equal(rest[0].images, whole[3].images)
    assert torch.equal(rest[0].labels, whole[3].labels)
    assert list(feed.starting_at(4)) == []


def test_processes_share_every_batch_evenly() -> None:
    def positions(share: Share) -> list[torch.Tensor]:
        return batch_positions(31, 8, torch.Generator().manual_seed(0), share)

    whole = positions(Share())
    parts = [positions(Share(rank, 3)) for rank in range(3)]
    assert [len(batch) for batch in whole] == [8, 8, 8, 7]
    assert [[len(batch) for batch in part] for part in parts] == [[2, 2, 2, 2]] * 3
    for batch, *of in zip(whole, *parts, strict=True):
        assert set(torch.cat(of).tolist()) <= set(batch.tolist())
        assert len(set(torch.cat(of).tolist())) == 6


def test_processes_augment_as_one_would() -> None:
    config = DataConfig(shift=2, flip=True, cutout=3)
    data = load_data("digits", limit_train=64)
    whole = list(TrainingFeed(data, config, 16, seed=1))
    halves = [list(TrainingFeed(data, config, 16, 1, Share(rank, 2))) for rank in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part.images, batch.images[rank::2])
            assert torch.equal(part.labels, batch.labels[rank::2])


def test_cutout_is_the_mean_of_what_is_shown() -> None:
    data = made_data(3, 8, 8)
    plain = next(iter(TrainingFeed(data, PLAIN, 30, seed=0))).images
    erased = next(iter(TrainingFeed(data, DataConfig(shift=0, cutout=4), 30, seed=0))).images
    changed = erased != plain
    assert changed.any()
    assert (erased[changed] == 0).all()
    area = changed.any(1).flatten(1).sum(1)
    assert area.max() == 16
    assert area.min() >= 4


def test_the_first_samples_of_a_split() -> None:
    data = made_data(1, 5, 5)
    batches = list(batches_in_order(data, data.test, 4, samples=10))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    wanted = data.normalise(data.test.images_at(torch.arange(10)))
    assert torch.equal(torch.cat([images for images, _ in batches]), wanted)
    assert sum(len(labels) for _, labels in batches_in_order(data, data.test, 7, 99)) == 30


class _Dying(ArraySplit):
    """A split that takes the process that reads it with it."""

    def images_at(self, positions: torch.Tensor) -> torch.Tensor:
        os._exit(9)

    lazy = True


def test_a_worker_that_dies_is_one_sentence() -> None:
    data = made_data(1, 5, 5)
    split = _Dying(torch.zeros(4, 1, 5, 5, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    object.__setattr__(data, "workers", 1)
    with pytest.raises(TserError, match="has died.*--set data.workers") as caught:
        list(batches_in_order(data, split, 2))
    assert "\n" not in str(caught.value)


# --- frames --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_frames_reach_a_model_time_first(dtype: torch.dtype) -> None:
    data = made_data(4, 2, 6, 5, dtype=dtype)
    assert (data.frames, data.image_shape) == (4, (2, 6, 5))
    images, labels = next(batches_in_order(data, data.test, 7))
    assert images.shape == (4, 7, 2, 6, 5)
    assert images.dtype == torch.float32
    assert torch.equal(images[3, 5], data.test.images_at(torch.tensor([5]))[0, 3].float())
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    config = DataConfig(shift=2, flip=True, cutout=3)
    shown = next(iter(TrainingFeed(data, config, 30, seed=0))).images
    assert shown.shape == (4, 30, 2, 6, 5)
    # No stored value is 0, so zeros are what a shift or Cutout left, the same in every frame.
    holes = shown == 0
    assert holes.any()
    assert torch.equal(holes, holes[:1, :, :1].expand_as(holes))


def test_what_a_network_without_time_sees() -> None:
    frames = torch.rand(3, 2, 4, 5, 6)  # [B, T, C, H, W]
    assert torch.allclose(static(time_first(frames)), frames.mean(1))
    still = torch.rand(3, 4, 5, 6)
    assert time_first(still) is still
    assert static(still) is still


# --- what does not fit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((1, 8, 6), {"shift": 6}, "data.shift = 6 moves a 8x6 image out of itself"),
        ((1, 8, 6), {"cutout": 6}, "data.cutout = 6 can erase all of a 8x6 image"),
        ((2, 8, 8), {"auto_augment": "svhn"}, "data.auto_augment = 'svhn' .* has 2 channels"),
        ((4, 3, 8, 8), {"auto_augment": "cifar10"}, "made has samples of several frames"),
    ],
)
def test_an_augmentation_that_does_not_fit_is_refused(
    shape: tuple[int, ...], config: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_fits(made_data(*shape), DataConfig.model_validate(config))


def test_auto_augment_needs_bytes_of_full_scale() -> None:
    with pytest.raises(UsageError, match=r"digits has pixel values of 0\.\.16"):
        check_fits(load_data("digits"), DataConfig(auto_augment="cifar10"))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_fits_is_let_through(channels: int) -> None:
    config = DataConfig(shift=5, cutout=5, auto_augment="imagenet")
    check_fits(made_data(channels, 8, 6), config)
    check_fits(made_data(4, 2, 8, 6), config.model_copy(update={"auto_augment": "none"}))


def test_frames_must_be_as_many_as_steps(tmp_path: Path) -> None:
    np.savez(tmp_path / "events.npz", x=np.ones((20, 5, 2, 4, 4)), y=np.arange(20) % 2)
    data = load_data("events.npz", tmp_path)
    check_timesteps(data, 5)
    check_timesteps(made_data(1, 8, 8), 4)
    with pytest.raises(UsageError, match="student.timesteps is 4 .*events.npz have 5 frames"):
        check_timesteps(data, 4)
