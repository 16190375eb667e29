"""Models that a user brings: how they are found, what they may look like, what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from tser.checkpoints import load_weights, save_weights
from tser.config import NeuronConfig
from tser.errors import InputFileError, UsageError
from tser.layers import Spiking, Student
from tser.students import make_neuron
from tser.user_models import UserStudent, make_module, make_student

T, BATCH, SHAPE, CLASSES = 4, 3, (2, 4, 4), 5
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the working folder; gives a name that no test has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def module(text: str, name: str = "") -> str:
        name = name or f"mine_{tmp_path.name}".replace("-", "_")
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"import norse.torch as norse\nimport torch\nfrom torch import nn\n{text}")
        return name

    yield module
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def wrapped(model: nn.Module, classes: int = CLASSES) -> UserStudent:
    return UserStudent(model, T, SHAPE, classes, "mine:make")


def images(frames: bool = False, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((T, BATCH, *SHAPE) if frames else (BATCH, *SHAPE), generator=generator)


def cells() -> Any:
    return norse.SequentialState(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(800.0))),
        nn.Flatten(),
        nn.Linear(48, CLASSES),
    )


class Looping(nn.Module):
    """Its own loop over T = 4 steps of the same image."""

    def __init__(self, steps: int = T, classes: int = CLASSES) -> None:
        super().__init__()
        self.steps, self.read, self.cell = steps, nn.Linear(32, classes), norse.LIFCell()

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for _ in range(self.steps):
            z, state = self.cell(self.read(x.flatten(1)), state)
            out.append(z)
        return torch.stack(out)


class Frames(nn.Module):
    """Takes a frame for each step, and hands back its state."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.neurons = nn.Linear(32, CLASSES), norse.LI()

    def forward(self, x: Tensor) -> Any:
        return self.neurons(self.read(x.flatten(2)))


# --- forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [False, True])
def test_cells_are_called_step_by_step_with_their_state(frames: bool) -> None:
    model = cells()
    student, x = wrapped(model).eval(), images(frames) * 3
    assert student.form == "step"
    state, wanted = None, []
    for t in range(T):
        out, state = model(x[t] if frames else x, state)
        wanted.append(out)
    logits = student(x)
    assert torch.equal(logits, torch.stack(wanted))
    assert logits.shape == (T, BATCH, CLASSES)
    assert not torch.equal(logits[0], logits[-1])
    assert torch.equal(student(x), logits)  # every call starts from rest


@pytest.mark.parametrize("frames", [False, True])
def test_a_model_over_time_is_given_all_steps(frames: bool) -> None:
    model, x = Frames(), images(frames)
    student = wrapped(model)
    assert student.form == "sequence"
    wanted, _ = model(x if frames else x.expand(T, *x.shape))
    assert torch.equal(student(x), wanted)


def test_a_lifted_cell_is_a_model_over_time() -> None:
    layers = [norse.Lift(nn.Conv2d(2, 3, 3, padding=1)), norse.Lift(norse.LIFCell())]
    model = norse.SequentialState(*layers, norse.Lift(nn.Flatten()), nn.Linear(48, CLASSES))
    assert wrapped(model).form == "sequence"


def test_a_model_with_its_own_loop_is_given_the_image() -> None:
    model, x = Looping(), images()
    student = wrapped(model)
    assert student.form == "static"
    assert torch.equal(student(x), model(x))


def test_a_state_behind_the_logits_is_dropped() -> None:
    class WithState(Looping):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), "a state"

    model = WithState()
    assert torch.equal(wrapped(model)(images()), model(images())[0])


@pytest.mark.parametrize("training", [True, False])
def test_looking_at_a_model_changes_nothing(training: bool) -> None:
    model = cells().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrapped(model)
    assert all(module.training == training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


# --- what is refused -----------------------------------------------------------------------


def linear(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, classes))


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("first line\nsecond line")


MISFITS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "an ANN": (lambda: linear(5), ["as static it gives (2, 5)", "as sequence"]),
    "classes": (lambda: Looping(classes=7), ["as static it gives (4, 2, 7)"]),
    "steps": (lambda: Looping(steps=6), ["as static it gives (6, 2, 5)"]),
    "an exception": (Broken, ["as static it fails with 'first line'; as sequence it fails with"]),
    "cells": (
        lambda: norse.SequentialState(nn.Flatten(), norse.LIFCell()),
        ["as step it gives (4, 2, 32)"],
    ),
    "hidden states": (
        lambda: norse.SequentialState(nn.Flatten(), norse.LIFCell(), return_hidden=True),
        ["as step it fails"],
    ),
    "images": (nn.Identity, ["as static it gives (2, 2, 4, 4)"]),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_model_of_other_shapes_is_refused(case: str) -> None:
    make, words = MISFITS[case]
    with pytest.raises(UsageError) as caught:
        wrapped(make())
    text = str(caught.value)
    assert "the student mine:make must map [B, 2, 4, 4] or [T, B, 2, 4, 4] to [T, B, K]" in text
    assert "[4, 2, 5]" in text
    assert all(word in text for word in words), text
    assert "\n" not in text


