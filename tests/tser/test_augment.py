"""Random shifts and flips: what is kept, what is drawn, what is refused."""

import time

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tser.augment import random_shift_flip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(*shape: int) -> Tensor:
    """Random bytes without a zero, so that what enters from outside is told apart."""
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=seeded(99))


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


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 6, 9)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [1, 2])
def test_every_image_is_a_shifted_window_and_every_outcome_occurs(
    channels: int, height: int, width: int, flip: bool, pad: int
) -> None:
    image = some_images(channels, height, width)
    moved = random_shift_flip(
        image.expand(2000, -1, -1, -1), pad=pad, flip=flip, generator=seeded()
    )
    names = {window.numpy().tobytes(): name for name, window in shifts(image, pad).items()}
    counts: dict[tuple[int, int, bool], int] = {}
    for result in moved:
        name = names[result.numpy().tobytes()]  # a KeyError is a window that should not exist
        counts[name] = counts.get(name, 0) + 1
    allowed = {name for name in names.values() if flip or not name[2]}
    assert set(counts) == allowed
    assert min(counts.values()) > 0.4 * 2000 / len(allowed)
    assert moved.dtype == torch.uint8


def test_images_move_independently_and_stay_in_place_in_the_batch() -> None:
    images = some_images(64, 3, 10, 7)
    moved = random_shift_flip(images, pad=2, flip=True, generator=seeded(3))
    seen = set()
    for image, result in zip(images, moved, strict=True):
        matches = [name for name, window in shifts(image, 2).items() if window.equal(result)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 20


def test_flip_alone_mirrors_about_half() -> None:
    images = some_images(1000, 1, 4, 5)
    moved = random_shift_flip(images, pad=0, flip=True, generator=seeded())
    mirrored = (moved == images.flip(3)).flatten(1).all(1)
    kept = (moved == images).flatten(1).all(1)
    assert (mirrored | kept).all()
    assert 430 < int(mirrored.sum()) < 570


def test_nothing_to_do_gives_the_same_images_and_draws_nothing() -> None:
    images, generator = some_images(5, 1, 8, 8), seeded()
    before = generator.get_state()
    assert random_shift_flip(images, pad=0, flip=False, generator=generator) is images
    assert torch.equal(generator.get_state(), before)


def test_the_generator_alone_decides_and_the_input_stays() -> None:
    images = some_images(32, 2, 8, 8)
    kept = images.clone()
    torch.manual_seed(1)
    first = random_shift_flip(images, pad=2, flip=True, generator=seeded(5))
    torch.manual_seed(2)
    again = random_shift_flip(images, pad=2, flip=True, generator=seeded(5))
    other = random_shift_flip(images, pad=2, flip=True, generator=seeded(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, kept)


def test_an_empty_batch_and_other_dtypes() -> None:
    empty = torch.zeros(0, 1, 8, 8, dtype=torch.uint8)
    assert random_shift_flip(empty, pad=1, flip=True, generator=seeded()).shape == empty.shape
    images = some_images(4, 1, 8, 8)
    as_float = random_shift_flip(images.float(), pad=1, flip=True, generator=seeded())
    assert as_float.equal(random_shift_flip(images, pad=1, flip=True, generator=seeded()).float())


@pytest.mark.parametrize("pad", [-1, 6])
def test_a_pad_out_of_range_is_refused(pad: int) -> None:
    with pytest.raises(ValueError, match=f"pad must be from 0 to 5, got {pad}"):
        random_shift_flip(some_images(2, 1, 8, 6), pad=pad, flip=False, generator=seeded())


def test_images_without_a_channel_axis_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, C, H, W\], got shape \(2, 8, 8\)"):
        random_shift_flip(some_images(2, 8, 8), pad=1, flip=False, generator=seeded())


def test_it_is_fast_enough_not_to_slow_training() -> None:
    images, generator = some_images(1000, 3, 32, 32), seeded()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        random_shift_flip(images, pad=4, flip=True, generator=generator)
        times.append(time.perf_counter() - start)
    assert len(images) / min(times) > 15_000  # images/s; about 200,000 on two cores


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_images_on_a_gpu_move_as_on_the_cpu() -> None:
    images = some_images(16, 3, 8, 8)
    on_cpu = random_shift_flip(images, pad=2, flip=True, generator=seeded())
    on_gpu = random_shift_flip(images.cuda(), pad=2, flip=True, generator=seeded())
    assert torch.equal(on_gpu.cpu(), on_cpu)
