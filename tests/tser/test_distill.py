"""Tiny trainings: what a run leaves behind, and that an interrupted one ends the same."""

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tser import distill as module
from tser import loop
from tser.checkpoints import load_checkpoint, save_checkpoint, save_weights
from tser.config import RunConfig
from tser.config_file import load_config
from tser.data import load_configured, load_data
from tser.data.batch import Batch
from tser.data.feed import batch_positions
from tser.distill import distill, pick_device
from tser.errors import InputFileError, TserError, UsageError
from tser.models import make_run_teacher
from tser.optim import learning_rate, weight_groups
from tser.runs import Run
from tser.students import build_student
from tser.teachers import build_teacher

TINY = (
    "data.limit_train=64",
    "teacher.width=4",
    "teacher.epochs=2",
    "student.width=4",
    "student.timesteps=3",
    "train.epochs=2",
    "train.batch_size=16",
    "train.device=cpu",
)
TIMES = ("seconds", "data_wait")
FILES = {
    "config.toml",
    "environment.json",
    "metrics.jsonl",
    "teacher.safetensors",
    "student.safetensors",
    "checkpoint.pt",
}


def tiny(*overrides: str) -> RunConfig:
    return load_config("digits", [*TINY, *overrides])


def train(path: Path, *overrides: str) -> Run:
    run = Run(path)
    distill(tiny(*overrides), run)
    return run


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


def timeless(run: Run) -> list[dict[str, Any]]:
    """The rows of a run without what differs between two equal runs."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows(run)]


def file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run; tests leave it as it is."""
    return train(tmp_path_factory.mktemp("whole") / "run")


# --- what a run leaves behind --------------------------------------------------------------


def test_a_run_folder_is_complete(whole: Run) -> None:
    assert file_names(whole.path) == FILES
    assert whole.config() == tiny()
    environment = json.loads(whole.environment.read_text(encoding="utf-8"))
    assert environment["schema_version"] == 1
    checkpoint = load_checkpoint(whole.checkpoint)
    assert (checkpoint["phase"], checkpoint["epoch"]) == ("student", 2)
    student = load_file(whole.student)
    assert student.keys() == checkpoint["model"].keys()
    assert all(torch.equal(student[name], value) for name, value in checkpoint["model"].items())


def test_every_epoch_has_one_row(whole: Run) -> None:
    found = rows(whole)
    assert [(row["phase"], row["epoch"]) for row in found] == [
        ("teacher", 1),
        ("teacher", 2),
        ("student", 1),
        ("student", 2),
    ]
    common = {"schema_version", "phase", "epoch", "lr", "loss"}
    common |= {"train_accuracy", "val_accuracy", *TIMES}
    validation = len(load_data("digits").val)
    for row in found:
        is_student = row["phase"] == "student"
        parts = {"ce", "kl", "entropy", "self_kl", "timesteps"}
        assert set(row) == common | (parts if is_student else set())
        assert row.get("timesteps") == (3 if is_student else None)
        assert len(row["val_accuracy"]) == (3 if is_student else 1)
        for accuracy in row["val_accuracy"]:
            assert 0 <= accuracy <= 1
            assert accuracy * validation == pytest.approx(round(accuracy * validation))
        assert row["train_accuracy"] * 64 == pytest.approx(round(row["train_accuracy"] * 64))
        assert row["lr"] > 0
        assert row["seconds"] > 0
        assert 0 < row["data_wait"] < 1


def test_the_logged_parts_add_up_to_the_loss(whole: Run) -> None:
    loss = tiny().loss
    for row in rows(whole)[2:]:
        total = row["ce"] + loss.alpha * row["kl"] - loss.gamma * row["entropy"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)


def test_progress_is_plain_lines_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    epochs = [line for line in lines if "waiting" not in line]
    assert [line.split("  ")[0] for line in epochs] == [
        "teacher 1/2",
        "teacher 2/2",
        "student 1/2",
        "student 2/2",
    ]
    assert all("val_accuracy" in line and "s left" in line for line in epochs)
    for line, phase in ((lines[2], "teacher"), (lines[5], "student")):
        assert re.match(rf"{phase}: \d+\.\d % of the time was spent waiting for data", line)


