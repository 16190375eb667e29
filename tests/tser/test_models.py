"""The networks of a run: a factory is imported only when the command line named it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tser.config import RunConfig
from tser.data import ArraySplit, ImageData, load_data
from tser.data.images import make_image_data
from tser.errors import UsageError
from tser.layers import Student
from tser.models import make_run_student, make_run_teacher
from tser.user_models import UserStudent, check_learns, make_student

MODULE = """
from pathlib import Path
Path("imported").touch()
import norse.torch as norse
import torch
from torch import nn

def spiking(num_classes, input_shape):
    size = input_shape[0] * input_shape[1] * input_shape[2]
    return norse.SequentialState(
        nn.Flatten(), nn.Linear(size, 8), norse.LIFCell(), nn.Linear(8, num_classes)
    )

class Loop(nn.Module):
    def __init__(self, steps):
        super().__init__()
        self.steps, self.read = steps, nn.Linear(64, 3)
    def forward(self, x):
        return self.read(x.flatten(1)).expand(self.steps, -1, -1)

def static(timesteps):
    return Loop(timesteps)

def teacher(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Dropout(0.5))

def detached(timesteps):
    model = Loop(timesteps)
    model.register_forward_hook(lambda module, images, logits: logits.detach())
    return model

def fixed(num_classes):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :num_classes]
    return Fixed()

def odd():
    return nn.Linear(8, 3)

def fails():
    return nn.Linear(7, 3)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a user's module in the working folder, which leaves a file when imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    monkeypatch.delitem(sys.modules, "user_module_of_a_test", raising=False)
    (tmp_path / "user_module_of_a_test.py").write_text(MODULE)
    return "user_module_of_a_test"


def config(**sections: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(sections)


def frames() -> ImageData:
    """Samples of four frames, 8x8."""
    images = torch.rand(6, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    split = ArraySplit(images, torch.arange(6) % 3)
    return make_image_data("made", ("a", "b", "c"), train=split, val=split, test=split, max_value=1)


def test_a_student_by_name() -> None:
    student = make_run_student(config(student={"width": 4}), load_data("digits"))
    assert isinstance(student, Student)


def test_a_factory_that_was_named_is_called(mine: str) -> None:
    factory = f"{mine}:spiking"
    student = make_run_student(
        config(student={"factory": factory}), load_data("digits"), ("other:one", factory)
    )
    assert isinstance(student, UserStudent)
    assert student(torch.zeros(3, 1, 8, 8)).shape == (4, 3, 10)
    assert Path("imported").exists()


@pytest.mark.parametrize("named", [(), ("other:one",), ("{mine}:teacher",), ("{mine}",)])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_factory_that_was_not_named_is_not_imported(
    mine: str, role: str, named: tuple[str, ...]
) -> None:
    factory = f"{mine}:spiking"
    chosen = config(**{role: {"factory": factory}})
    make: Any = make_run_student if role == "student" else make_run_teacher
    message = f"the {role} of this run is made by {factory}.* add --{role} {factory} if you trust"
    with pytest.raises(UsageError, match=message):
        make(chosen, load_data("digits"), [name.format(mine=mine) for name in named])
    assert not Path("imported").exists()
    assert mine not in sys.modules


def test_a_users_teacher(mine: str) -> None:
    factory = f"{mine}:teacher"
    teacher = make_run_teacher(
        config(teacher={"factory": factory}), load_data("digits"), (factory,)
    )
    assert teacher(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert all(module.training for module in teacher.modules())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("odd", r"maps two images \(1, 8, 8\) to \(2, 1, 8, 3\); it must give \(2, 10\), one"),
        ("spiking", r"maps two images \(1, 8, 8\) to tuple; it must give \(2, 10\)"),
        ("fails", r"fails on images \(1, 8, 8\): 'mat1 and mat2"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(mine: str, function: str, message: str) -> None:
    factory = f"{mine}:{function}"
    with pytest.raises(UsageError, match=f"the teacher {factory} {message}") as caught:
        make_run_teacher(config(teacher={"factory": factory}), load_data("digits"), (factory,))
    assert "\n" not in str(caught.value)


def test_a_student_of_still_images_is_refused_for_frames(mine: str) -> None:
    factories = (f"{mine}:static", f"{mine}:spiking")
    with pytest.raises(UsageError, match="takes one image for all steps and made has a frame"):
        make_run_student(config(student={"factory": factories[0]}), frames(), factories)
    student = make_run_student(config(student={"factory": factories[1]}), frames(), factories)
    assert student(torch.rand(4, 2, 1, 8, 8)).shape == (4, 2, 3)


def test_published_weights_are_not_read_where_others_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(
        "tser.models.build_teacher",
        lambda config, *_: asked.append(config.weights) or torch.nn.Identity(),
    )
    chosen = config(teacher={"arch": "resnet18", "weights": "DEFAULT"})
    for published in (True, False):
        make_run_teacher(chosen, load_data("digits"), published=published)
    assert asked == ["DEFAULT", ""]


def test_a_student_that_no_gradient_reaches_is_refused(mine: str) -> None:
    student = make_student(f"{mine}:detached", 4, (1, 8, 8), 3)
    assert isinstance(student, UserStudent)
    with pytest.raises(UsageError, match="no gradient of the logits .*detached reaches its param"):
        check_learns(student)
    learning = make_student(f"{mine}:static", 4, (1, 8, 8), 3)
    assert isinstance(learning, UserStudent)
    check_learns(learning)
    assert learning.training


def test_a_teacher_without_parameters_cannot_be_trained(mine: str) -> None:
    chosen = {"factory": f"{mine}:fixed"}
    with pytest.raises(UsageError, match="fixed has no parameters to train; use --set teacher.tr"):
        make_run_teacher(config(teacher=chosen), load_data("digits"), [chosen["factory"]])
    given = config(teacher={**chosen, "train": False})
    assert make_run_teacher(given, load_data("digits"), [chosen["factory"]])
