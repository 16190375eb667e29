"""What a weight file says beside its weights: a digest, and the model that they make."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.fuzz.mutations import mutant
from tser.checkpoints import describe, load_student, load_weights, read_weights, save_weights
from tser.config import RunConfig
from tser.config_file import dump_config, load_config
from tser.data import ImageData, load_data
from tser.errors import InputFileError
from tser.integrity import brief, difference, digest
from tser.models import make_run_student
from tser.runs import Run

FACTS = {"settings": {"student.timesteps": 4}, "data": {"mean": [0.5, 1 / 3]}}


def network(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 2))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputFileError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the digest ----------------------------------------------------------------------------

DIFFERENT: tuple[Any, ...] = (
    *(None, False, 0, 0.0, -0.0, "", "0", "None", [], {}, [[]], [0, 1], [[0], 1], {0: 1}, {"0": 1}),
    *({"a": [1], "b": []}, {"a": [], "b": [1]}, ["a", "bc"], ["ab", "c"]),
    *(torch.tensor(0), torch.tensor([0]), torch.tensor([[0]]), torch.tensor([0.0])),
    *(torch.tensor([-0.0]), torch.tensor([0], dtype=torch.int32), torch.zeros(2, 3)),
    *(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bfloat16)),
)


def test_everything_has_another_digest() -> None:
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_how_a_value_is_stored_does_not_matter() -> None:
    rows = torch.arange(6.0).view(2, 3)
    assert digest(rows) == digest(rows.T.contiguous().T)
    assert digest({"a": 1, "b": (2,)}) == digest({"b": [2], "a": 1})


def test_what_is_shown_of_a_value() -> None:
    assert [brief(value) for value in (True, 0.5, "a")] == ["true", "0.5", "'a'"]
    assert len(brief([0.123456789] * 99)) == 60
    assert difference({"a": 1, "b": 2}, {"b": 3, "c": 4}) == ("b", 2, 3)
    assert difference({"a": 0.5, "b": [1 / 3]}, {"a": 0.5, "b": [1 / 3 + 1e-16]}) is None


# --- weight files --------------------------------------------------------------------------


def test_what_was_said_of_weights_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(network(), path, FACTS)
    assert read_weights(path)[1] == FACTS
    with safe_open(path, "pt") as file:
        (about,) = map(json.loads, file.metadata().values())
    assert about["producer"].startswith("tser ")
    save_weights(network(), path)
    assert read_weights(path)[1] == {}


def edited(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> None:
    """Write ``path`` again after a change to its tensors and its metadata."""
    state = load_file(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["tser"])
    change(state, about)
    save_file(state, path, {"tser": json.dumps(about)})


EDITS = {
    "a weight": lambda state, about: state["0.bias"][0].add_(1e-7),
    "a sign": lambda state, about: state["1.bias"].neg_(),
    "a type": lambda state, about: state.update({"2.bias": state["2.bias"].double()}),
    "a name": lambda state, about: state.update({"x": state.pop("2.bias")}),
    "a fact": lambda state, about: about["trained_as"]["settings"].update({"student.timesteps": 5}),
    "no facts": lambda state, about: about.pop("trained_as"),
    "no digest": lambda state, about: about.pop("sha256"),
    "another digest": lambda state, about: about.update(sha256="0" * 64),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_weights_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(network(), path, FACTS)
    edited(path, EDITS[name])
    text = refusal(lambda: load_weights(network(1), path))
    assert text == (
        f"{path} is damaged or was edited: its contents do not match the digest it carries; "
        "restore it or train again"
    )


@pytest.mark.parametrize("value", ["", "[]", "{}", "[" * 9999, '{"sha256": 1, "trained_as": 2}'])
def test_metadata_of_another_form_are_refused(value: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(network().state_dict(), path, {"tser": value})
    assert "is damaged" in refusal(lambda: load_weights(network(1), path))


def test_metadata_under_a_damaged_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(network(), path)
    path.write_bytes(path.read_bytes().replace(b'{"tser":', b'{"tsar":'))
    assert "is damaged" in refusal(lambda: load_weights(network(1), path))


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt", "sha256": "of something else"}])
def test_weights_of_others_need_no_digest(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path, second = tmp_path / "w.safetensors", network(1)
    save_file(network().state_dict(), path, metadata)
    load_weights(second, path)
    assert read_weights(path)[1] == {}
    assert torch.equal(second[2].bias, network()[2].bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    path, second, first = tmp_path / "w.safetensors", network(1), network().to(dtype)
    save_file(first.state_dict(), path)
    load_weights(second, path)
    assert second[0].weight.dtype == torch.float32
    assert torch.equal(second[0].weight, first[0].weight.float())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]
)
def test_other_types_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    path, state = tmp_path / "w.safetensors", network().state_dict()
    save_file(state | {"2.bias": state["2.bias"].to(dtype)}, path)
    text = refusal(lambda: load_weights(network(1), path))
    name = str(dtype).removeprefix("torch.")
    assert f"'2.bias' is of type {name}, which the configured network's float32 does" in text


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE: dict[str, bytes | dict[str, Any]] = {
    "overlapping": {"a": entry([2], 0, 8), "b": entry([2], 4, 12)},
    "a hole": {"a": entry([1], 0, 4), "b": entry([1], 8, 12)},
    "backwards": {"a": entry([1], 8, 4)},
    "absurd": {"a": entry([2**62, 2**62], 0, 12)},
    "a type of no kind": {"a": entry([3], 0, 12, "X9")},
    "deep": b"[" * 100_000,
    "a header as long as the file says": struct.pack("<Q", 2**63 - 1) + b"{}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(name: str, tmp_path: Path) -> None:
    path, value = tmp_path / "w.safetensors", HOSTILE[name]
    text = json.dumps(value).encode() if isinstance(value, dict) else value
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    assert "is not a readable safetensors file" in refusal(lambda: load_weights(network(), path))


def test_no_mutant_holds_other_weights(tmp_path: Path) -> None:
    """A slice of `make fuzz`."""
    path = tmp_path / "w.safetensors"
    save_weights(network(), path, FACTS)
    data, wanted = path.read_bytes(), digest(network().state_dict())
    refused = 0
    for seed in range(200):
        path.write_bytes(mutant(data, str(seed)))
        second = network(1)
        try:
            load_weights(second, path)
            assert read_weights(path)[1] == FACTS
            assert digest(second.state_dict()) == wanted
        except InputFileError:
            refused += 1
    assert refused >= 190


# --- weights and configuration -------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", limit_train=64)


def made(path: Path, data: ImageData, *overrides: str) -> tuple[Run, RunConfig]:
    """A run with a student that was not trained."""
    config = load_config("digits", ["student.width=4", "data.limit_train=64", *overrides])
    run = Run(path)
    path.mkdir()
    run.config_file.write_text(dump_config(config), encoding="utf-8")
    torch.manual_seed(0)
    save_weights(make_run_student(config, data), run.student, describe(config, data))
    return run, config


def reconfigured(run: Run, *overrides: str) -> None:
    changed = load_config(str(run.config_file), overrides)
    run.config_file.write_text(dump_config(changed), encoding="utf-8")


@pytest.mark.parametrize(
    ("setting", "then"),
    [
        ("student.timesteps=8", "4"),
        ("student.width=5", "4"),
        ("student.stages=1", "2"),
        ("student.stem=imagenet", "'cifar'"),
        ("neuron.dt=0.0015", "0.001"),
        ("neuron.tau_mem=0.004", "0.002"),
        ("neuron.v_th=0.75", "1.0"),
        ("neuron.v_leak=0.125", "0.0"),
        ("neuron.v_reset=-0.5", "0.0"),
    ],
)
def test_weights_under_another_configuration_are_refused(
    setting: str, then: str, data: ImageData, tmp_path: Path
) -> None:
    run, _ = made(tmp_path / "run", data)
    load_student(run, data)
    reconfigured(run, setting)
    key, _, now = setting.partition("=")
    text = refusal(lambda: load_student(run, data))
    shown = repr(now) if now.isidentifier() else now
    assert text == (
        f"{run.config_file} says {key} = {shown}, and the weights in "
        f"student.safetensors were trained with {then}; restore it"
    )


def test_settings_of_training_may_change(data: ImageData, tmp_path: Path) -> None:
    run, _ = made(tmp_path / "run", data)
    reconfigured(
        run,
        *("data.root=elsewhere", "train.device=cpu", "train.lr=0.5", "neuron.alpha=2.0"),
        *("neuron.surrogate=arctan", "student.norm=per-step", "teacher.width=8"),
    )
    load_student(run, data)


def test_a_time_constant_that_is_learned_is_among_the_weights(
    data: ImageData, tmp_path: Path
) -> None:
    run, _ = made(tmp_path / "run", data, "neuron.learn_tau=true")
    reconfigured(run, "neuron.tau_mem=0.004")
    load_student(run, data)


def test_weights_with_other_data_are_refused(data: ImageData, tmp_path: Path) -> None:
    run, _ = made(tmp_path / "run", data)
    for changed, words in (
        (replace(data, mean=(0.25,)), "another mean ([0.25])"),
        (replace(data, max_value=255), "another full scale (255)"),
        (replace(data, class_names=data.class_names[::-1]), "another classes (['9', '8'"),
    ):
        text = refusal(lambda changed=changed: load_student(run, changed))
        assert words in text
        assert text.endswith("use that one")
    load_student(run, replace(data, mean=tuple(value * (1 + 1e-9) for value in data.mean)))


def test_a_run_of_an_earlier_version_is_read(data: ImageData, tmp_path: Path) -> None:
    run, config = made(tmp_path / "run", data)
    save_file(load_file(run.student), run.student)
    reconfigured(run, "student.timesteps=8")
    assert load_student(run, data).timesteps == 8
    assert config.student.timesteps == 4
