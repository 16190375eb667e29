"""Random changes of images: what is kept, what is drawn, what is refused."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tser.augment import Draws, augment, auto_augment, cutout, draw
from tser.config import DataConfig


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(*shape: int) -> Tensor:
    """Random bytes without a zero, so that what enters from outside is told apart."""
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=seeded(99))


def changes(shift: int = 0, flip: bool = False, **others: object) -> DataConfig:
    return DataConfig.model_validate({"shift": shift, "flip": flip, **others})


def moved(images: Tensor, shift: int, flip: bool, seed: int = 0) -> Tensor:
    config = changes(shift, flip)
    return augment(images, draw(len(images), config, seeded(seed)), config)


def shifts(image: Tensor, pad: int) -> dict[tuple[int, int, bool], Tensor]:
    """Every outcome for one image ``[C, H, W]``, cut from the padded image one by one."""
    height, width = image.shape[1:]
    padded = functional.pad(image, (pad, pad, pad, pad))
    outcomes = {}
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            window = padded[:, row : row + height, column : column + width]
            outcomes[row, column, False] = window
            outcomes[row, column, True] = torch.flip(window, [2])
    return outcomes


# --- shift and flip ------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 6, 9)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [1, 2])
def test_every_image_is_a_shifted_window_and_every_outcome_occurs(
    channels: int, height: int, width: int, flip: bool, pad: int
) -> None:
    image = some_images(channels, height, width)
    results = moved(image.expand(2000, -1, -1, -1), pad, flip)
    names = {window.numpy().tobytes(): name for name, window in shifts(image, pad).items()}
    counts: dict[tuple[int, int, bool], int] = {}
    for result in results:
        name = names[result.numpy().tobytes()]  # a KeyError is a window that should not exist
        counts[name] = counts.get(name, 0) + 1
    allowed = {name for name in names.values() if flip or not name[2]}
    assert set(counts) == allowed
    assert min(counts.values()) > 0.4 * 2000 / len(allowed)
    assert results.dtype == torch.uint8


def test_what_is_drawn_is_what_is_done() -> None:
    images, config = some_images(64, 3, 10, 7), changes(2, flip=True)
    draws = draw(64, config, seeded(3))
    seen = set()
    for at, (image, result) in enumerate(zip(images, augment(images, draws, config), strict=True)):
        name = int(draws.row[at]), int(draws.column[at]), bool(draws.flip[at])
        assert shifts(image, 2)[name].equal(result)
        seen.add(name)
    assert len(seen) > 20


def test_flip_alone_mirrors_about_half() -> None:
    images = some_images(1000, 1, 4, 5)
    results = moved(images, 0, flip=True)
    mirrored = (results == images.flip(3)).flatten(1).all(1)
    kept = (results == images).flatten(1).all(1)
    assert (mirrored | kept).all()
    assert 430 < int(mirrored.sum()) < 570


def test_nothing_to_do_gives_the_same_images() -> None:
    images = some_images(5, 1, 8, 8)
    assert moved(images, 0, flip=False) is images


def test_the_generator_alone_decides_and_the_input_stays() -> None:
    images = some_images(32, 2, 8, 8)
    kept = images.clone()
    torch.manual_seed(1)
    first = moved(images, 2, flip=True, seed=5)
    torch.manual_seed(2)
    assert torch.equal(first, moved(images, 2, flip=True, seed=5))
    assert not torch.equal(first, moved(images, 2, flip=True, seed=6))
    assert torch.equal(images, kept)


def test_a_sample_changes_in_the_same_way_in_any_batch() -> None:
    images = some_images(40, 3, 12, 12)
    config = changes(3, flip=True, auto_augment="cifar10", cutout=5)
    draws = draw(40, config, seeded(7))

    def changed(positions: Tensor) -> Tensor:
        chosen = draws.select(positions)
        return cutout(augment(images[positions], chosen, config).float(), chosen, config.cutout)

    together = changed(torch.arange(40))
    order = torch.randperm(40, generator=seeded(1))
    in_pieces = torch.cat([changed(positions) for positions in order.split(7)])
    assert torch.equal(in_pieces, together[order])


def test_switching_one_change_on_leaves_the_draws_of_the_others() -> None:
    plain = draw(100, changes(2), seeded())
    more = draw(100, changes(2, flip=True, auto_augment="svhn", cutout=3), seeded())
    assert not plain.flip.any()
    assert more.flip.any()
    for name in ("row", "column", "centre", "seed"):
        assert torch.equal(getattr(plain, name), getattr(more, name)), name


def test_an_empty_batch_and_other_dtypes() -> None:
    empty = torch.zeros(0, 1, 8, 8, dtype=torch.uint8)
    assert moved(empty, 1, flip=True).shape == empty.shape
    images = some_images(4, 1, 8, 8)
    assert moved(images.float(), 1, flip=True).equal(moved(images, 1, flip=True).float())


def test_a_shift_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="shift must be from 0 to 5, got 6"):
        moved(some_images(2, 1, 8, 6), 6, flip=False)


def test_images_without_a_channel_axis_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, T, C, H, W\], got shape \(2, 8, 8\)"):
        moved(some_images(2, 8, 8), 1, flip=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_all_frames_of_a_sample_move_together(dtype: torch.dtype) -> None:
    frames, config = some_images(20, 4, 2, 6, 7).to(dtype), changes(2, flip=True)
    draws = draw(20, config, seeded())
    results = augment(frames, draws, config)
    assert results.shape == frames.shape
    assert results.dtype == dtype
    for t in range(4):
        assert torch.equal(results[:, t], augment(frames[:, t], draws, config))


# --- AutoAugment ---------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn"])
def test_auto_augment_makes_images_of_the_same_kind(policy: str, channels: int) -> None:
    images = some_images(60, channels, 10, 12)
    results = auto_augment(images, torch.arange(60), policy)
    assert results.shape == images.shape
    assert results.dtype == torch.uint8
    changed = (results != images).flatten(1).any(1)
    assert int(changed.sum()) > 30


def test_auto_augment_is_torchvisions() -> None:
    image = some_images(3, 16, 16)
    results = auto_augment(image.expand(200, -1, -1, -1), torch.arange(200), "svhn")
    # "Invert" alone is an outcome of this policy that can be told without its code.
    assert any(torch.equal(result, 255 - image) for result in results)
    from torchvision.transforms import v2

    for seed in range(20):
        torch.manual_seed(seed)
        assert torch.equal(results[seed], v2.AutoAugment(v2.AutoAugmentPolicy.SVHN)(image))


def test_the_policies_differ() -> None:
    images, seeds = some_images(30, 3, 8, 8), torch.arange(30)
    results = [auto_augment(images, seeds, name) for name in ("cifar10", "imagenet", "svhn")]
    assert not any(torch.equal(a, b) for a, b in [results[:2], results[1:], results[::2]])
    assert auto_augment(images, seeds, "none") is images


def test_auto_augment_leaves_everybody_elses_random_numbers() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(4)
    torch.manual_seed(0)
    auto_augment(some_images(3, 3, 8, 8), torch.arange(3), "cifar10")
    assert torch.equal(torch.rand(4), wanted)


# --- Cutout --------------------------------------------------------------------------------


def at(centres: list[tuple[float, float]]) -> Draws:
    count = len(centres)
    zeros = torch.zeros(count, dtype=torch.int64)
    centre = torch.tensor(centres, dtype=torch.float64)
    return Draws(zeros, zeros, zeros == 1, centre, zeros)


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_cutout_erases_the_square_around_its_centre(side: int) -> None:
    height, width = 6, 8
    centres = list(product(range(height), range(width)))
    draws = at([((row + 0.5) / height, (column + 0.5) / width) for row, column in centres])
    images = some_images(len(centres), 2, height, width).float()
    results = cutout(images, draws, side)
    for (row, column), image, result in zip(centres, images, results, strict=True):
        wanted = image.clone()
        top, left = row - side // 2, column - side // 2
        wanted[:, max(0, top) : top + side, max(0, left) : left + side] = 0
        assert torch.equal(result, wanted)


def test_cutout_is_drawn_over_the_whole_image() -> None:
    images = torch.ones(4000, 1, 4, 5)
    results = cutout(images, draw(4000, changes(), seeded()), 1)
    counts = (results == 0).sum(0).flatten()
    assert int(counts.sum()) == 4000
    assert counts.min() > 140  # 200 expected
    assert counts.max() < 260


def test_cutout_erases_the_same_square_of_every_frame_and_none_of_side_0() -> None:
    frames = torch.ones(30, 3, 2, 6, 6)
    draws = draw(30, changes(), seeded())
    results = cutout(frames, draws, 3)
    one = cutout(frames[:, 0, :1], draws, 3)
    assert torch.equal(results, one[:, None].expand_as(results))
    assert (results == 0).any()
    assert cutout(frames, draws, 0) is frames


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_images_on_a_gpu_change_as_on_the_cpu() -> None:
    images, config = some_images(16, 3, 8, 8), changes(2, flip=True)
    draws = draw(16, config, seeded())
    on_cpu = augment(images, draws, config)
    on_gpu = augment(images.cuda(), draws, config)
    assert torch.equal(on_gpu.cpu(), on_cpu)
    erased = cutout(on_gpu.float(), draws, 3)
    assert torch.equal(erased.cpu(), cutout(on_cpu.float(), draws, 3))
