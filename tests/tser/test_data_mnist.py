"""MNIST: where it is found, and that Fashion-MNIST is never taken for it, nor the reverse."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from tser.data import fashion_mnist, load_data, mnist, places
from tser.errors import InputFileError, UsageError

TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def write_set(folder: Path, seed: int, *, packed: bool = False) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 48), ("t10k", 20)):
        content = {
            f"{part}-images-idx3-ubyte": rng.integers(0, 256, (count, 28, 28)),
            f"{part}-labels-idx1-ubyte": rng.permutation(count) % 10,
        }
        for name, array in content.items():
            path, data = folder / (name + (".gz" if packed else "")), idx_bytes(array)
            path.write_bytes(gzip.compress(data, 1) if packed else data)
    return folder


def md5s(folder: Path) -> tuple[str, ...]:
    return tuple(
        hashlib.md5((folder / name).read_bytes()).hexdigest()  # noqa: S324
        for name in mnist.FILES
    )


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data sets; its home folder is returned."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("TSER_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(places.torchvision_class("MNIST"), "mirrors", ["http://127.0.0.1:9/"])
    return tmp_path


@pytest.fixture
def published(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two small sets that count as the official ones of their names."""
    folders = {name: write_set(nowhere / name, seed) for seed, name in enumerate(TITLES)}
    official = {TITLES[name]: md5s(folder) for name, folder in folders.items()}
    monkeypatch.setattr(mnist, "OFFICIAL", official)
    return folders


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw", "mnist"])
def test_mnist_from_a_root(nowhere: Path, layout: str, packed: bool) -> None:
    write_set(nowhere / "data" / layout, 0, packed=packed)
    data = load_data("mnist", nowhere / "data")
    assert [len(split) for split in (data.train, data.val, data.test)] == [44, 4, 20]
    assert data.name == "mnist"
    assert data.class_names == tuple("0123456789")
    assert data.image_shape == (1, 28, 28)


def test_mnist_from_the_named_folder_and_the_cache(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(nowhere / ".cache" / "tser" / "MNIST" / "raw", 0)
    cached = load_data("mnist")
    monkeypatch.setenv("TSER_DATA", str(nowhere / "named"))
    assert load_data("mnist").mean == cached.mean
    write_set(nowhere / "named", 1)
    assert load_data("mnist").mean != cached.mean


@pytest.mark.usefixtures("nowhere")
def test_offline_it_says_where_it_looked() -> None:
    with pytest.raises(UsageError, match=r"MNIST was not found in .*tser and could not") as caught:
        load_data("mnist")
    assert "--data-root" in str(caught.value)
    assert "apt" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_root_without_it_says_how_to_get_it(nowhere: Path) -> None:
    with pytest.raises(UsageError, match="does not hold MNIST: .* to have it downloaded"):
        load_data("mnist", nowhere)


@pytest.mark.parametrize("name", TITLES)
def test_the_official_files_are_read_as_what_they_are(
    published: dict[str, Path], name: str
) -> None:
    assert load_data(name, published[name]).name == name


@pytest.mark.parametrize(
    ("name", "other"), [("mnist", "fashion-mnist"), ("fashion-mnist", "mnist")]
)
def test_the_other_set_is_refused_by_name(
    published: dict[str, Path], name: str, other: str
) -> None:
    message = f"is the file of {TITLES[other]}, not of {TITLES[name]}"
    with pytest.raises(InputFileError, match=message) as caught:
        load_data(name, published[other])
    assert str(published[other] / mnist.FILES[0]) in str(caught.value)


def test_one_file_of_the_other_set_is_named(published: dict[str, Path]) -> None:
    strange = published["mnist"] / mnist.FILES[3]
    strange.write_bytes((published["fashion-mnist"] / mnist.FILES[3]).read_bytes())
    with pytest.raises(InputFileError, match=f"{strange} is the file of Fashion-MNIST"):
        load_data("mnist", published["mnist"])


@pytest.mark.parametrize("name", mnist.FILES)
def test_a_changed_byte_beside_official_files_is_named(
    published: dict[str, Path], name: str
) -> None:
    path = published["mnist"] / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputFileError, match=f"{path} is not the official file of MNIST"):
        load_data("mnist", published["mnist"])


def test_debians_files_are_official(tmp_path: Path) -> None:
    label = fashion_mnist.DEBIAN / f"{mnist.FILES[3]}.gz"
    if not label.is_file():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    content = gzip.decompress(label.read_bytes())
    assert hashlib.md5(content).hexdigest() == mnist.OFFICIAL["Fashion-MNIST"][3]  # noqa: S324
    write_set(tmp_path, 0)
    (tmp_path / mnist.FILES[3]).write_bytes(content)
    (tmp_path / mnist.FILES[2]).write_bytes(idx_bytes(np.zeros((10_000, 28, 28))))
    with pytest.raises(InputFileError, match="is the file of Fashion-MNIST, not of MNIST"):
        load_data("mnist", tmp_path)
