"""The time that goes into waiting for data, and the advice on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tser.config import DataConfig
from tser.data import ArraySplit, ImageData, load_data, waiting
from tser.data.batch import Batch
from tser.data.images import make_image_data
from tser.data.waiting import DataWait, describe_wait
from tser.progress import Reporter

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(waiting.time, "perf_counter", lambda: self.now)

    def batches(self, *seconds: float) -> Iterator[Batch]:
        """One batch after each wait, and a last wait for nothing."""
        *waits, end = seconds
        for wait in waits:
            self.now += wait
            yield Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1).long())
        self.now += end


def test_waiting_is_what_passes_before_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, wait = Clock(monkeypatch), DataWait()
    for _ in wait.over(clock.batches(1.0, 0.5, 0.25)):
        clock.now += 4.0
    assert (wait.waited, wait.total) == (1.75, 9.75)
    assert wait.share == pytest.approx(1.75 / 9.75)
    wait.add(DataWait(0.25, 0.25))
    assert wait.share == 0.2
    assert DataWait().share == 0


def test_no_batch_is_lost_or_changed() -> None:
    batches = [Batch(torch.zeros(1, 1, 2, 2), torch.tensor([number])) for number in range(3)]
    assert list(DataWait().over(batches)) == batches


class Lazy(ArraySplit):
    """Arrays that say they are files."""

    lazy = True


def data(kind: type[ArraySplit] = ArraySplit, workers: int = 0, device: str = "cpu") -> ImageData:
    digits = load_data("digits", limit_train=20)
    assert isinstance(digits.train, ArraySplit)
    split = kind(digits.train.images, digits.train.labels)
    made = make_image_data(
        "d", tuple("0123456789"), train=split, val=split, test=split, max_value=9
    )
    placed = kind(split.images.to(device), split.labels)
    object.__setattr__(made, "train", placed)
    object.__setattr__(made, "workers", workers)
    return made


@pytest.mark.parametrize(
    ("made", "config", "device", "cores", "words"),
    [
        (data(), {}, CPU, 9, "the augmentation itself, which on a CPU is part of the work"),
        (data(device="meta"), {}, GPU, 9, "on the GPU already: use larger batches"),
        (data(), {}, GPU, 9, "this process prepares the images, and there are 9 cores: "),
        (data(), {}, GPU, 9, "--set data.workers=8"),
        (data(Lazy), {}, CPU, 2, "--set data.workers=2"),
        (data(Lazy, 8), {}, GPU, 12, "8 processes prepare the images, and there are 12 cores: "),
        (data(Lazy, 8), {}, GPU, 12, "--set data.workers=12"),
        (data(Lazy, 2), {}, GPU, 2, "decoding keeps all 2 cores busy: scale the files down once"),
        (data(Lazy, 2), {"size": 112}, GPU, 2, "to about 128 pixels, put them on a faster disk"),
        (data(Lazy), {}, CPU, 1, "decoding keeps all 1 cores busy"),
        (data(workers=2), {"auto_augment": "svhn"}, GPU, 2, "AutoAugment keeps all 2 cores busy"),
        (data(workers=2), {}, GPU, 2, "use a machine with more of them"),
    ],
)
def test_long_waits_come_with_what_would_shorten_them(
    made: ImageData,
    config: dict[str, int | str],
    device: torch.device,
    cores: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "usable_cores", lambda: cores)
    monkeypatch.setattr(waiting, "default_workers", lambda: min(cores, 8))
    text = describe_wait(DataWait(5, 50), made, DataConfig.model_validate(config), device)
    assert text.startswith("10.0 % of the time was spent waiting for data; ")
    assert words in text


@pytest.mark.parametrize(("waited", "total", "share"), [(5, 100, "5.0"), (0.9, 2, "45.0")])
def test_short_ones_do_not(waited: float, total: float, share: str) -> None:
    text = describe_wait(DataWait(waited, total), data(), DataConfig(), CPU)
    assert text == f"{share} % of the time was spent waiting for data"


def test_a_phase_ends_with_its_note(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reporter("student", 4) as reporter:
        reporter.note("5 % [of] it")
    with Reporter("student", 4, quiet=True) as reporter:
        reporter.note("nothing")
    assert capfd.readouterr().err == "student: 5 % [of] it\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Reporter("student", 4) as reporter:
        reporter.note("5 % [of] it")
    assert "student: 5 % [of] it" in capfd.readouterr().err
