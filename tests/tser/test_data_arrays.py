"""Data sets of the user's own, as .npz files."""

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tser.data import load_data
from tser.errors import InputFileError

N, K = 60, 3
X = np.random.default_rng(0).integers(0, 256, (N, 2, 5, 4), dtype=np.uint8)
Y = np.arange(N) % K


def write(folder: Path, **arrays: Any) -> Path:
    path = folder / "toy.npz"
    np.savez(path, **{"x": X, "y": Y, **arrays})
    return path


def positions(images: torch.Tensor) -> list[int]:
    known = {image.tobytes(): at for at, image in enumerate(X)}
    return [known[image.numpy().tobytes()] for image in images]


def expect_refusal(path: Path, message: str) -> None:
    with pytest.raises(InputFileError, match=message) as caught:
        load_data(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_the_split_is_70_10_20_stratified_and_fixed(tmp_path: Path) -> None:
    data = load_data(str(write(tmp_path)))
    parts = [positions(split.images) for split in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [42, 6, 12]
    assert sorted(at for part in parts for at in part) == list(range(N))
    for part, split in zip(parts, (data.train, data.val, data.test), strict=True):
        assert part == sorted(part)
        assert split.labels.tolist() == Y[part].tolist()
        assert split.labels.bincount().tolist() == [len(part) // K] * K
    # Of each class, in the order of the hashes, the first 4 of 20 are for test, 2 for validation.
    order = sorted(range(N), key=lambda at: hashlib.sha256(f"tser-npz:{at}".encode()).digest())
    classes = [[at for at in order if at % K == label] for label in range(K)]
    assert parts[2] == sorted(at for members in classes for at in members[:4])
    assert parts[1] == sorted(at for members in classes for at in members[4:6])
    assert parts[1] == [14, 29, 46, 48, 51, 55]
    assert data.class_names == ("0", "1", "2")
    assert data.image_shape == (2, 5, 4)
    assert data.max_value == 255
    assert abs(float(data.normalise(data.train.images).mean())) < 1e-6


def test_a_test_set_of_its_own_is_kept_whole(tmp_path: Path) -> None:
    path = write(tmp_path, x_test=X[:7], y_test=Y[:7].astype(np.uint8), class_names=["a", "b", "c"])
    data = load_data(str(path))
    assert [len(data.train), len(data.val), len(data.test)] == [54, 6, 7]
    assert positions(data.test.images) == list(range(7))
    assert data.test.labels.tolist() == Y[:7].tolist()
    assert data.class_names == ("a", "b", "c")


def test_one_channel_may_be_left_out_and_compression_used(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    np.savez_compressed(path, x=X[:, 0], y=Y.astype(">i2"))
    data = load_data(str(path))
    assert data.image_shape == (1, 5, 4)


FRAMES = np.random.default_rng(1).integers(0, 4, (N, 3, 2, 5, 4))  # [N, T, C, H, W]


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (lambda x: x.astype(np.uint8), torch.uint8),
        (lambda x: x, torch.uint8),
        (lambda x: x.astype(">i2"), torch.uint8),
        (lambda x: x > 1, torch.uint8),
        (lambda x: x * 100, torch.float32),
        (lambda x: x - 1, torch.float32),
        (lambda x: x.astype(np.float64) / 3, torch.float32),
        (lambda x: x.astype(np.float16), torch.float32),
    ],
)
def test_frames_are_kept_as_they_are_stored(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], dtype: torch.dtype
) -> None:
    x = change(FRAMES)
    data = load_data(str(write(tmp_path, x=x, x_test=x[:7], y_test=Y[:7])))
    assert (data.image_shape, data.frames) == ((2, 5, 4), 3)
    assert data.test.images_at(torch.arange(7)).dtype == dtype
    shown = data.normalise(data.test.images_at(torch.tensor([5, 2])))
    assert shown.dtype == torch.float32
    assert np.array_equal(shown.numpy(), x[[5, 2]].astype(np.float32))
    fewer = load_data(str(tmp_path / "toy.npz"), limit_train=9)
    assert (len(fewer.train), fewer.mean, fewer.std) == (9, (0.0, 0.0), (1.0, 1.0))


def test_normalising_frames_leaves_them_as_they_were(tmp_path: Path) -> None:
    path = write(tmp_path, x=FRAMES / 2)
    data = dataclasses.replace(load_data(str(path)), mean=(0.5, 1.0), std=(2.0, 4.0))
    frames = data.val.images_at(torch.arange(3))
    before = frames.clone()
    shown = data.normalise(frames)
    assert torch.equal(frames, before)
    assert torch.equal(shown[:, :, 1], (before[:, :, 1] - 1) / 4)
    with pytest.raises(ValueError, match=r"uint8 or float32 \[B, 3, 2, 5, 4\], got torch.float64"):
        data.normalise(frames.double())


def test_still_images_have_no_frames(tmp_path: Path) -> None:
    assert load_data(str(write(tmp_path))).frames is None


def test_names_are_relative_to_the_working_directory_or_to_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    assert load_data("toy.npz", tmp_path).name == "toy.npz"
    monkeypatch.chdir(tmp_path)
    assert len(load_data("toy.npz", limit_train=9).train) == 9
    with pytest.raises(InputFileError, match=r"there is no data file .*elsewhere/toy\.npz"):
        load_data("toy.npz", tmp_path / "elsewhere")
    monkeypatch.chdir("elsewhere")
    with pytest.raises(InputFileError, match=r"there is no data file toy\.npz"):
        load_data("toy.npz")


def test_a_rare_class_stays_in_training(tmp_path: Path) -> None:
    labels = np.zeros(N, dtype=np.int64)
    labels[17] = 1
    data = load_data(str(write(tmp_path, y=labels)))
    assert int(data.train.labels.sum()) == 1


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(np.float32 if isinstance(value, float) else np.int64)
    changed.flat[3] = value
    return changed


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X.astype(np.float32) / 255}, r"x is float32 of 0\.\.1, not uint8; store \(x \* 255"),
        ({"x": X.astype(np.float64)}, r"x is float64, not uint8; store values of 0\.\.255"),
        ({"x": X.astype(np.int64)}, "x is int64, not uint8"),
        ({"x": X > 99}, "x is bool, not uint8"),
        ({"x": with_value(X, float("nan"))}, "x holds NaN"),
        ({"x": X[:, None, None, None]}, r"store images as .*, frames as \[N, T, C, H, W\]"),
        ({"x": with_value(X[:, None], float("nan"))}, "x holds NaN, infinite or too large values"),
        ({"x": with_value(X[:, None], float("inf"))}, "x holds NaN, infinite or too large values"),
        ({"x": X[:, None].astype(float) + 1e300}, "x holds NaN, infinite or too large values"),
        ({"x": X[:, None].astype(complex)}, "x is complex128, not numbers; store event counts"),
        ({"x": np.zeros((N, 4, 8, 8, 2), dtype=np.uint8)}, r"looks like \[N, T, H, W, C\]"),
        ({"x": X[:, None], "x_test": X[:5], "y_test": Y[:5]}, "store both in one shape"),
        ({"x": X.reshape(N, -1)}, r"x is of shape \(60, 40\); store images as"),
        ({"x": X[:, :, :0]}, "x is of shape .*; store images as"),
        ({"x": np.zeros((N, 8, 9, 3), dtype=np.uint8)}, r"looks like \[N, H, W, C\]"),
        ({"x": np.zeros((N, 8, 8, 1), dtype=np.uint8)}, r"looks like \[N, H, W, C\]"),
        ({"y": Y[:-1]}, r"y is of shape \(59,\) for 60 images"),
        ({"y": Y[:, None]}, r"y is of shape \(60, 1\)"),
        ({"y": Y.astype(np.float32)}, "y is float32, not integers"),
        ({"y": with_value(Y, float("nan"))}, "y holds NaN"),
        ({"y": Y == 1}, "y is bool, not integers"),
        ({"y": with_value(Y, -1)}, "y holds the label -1"),
        ({"y": with_value(Y, 7)}, "y holds the label 7 but no 3"),
        ({"y": with_value(Y, 2**40)}, "y holds the label 1099511627776"),
        ({"y": Y + 1}, "y holds the label 3 but no 0"),
        ({"y": Y * 0}, "all labels in y are 0"),
        ({"class_names": ["a", "b"]}, r"y holds the label 2, beyond 0\.\.1"),
        ({"class_names": [1, 2, 3]}, "class_names is int64"),
        ({"x_test": X[:5]}, "lacks the array 'y_test'"),
        ({"y_test": Y[:5]}, "lacks the array 'x_test'"),
        ({"x_test": X[:5], "y_test": Y[:4]}, "y_test is of shape"),
        ({"x_test": X[:5], "y_test": Y[:5] + 1}, r"y_test holds the label 3, beyond 0\.\.2"),
        ({"x_test": X[:5, :, :4], "y_test": Y[:5]}, "store both in one shape"),
        ({"x_test": X[:5] / 255, "y_test": Y[:5]}, "x_test is float64 of 0..1"),
        ({"x": X[:9], "y": Y[:9]}, "holds 9 images, too few to split"),
        ({"y": np.array([None] * N)}, "holds Python objects, which are not read"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    expect_refusal(write(tmp_path, **arrays), message)


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    np.savez(path, images=X, y=Y)
    expect_refusal(path, "lacks the array 'x'")
    np.savez(path, x=X, labels=Y)
    expect_refusal(path, "lacks the array 'y'")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 255
    with (tmp_path / "toy.npy").open("wb") as file:
        np.save(file, X)
    single = (tmp_path / "toy.npy").read_bytes()
    for damaged in (
        content[:-40],
        content[: len(content) // 2],
        bytes(changed),
        single,
        b"",
        b"PK",
    ):
        path.write_bytes(damaged)
        expect_refusal(path, "is damaged or not a .npz file of plain arrays")
    path.unlink()
    path.mkdir()
    expect_refusal(path, "cannot be read: Is a directory")


def test_a_header_that_announces_too_much_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999, 9), }"
    head += b" " * (118 - len(head) - 1) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + bytes((118, 0)) + head + b"1234")
        archive.writestr("y.npy", b"")
    expect_refusal(path, "is damaged or not a .npz file")