def test_training_learns(tmp_path: Path) -> None:
    run = train(
        tmp_path / "run",
        "data.limit_train=320",
        "teacher.width=8",
        "teacher.epochs=4",
        "student.width=8",
        "train.epochs=8",
        "train.warmup_epochs=0",
    )
    for phase in ("teacher", "student"):
        of_phase = [row for row in rows(run) if row["phase"] == phase]
        assert of_phase[-1]["loss"] < 0.8 * of_phase[0]["loss"]
        assert of_phase[-1]["val_accuracy"][-1] > 0.25  # 0.1 by chance
    assert of_phase[-1]["kl"] < 0.7 * of_phase[0]["kl"]


# --- seeds ---------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_files(whole: Run, tmp_path: Path) -> None:
    torch.manual_seed(12345)  # what happened before does not matter
    again = train(tmp_path / "run")
    assert again.student.read_bytes() == whole.student.read_bytes()
    assert again.teacher.read_bytes() == whole.teacher.read_bytes()
    assert timeless(again) == timeless(whole)


def test_another_seed_gives_another_student(whole: Run, tmp_path: Path) -> None:
    other = train(tmp_path / "run", "train.seed=1")
    for first, second in ((other.student, whole.student), (other.teacher, whole.teacher)):
        one, two = load_file(first), load_file(second)
        assert one.keys() == two.keys()
        assert not any(torch.equal(one[name], two[name]) for name in one if "conv" in name)


# --- interrupted and resumed ---------------------------------------------------------------