def test_a_cell_in_two_places_is_refused() -> None:
    cell = norse.LIFBoxCell()
    model = norse.SequentialState(nn.Flatten(), cell, nn.Linear(32, CLASSES), cell)
    message = r"layer '1' \(LIFBoxCell\) of the student mine:make runs 8 steps, not T = 4"
    with pytest.raises(UsageError, match=message):
        wrapped(model)


def test_layers_that_do_not_fire_may_be_in_two_places() -> None:
    pool = nn.AvgPool2d(2)
    layers = [norse.LIFCell(), pool, norse.LIFCell(), pool, nn.Flatten(), nn.Linear(2, CLASSES)]
    assert wrapped(norse.SequentialState(*layers)).form == "step"


# --- the neurons' parameters ---------------------------------------------------------------


def with_neurons(**parameters: Any) -> UserStudent:
    values = {"tau_mem_inv": 500.0, "v_th": 0.5, **parameters}
    dt = values.pop("dt", 1e-3)
    p = norse.LIFBoxParameters(**{key: torch.as_tensor(value) for key, value in values.items()})
    layers = [nn.Flatten(), norse.LIFBoxCell(p, dt=dt), nn.Linear(32, CLASSES)]
    return wrapped(norse.SequentialState(*layers))


def test_weights_go_back_into_the_model_that_made_them(tmp_path: Path) -> None:
    first, second = with_neurons(), with_neurons()
    save_weights(first, tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    x = images() * 5
    assert torch.equal(first.eval()(x), second.eval()(x))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"v_th": 0.6}, r"another v_th of LIFBoxCell \(0.5, now 0.6\) than mine:make makes"),
        ({"tau_mem_inv": 400.0}, r"another tau_mem_inv of LIFBoxCell \(500, now 400\)"),
        ({"dt": 5e-4}, r"another dt of LIFBoxCell \(0.001, now 0.0005\)"),
        ({"v_leak": torch.full((32,), 0.1)}, "neuron_1_v_leak"),
    ],
)
def test_weights_of_other_neurons_are_refused(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    save_weights(with_neurons(), tmp_path / "w.safetensors")
    with pytest.raises(InputFileError, match=words) as caught:
        load_weights(with_neurons(**changed), tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_arrays_drawn_anew_are_refused(tmp_path: Path) -> None:
    def drawn(seed: int) -> UserStudent:
        generator = torch.Generator().manual_seed(seed)
        return with_neurons(v_th=torch.rand(32, generator=generator))

    save_weights(drawn(0), tmp_path / "w.safetensors")
    load_weights(drawn(0), tmp_path / "w.safetensors")
    with pytest.raises(InputFileError, match="another v_th of LIFBoxCell than mine:make makes"):
        load_weights(drawn(1), tmp_path / "w.safetensors")


def test_the_surrogate_may_change(tmp_path: Path) -> None:
    save_weights(with_neurons(), tmp_path / "w.safetensors")
    load_weights(with_neurons(alpha=7.0), tmp_path / "w.safetensors")


class Learning(nn.Module):
    """A neuron whose time constant is a parameter of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.tau_inv = nn.Linear(32, CLASSES), nn.Parameter(torch.tensor(500.0))
        self.cell = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=self.tau_inv))

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.cell(self.read(x.flatten(1)), state)


def test_a_parameter_that_is_learned_is_a_weight(tmp_path: Path) -> None:
    first, second = wrapped(Learning()), wrapped(Learning())
    with torch.no_grad():
        first.model.tau_inv.fill_(321.0)
    save_weights(first, tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    assert second.model.cell.p.tau_mem_inv.item() == 321.0
    assert "neuron_cell_v_th" in second.state_dict()
    assert "neuron_cell_tau_mem_inv" not in second.state_dict()


def test_arrays_of_the_neurons_move_with_the_model() -> None:
    student = with_neurons(v_th=torch.full((32,), 0.5))
    cell: Any = student.get_submodule("model.1")
    assert student.double() is student
    assert cell.p.v_th.dtype == torch.float64
    assert cell.p.tau_mem_inv.dtype == torch.float32  # torch lets a scalar be anywhere
    assert student.to("meta")(torch.zeros(2, *SHAPE, device="meta")).shape == (T, 2, CLASSES)
    assert cell.p.v_th.device.type == "meta"


# --- factories -----------------------------------------------------------------------------


def test_a_factory_is_given_what_it_takes(write: Write) -> None:
    name = write(
        "class Seen(nn.Identity):\n"
        "    def __init__(self, *seen, **more):\n"
        "        super().__init__()\n"
        "        self.seen = seen, more\n"
        "def none(): return Seen()\n"
        "def some(num_classes, width=3): return Seen(num_classes, width)\n"
        "def all_(timesteps, **rest): return Seen(timesteps, **rest)\n"
    )
    given = {"timesteps": 4, "num_classes": 5}
    seen = [make_module(f"{name}:{function}", **given) for function in ("none", "some", "all_")]
    assert [model.seen for model in seen] == [
        ((), {}),
        ((5, 3), {}),
        ((4,), {"num_classes": 5}),
    ]


def test_a_factory_may_be_in_a_package_or_be_a_class(write: Write) -> None:
    name = write(
        "class Model(nn.Linear):\n    def __init__(self): super().__init__(2, 3)\n", "pa.b"
    )
    assert make_module(f"{name}:Model").out_features == 3


BAD_FACTORIES = {
    "no function": ("", "{name}:make", "the module '{name}' has no function 'make'"),
    "not a function": ("make = 3", "{name}:make", "the module '{name}' has no function 'make'"),
    "no module": ("", "{name}_not:make", "cannot import '{name}_not' .* ModuleNotFoundError"),
    "a module that exits": (
        "raise SystemExit(0)",
        "{name}:make",
        "cannot import '{name}' .* SystemExit",
    ),
    "a syntax error": ("def", "{name}:make", "cannot import '{name}' .* SyntaxError"),
    "code that fails": ("1 / 0", "{name}:make", "cannot import '{name}' .* ZeroDivisionError"),
    "no colon": ("", "{name}", "package.module:function, for example mymodel:build; got '{name}'"),
    "no name": ("", ":make", "package.module:function"),
    "it fails": (
        "def make():\n    raise ValueError('no\\nweights')",
        "{name}:make",
        "factory {name}:make failed: ValueError: 'no'; it is called with those of timesteps, inp",
    ),
    "an argument nobody has": (
        "def make(depth): pass",
        "{name}:make",
        "factory {name}:make failed: TypeError: .*depth",
    ),
    "no module in return": (
        "def make(): return 7",
        "{name}:make",
        "{name}:make returned a int; it must return an nn.Module",
    ),
    "nothing to train": (
        "def make(): return norse.SequentialState(nn.Flatten(), norse.LIFCell())",
        "{name}:make",
        "the student {name}:make has no parameters to train",
    ),
}


@pytest.mark.parametrize("case", BAD_FACTORIES)
def test_a_factory_that_makes_no_student_is_refused(write: Write, case: str) -> None:
    text, factory, message = BAD_FACTORIES[case]
    name = write(text)
    with pytest.raises(UsageError, match=message.format(name=name)) as caught:
        make_student(factory.format(name=name), T, (1, 1, 5), 5)
    assert "\n" not in str(caught.value)


def _of_layers(timesteps: int, shape: tuple[int, int, int]) -> Student:
    layers: list[tuple[str, nn.Module]] = [
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(2, CLASSES)),
        ("lif", make_neuron(NeuronConfig())),
    ]
    return Student(Spiking(layers), timesteps, shape)


class _Changed(Student):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_student_of_our_layers_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _of_layers(T, SHAPE)
    monkeypatch.setattr("tser.user_models.make_module", lambda *_, **__: made)
    assert make_student("mine:make", T, SHAPE, CLASSES) is made


def test_a_student_that_does_something_else_is_a_users_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = _Changed(_of_layers(T, SHAPE).layers, T, SHAPE)
    monkeypatch.setattr("tser.user_models.make_module", lambda *_, **__: made)
    assert isinstance(make_student("mine:make", T, SHAPE, CLASSES), UserStudent)


@pytest.mark.parametrize(("timesteps", "shape"), [(3, SHAPE), (T, (2, 5, 5))])
def test_a_student_of_our_layers_for_another_task_is_refused(
    monkeypatch: pytest.MonkeyPatch, timesteps: int, shape: tuple[int, int, int]
) -> None:
    made = _of_layers(timesteps, shape)
    monkeypatch.setattr("tser.user_models.make_module", lambda *_, **__: made)
    with pytest.raises(UsageError, match=f"is for T = {timesteps} and images .* the run for T = 4"):
        make_student("mine:make", T, SHAPE, CLASSES)
