"""Bombs: small files that announce, or unpack to, more than a machine has, are refused."""

import contextlib
import itertools
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import tser.deploy.model_trial
import tser.limits
from tests.fuzz import bombs
from tser.checkpoints import load_checkpoint, load_weights
from tser.config_file import load_config
from tser.data import load_data
from tser.data.plain_pickle import read_dictionary
from tser.deploy.named_inputs import file_inputs
from tser.deploy.report_files import Evaluation
from tser.deploy.report_reading import read_document, read_epochs
from tser.deploy.run_graph import run_graph
from tser.errors import InputFileError, TserError, UsageError
from tser.export.nir_file import read_nir
from tser.export.onnx_file import read_onnx
from tser.toml_text import parse_toml

MEGA = 1 << 20


@contextlib.contextmanager
def within(room: int) -> Iterator[None]:
    """Limit the address space to ``room`` bytes more than there are; what needs more fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def refused(
    act: Callable[[], object],
    *words: str,
    kind: type[TserError] = InputFileError,
    room: int = 512 * MEGA,
) -> None:
    """One sentence with all ``words``, for little memory."""
    with within(room), pytest.raises(kind) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    assert all(word in text for word in words), text


@pytest.mark.parametrize("name", bombs.ARRAYS)
def test_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / "bomb.npz"
    make, words = bombs.ARRAYS[name]
    make(path)
    assert path.stat().st_size < 2 * MEGA
    monkeypatch.setattr(tser.limits, "machine_memory", lambda: 128 * MEGA)
    refused(lambda: load_data(str(path)), str(path), words)


def test_an_array_whose_name_is_damaged_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    x = np.zeros((20, 1, 2, 2), np.uint8)
    np.savez(path, x=x, y=np.arange(20) % 2, class_names=["cat", "dog"])
    data = bytearray(path.read_bytes())
    at = data.rindex(b"class_names")  # in the directory; before the bytes it stands once more
    data[at : at + 5] = b"clazz"
    path.write_bytes(data)
    refused(lambda: load_data(str(path)), str(path), "directory")


@pytest.mark.parametrize("letter", [0x110000, 0xFFFFFFFF, 0xD800, 0xDFFF])
@pytest.mark.parametrize("order", "<>")
def test_text_of_no_letters(tmp_path: Path, letter: int, order: str) -> None:
    """Found by atheris: Python makes no text of such numbers."""
    path = tmp_path / "toy.npz"
    names = np.array(["a", "b"], f"{order}U1")
    names.view(f"{order}u4")[1] = letter
    np.savez(path, x=np.zeros((20, 1, 2, 2), np.uint8), y=np.arange(20) % 2, class_names=names)
    refused(lambda: load_data(str(path)), str(path), "text that is none")


def test_a_directory_that_ends_early(tmp_path: Path) -> None:
    """Found by ``make fuzz``: a length in the directory hid the names of the classes."""
    path = tmp_path / "toy.npz"
    x = np.zeros((20, 1, 2, 2), np.uint8)
    np.savez(path, x=x, y=np.arange(20) % 2, class_names=["cat", "dog"])
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"class_names"))
    at = data.rindex(b"PK\x01\x02", 0, at)
    data[at + 32 : at + 34] = b"\xff\xff"  # of a comment
    path.write_bytes(data)
    refused(lambda: load_data(str(path)), str(path), "2 entries where 3 are stated")


def test_the_limit_of_arrays_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "toy.npz"
    x = np.random.default_rng(0).integers(0, 256, (20, 1, 64, 64), np.uint8)
    np.savez(path, x=x, y=np.arange(20) % 2)
    assert len(load_data(str(path)).class_names) == 2
    monkeypatch.setattr(tser.limits, "machine_memory", lambda: x.nbytes)
    refused(lambda: load_data(str(path)), "more than the 0.0 GB", str(path))


def test_memory_is_not_more_than_a_limit_of_the_process() -> None:
    with within(512 * MEGA):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        assert tser.limits.machine_memory() <= limit
        assert tser.limits.memory_limit() <= limit // 2


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "sizes", [(2**32 - 1,) * 3, (2**31, 2, 2), (1, 2**16, 2**15), (0, 28, 28), (70_000, 28, 28)]
)
def test_idx(tmp_path: Path, suffix: str, sizes: tuple[int, ...]) -> None:
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        bombs.idx_header(tmp_path / f"{part}-images-idx3-ubyte{suffix}", *sizes)
        bombs.idx_header(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", count)
    refused(lambda: load_data("mnist", tmp_path), "train-images-idx3-ubyte")


def test_idx_that_unpacks_to_more_than_it_announces(tmp_path: Path) -> None:
    names = [
        f"{part}-{kind}-ubyte.gz"
        for part, kind in itertools.product(("train", "t10k"), ("images-idx3", "labels-idx1"))
    ]
    for name in names:
        sizes = (2, 28, 28) if "images" in name else (2,)
        bombs.idx_header(tmp_path / name, *sizes, unpacked=64 * MEGA)
        assert (tmp_path / name).stat().st_size < MEGA
    refused(lambda: load_data("mnist", tmp_path), names[0], "too long")


@pytest.mark.parametrize("shape", [(2**40, 1, 8, 8), (2**62, 2**62, 1, 8, 8), (-1, 1, 8, 8)])
def test_an_input_array(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(bombs.head("<f4", shape) + bytes(64))
    refused(lambda: file_inputs(path, (1, 8, 8)), str(path))


@pytest.mark.parametrize("name", bombs.PICKLES)
def test_pickles(name: str) -> None:
    content = bombs.PICKLES[name]()
    if name == "a long name":
        assert list(read_dictionary(content)) == ["a" * 10_000]
        return
    with within(512 * MEGA), pytest.raises(ValueError, match="pickle"):
        read_dictionary(content)


def test_shared_parts_are_read_where_they_are_values() -> None:
    assert list(read_dictionary(bombs.doubled(keys=False))) == ["a"]


def test_an_archive_of_holes(tmp_path: Path) -> None:
    names = [
        f"cifar-10-batches-py/{name}"
        for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta")
    ]
    bombs.tar_of_holes(tmp_path / "cifar-10-python.tar.gz", names, 900 * MEGA)
    refused(lambda: load_data("cifar10", tmp_path), "cifar-10-python.tar.gz", "more than")


def _folder(root: Path) -> Path:
    for part, name in itertools.product(("train", "val"), ("a", "b")):
        (root / part / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / part / name / "0.png")
    Image.new("RGB", (8, 8)).save(root / "train/a/1.png")
    return root / "val/a/0.png"


@pytest.mark.parametrize(
    ("width", "height"), [(2**16, 2**12), (2**31 - 1, 2**31 - 1), (60_000, 1), (1, 4000)]
)
def test_images(tmp_path: Path, width: int, height: int) -> None:
    file = _folder(tmp_path)
    bombs.png(file, width, height)
    data = load_data(str(tmp_path), size=8)
    refused(lambda: data.test.images_at(torch.tensor([0])), str(file), "pixels")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "jpeg as png", "eps"])
def test_images_that_are_not(tmp_path: Path, damage: str) -> None:
    file = _folder(tmp_path)
    content = file.read_bytes()
    if damage == "jpeg as png":
        Image.new("RGB", (8, 8)).save(file, format="JPEG")
        assert load_data(str(tmp_path), size=8).test.images_at(torch.tensor([0])).shape[1] == 3
        return
    file.write_bytes(
        {"cut": content[: len(content) // 2], "empty": b"", "text": b"no image",
         "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}[damage]
    )  # fmt: skip
    data = load_data(str(tmp_path), size=8)
    refused(lambda: data.test.images_at(torch.tensor([0])), str(file))


@pytest.mark.parametrize("name", bombs.TOML)
def test_toml(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(bombs.TOML[name])
    refused(lambda: load_config(str(path)), str(path), "not valid TOML", kind=UsageError)


def test_a_toml_file_without_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    with path.open("wb") as file:
        file.truncate(bombs.TERA)
    refused(lambda: load_config(str(path)), str(path), "not valid TOML", kind=UsageError)


def test_toml_with_dots_that_are_no_keys() -> None:
    text = 'x = [0.1, 0.2, 1.5]\ny = "' + "a.b." * 3 + '..."\n[a.b."c.d"]\nz = 1\n'
    assert parse_toml(text)["a"]["b"]["c.d"] == {"z": 1}


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"{}", 2**62),
        (b"{}", 2**33),
        (bombs.tensor_header([2**62, 2**62], 4), None),
        (bombs.tensor_header([2**40], 2**42), None),
        (bombs.tensor_header([], 2**63), None),
        (b"[" * 100_000, None),
        (b'{"a":' * 100_000, None),
        (b'{"a":"' + b"b" * 100_000 + b'"}', None),
    ],
)
def test_weights(tmp_path: Path, head: bytes, length: int | None) -> None:
    path = tmp_path / "student.safetensors"
    bombs.safetensors(path, head, length)
    refused(lambda: load_weights(torch.nn.Linear(2, 2), path), str(path))


def test_a_checkpoint_packed_to_a_thousandth(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    bombs.checkpoint_zeros(path)
    assert path.stat().st_size < 8 * MEGA
    refused(lambda: load_checkpoint(path), str(path), room=96 * MEGA)


JSON = {
    "lists": "[" * 100_000,
    "tables": '{"a":' * 100_000,
    "a number": '{"schema_version": ' + "9" * 100_000 + "}",
    "a power": '{"schema_version": 1e999}',
    "half a letter": '{"schema_version": "\\ud800"}',
}


@pytest.mark.parametrize("name", JSON)
def test_results(tmp_path: Path, name: str) -> None:
    path = tmp_path / "eval.json"
    path.write_text(JSON[name] + "\n")  # a last line without its end is passed over
    refused(lambda: read_document(path, Evaluation, "make it again"), str(path))
    refused(lambda: read_epochs(path), str(path))


@pytest.mark.parametrize("make", [bombs.deep_groups, bombs.long_texts])
def test_graphs(tmp_path: Path, make: bombs.Make) -> None:
    path = tmp_path / "bomb.nir"
    make(path)
    refused(lambda: read_nir(path), str(path))


@pytest.mark.parametrize("name", bombs.MODELS)
def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path, x = tmp_path / "bomb.onnx", tmp_path / "x.npy"
    nodes, constants = bombs.MODELS[name]
    bombs.onnx_of(path, nodes, constants)
    np.save(x, np.zeros((1, 1, 8, 8), np.float32))
    onnx.checker.check_model(read_onnx(path))  # nothing is wrong with it
    refused(lambda: run_graph(path, source=x), str(path), "memory")


def test_a_model_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = tmp_path / "bomb.onnx", tmp_path / "x.npy"
    bombs.endless(path)
    np.save(x, np.zeros((1, 1, 8, 8), np.float32))
    monkeypatch.setattr(tser.deploy.model_trial, "TIME_LIMIT", 1.0)
    refused(lambda: run_graph(path, source=x), str(path), "did not end in 1 s")


@pytest.mark.parametrize("value", ["[1e999]", "[NaN]", "[0.0, 1.0]", "[0]"])
def test_the_scaling_that_a_model_states(tmp_path: Path, value: str) -> None:
    path = tmp_path / "bomb.onnx"
    nodes = [onnx.helper.make_node("Unsqueeze", ["input", "axis"], ["logits"])]
    bombs.onnx_of(path, nodes, {"axis": np.array([0])}, input_mean="[0.0]", input_std=value)
    refused(lambda: run_graph(path, data="digits"), str(path), "input scaling")


@pytest.mark.parametrize("key", ["layers", "input_mean", "class_names", "timesteps"])
@pytest.mark.parametrize(
    "value",
    ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, '{"a": [1e999]}'],
    ids=["lists", "tables", "digits", "infinite"],
)
def test_what_a_model_says_of_itself(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "bomb.onnx"
    nodes = [onnx.helper.make_node("Unsqueeze", ["input", "axis"], ["logits"])]
    if value.startswith('{"a": [') and key == "class_names":
        value = "7"  # names may be anything that can be listed
    bombs.onnx_of(path, nodes, {"axis": np.array([0])}, **{key: value, "input_std": "[1.0]"})
    refused(lambda: run_graph(path, data="digits"), str(path))