class Interrupt:
    """Raises KeyboardInterrupt at the ``count``-th call of something in `tser.loop`."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def interrupted(run: Run, point: str, count: int, *overrides: str) -> None:
    """Train until the ``count``-th time that ``point`` is reached."""
    interrupt = Interrupt(count)
    with pytest.MonkeyPatch.context() as patch:
        if point in ("step", "epoch"):  # in an epoch; after its row, before its checkpoint
            patch.setattr(loop.Reporter, point, lambda *args: interrupt())
        else:  # after the checkpoint of an epoch; after the weights of a phase
            save = getattr(loop, point)

            def save_and_stop(*args: Any) -> None:
                save(*args)
                interrupt()

            patch.setattr(loop, point, save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            distill(tiny(*overrides), run)


@pytest.mark.parametrize(
    ("point", "count", "phase", "epochs_done"),
    [
        ("step", 1, None, 0),
        ("step", 7, "teacher", 1),
        ("epoch", 1, None, 0),
        ("epoch", 2, "teacher", 1),
        ("save_checkpoint", 1, "teacher", 1),
        ("save_checkpoint", 2, "teacher", 2),
        ("save_weights", 1, "teacher", 2),
        ("step", 11, "teacher", 2),
        ("epoch", 3, "teacher", 2),
        ("save_checkpoint", 3, "student", 1),
        ("step", 15, "student", 1),
        ("epoch", 4, "student", 1),
        ("save_checkpoint", 4, "student", 2),
    ],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    point: str, count: int, phase: str | None, epochs_done: int, whole: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    interrupted(run, point, count)
    assert not run.student.exists()
    assert not [name for name in file_names(run.path) if name not in FILES]
    if phase is None:
        assert not run.checkpoint.exists()
    else:
        state = load_checkpoint(run.checkpoint)
        assert (state["phase"], state["epoch"]) == (phase, epochs_done)
    torch.manual_seed(999)
    distill(run.config(), run, resume=True)
    assert file_names(run.path) == FILES
    assert run.teacher.read_bytes() == whole.teacher.read_bytes()
    assert run.student.read_bytes() == whole.student.read_bytes()
    assert timeless(run) == timeless(whole)


def test_resuming_goes_on_and_does_not_start_over(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    interrupted(run, "save_checkpoint", 3)
    kept = rows(run)
    assert len(kept) == 3
    run.environment.write_text("where it was started", encoding="utf-8")
    distill(run.config(), run, resume=True)
    assert rows(run)[:3] == kept  # with their seconds: these epochs were not run again
    assert len(rows(run)) == 4
    assert run.environment.read_text(encoding="utf-8") == "where it was started"


def test_a_run_may_be_interrupted_twice(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    interrupted(run, "epoch", 2)
    with pytest.MonkeyPatch.context() as patch:
        interrupt = Interrupt(3)
        patch.setattr(loop.Reporter, "epoch", lambda *args: interrupt())
        with pytest.raises(KeyboardInterrupt):
            distill(run.config(), run, resume=True)
    distill(run.config(), run, resume=True)
    assert run.student.read_bytes() == whole.student.read_bytes()
    assert timeless(run) == timeless(whole)


def test_a_row_that_was_cut_off_is_dropped(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    interrupted(run, "save_checkpoint", 3)
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('{"loss": 0.25, "ce"')
    distill(run.config(), run, resume=True)
    assert timeless(run) == timeless(whole)


def test_resuming_a_finished_run_changes_nothing(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(whole.path, run.path)
    distill(run.config(), run, resume=True)
    for name in FILES:
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()


@pytest.mark.parametrize("damage", ["truncated", "another network", "another optimizer"])
def test_a_checkpoint_that_does_not_fit_is_refused(damage: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    interrupted(run, "save_checkpoint", 3)
    state = load_checkpoint(run.checkpoint)
    if damage == "truncated":
        run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-100])
    elif damage == "another network":
        save_checkpoint(state | {"model": nn.Linear(2, 2).state_dict()}, run.checkpoint)
    else:
        other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
        save_checkpoint(state | {"optimizer": other.state_dict()}, run.checkpoint)
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(InputFileError) as caught:
        distill(run.config(), run, resume=True)
    assert str(caught.value).startswith(f"{run.checkpoint} is ")
    assert "delete it" in str(caught.value)
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


def test_a_run_whose_settings_changed_is_not_continued(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    interrupted(run, "save_checkpoint", 3)
    config = run.config()
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    faster = config.train.model_copy(update={"momentum": 0.5})
    with pytest.raises(InputFileError, match=r"says train.momentum = 0.5, and checkpoint.pt was"):
        distill(config.model_copy(update={"train": faster}), run, resume=True)
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before
    slower = config.train.model_copy(update={"checkpoint_steps": 1})
    distill(config.model_copy(update={"train": slower}), run, resume=True)
    assert run.student.read_bytes() == whole.student.read_bytes()


# --- the teacher ---------------------------------------------------------------------------


def test_a_given_teacher_is_used_and_copied(whole: Run, tmp_path: Path) -> None:
    run = train(tmp_path / "run", f"teacher.path='{whole.teacher}'")
    assert {row["phase"] for row in rows(run)} == {"student"}
    assert run.teacher.read_bytes() == whole.teacher.read_bytes()
    # The same teacher and seed: the very student of the run that trained this teacher.
    assert run.student.read_bytes() == whole.student.read_bytes()
    interrupted(Run(tmp_path / "other"), "epoch", 1, f"teacher.path='{run.teacher}'")
    resumed = Run(tmp_path / "other")
    distill(resumed.config(), resumed, resume=True)
    assert resumed.student.read_bytes() == whole.student.read_bytes()


def test_another_teacher_makes_another_student(whole: Run, tmp_path: Path) -> None:
    taught = train(tmp_path / "taught", "train.seed=1", "train.epochs=1")
    run = train(tmp_path / "run", f"teacher.path='{taught.teacher}'")
    assert run.student.read_bytes() != whole.student.read_bytes()


def test_the_teacher_stays_as_it_is_while_the_student_learns(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[nn.Module] = []

    def build(*args: Any, **options: Any) -> nn.Module:
        teachers.append(make_run_teacher(*args, **options))
        return teachers[-1]

    monkeypatch.setattr(module, "make_run_teacher", build)
    train(tmp_path / "run", f"teacher.path='{whole.teacher}'")
    (teacher,) = teachers
    state, given = teacher.state_dict(), load_file(whole.teacher)
    assert all(torch.equal(state[name], value) for name, value in given.items())
    assert not any(part.training for part in teacher.modules())
    assert not any(value.requires_grad for value in teacher.parameters())
    assert all(value.grad is None for value in teacher.parameters())


# --- what is refused, and before anything is written ---------------------------------------


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["data.shift=8"], UsageError, "data.shift = 8 moves a 8x8 image out of itself"),
        (["data.name=digitz"], UsageError, "unknown data set 'digitz'"),
        (["data.limit_train=100000"], UsageError, "limit_train"),
        (["student.stages=5"], UsageError, "student.stages"),
        (["train.device=cuda:99"], UsageError, "device 'cuda:99' cannot be used here"),
        (["teacher.path=missing"], InputFileError, "there is no weight file missing"),
        (["teacher.path={whole}", "teacher.width=5"], InputFileError, "teacher.safetensors"),
        (["teacher.path={config}"], InputFileError, "config.toml is not a readable safetensors"),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(
    overrides: list[str], error: type[TserError], words: str, whole: Run, tmp_path: Path
) -> None:
    names = {"whole": whole.teacher, "config": whole.config_file}
    with pytest.raises(error) as caught:
        train(tmp_path / "run", *(override.format(**names) for override in overrides))
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_shift_is_allowed(whole: Run, tmp_path: Path) -> None:
    train(tmp_path / "run", "data.shift=7", "train.epochs=1", f"teacher.path='{whole.teacher}'")


@pytest.mark.parametrize(
    ("override", "phase", "key"),
    [("teacher.lr=1e30", "teacher", "teacher.lr"), ("train.lr=1e30", "student", "train.lr")],
)
def test_a_loss_that_is_not_finite_stops_the_run(
    override: str, phase: str, key: str, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(TserError) as caught:
        distill(tiny(override), run)
    assert caught.value.exit_code == 1
    text = str(caught.value)
    part = "loss" if phase == "teacher" else "ce"
    assert text.startswith(f"training the {phase} broke in epoch 1, step ")
    assert f": '{part}' is not finite; lower the learning rate (--set {key}=" in text
    assert int(text.split("step ")[1].split(":")[0]) > 1  # the first step is made of good weights
    assert not run.student.exists()
    assert run.teacher.exists() == (phase == "student")
    assert all(math.isfinite(row["loss"]) for row in rows(run)) if run.metrics.exists() else True


def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(tmp_path: Path) -> None:
    model = nn.Linear(64, 10)

    def step(batch: Batch) -> tuple[Tensor, dict[str, float], Tensor]:
        logits = model(batch.images.flatten(1)).unsqueeze(0)
        return 1e30 * logits.sum(), {"loss": 1.0}, logits

    config = tiny("train.batch_size=64")
    phase = loop.Phase("student", model, step, epochs=1, lr=1e20)
    with pytest.raises(TserError, match=r"epoch 1, step 1: 'weights' is not finite"):
        loop.fit(phase, load_data("digits", limit_train=64), config, Run(tmp_path), None)
    assert list(tmp_path.iterdir()) == []


# --- devices -------------------------------------------------------------------------------


def test_auto_takes_a_gpu_if_there_is_one() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(sys.platform == "darwin", reason="may have mps")
@pytest.mark.parametrize("name", ["cuda:99", "mps", "gpu", ""])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"device '{name}' cannot be used here; use --device cpu"):
        pick_device(name)


# --- the parts of the loop -----------------------------------------------------------------


def test_the_learning_rate_warms_up_then_falls_to_zero() -> None:
    def at(progress: float) -> float:
        return learning_rate(0.4, progress, epochs=10, warmup_epochs=2)

    assert at(0.0) == pytest.approx(0.05 * 0.4)
    assert at(1.0) == pytest.approx(0.525 * 0.4)
    assert at(2.0) == pytest.approx(0.4)
    assert at(6.0) == pytest.approx(0.2)  # half of the cosine
    assert at(10.0) == pytest.approx(0.0, abs=1e-12)
    falling = [at(2 + 0.1 * n) for n in range(81)]
    assert all(a > b for a, b in pairwise(falling))


@pytest.mark.parametrize(("warmup", "peak"), [(0.0, 0.0), (100.0, 5.0)])
def test_no_warm_up_and_one_longer_than_training(warmup: float, peak: float) -> None:
    rates = [learning_rate(0.4, n / 10, 10, warmup) for n in range(100)]
    assert max(rates) == rates[int(10 * peak)] == pytest.approx(0.4)


class Epoch:
    """One epoch of `tser.loop` on a stand-in model, and the batches that it was shown."""

    def __init__(self, *overrides: str, phase: str = "student", epoch: int = 0) -> None:
        self.data = load_data("digits", limit_train=64)
        self.images: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.rates: list[float] = []
        model = nn.Linear(64, 10).eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(batch: Batch) -> tuple[Tensor, dict[str, float], Tensor]:
            assert model.training
            self.images.append(batch.images)
            self.labels.append(batch.labels)
            self.rates.append(optimizer.param_groups[0]["lr"])
            logits = model(batch.images.flatten(1)).unsqueeze(0)
            return logits.square().mean(), {"loss": float(len(self.rates))}, logits

        self.config = tiny(*overrides)
        self.phase = loop.Phase(phase, model, step, epochs=4, lr=0.02)
        with loop.Reporter("", 4) as reporter:
            self.row = loop.train_epoch(
                self.phase, optimizer, self.data, self.config, epoch, reporter
            )
        self.order = torch.cat(self.labels).tolist()


def test_an_epoch_shows_every_image_normalised_and_in_batches() -> None:
    epoch = Epoch("data.shift=0", epoch=2)
    assert [len(images) for images in epoch.images] == [16] * 4
    wanted = epoch.data.normalise(epoch.data.train.images)
    shown = torch.cat(epoch.images)
    found = [int((wanted == image).flatten(1).all(1).nonzero()[0]) for image in shown]
    assert sorted(found) == list(range(64))
    assert epoch.data.train.labels[found].tolist() == epoch.order
    assert epoch.rates == [
        learning_rate(0.02, 2 + n / 4, epochs=4, warmup_epochs=epoch.config.train.warmup_epochs)
        for n in range(4)
    ]
    assert epoch.row["lr"] == epoch.rates[-1]
    assert epoch.row["loss"] == pytest.approx((1 + 2 + 3 + 4) / 4)


def test_the_last_smaller_batch_counts_less() -> None:
    row = Epoch("train.batch_size=48").row
    assert row["loss"] == pytest.approx((48 * 1 + 16 * 2) / 64)


def test_order_and_augmentation_depend_on_seed_epoch_and_phase() -> None:
    first, again = Epoch(), Epoch()
    assert torch.equal(torch.cat(first.images), torch.cat(again.images))
    for other in (Epoch("train.seed=1"), Epoch(epoch=1), Epoch(phase="teacher")):
        assert sorted(other.order) == sorted(first.order)
        assert other.order != first.order
    still, flipped = Epoch("data.shift=0"), Epoch("data.shift=0", "data.flip=true")
    assert first.order == still.order == flipped.order
    assert not torch.equal(torch.cat(first.images), torch.cat(still.images))
    mirrored = (torch.cat(still.images) != torch.cat(flipped.images)).flatten(1).any(1)
    assert 16 < int(mirrored.sum()) < 48
    assert torch.equal(
        torch.cat(still.images)[mirrored].flip(3), torch.cat(flipped.images)[mirrored]
    )


@pytest.mark.parametrize(
    ("size", "batch_size", "sizes"),
    [
        (64, 16, [16] * 4),
        (66, 16, [16, 16, 16, 16, 2]),
        (65, 16, [16] * 4),  # batch norm cannot learn from a single image
        (5, 16, [5]),
        (1, 16, [1]),
    ],
)
def test_batches_hold_every_image_once(size: int, batch_size: int, sizes: list[int]) -> None:
    def draw(seed: int) -> list[Tensor]:
        return batch_positions(size, batch_size, torch.Generator().manual_seed(seed))

    batches = draw(0)
    assert [len(batch) for batch in batches] == sizes
    indices = torch.cat(batches).tolist()
    assert len(set(indices)) == len(indices) == sum(sizes)
    assert set(indices) <= set(range(size))
    assert size < 5 or not torch.equal(torch.cat(draw(1)), torch.cat(batches))
    assert torch.equal(torch.cat(draw(0)), torch.cat(batches))


@pytest.mark.parametrize("build", ["teacher", "student"])
def test_only_weights_decay_not_biases_and_batch_norm(build: str) -> None:
    config = tiny()
    model: nn.Module
    if build == "teacher":
        model = build_teacher(config.teacher, (1, 8, 8), 10)
    else:
        model = build_student(config.student, config.neuron, (1, 8, 8), 10)
    decayed, free = weight_groups(model, 5e-4)
    assert (decayed["weight_decay"], free["weight_decay"]) == (5e-4, 0.0)
    wanted = {
        id(part.weight) for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)
    }
    assert {id(value) for value in decayed["params"]} == wanted
    everything = [id(value) for value in decayed["params"] + free["params"]]
    assert sorted(everything) == sorted(id(value) for value in model.parameters())


def test_accuracy_is_of_every_image_after_every_step() -> None:
    config = tiny()
    data = load_data("digits", limit_train=64)
    torch.manual_seed(0)
    student = build_student(config.student, config.neuron, data.image_shape, data.num_classes)
    student.train()
    found = loop.accuracy(student, data, data.val, 7)
    assert not student.training
    with torch.no_grad():
        logits = student(data.normalise(data.val.images))
    wanted = [
        float((logits[: t + 1].mean(0).argmax(-1) == data.val.labels).double().mean())
        for t in range(3)
    ]
    assert found == pytest.approx(wanted, abs=0.01)  # a tie may fall either way
    assert found == loop.accuracy(student, data, data.val, 100)


def call_order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    order: list[str] = []
    for place, name in ((module, "fit"), (loop, "save_weights"), (module, "write_text")):
        call: Callable[..., Any] = getattr(place, name)

        def note(*args: Any, call: Callable[..., Any] = call, name: str = name) -> Any:
            order.append(name)
            return call(*args)

        monkeypatch.setattr(place, name, note)
    return order


def test_the_configuration_is_written_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = call_order(monkeypatch)
    train(tmp_path / "run", "teacher.epochs=1", "train.epochs=1")
    assert order == ["write_text", "fit", "save_weights", "fit", "save_weights"]


@pytest.mark.parametrize("mode", ["neuron", "step"])
def test_a_run_may_be_compiled(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a compiler that does nothing, which is what decides where it is used."""
    sizes: list[int] = []

    def compile_(function: Any, **options: Any) -> Any:
        def run(x: Tensor, *arguments: Any) -> Tensor:
            sizes.append(x.shape[1] if mode == "neuron" else len(x))
            return function(x, *arguments)

        return run

    monkeypatch.setattr("tser.compilation.missing_compiler", lambda device: None)
    monkeypatch.setattr("tser.compilation.torch.compile", compile_)
    plain, compiled = (
        train(tmp_path / name, f'train.compile="{name}"', "data.limit_train=40")
        for name in ("off", mode)
    )
    # 40 images are two batches of 16 and one of 8, twice; the step has a student and a teacher.
    assert sizes == [16] * 2 * 2 * (5 if mode == "neuron" else 2)
    weights = load_file(plain.student)
    for name, value in load_file(compiled.student).items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4)
    said = capsys.readouterr().err
    what = "neurons" if mode == "neuron" else "step"
    assert said.count(f"compiling the student's {what}: about") == 1


