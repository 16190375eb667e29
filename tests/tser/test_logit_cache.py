"""The teacher's logits on disk: what is looked up, what is kept, and what is refused."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from tser import logit_cache, loop
from tser.augment import Draws, augment, count_views, draw, view_numbers
from tser.cli.main import app
from tser.config import DataConfig, RunConfig
from tser.config_file import load_config
from tser.data import ImageData, load_configured, load_data
from tser.data.feed import Share, TrainingFeed
from tser.data.images import ArraySplit, make_image_data
from tser.distill import distill
from tser.errors import InputFileError, TserError, UsageError
from tser.logit_cache import (
    LogitCache,
    check_cacheable,
    images_fingerprint,
    open_cache,
    teacher_fingerprint,
)
from tser.models import make_run_teacher
from tser.runs import Run

TINY = (
    "data.limit_train=40",
    "data.flip=true",
    "teacher.width=4",
    "teacher.epochs=1",
    "student.width=4",
    "student.timesteps=2",
    "train.epochs=3",
    "train.batch_size=16",
    "train.device=cpu",
)
Ask = Callable[[Tensor], Tensor]
ORIGIN = {"teacher": "one", "images": "some"}


def tiny(*overrides: str) -> RunConfig:
    return load_config("digits", [*TINY, *overrides])


def rows_of(images: Tensor) -> Tensor:
    """A teacher whose logits follow from each image alone."""
    return torch.stack([images.flatten(1).sum(1), images.flatten(1).amax(1)], 1)


# --- views ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "flip"), [(0, False), (0, True), (1, False), (2, True)])
def test_every_view_of_every_image_has_its_own_number(shift: int, flip: bool) -> None:
    config = DataConfig(shift=shift, flip=flip)
    steps = range(2 * shift + 1)
    outcomes = list(itertools.product(range(3), steps, steps, [False, True] if flip else [False]))
    position, row, column, mirrored = (
        torch.tensor(column) for column in zip(*outcomes, strict=True)
    )
    count = len(outcomes)
    draws = Draws(row, column, mirrored, torch.rand(count, 2), torch.arange(count))
    numbers = view_numbers(position, draws, config)
    assert numbers is not None
    assert count_views(config) == count // 3
    assert numbers.tolist() == list(range(count))
    pixels = torch.arange(1, 3 * 49 + 1).view(3, 1, 7, 7)
    shown = augment(pixels[position], draws, config)
    assert len({tuple(image.flatten().tolist()) for image in shown}) == count


def test_what_is_drawn_lies_among_the_views() -> None:
    config = DataConfig(shift=2, flip=True)
    numbers = view_numbers(torch.zeros(5000).long(), draw(5000, config, torch.Generator()), config)
    assert numbers is not None
    assert sorted(set(numbers.tolist())) == list(range(50))


@pytest.mark.parametrize("change", [{"cutout": 2}, {"auto_augment": "svhn"}])
def test_some_changes_have_no_end_of_views(change: dict[str, int | str]) -> None:
    config = DataConfig.model_validate(change)
    assert count_views(config) is None
    zero = torch.zeros(1).long()
    assert view_numbers(zero, draw(1, config, torch.Generator()), config) is None


def test_a_batch_says_which_views_it_holds() -> None:
    config = DataConfig(shift=1, flip=True)
    data = load_data("digits", limit_train=40)
    seen: dict[int, Tensor] = {}
    for seed in range(30):
        for batch in TrainingFeed(data, config, 16, seed):
            assert batch.views is not None
            for view, image, label in zip(
                batch.views.tolist(), batch.images, batch.labels, strict=True
            ):
                assert label == data.train.labels[view // 18]
                assert torch.equal(seen.setdefault(view, image), image)
    assert len(seen) > 40 * 18 * 0.6


# --- looking up ----------------------------------------------------------------------------


def test_each_view_is_asked_for_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def ask(images: Tensor) -> Tensor:
        asked.append(len(images))
        return rows_of(images)

    images = torch.rand(20, 1, 3, 3)
    cache = LogitCache(tmp_path / "c", ORIGIN, 20, 2, 100)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for views in (order[:8], order[4:12], order[:8], order[7:15], order[5:13]):
        assert torch.equal(cache.logits(views, images[views], ask), rows_of(images[views]))
    assert asked == [8, 4, 4]  # three of the fourth batch are new: a quarter of it is two
    assert (cache.computed, cache.looked_up) == (15, 25)
    cache.save()
    again = LogitCache(tmp_path / "c", ORIGIN, 20, 2, 0)
    known = order[:15].flip(0)
    assert torch.equal(again.logits(known, images[known], pytest.fail), rows_of(images[known]))


def test_what_is_used_is_what_is_kept(tmp_path: Path) -> None:
    """Of a teacher that says something else every time, the first word counts."""
    cache = LogitCache(tmp_path / "c", ORIGIN, 4, 2, 4)
    views, images = torch.arange(4), torch.zeros(4, 1, 2, 2)
    first = cache.logits(views[:3], images[:3], lambda images: torch.rand(len(images), 2))
    second = cache.logits(views, images, lambda images: torch.rand(len(images), 2))
    assert torch.equal(second[:3], first)


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    cache = LogitCache(path, ORIGIN, 4, 2, 4)
    cache.save()
    assert not path.exists()
    cache.logits(torch.arange(2), torch.rand(2, 1, 2, 2), rows_of)
    cache.save()
    os.utime(path, (1, 1))
    cache.logits(torch.arange(2), torch.rand(2, 1, 2, 2), pytest.fail)
    cache.save()
    assert path.stat().st_mtime == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    cache = LogitCache(tmp_path / "c", ORIGIN, 4, 2, 4)
    cache.logits(torch.arange(2), torch.rand(2, 1, 2, 2), rows_of)
    monkeypatch.setattr(logit_cache, "save_file", full)
    with pytest.raises(TserError, match="the disk is full.*with --resume"):
        cache.save()
    assert list(tmp_path.iterdir()) == []


def test_channels_stay_innermost(tmp_path: Path) -> None:
    def ask(images: Tensor) -> Tensor:
        assert images.is_contiguous(memory_format=torch.channels_last)
        return rows_of(images)

    images = torch.rand(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    cache = LogitCache(tmp_path / "c", ORIGIN, 9, 2, 9)
    cache.logits(torch.arange(8), images, ask)
    cache.logits(torch.arange(1, 9), images, ask)
    assert cache.computed == 9


def test_logits_that_do_not_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_cache, "_free_memory", lambda: 5e8)
    LogitCache(tmp_path / "c", ORIGIN, 45_000 * 162, 10, 100)
    with pytest.raises(UsageError, match=r"7,290,000 x 10 logits.*0\.8 GB.*0\.5 GB are free"):
        LogitCache(tmp_path / "c", ORIGIN, 45_000 * 162, 10, 45_000 * 200)


def test_free_memory_is_what_the_machine_says() -> None:
    assert logit_cache._free_memory() > 1e6


# --- runs ----------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that a cache has asked its teacher for."""
    sizes: list[int] = []
    logits = LogitCache.logits

    def counted(self: LogitCache, views: Tensor, images: Tensor, ask: Ask) -> Tensor:
        def ask_and_count(images: Tensor) -> Tensor:
            sizes.append(len(images))
            return ask(images)

        return logits(self, views, images, ask_and_count)

    monkeypatch.setattr(LogitCache, "logits", counted)
    return sizes


