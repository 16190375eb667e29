"""Data sets: their splits and statistics, where Fashion-MNIST is found, and damaged files."""

import gzip
import hashlib
import http.server
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tser.checkpoints import load_run_data
from tser.config_file import dump_config, load_config
from tser.data import DATASETS, ArraySplit, ImageData, fashion_mnist, idx, load_data
from tser.data.images import channel_statistics
from tser.data.stratify import hashed_order, stratified_take
from tser.errors import InputFileError, UsageError
from tser.files import write_text
from tser.runs import Run

TRAIN, TEST = 48, 20  # images of the small Fashion-MNIST
SPLITS = ("train", "val", "test")
# SHA-256 of the positions in the file: a published accuracy is one on these very images.
DIGITS_SPLIT = {
    "train": "75cef940bcf7fc92",
    "val": "b6aab53eb93c7d98",
    "test": "309c53f57631752a",
}


# --- the rule for stratified choices -------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 50, 333, 1000])
def test_stratified_take_keeps_the_shares(count: int) -> None:
    labels = np.array([0] * 500 + [1] * 300 + [2] * 150 + [3] * 50)
    labels = labels[hashed_order(1000, "shares")]
    taken = stratified_take(labels, count)
    assert len(set(taken.tolist())) == count
    assert taken.tolist() == sorted(taken.tolist())
    shares = np.bincount(labels[taken], minlength=4)
    assert np.abs(shares - count * np.bincount(labels) / 1000).max() <= 1


def test_stratified_take_is_nested_and_takes_the_first_of_each_class() -> None:
    labels = np.array([2, 0, 1, 0, 0, 2, 1, 0, 0, 2])
    chosen = [set(stratified_take(labels, count).tolist()) for count in range(11)]
    for fewer, more in pairwise(chosen):
        assert fewer < more
    for taken in chosen:
        for label in range(3):
            members = np.flatnonzero(labels == label).tolist()
            kept = [member for member in members if member in taken]
            assert kept == members[: len(kept)]


