"""Weights and checkpoints: what fits is read back bit for bit, the rest is refused unread."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tser.checkpoints import (
    load_checkpoint,
    load_run_data,
    load_student,
    load_weights,
    save_checkpoint,
    save_weights,
)
from tser.config import RunConfig
from tser.config_file import dump_config, load_config
from tser.errors import InputFileError
from tser.runs import Run
from tser.students import build_student


def network(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 2))


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def refusal(call: Callable[[], object]) -> str:
    """What an error about an input file says: one line, exit code 4."""
    with pytest.raises(InputFileError) as caught:
        call()
    assert caught.value.exit_code == 4
    text = str(caught.value)
    assert "\n" not in text
    return text


class Malicious:
    """Unpickling this makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


# --- weights -------------------------------------------------------------------------------


def test_weights_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "weights.safetensors"
    first, second = network(0), network(1)
    assert not same(first.state_dict(), second.state_dict())
    save_weights(first, path)
    load_weights(second, path)
    assert same(first.state_dict(), second.state_dict())
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_weights(network(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_views_that_are_not_contiguous_are_saved(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    module.weight = nn.Parameter(torch.arange(6.0).view(3, 2).T)
    save_weights(module, tmp_path / "w")
    assert load_file(tmp_path / "w")["weight"].tolist() == [[0, 2, 4], [1, 3, 5]]


def changed(path: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A weight file of `network` after ``change`` to its tensors."""
    state = copies(network())
    change(state)
    save_file(state, path)
    return path


def fill(name: str, value: float) -> Callable[[dict[str, Tensor]], object]:
    def change(state: dict[str, Tensor]) -> None:
        state[name].view(-1)[-1] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("1.running_var"), ("has no '1.running_var'", "another network")),
        (lambda state: state.clear(), ("has no '0.weight'",)),
        (
            lambda state: state.update({"3.bias": torch.zeros(2)}),
            ("holds '3.bias'", "does not have"),
        ),
        (
            lambda state: state.update({"2.weight": torch.zeros(2, 5)}),
            ("'2.weight' has shape (2, 5)", "needs (2, 4)"),
        ),
        (
            lambda state: state.update({"2.weight": torch.zeros(4, 2)}),
            ("'2.weight' has shape (4, 2)",),
        ),
        (fill("0.weight", float("nan")), ("'0.weight' holds NaN or infinite values",)),
        (fill("1.running_mean", float("inf")), ("'1.running_mean' holds NaN or infinite",)),
        (fill("2.bias", float("-inf")), ("'2.bias' holds NaN or infinite values",)),
    ],
)
def test_weights_of_another_network_are_refused_and_nothing_is_loaded(
    change: Callable[[dict[str, Tensor]], object], words: tuple[str, ...], tmp_path: Path
) -> None:
    path = changed(tmp_path / "weights.safetensors", change)
    module = network(1)
    before = copies(module)
    text = refusal(lambda: load_weights(module, path))
    assert str(path) in text
    assert all(word in text for word in words), text
    assert same(module.state_dict(), before)


def header(values: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + data


DAMAGED = {
    "empty": b"",
    "text": b"these are no weights",
    "zeros": bytes(64),
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "no json": struct.pack("<Q", 4) + b"{{{{",
    "beyond the end": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "wrong size": header(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, bytes(4)
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_not_safetensors_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    path.write_bytes(DAMAGED[name])
    text = refusal(lambda: load_weights(network(), path))
    assert text.startswith(f"{path} is not a readable safetensors file (")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_a_truncated_weight_file_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_weights(network(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "is not a readable safetensors file" in refusal(lambda: load_weights(network(), path))


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    assert refusal(lambda: load_weights(network(), path)) == f"there is no weight file {path}"
    assert "is not a readable" in refusal(lambda: load_weights(network(), tmp_path))


@pytest.mark.parametrize("read", [lambda path: load_weights(network(), path), load_checkpoint])
@pytest.mark.parametrize("form", ["pickle", "torch", "legacy torch"])
def test_a_malicious_pickle_is_refused_and_not_run(
    form: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "checkpoint.pt"
    harm = {"phase": "teacher", "epoch": 1, "model": {}, "optimizer": Malicious(trace)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(harm))
    else:
        torch.save(harm, path, _use_new_zipfile_serialization=form == "torch")
    assert str(path) in refusal(lambda: read(path))
    assert not trace.exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())  # noqa: S301
    assert trace.exists()  # so it was a real one


# --- checkpoints ---------------------------------------------------------------------------


def some_state(epoch: Any = 3) -> dict[str, Any]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model[2](torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return {
        "phase": "student",
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def test_a_checkpoint_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    state = some_state()
    save_checkpoint(state, path)
    found = load_checkpoint(path)
    assert (found["phase"], found["epoch"]) == ("student", 3)
    assert same(found["model"], state["model"])
    optimizer = torch.optim.SGD(network().parameters(), lr=0.5, momentum=0.9)
    optimizer.load_state_dict(found["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("missing", ["phase", "epoch", "model", "optimizer"])
def test_a_checkpoint_without_a_part_is_refused(missing: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    state = some_state()
    del state[missing]
    save_checkpoint(state, path)
    text = refusal(lambda: load_checkpoint(path))
    assert text == f"{path} is not a checkpoint of tser; delete it to start over"


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3), some_state(epoch="3"), None])
def test_another_value_is_refused(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(value, path)
    assert "is not a checkpoint of tser" in refusal(lambda: load_checkpoint(path))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_checkpoint_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(some_state(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    text = refusal(lambda: load_checkpoint(path))
    assert text.startswith(f"{path} is not a readable checkpoint; delete it")


@pytest.mark.parametrize("data", [b"text", bytes(200), b"PK\x03\x04" + bytes(100)])
def test_bytes_that_are_no_checkpoint_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(data)
    assert "is not a readable checkpoint" in refusal(lambda: load_checkpoint(path))


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    text = refusal(lambda: load_checkpoint(tmp_path / "checkpoint.pt"))
    assert text.startswith(f"there is no checkpoint {tmp_path / 'checkpoint.pt'}")
    assert "is not a readable checkpoint" in refusal(lambda: load_checkpoint(tmp_path))


# --- a run's student and data --------------------------------------------------------------


def some_run(path: Path) -> tuple[Run, RunConfig]:
    config = load_config("digits", ["student.width=4", "data.limit_train=64"])
    run = Run(path)
    path.mkdir()
    run.config_file.write_text(dump_config(config), encoding="utf-8")
    return run, config


def test_the_data_and_the_student_of_a_run(tmp_path: Path) -> None:
    run, config = some_run(tmp_path / "run")
    data = load_run_data(run)
    assert data.name == "digits"
    assert len(data.train) == 64
    torch.manual_seed(0)
    student = build_student(config.student, config.neuron, data.image_shape, data.num_classes)
    save_weights(student, run.student)
    loaded = load_student(run, data)
    assert same(loaded.state_dict(), student.state_dict())
    assert not any(module.training for module in loaded.modules())


def test_a_student_that_does_not_match_its_configuration(tmp_path: Path) -> None:
    run, config = some_run(tmp_path / "run")
    data = load_run_data(run)
    assert "there is no weight file" in refusal(lambda: load_student(run, data))
    wider = config.student.model_copy(update={"width": 5})
    save_weights(
        build_student(wider, config.neuron, data.image_shape, data.num_classes), run.student
    )
    text = refusal(lambda: load_student(run, data))
    assert "'layers.stem_conv.weight' has shape (5, 1, 3, 3)" in text
    assert "needs (4, 1, 3, 3)" in text
