"""The loop as configured: curriculum, checkpoints within an epoch, randomness, compilation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tser import loop
from tser.checkpoints import load_checkpoint, save_checkpoint
from tser.config import RunConfig, TrainConfig
from tser.config_file import load_config
from tser.data import load_data
from tser.data.batch import Batch
from tser.distill import distill
from tser.errors import InputFileError, TserError, UsageError
from tser.layers import Student
from tser.optim import make_optimizer
from tser.runs import Run
from tser.step import Phase
from tser.students import build_student

TINY = (
    "data.limit_train=64",
    "teacher.width=4",
    "teacher.epochs=1",
    "student.width=4",
    "student.timesteps=3",
    "train.epochs=2",
    "train.batch_size=16",
    "train.device=cpu",
)


def tiny(*overrides: str) -> RunConfig:
    return load_config("digits", [*TINY, *overrides])


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


# --- optimisers ----------------------------------------------------------------------------


def test_the_configured_optimizer_is_used() -> None:
    model = nn.Linear(3, 2)
    sgd = make_optimizer(model, TrainConfig(momentum=0.8, weight_decay=0.25), 0.5)
    assert isinstance(sgd, torch.optim.SGD)
    adamw = make_optimizer(
        model, TrainConfig(optimizer="adamw", lr=0.01, momentum=0.8, weight_decay=0.25), 0.5
    )
    assert isinstance(adamw, torch.optim.AdamW)
    for optimizer in (sgd, adamw):
        assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]
        assert optimizer.param_groups[0]["params"] == [model.weight]
    assert sgd.param_groups[0]["momentum"] == 0.8
    assert adamw.param_groups[0]["betas"] == (0.8, 0.999)


def test_frozen_parameters_are_not_optimised() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    groups = make_optimizer(model, TrainConfig(), 0.1).param_groups
    assert [len(group["params"]) for group in groups] == [1, 0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.optimizer=adamw"], "train.lr = 0.1 is a rate for SGD"),
        (
            ["train.optimizer=adamw", "train.lr=0.001"],
            "teacher.lr = 0.1 is a rate for SGD, with which AdamW does not learn; "
            "use --set teacher.lr=0.001",
        ),
        (["train.accumulate=40"], "accumulate = 40 splits batch_size = 64 into parts of fewer"),
        (["train.curriculum_epochs=30"], "leaves none of the 30 epochs for the full T"),
        (
            ["train.curriculum_epochs=1", "student.timesteps=1"],
            "train.curriculum_epochs needs a student.timesteps above 1",
        ),
        (["train.sync_bn=true", "student.norm=per-step"], "exclude each other"),
        (["train.optimizer=adam"], "bad value for train.optimizer"),
        (["train.precision=fp16"], "bad value for train.precision"),
        (["train.clip_norm=-1"], "bad value for train.clip_norm"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("digits", settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_that_make_sense_are_not() -> None:
    load_config("digits", ["train.accumulate=32"])
    load_config("digits", ["train.curriculum_epochs=29"])
    taught = ["train.optimizer=adamw", "train.lr=0.03", "teacher.path=x"]
    assert load_config("digits", taught).train.optimizer == "adamw"


# --- curriculum ----------------------------------------------------------------------------


def test_the_curriculum_starts_with_one_step_and_validates_all(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    distill(tiny("train.epochs=3", "train.curriculum_epochs=2"), run)
    found = [row for row in rows(run) if row["phase"] == "student"]
    assert [row["timesteps"] for row in found] == [1, 1, 3]
    assert [len(row["val_accuracy"]) for row in found] == [3, 3, 3]


def test_the_student_sees_the_mean_frame_while_it_has_one_step() -> None:
    config = tiny("train.curriculum_epochs=1")
    data = load_data("digits", limit_train=64)
    student = build_student(config.student, config.neuron, data.image_shape, data.num_classes)
    shapes: list[tuple[int, ...]] = []

    def step(batch: Batch) -> tuple[Tensor, dict[str, float], Tensor]:
        shapes.append((student.timesteps, *batch.images.shape))
        logits = student(batch.images)
        return logits.square().mean(), {"loss": 1.0}, logits

    phase = Phase("student", student, step, epochs=2, lr=0.1, timesteps=3)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for epoch in range(2):
        with loop.Reporter("", 8, quiet=True) as reporter:
            loop.train_epoch(phase, optimizer, data, config, epoch, reporter)
    assert shapes == [(1, 16, 1, 8, 8)] * 4 + [(3, 16, 1, 8, 8)] * 4


def test_a_student_of_a_fixed_number_of_steps_has_no_curriculum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Student.forward

    def always_three(self: Student, x: Tensor) -> Tensor:
        self.timesteps, asked = 3, self.timesteps
        logits = forward(self, x)
        self.timesteps = asked
        return logits

    monkeypatch.setattr(Student, "forward", always_three)
    with pytest.raises(UsageError, match="logits of 3 steps when asked for 1"):
        distill(tiny("train.curriculum_epochs=1"), Run(tmp_path / "run"))


# --- checkpoints ---------------------------------------------------------------------------


class DropoutNet(nn.Module):
    """Uses torch's own randomness in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x).unsqueeze(0)
        return result