@pytest.mark.parametrize("count", [-1, 4])
def test_stratified_take_refuses_an_impossible_count(count: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 3, got {count}"):
        stratified_take(np.array([0, 1, 1]), count)


def test_hashed_order_is_a_fixed_permutation() -> None:
    assert hashed_order(8, "tser").tolist() == [6, 4, 3, 0, 7, 5, 1, 2]
    assert sorted(hashed_order(1000, "a").tolist()) == list(range(1000))
    assert hashed_order(1000, "a").tolist() != hashed_order(1000, "b").tolist()


# --- digits --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


def test_digits_shapes_and_counts(digits: ImageData) -> None:
    assert [len(getattr(digits, split)) for split in SPLITS] == [1097, 200, 500]
    assert digits.image_shape == (1, 8, 8)
    assert digits.num_classes == 10
    assert digits.class_names[3] == "3"
    for split in (digits.train, digits.val, digits.test):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.images.shape == (len(split), 1, 8, 8)
    assert digits.max_value == int(digits.train.images.max()) == 16


def test_digits_are_stratified(digits: ImageData) -> None:
    totals = sum(getattr(digits, split).labels.bincount(minlength=10) for split in SPLITS)
    for name in SPLITS:
        split = getattr(digits, name)
        fair = totals * len(split) / 1797
        assert (split.labels.bincount(minlength=10) - fair).abs().max() <= 1.5


def test_digits_split_is_a_partition_of_the_file_and_does_not_change(digits: ImageData) -> None:
    with (files("tser") / "assets" / "digits.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        images, labels = stored["images"], stored["labels"]
    position = {image.tobytes(): at for at, image in enumerate(images)}
    assert len(position) == 1797  # no image occurs twice, so its bytes say where it stands
    indices = {}
    for name in SPLITS:
        split = getattr(digits, name)
        indices[name] = [position[image.numpy().tobytes()] for image in split.images]
        assert indices[name] == sorted(indices[name])
        assert labels[indices[name]].tolist() == split.labels.tolist()
    assert sorted(at for part in indices.values() for at in part) == list(range(1797))
    digests = {
        name: hashlib.sha256(",".join(map(str, at)).encode()).hexdigest()[:16]
        for name, at in indices.items()
    }
    assert digests == DIGITS_SPLIT


def test_digits_asset_is_scikit_learns() -> None:
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    bunch = sklearn_datasets.load_digits()
    with (files("tser") / "assets" / "digits.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        assert (stored["images"] == bunch.images).all()
        assert (stored["labels"] == bunch.target).all()
        assert stored["images"].dtype == stored["labels"].dtype == np.uint8


def test_digits_asset_is_small_and_attributed() -> None:
    assets = files("tser") / "assets"
    assert len((assets / "digits.npz").read_bytes()) < 100_000
    attribution = (assets / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for word in ("CC BY 4.0", "10.24432/C50P49", "Alpaydin", "Kaynak", "1998"):
        assert word in attribution


def test_digits_need_neither_torchvision_nor_home_nor_a_data_folder(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tser.data import load_data\n"
        "print(len(load_data('digits', Path('nowhere')).train), 'torchvision' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1097", "False"]


# --- statistics ----------------------------------------------------------------------------


def test_normalised_training_images_have_mean_0_and_std_1(digits: ImageData) -> None:
    normal = digits.normalise(digits.train.images)
    assert normal.dtype == torch.float32
    assert normal.shape == digits.train.images.shape
    assert abs(float(normal.double().mean())) < 1e-6
    assert abs(float(normal.double().std(correction=0)) - 1) < 1e-6


def test_statistics_are_per_channel_and_of_scaled_values() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 6, 5), dtype=torch.uint8, generator=generator)
    images[:, 1] //= 4
    mean, std = channel_statistics(images, 255)
    oracle = images.double() / 255
    assert mean == pytest.approx(oracle.mean(dim=(0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(oracle.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_a_constant_channel_normalises_to_zero() -> None:
    images = torch.full((4, 1, 2, 2), 8, dtype=torch.uint8)
    split = ArraySplit(images, torch.zeros(4, dtype=torch.int64))
    mean, std = channel_statistics(images, 16)
    assert (mean, std) == ((0.5,), (1.0,))
    data = ImageData("flat", ("a",), split, split, split, 16, mean, std)
    assert not data.normalise(images).any()


def test_normalise_is_the_documented_formula_and_leaves_its_input(digits: ImageData) -> None:
    batch = digits.test.images[:7].clone()
    mean, std = np.float32(digits.mean[0]), np.float32(digits.std[0])
    expected = (batch.numpy().astype(np.float32) / np.float32(16) - mean) / std
    assert (digits.normalise(batch).numpy() == expected).all()
    assert torch.equal(batch, digits.test.images[:7])


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 9, dtype=torch.uint8), torch.zeros(2, 8, 8)],
)
def test_normalise_refuses_other_images(digits: ImageData, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[B, 1, 8, 8\], got"):
        digits.normalise(images)


def test_split_refuses_what_does_not_belong_together() -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"labels must be int64 \[3\]"):
        ArraySplit(images, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, C, H, W\]"):
        ArraySplit(images.float(), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"uint8 or float32 \[N, T, C, H, W\], got torch.float64"):
        ArraySplit(images[:, None].double(), torch.zeros(3, dtype=torch.int64))


# --- names and limits ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean 'digits'"),
        ("FashionMNIST", "did you mean 'fashion-mnist'"),
        ("fashion_mnist", "did you mean 'fashion-mnist'"),
        ("", "known are digits, fashion-mnist"),
        ("zzz", "known are digits, fashion-mnist"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        load_data(name)
    assert all(known in str(caught.value) for known in DATASETS)
    assert caught.value.exit_code == 2


def test_limit_train_keeps_the_shares_and_the_other_splits(digits: ImageData) -> None:
    limited = load_data("digits", limit_train=100)
    counts = limited.train.labels.bincount(minlength=10)
    assert len(limited.train) == 100
    assert ((counts >= 9) & (counts <= 11)).all()
    assert torch.equal(limited.val.images, digits.val.images)
    assert torch.equal(limited.test.labels, digits.test.labels)
    assert abs(float(limited.normalise(limited.train.images).mean())) < 1e-6
    whole = load_data("digits", limit_train=1097)
    assert torch.equal(whole.train.images, digits.train.images)
    assert whole.mean == digits.mean


@pytest.mark.parametrize("limit", [0, -5, 1098])
def test_an_impossible_limit_is_refused(limit: int) -> None:
    with pytest.raises(UsageError, match=f"from 1 to 1097 for digits, got {limit}"):
        load_data("digits", limit_train=limit)


# --- Fashion-MNIST: a small set in the exact format on disk ----------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def write_set(folder: Path, *, packed: bool) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        content = {
            f"{part}-images-idx3-ubyte": rng.integers(0, 256, (count, 28, 28)),
            f"{part}-labels-idx1-ubyte": np.arange(count) * 7 % 10,
        }
        for name, array in content.items():
            write_file(folder / (name + (".gz" if packed else "")), idx_bytes(array))
    return folder


def write_file(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.suffix == ".gz" else content)


def content_of(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def official() -> Any:
    return fashion_mnist._torchvision_class()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no data set, no network, and an empty home folder, which is returned."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("TSER_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(official(), "mirrors", ["http://127.0.0.1:9/"])  # nobody listens
    return home


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("layout", ["", "raw", "FashionMNIST/raw", "fashion-mnist"])
def test_fashion_mnist_from_a_root(nowhere: Path, layout: str, packed: bool) -> None:
    root = nowhere / "data"
    folder = write_set(root / layout, packed=packed)
    before = snapshot(root)
    data = load_data("fashion-mnist", root)
    assert [len(getattr(data, split)) for split in SPLITS] == [44, 4, TEST]
    assert data.image_shape == (1, 28, 28)
    assert data.class_names[9] == "Ankle boot"
    assert data.max_value == 255
    suffix = ".gz" if packed else ""
    test_images = content_of(folder / f"t10k-images-idx3-ubyte{suffix}")[16:]
    assert data.test.images.numpy().tobytes() == test_images
    assert data.test.labels.tolist() == [at * 7 % 10 for at in range(TEST)]
    assert snapshot(root) == before


def test_fashion_mnist_split_is_stratified_disjoint_and_fixed(nowhere: Path) -> None:
    data = load_data("fashion-mnist", write_set(nowhere / "data", packed=False))
    images = content_of(nowhere / "data" / "train-images-idx3-ubyte")[16:]
    position = {images[at * 784 : at * 784 + 784]: at for at in range(TRAIN)}
    val = [position[image.numpy().tobytes()] for image in data.val.images]
    train = [position[image.numpy().tobytes()] for image in data.train.images]
    # The labels are 0 7 4 1 8 5 2 9 6 3, over and over, cut after 48: every class but 6 and 3 has
    # five members, so the first members of the lowest four of them have the smallest keys.
    assert val == [0, 2, 3, 6]
    assert data.val.labels.tolist() == [0, 4, 1, 2]
    assert sorted(train + val) == list(range(TRAIN))


def test_the_official_60000_give_a_fixed_validation_split_of_500_per_class() -> None:
    labels = np.arange(60_000) * 7 % 10
    val = stratified_take(labels, 60_000 // fashion_mnist.VAL_SHARE)
    assert np.bincount(labels[val]).tolist() == [500] * 10
    assert val.tolist() == list(range(5000))  # balanced in every ten: the first 500 of each


def test_places_are_tried_in_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, cache = nowhere / "named", nowhere / ".cache" / "tser"
    write_set(fashion_mnist.DEBIAN, packed=True)
    assert found_in() == fashion_mnist.DEBIAN
    write_set(cache / "FashionMNIST" / "raw", packed=False)
    assert found_in() == cache / "FashionMNIST" / "raw"
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere / "xdg"))
    write_set(nowhere / "xdg" / "tser", packed=True)
    assert found_in() == nowhere / "xdg" / "tser"
    monkeypatch.setenv("TSER_DATA", "~/named")
    assert found_in() == nowhere / "xdg" / "tser"  # an empty place is passed over
    write_set(named, packed=True)
    assert found_in() == named
    with pytest.raises(UsageError, match="does not exist"):
        load_data("fashion-mnist", nowhere / "elsewhere")  # a root is the only place


def found_in() -> Path:
    return fashion_mnist._in_usual_places()[0].parent


@pytest.mark.usefixtures("nowhere")
def test_without_home_the_debian_package_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    write_set(fashion_mnist.DEBIAN, packed=True)
    for path in fashion_mnist.DEBIAN.iterdir():
        path.chmod(0o444)
    fashion_mnist.DEBIAN.chmod(0o555)
    try:
        assert len(load_data("fashion-mnist").test) == TEST
    finally:
        fashion_mnist.DEBIAN.chmod(0o755)


def test_offline_it_says_where_it_looked_and_what_to_run(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TSER_DATA", str(nowhere / "named"))
    with pytest.raises(UsageError) as caught:
        load_data("fashion-mnist")
    message = str(caught.value)
    for place in (nowhere / "named", nowhere / ".cache" / "tser", fashion_mnist.DEBIAN):
        assert str(place) in message
    assert "refused" in message
    assert "`apt install dataset-fashion-mnist`" in message
    assert "--data-root" in message
    assert "\n" not in message
    assert capsys.readouterr() == ("", "")
    assert snapshot(nowhere) == {}


@pytest.mark.parametrize("home", ["", "file"])
def test_no_home_to_download_to(nowhere: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    (nowhere / "file").write_text("in the way")
    monkeypatch.setenv("HOME", home and str(nowhere / home))
    reason = "Not a directory" if home else "no home folder"
    with pytest.raises(UsageError, match=f"could not be downloaded .*{reason}"):
        load_data("fashion-mnist")


@pytest.fixture
def mirror(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the packed set, served on this machine as torchvision's mirror."""
    folder = write_set(nowhere.parent / "mirror", packed=True)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(official(), "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    resources = [
        (f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest())  # noqa: S324
        for name in fashion_mnist.FILES
    ]
    monkeypatch.setattr(official(), "resources", resources)
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_fills_the_cache_once(
    nowhere: Path, mirror: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_data("fashion-mnist")
    assert len(data.test) == TEST
    raw = nowhere / ".cache" / "tser" / "FashionMNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(fashion_mnist.FILES)
    assert [path.name for path in (nowhere / ".cache" / "tser").iterdir()] == ["FashionMNIST"]
    assert capsys.readouterr() == ("", "")  # quiet without a terminal
    shutil.rmtree(mirror)
    assert torch.equal(load_data("fashion-mnist").test.images, data.test.images)


def test_nothing_is_downloaded_for_a_run_from_elsewhere(nowhere: Path, mirror: Path) -> None:
    run = Run(nowhere / "run")
    write_text(run.config_file, dump_config(load_config("fashion-mnist")))
    with pytest.raises(UsageError, match=r"downloaded \(only tser distill .*--data-root"):
        load_run_data(run)
    assert list(snapshot(nowhere)) == [str(run.config_file)]
    load_data("fashion-mnist")
    assert len(load_run_data(run).test) == TEST


def test_a_download_with_other_content_is_not_kept(nowhere: Path, mirror: Path) -> None:
    write_file(mirror / "t10k-labels-idx1-ubyte.gz", b"other")
    with pytest.raises(UsageError, match=r"could not be downloaded .*corrupted"):
        load_data("fashion-mnist")
    assert snapshot(nowhere) == {}


# --- Fashion-MNIST: folders and files that are not right -------------------------------------


def test_a_missing_folder(nowhere: Path) -> None:
    with pytest.raises(UsageError, match=f"{nowhere / 'none'} does not exist"):
        load_data("fashion-mnist", nowhere / "none")
    (nowhere / "file").touch()
    with pytest.raises(UsageError, match=f"{nowhere / 'file'} does not exist"):
        load_data("fashion-mnist", nowhere / "file")


def test_an_empty_or_incomplete_folder(nowhere: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_data("fashion-mnist", nowhere)
    assert all(name in str(caught.value) for name in (str(nowhere), *fashion_mnist.FILES))
    write_set(nowhere, packed=True)
    (nowhere / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(UsageError, match="does not hold Fashion-MNIST"):
        load_data("fashion-mnist", nowhere)
    (nowhere / "t10k-images-idx3-ubyte.gz").mkdir()
    with pytest.raises(UsageError, match="does not hold Fashion-MNIST"):
        load_data("fashion-mnist", nowhere)


def change_magic(content: bytes) -> bytes:
    return content[:2] + b"\x0d" + content[3:]


def announce(*sizes: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:4] + struct.pack(f">{len(sizes)}I", *sizes) + b"\x01" * 40


IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FAULTS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    (IMAGES, lambda content: content[:-1], "is cut short: its header announces 37,648 bytes"),
    (IMAGES, lambda content: content + b"x", "is too long"),
    (IMAGES, lambda content: content[:9], "is cut short inside its header"),
    (IMAGES, lambda _: b"", "begins with nothing, not 00000803"),
    (IMAGES, change_magic, "is not an idx file of images: it begins with 00000d03"),
    (IMAGES, announce(0, 28, 28), "announces 0 x 28 x 28 values"),
    (IMAGES, announce(2**32 - 1, 2**32 - 1, 28), "which cannot be"),
    (IMAGES, lambda _: idx_bytes(np.zeros((1, 28, 28))), "holds 1 images but"),
    (IMAGES, lambda _: idx_bytes(np.zeros((TRAIN, 8, 9))), "images of 8 x 9 pixels, not 28 x 28"),
    (IMAGES, lambda _: idx_bytes(np.zeros(TRAIN)), "is not an idx file of images"),
    (LABELS, lambda content: content[:-3], "is cut short: its header announces 28 bytes"),
    (LABELS, lambda _: idx_bytes(np.zeros((TEST, 28, 28))), "is not an idx file of labels"),
    (LABELS, lambda _: idx_bytes(np.full(TEST, 10)), "holds the label 10, beyond 0..9"),
    (LABELS, announce(40), "but .* 40 labels"),
]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("name", "damage", "message"), FAULTS)
def test_a_damaged_file_is_named(
    nowhere: Path, name: str, damage: Callable[[bytes], bytes], message: str, packed: bool
) -> None:
    path = write_set(nowhere, packed=packed) / (name + (".gz" if packed else ""))
    write_file(path, damage(content_of(path)))
    expect_refusal(nowhere, path, message)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:5],
        lambda packed: packed[:40] + bytes(40) + packed[80:],
        lambda packed: packed[:-8] + bytes(8),
        lambda _: b"<html>not found</html>",
    ],
    ids=["half", "stub", "hole", "checksum", "page"],
)
def test_a_damaged_gz_is_named(nowhere: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_set(nowhere, packed=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    expect_refusal(nowhere, path, "damaged or cut short|replace it")


def test_swapped_files_are_named(nowhere: Path) -> None:
    folder = write_set(nowhere, packed=False)
    train, test = folder / "train-labels-idx1-ubyte", folder / "t10k-labels-idx1-ubyte"
    train.rename(folder / "kept")
    test.rename(train)
    (folder / "kept").rename(test)
    expect_refusal(folder, train, "48 images but .* 20 labels")


def test_too_few_images_to_split(nowhere: Path) -> None:
    folder = write_set(nowhere, packed=False)
    write_file(folder / IMAGES, idx_bytes(np.zeros((1, 28, 28))))
    write_file(folder / "train-labels-idx1-ubyte", idx_bytes(np.zeros(1)))
    expect_refusal(folder, folder / IMAGES, "single image")


def expect_refusal(root: Path, path: Path, message: str) -> None:
    with pytest.raises(InputFileError, match=message) as caught:
        load_data("fashion-mnist", root)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_unpacking_without_room_is_a_usage_error(nowhere: Path) -> None:
    folder = write_set(nowhere, packed=True)
    with pytest.raises(UsageError, match=r"cannot unpack .* No such file or directory"):
        idx.read_labels(folder / f"{LABELS}.gz", nowhere / "gone")


def test_a_small_file_that_unpacks_to_much_is_stopped(nowhere: Path) -> None:
    folder = write_set(nowhere, packed=True)
    path = folder / f"{IMAGES}.gz"
    write_file(path, idx_bytes(np.zeros((TRAIN, 28, 28))) + bytes(64 << 20))
    scratch = nowhere / "scratch"
    scratch.mkdir()
    with pytest.raises(InputFileError, match="is too long"):
        idx.read_images(path, scratch)
    assert (scratch / IMAGES).stat().st_size <= 2 << 20


def test_debians_own_files_are_read(tmp_path: Path) -> None:
    image, label = (
        fashion_mnist.DEBIAN / f"t10k-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")
    )
    if not image.is_file():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    assert idx.read_images(image, tmp_path).shape == (10_000, 28, 28)
    assert idx.read_labels(label, tmp_path).bincount().tolist() == [1000] * 10
