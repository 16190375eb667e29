"""Archives of training state: nothing that they state is believed, nothing damaged is used."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.fuzz.mutations import mutant
from tser.checkpoint_file import read_archive
from tser.checkpoints import check_continues, load_checkpoint, save_checkpoint, training_facts
from tser.config_file import load_config
from tser.data import load_data
from tser.errors import InputFileError
from tser.integrity import digest
from tser.runs import Run


def some_state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model[2](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "run": {"settings": {"train.lr": 0.1}},
        "phase": "student",
        "epoch": 3,
        "tallies": [{"seen": 8, "totals": {"loss": 0.5}}],
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(some_state(), tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputFileError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, content: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def test_the_same_state_is_the_same_bytes(path: Path, tmp_path: Path) -> None:
    save_checkpoint(some_state(), tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == path.read_bytes()
    assert digest(load_checkpoint(path)) == digest(some_state())


@pytest.mark.parametrize(
    "values",
    [
        torch.arange(6.0).view(2, 3).T,
        torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.zeros(1).expand(5),
        torch.arange(9)[2:5],
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3, dtype=torch.uint16),
        torch.ones(2, dtype=torch.complex64),
        torch.empty(0, 3),
        torch.tensor(2.5),
    ],
)
def test_tensors_of_every_kind(values: torch.Tensor, path: Path) -> None:
    save_checkpoint(some_state() | {"more": [values, values]}, path)
    found = load_checkpoint(path)["more"]
    assert all(torch.equal(one, values) and one.dtype == values.dtype for one in found)


def test_a_checkpoint_of_an_earlier_version_is_read(path: Path) -> None:
    torch.save(some_state(), path)
    assert digest(load_checkpoint(path)) == digest(some_state())


def test_other_values_under_right_sums_are_refused(path: Path) -> None:
    content = members(path)
    (name,) = (name for name in content if name.endswith("/data.pkl"))
    packed(path, content | {name: content[name].replace(b"student", b"teacher")})
    assert "do not match the digest it carries; delete it" in refusal(lambda: load_checkpoint(path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, path: Path) -> None:
    state = some_state()
    state["model"]["2.bias"][1] = value
    save_checkpoint(state, path)
    text = refusal(lambda: load_checkpoint(path))
    assert text.startswith(f"{path}: '2.bias' holds NaN or infinite values; delete it")


# --- hostile archives ----------------------------------------------------------------------


class Named:
    """Is pickled as a call of a name, without importing it here."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class Storage:
    """Is pickled as the storage of a tensor."""

    def __init__(self, count: int, key: str = "0") -> None:
        self.pid = ("storage", torch.FloatStorage, key, "cpu", count)


def archive(path: Path, value: Any, storage: bytes = bytes(16)) -> None:
    """An archive as torch would take it, with one storage."""
    target = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.pid if isinstance(value, Storage) else None

    Pickler(target, protocol=2).dump(value)
    packed(
        path,
        {
            "archive/data.pkl": target.getvalue(),
            "archive/byteorder": b"little",
            "archive/data/0": storage,
            "archive/version": b"3\n",
        },
    )


def tensor(count: int, start: int, shape: Any, steps: Any) -> Named:
    made = (Storage(count), start, shape, steps, False, OrderedDict())
    return Named(torch._utils._rebuild_tensor_v2, *made)


def test_the_archives_below_are_read_where_they_are_right(path: Path) -> None:
    archive(path, [tensor(4, 0, (2, 2), (2, 1))])
    assert read_archive(path)[0].tolist() == [[0, 0], [0, 0]]