def test_less_memory_trains_the_same_student(tmp_path: Path, whole: Run) -> None:
    frugal = train(tmp_path / "run", "train.low_memory=true", 'train.compile="off"')
    assert timeless(frugal) == timeless(whole)
    weights = load_file(whole.student)
    assert all(
        torch.equal(value, weights[name]) for name, value in load_file(frugal.student).items()
    )


# --- another teacher -------------------------------------------------------------------------


@pytest.fixture
def half(whole: Run, tmp_path: Path) -> Run:
    """A run that was killed while its student was trained."""
    run = Run(tmp_path / "half")
    shutil.copytree(whole.path, run.path)
    run.student.unlink()
    return run


def test_another_runs_teacher_is_not_taken_in_the_middle(half: Run) -> None:
    state = load_file(half.teacher)
    name = next(iter(state))
    teacher = make_run_teacher(half.config(), load_configured(half.config().data))
    teacher.load_state_dict({**state, name: state[name] + 1})
    save_weights(teacher, half.teacher)
    before = {path.name: path.read_bytes() for path in half.path.iterdir()}
    with pytest.raises(InputFileError, match="holds another teacher than checkpoint.pt"):
        distill(half.config(), half, resume=True)
    assert {path.name: path.read_bytes() for path in half.path.iterdir()} == before


def test_a_teacher_made_otherwise_than_the_configuration_says(half: Run) -> None:
    half.checkpoint.unlink()
    config = half.config()
    config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"lr": 0.7})})
    with pytest.raises(InputFileError, match=r"teacher\.lr = 0\.7, teacher\.safetensors was made"):
        distill(config, half, resume=True)


def test_lost_rows_of_metrics_are_told(half: Run, capsys: pytest.CaptureFixture[str]) -> None:
    half.metrics.unlink()
    distill(half.config(), half, resume=True)
    assert "has 0 of the 2 epochs that student has been trained" in capsys.readouterr().err