def fit_dropout(run: Run, state: dict[str, Any] | None = None, stop_at: int = 0) -> None:
    """Two epochs of four steps with a checkpoint after every third step of an epoch."""
    model, count = DropoutNet(), 0

    def step(batch: Batch) -> tuple[Tensor, dict[str, float], Tensor]:
        nonlocal count
        count += 1
        if count == stop_at:
            raise KeyboardInterrupt
        logits = model(batch.images)
        loss = nn.functional.cross_entropy(logits[0], batch.labels)
        return loss, {"loss": float(loss.detach())}, logits

    run.path.mkdir(exist_ok=True)
    phase = Phase("student", model, step, epochs=2, lr=0.1)
    config = tiny("train.checkpoint_steps=3", "train.clip_norm=0.5")
    loop.fit(phase, load_data("digits", limit_train=64), config, run, state)


@pytest.mark.parametrize(("stop_at", "epoch", "step"), [(4, 0, 3), (5, 1, 0), (7, 1, 0), (8, 1, 3)])
def test_a_run_resumed_within_an_epoch_ends_the_same(
    stop_at: int, epoch: int, step: int, tmp_path: Path
) -> None:
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "run")
    fit_dropout(whole)
    with pytest.raises(KeyboardInterrupt):
        fit_dropout(run, stop_at=stop_at)
    state = load_checkpoint(run.checkpoint)
    assert (state["epoch"], state["step"]) == (epoch, step)
    torch.manual_seed(999)
    torch.rand(7)
    fit_dropout(run, state)
    assert run.student.read_bytes() == whole.student.read_bytes()
    found, wanted = rows(run), rows(whole)
    for row in found + wanted:
        del row["seconds"], row["data_wait"]
        assert row["grad_norm"] > 0
    assert found == wanted


def test_dropout_differs_from_step_to_step() -> None:
    config = tiny()
    masks: list[Tensor] = []
    model = DropoutNet()

    def step(batch: Batch) -> tuple[Tensor, dict[str, float], Tensor]:
        masks.append(torch.rand(8))
        logits = model(batch.images)
        return logits.square().mean(), {"loss": 1.0}, logits

    phase = Phase("student", model, step, epochs=1, lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with loop.Reporter("", 4, quiet=True) as reporter:
        data = load_data("digits", limit_train=64)
        loop.train_epoch(phase, optimizer, data, config, 0, reporter)
    assert len({tuple(mask.tolist()) for mask in masks}) == 4


@pytest.mark.parametrize(
    "damage", [{"step": "3"}, {"tallies": [{"seen": 3, "wrong": 1}]}, {"tallies": 7}]
)
def test_a_damaged_place_within_an_epoch_is_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fit_dropout(run, stop_at=4)
    save_checkpoint(load_checkpoint(run.checkpoint) | damage, run.checkpoint)
    with pytest.raises(InputFileError, match="delete it"):
        fit_dropout(run, load_checkpoint(run.checkpoint))


def test_a_checkpoint_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "run")
    fit_dropout(whole)
    with pytest.raises(KeyboardInterrupt):
        fit_dropout(run, stop_at=5)
    state = load_checkpoint(run.checkpoint)
    del state["step"], state["tallies"]
    fit_dropout(run, state)
    assert run.student.read_bytes() == whole.student.read_bytes()


def test_a_run_without_its_environment_file_gets_one(tmp_path: Path) -> None:
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "run")
    distill(tiny(), whole)
    run.path.mkdir()
    run.config_file.write_bytes(whole.config_file.read_bytes())  # killed just after writing this
    (run.path / ".environment-ab_1cd2e.tser-tmp.json").write_text("{")
    distill(run.config(), run, resume=True)
    assert {path.name for path in run.path.iterdir()} == {
        path.name for path in whole.path.iterdir()
    }
    assert run.student.read_bytes() == whole.student.read_bytes()


# --- memory --------------------------------------------------------------------------------


def test_running_out_of_memory_names_the_batch_and_what_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Student.forward

    def small_only(self: Student, x: Tensor) -> Tensor:
        if self.training and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(self, x)

    monkeypatch.setattr(Student, "forward", small_only)
    run = Run(tmp_path / "run")
    with pytest.raises(TserError) as caught:
        distill(tiny(), run)
    assert str(caught.value) == (
        "out of memory when training the student on 16 images at a time (train.batch_size = 16, "
        "T = 3); 4 at a time fit: --set train.accumulate=4"
    )
    assert caught.value.exit_code == 1
    distill(tiny("train.accumulate=4"), Run(tmp_path / "as advised"))
    assert Run(tmp_path / "as advised").student.exists()


# --- settings together ---------------------------------------------------------------------


def test_all_settings_work_together(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    config = tiny(
        "train.precision=bf16",
        "train.accumulate=2",
        "train.optimizer=adamw",
        "train.lr=0.01",
        "teacher.lr=0.01",
        "train.clip_norm=0.25",
        "train.curriculum_epochs=1",
        "train.checkpoint_steps=2",
        "train.deterministic=true",
        "loss.gamma=0",
    )
    distill(config, run)
    assert [row["phase"] for row in rows(run)] == ["teacher", "student", "student"]
    assert all(row["grad_norm"] > 0 for row in rows(run))
    assert all(value.dtype != torch.bfloat16 for value in load_file(run.student).values())
    assert not torch.are_deterministic_algorithms_enabled()