HOSTILE = {
    "a storage longer than its member": tensor(10**6, 0, (10**6,), (1,)),
    "a storage of a member that is not there": Named(
        torch._utils._rebuild_tensor_v2, Storage(4, "9"), 0, (4,), (1,), False, OrderedDict()
    ),
    "a tensor longer than its storage": tensor(4, 0, (10**12,), (1,)),
    "a tensor behind its storage": tensor(4, 4, (1,), (1,)),
    "a tensor before its storage": tensor(4, -1, (1,), (1,)),
    "steps that are too long": tensor(4, 0, (2,), (4,)),
    "steps back": tensor(4, 3, (4,), (-1,)),
    "a shape without steps": tensor(4, 0, (2, 2), (1,)),
    "a million million values on the same four bytes": tensor(4, 0, (10**6, 10**6), (0, 0)),
    "many such tensors": [tensor(4, 0, (10**6,), (0,)) for _ in range(40)],
    "a call": Named(print, "harm"),
    "bytes to be made": Named(bytearray, 10**12),
    "another name of torch": Named(torch.empty, 10**12),
    "a type that is called": Named(torch.FloatStorage, 10**12),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_pickle_states_is_not_believed(
    name: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive(path, HOSTILE[name])
    with pytest.raises(ValueError, match=r"\w") as caught:
        read_archive(path)
    assert "\n" not in str(caught.value)
    assert not capsys.readouterr().out


PICKLES = {
    "a place in memory far away": b"\x80\x02]r\xff\xff\xff\x7f.",
    "text of a billion letters": b"\x80\x02X\xff\xff\xff\x3fa.",
    "a number of a billion digits": b"\x80\x02\x8b\xff\xff\xff\x3fa.",
    "a newer protocol": b"\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00].",
    "nothing on the stack": b"\x80\x02.",
    "no end": b"\x80\x02]",
    "nothing": b"",
    "deep": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_are_none(name: str, path: Path) -> None:
    packed(path, {"a/data.pkl": PICKLES[name], "a/byteorder": b"little", "a/version": b"3\n"})
    assert str(path) in refusal(lambda: load_checkpoint(path))


def test_archives_that_are_packed_or_ambiguous_are_refused(path: Path) -> None:
    content = members(path)
    bomb = content | {"checkpoint/zeros": bytes(50_000_000)}
    for how in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED):
        packed(path, bomb if how == zipfile.ZIP_DEFLATED else content, how)
        with pytest.raises(ValueError, match="its members are packed"):
            read_archive(path)
    assert path.stat().st_size < 100_000
    packed(path, content)
    assert digest(load_checkpoint(path)) == digest(some_state())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(next(iter(content)), b"")
    with pytest.raises(ValueError, match="the same name"):
        read_archive(path)
    packed(path, {name: data for name, data in content.items() if "pkl" not in name})
    with pytest.raises(ValueError, match=r"\w"):
        read_archive(path)


def test_no_mutant_holds_another_state(path: Path) -> None:
    """A slice of `make fuzz`."""
    data, wanted, refused = path.read_bytes(), digest(load_checkpoint(path)), 0
    for seed in range(200):
        path.write_bytes(mutant(data, str(seed)))
        try:
            assert digest(load_checkpoint(path)) == wanted
        except InputFileError:
            refused += 1
    assert refused >= 100


# --- of another run ------------------------------------------------------------------------


def test_a_checkpoint_is_continued_as_it_was_begun(tmp_path: Path) -> None:
    run, data = Run(tmp_path), load_data("digits", limit_train=64)
    config = load_config("digits", ["data.limit_train=64"])
    state = some_state() | {"run": training_facts(config, data)}
    save_checkpoint(state, run.checkpoint)
    state = load_checkpoint(run.checkpoint)

    def check(*overrides: str, **changed: Any) -> None:
        now = load_config("digits", ["data.limit_train=64", *overrides])
        check_continues(state, now, replace(data, **changed), run)

    check()
    check("data.root=elsewhere", "data.workers=2", "train.device=cpu", "train.compile=off")
    check("train.accumulate=2", "train.checkpoint_steps=7", "train.deterministic=true")
    for setting, then in (
        ("train.lr=0.5", "0.1"),
        ("student.timesteps=2", "4"),
        ("loss.kl=aggregated", "'per-step'"),
        ("loss.gamma=0.5", "0.01"),
        ("data.flip=true", "false"),
    ):
        key, _, now = setting.partition("=")
        shown = repr(now) if now.isidentifier() and now != "true" else now
        text = refusal(lambda setting=setting: check(setting))
        assert text == (
            f"{run.config_file} says {key} = {shown}, and checkpoint.pt was begun with {then}; "
            "restore it, or start a new run with another --out"
        )
    text = refusal(lambda: check(mean=(0.25,)))
    assert text.startswith("the data set has another mean ([0.25]) than ")
    text = refusal(lambda: check(train=data.val))
    assert "another number of training images (" in text
    check_continues({}, config, data, run)  # of an earlier version