def test_a_cache_changes_no_bit_and_spares_the_next_run_its_teacher(
    tmp_path: Path, asked: list[int]
) -> None:
    plain, first, second = (Run(tmp_path / name) for name in ("plain", "first", "second"))
    cached = f"teacher.cache={tmp_path / 'logits.safetensors'}"
    distill(tiny(), plain)
    assert asked == []
    distill(tiny(cached), first)
    assert sum(asked) >= 40
    asked.clear()
    distill(tiny(cached), second)
    assert asked == []
    assert first.student.read_bytes() == plain.student.read_bytes()
    assert second.student.read_bytes() == plain.student.read_bytes()
    # Another student on the same augmentation.
    distill(tiny(cached, "student.width=6", "loss.kl=aggregated"), Run(tmp_path / "third"))
    assert asked == []
    # Another seed is another augmentation; the teacher is given, as it would be another one too.
    given = f"teacher.path={first.teacher}"
    distill(tiny(cached, given, "train.seed=1"), Run(tmp_path / "fourth"))
    assert 0 < sum(asked) < 3 * 40


@pytest.mark.parametrize(
    ("function", "calls"), [("_optimise", 6), ("_optimise", 8), ("save_checkpoint", 3)]
)
def test_an_interrupted_run_ends_as_the_whole_one(
    function: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of a teacher whose answer depends on the batch in which an image is shown to it.

    The logits are written before the checkpoint, so at the third one more of them are known than
    the run that goes on from the second would have asked for.
    """
    config = tiny(
        "train.accumulate=2", "train.checkpoint_steps=2", f"teacher.cache={tmp_path / 'c'}"
    )
    logits, original = LogitCache.logits, getattr(loop, function)
    left = calls

    def mixed(self: LogitCache, views: Tensor, images: Tensor, ask: Ask) -> Tensor:
        return logits(self, views, images, lambda images: ask(images) + images.mean())

    def stopping(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(LogitCache, "logits", mixed)
    taught = Run(tmp_path / "taught")
    distill(tiny("train.epochs=1"), taught)
    config = config.model_copy(
        update={"teacher": config.teacher.model_copy(update={"path": str(taught.teacher)})}
    )
    outcomes = []
    for name in ("whole", "run"):
        run = Run(tmp_path / name)
        (tmp_path / "c").unlink(missing_ok=True)
        if name == "run":
            with monkeypatch.context() as patch:
                patch.setattr(loop, function, stopping)
                with pytest.raises(KeyboardInterrupt):
                    distill(config, run)
        distill(config, run, resume=name == "run")
        outcomes.append([load_file(run.student), load_file(tmp_path / "c")])
    for whole, other in zip(*outcomes, strict=True):
        assert whole.keys() == other.keys()
        assert all(torch.equal(whole[name], other[name]) for name in whole)


def test_a_teacher_may_compute_in_another_precision(tmp_path: Path) -> None:
    exact, narrow = Run(tmp_path / "exact"), Run(tmp_path / "narrow")
    distill(tiny(), exact)
    distill(tiny("teacher.precision=bf16", f"teacher.cache={tmp_path / 'c'}"), narrow)
    assert exact.teacher.read_bytes() == narrow.teacher.read_bytes()
    assert exact.student.read_bytes() != narrow.student.read_bytes()
    logits = load_file(tmp_path / "c")["logits"]
    assert torch.equal(logits, logits.bfloat16().float())
    with pytest.raises(InputFileError, match="another teacher or another teacher.precision"):
        distill(tiny(f"teacher.cache={tmp_path / 'c'}"), Run(tmp_path / "other"))


# --- what is refused -----------------------------------------------------------------------


def frames() -> ImageData:
    split = ArraySplit(torch.zeros(4, 2, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2)
    return make_image_data("f", ("a", "b"), train=split, val=split, test=split, max_value=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ("data.cutout=2",),
            "finitely many views of an image; leave it out, or --set data.cutout=0",
        ),
        (("data.auto_augment=cifar10",), "--set data.auto_augment=none"),
        (("loss.kl=none",), "of no use with loss.kl = 'none'"),
        (("teacher.cache=.",), "is a file, and . is a folder"),
        (("teacher.cache=/dev/null/c",), "cannot be written to /dev/null/c: /dev/null is not"),
    ],
)
def test_runs_without_a_cache_are_refused(
    settings: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    config = tiny(f"teacher.cache={tmp_path / 'c'}", *settings)
    with pytest.raises(UsageError) as caught:
        check_cacheable(config, load_configured(config.data))
    assert str(caught.value).startswith("teacher.cache ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refused_run_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="finitely many views"):
        distill(tiny(f"teacher.cache={tmp_path / 'c'}", "data.cutout=2"), Run(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_several_processes_and_images_that_are_decoded_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(f"teacher.cache={tmp_path / 'c'}")
    data = load_configured(config.data)
    check_cacheable(config, data)
    check_cacheable(config, frames())
    with monkeypatch.context() as patch:
        patch.setattr(logit_cache, "current_share", lambda: Share(0, 2))
        with pytest.raises(UsageError, match="single process"):
            check_cacheable(config, data)
    monkeypatch.setattr(logit_cache, "ArraySplit", type("Other", (), {}))
    with pytest.raises(UsageError, match="shows random parts"):
        check_cacheable(config, data)


def test_a_teacher_that_looks_at_the_whole_batch_is_refused(tmp_path: Path) -> None:
    config = tiny(f"teacher.cache={tmp_path / 'c'}")
    teacher = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False))
    with pytest.raises(UsageError, match="'1' uses the statistics of the batch"):
        open_cache(config, load_configured(config.data), teacher.eval())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "c"
    cache = LogitCache(path, ORIGIN, 30, 2, 30)
    cache.logits(torch.arange(5, 20), torch.rand(15, 1, 2, 2), rows_of)
    cache.save()
    return path


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:40],
        lambda content: content + b"x",
        lambda content: flipped(content, len(content) - 1),
        lambda content: flipped(content, len(content) - 150),
        lambda content: b"not safetensors at all",
    ],
)
def test_a_damaged_file_is_refused(
    damage: Callable[[bytes], bytes], filled: Path, tmp_path: Path
) -> None:
    assert LogitCache(filled, ORIGIN, 30, 2, 0)
    path = tmp_path / "c"
    path.write_bytes(damage(filled.read_bytes()))
    with pytest.raises(InputFileError, match="delete it to compute") as caught:
        LogitCache(path, ORIGIN, 30, 2, 30)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_no_byte_of_a_file_can_change_unseen(filled: Path, tmp_path: Path) -> None:
    content, path = filled.read_bytes(), tmp_path / "c"
    for at in range(len(content)):
        path.write_bytes(flipped(content, at))
        with pytest.raises(InputFileError):
            LogitCache(path, ORIGIN, 30, 2, 30)


@pytest.mark.parametrize(("views", "classes"), [(19, 2), (30, 3)])
def test_a_file_of_other_sizes_is_refused(views: int, classes: int, filled: Path) -> None:
    with pytest.raises(InputFileError, match="is damaged"):
        LogitCache(filled, ORIGIN, views, classes, 30)


def test_weights_are_no_logits(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputFileError, match="is not a file of teacher logits; name another"):
        LogitCache(path, ORIGIN, 30, 2, 30)


def test_a_file_for_other_images_is_refused_before_a_teacher_is_trained(tmp_path: Path) -> None:
    cached = f"teacher.cache={tmp_path / 'c'}"
    distill(tiny(cached), Run(tmp_path / "run"))
    before = (tmp_path / "c").read_bytes()
    for settings in (("data.shift=2",), ("data.flip=false",), ("data.limit_train=41",)):
        with pytest.raises(InputFileError, match="other images or another data.shift"):
            distill(tiny(cached, *settings), Run(tmp_path / "other"))
        assert not (tmp_path / "other").exists()
    with pytest.raises(InputFileError, match="logits of another teacher"):
        distill(tiny(cached, "train.seed=1"), Run(tmp_path / "other"))
    assert (tmp_path / "c").read_bytes() == before


def test_the_command_line_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = typer.Typer()
    commands.registered_commands += app.registered_commands
    monkeypatch.chdir(tmp_path)
    settings = [f"--set={value}" for value in (*TINY, "train.epochs=1")]

    def distil(out: str) -> Any:
        words = ["distill", "digits", "--teacher-cache", "mine/c", "--out", out, *settings]
        return CliRunner().invoke(commands, words, catch_exceptions=False)

    done = distil("one")
    assert done.exit_code == 0
    assert "0.0 % of the teacher's logits were looked up; " in done.stderr
    assert Run(Path("one")).config().teacher.cache == str(tmp_path / "mine" / "c")
    Path("mine/c").write_bytes(Path("mine/c").read_bytes()[:-1])
    refused = distil("two")
    assert refused.exit_code == 4
    assert refused.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/mine/c is not a readable")
    assert not Path("two").exists()


def test_fingerprints_tell_what_changes_a_logit() -> None:
    config = tiny()
    data = load_configured(config.data)
    teacher = make_run_teacher(config, data).eval()

    def of_teacher(*overrides: str) -> str:
        return teacher_fingerprint(tiny(*overrides), teacher)

    same = of_teacher()
    assert of_teacher("student.width=9", "train.seed=3", "data.shift=2") == same
    assert of_teacher("teacher.precision=float32") == same
    assert of_teacher("train.precision=bf16") == of_teacher("teacher.precision=bf16") != same
    assert of_teacher("train.precision=bf16", "teacher.precision=float32") == same
    compiled = torch.compile(teacher, backend="eager")
    assert isinstance(compiled, nn.Module)
    assert teacher_fingerprint(config, compiled) == same
    with torch.no_grad():
        next(teacher.parameters())[0, 0, 0, 0] += 1e-6
    assert of_teacher() != same
    assert images_fingerprint(config, data) == images_fingerprint(tiny("train.epochs=9"), data)
    other = data.with_train(data.train.select(torch.arange(40).flip(0)))
    assert images_fingerprint(config, other) != images_fingerprint(config, data)
