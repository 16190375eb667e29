"""Folders of images in the manner of ImageNet: splits, what is shown, and damaged files."""

import hashlib
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.graphs import lif, view
from tser.augment import draw
from tser.config import DataConfig
from tser.data import ImageData, load_configured, load_data
from tser.data.feed import TrainingFeed, batches_in_order
from tser.deploy.inputs import data_for_graph
from tser.errors import InputFileError, UsageError

CLASSES = ("n01440764", "n01443537", "n01484850")
COLOURS = ((250, 10, 10), (10, 250, 10), (10, 10, 250))
TRAIN, VAL = 20, 4  # images of each class
SIZE = 16


def write_image(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    """A photo of its class's colour, wider or higher than the size that is shown."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(SIZE, 3 * SIZE, 2)
    pixels = np.clip(np.array(colour) + generator.integers(-9, 10, (height, width, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_folder(root: Path, **counts: int) -> Path:
    for part, count in (counts or {"train": TRAIN, "val": VAL}).items():
        for label, (name, colour) in enumerate(zip(CLASSES, COLOURS, strict=True)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                ending = ("JPEG", "jpg", "png")[number % 3]
                write_image(folder / f"{name}_{number}.{ending}", colour, 100 * label + number)
    return root


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that no test may change."""
    return write_folder(tmp_path_factory.mktemp("folder") / "set")


@pytest.fixture
def own(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared, tmp_path / "set"))


def files(data: ImageData, split: str) -> list[str]:
    return [Path(bytes(name).decode()).name for name in getattr(data, split).files]


def expect_refusal(folder: Path, *parts: str) -> None:
    with pytest.raises(InputFileError) as caught:
        load_data(f"{folder}", size=SIZE)
    message = str(caught.value)
    assert all(part in message for part in (str(folder), *parts)), message
    assert "\n" not in message


# --- splits --------------------------------------------------------------------------------


def test_without_a_test_folder_val_is_the_test_split(shared: Path) -> None:
    data = load_data(str(shared), size=SIZE)
    assert data.class_names == CLASSES
    assert data.image_shape == (3, SIZE, SIZE)
    assert [len(data.train), len(data.val), len(data.test)] == [57, 3, 12]
    test = {path.name for path in (shared / "val").glob("*/*")}
    train = {path.name for path in (shared / "train").glob("*/*")}
    assert {path.name for path in (shared / "val").rglob("*.*")} == test == set(files(data, "test"))
    assert set(files(data, "train")) | set(files(data, "val")) == train
    assert not set(files(data, "train")) & set(files(data, "val"))
    for split in ("train", "val", "test"):
        labels = getattr(data, split).labels.tolist()
        assert [CLASSES[label] for label in labels] == [f[:9] for f in files(data, split)]


def test_the_held_out_images_are_stratified_and_fixed(shared: Path) -> None:
    data = load_data(str(shared), size=SIZE)
    assert data.val.labels.tolist() == [0, 1, 2]

    def digest(path: Path) -> bytes:
        name = f"{path.parent.name}/{path.name}"
        return hashlib.sha256(f"tser-folder:{name}".encode()).digest()

    wanted = [min((shared / "train" / name).iterdir(), key=digest).name for name in CLASSES]
    assert files(data, "val") == wanted


def test_the_split_depends_on_names_not_on_where_the_folder_is(own: Path, shared: Path) -> None:
    assert files(load_data(str(own)), "val") == files(load_data(str(shared)), "val")


def test_a_test_folder_is_the_test_split(tmp_path: Path) -> None:
    data = load_data(str(write_folder(tmp_path, train=2, val=1, test=3)), size=SIZE)
    assert [len(data.train), len(data.val), len(data.test)] == [6, 3, 9]
    assert all("/test/" in bytes(name).decode() for name in data.test.files)


def test_limit_train_keeps_the_shares(shared: Path) -> None:
    data = load_data(str(shared), size=SIZE, limit_train=30)
    assert data.train.labels.bincount().tolist() == [10, 10, 10]
    assert len(data.test) == 12
    with pytest.raises(UsageError, match="from 1 to 57"):
        load_data(str(shared), limit_train=58)


def test_names_are_relative_to_the_working_directory_or_to_root(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(load_data("set", shared.parent).test) == 12
    monkeypatch.chdir(shared.parent)
    for name in ("set", "./set", "set/"):
        assert len(load_data(name).test) == 12
    with pytest.raises(UsageError, match="unknown data set 'sets'.*a folder with train/ and val/"):
        load_data("sets")
    with pytest.raises(InputFileError, match="there is no data folder sets/big"):
        load_data("sets/big")
    with pytest.raises(InputFileError, match="no data folder imagenet; give its path with --set"):
        load_data("imagenet")


def test_hidden_and_other_files_are_passed_over(own: Path) -> None:
    before = files(load_data(str(own)), "train")
    folder = own / "train" / CLASSES[0]
    (folder / f"._{CLASSES[0]}_1.JPEG").write_bytes(b"resource fork")
    (folder / "README.txt").write_text("not an image")
    (own / "train" / ".ipynb_checkpoints").mkdir()
    assert files(load_data(str(own)), "train") == before


# --- what is shown -------------------------------------------------------------------------


def test_images_are_decoded_scaled_and_normalised_as_imagenets(shared: Path) -> None:
    data = load_data(str(shared), size=SIZE)
    shown = data.test.images_at(torch.arange(12))
    assert shown.dtype == torch.uint8
    assert shown.shape == (12, 3, SIZE, SIZE)
    for image, label in zip(shown, data.test.labels, strict=True):
        mean = image.double().mean((1, 2))
        assert (mean - torch.tensor(COLOURS[int(label)])).abs().max() < 12
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    wanted = (shown[:, 1].double() / 255 - 0.456) / 0.224
    assert torch.allclose(data.normalise(shown)[:, 1].double(), wanted, atol=1e-5)


def test_the_middle_is_shown_at_256_to_224(tmp_path: Path) -> None:
    write_folder(tmp_path, train=3, val=1)
    pixels = np.zeros((28 * 2, 28 * 3, 3), dtype=np.uint8)  # 2 x 3 times the size
    pixels[:, 28 * 2 :] = 255
    Image.fromarray(pixels).save(tmp_path / "val" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG", quality=95)
    image = load_data(str(tmp_path), size=28).test.images_at(torch.tensor([0]))[0, 0]
    # 56 x 84 is scaled by 32/56 to 32 x 48; the middle 28 columns begin at 10, white at 32.
    assert (image[:, :21] < 60).all()
    assert (image[:, 24:] > 195).all()


def test_grey_and_palette_images_become_rgb(own: Path) -> None:
    folder = own / "val" / CLASSES[0]
    for number, (path, mode) in enumerate(zip(sorted(folder.iterdir()), "LP1C", strict=True)):
        name = {"C": "CMYK"}.get(mode, mode)
        with Image.open(path) as image:
            image.convert(name).save(path.with_name(f"{number}.{'jpg' if mode == 'C' else 'png'}"))
        path.unlink()
    shown = load_data(str(own), size=SIZE).test.images_at(torch.arange(4))
    assert shown.shape == (4, 3, SIZE, SIZE)


CHANGES = DataConfig(flip=True, auto_augment="imagenet", cutout=4, size=SIZE, shift=99)


def test_training_shows_random_parts_that_only_the_sample_decides(shared: Path) -> None:
    data = load_data(str(shared), size=SIZE)
    draws = draw(len(data.train), CHANGES, torch.Generator().manual_seed(0))

    def shown(positions: torch.Tensor) -> torch.Tensor:
        return data.train.augmented_at(positions, draws.select(positions), CHANGES)

    together = shown(torch.arange(20))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.cat([shown(at) for at in order.split(3)]), together[order])
    assert not torch.equal(together, data.train.images_at(torch.arange(20)))
    other = draw(len(data.train), CHANGES, torch.Generator().manual_seed(1))
    again = data.train.augmented_at(torch.arange(20), other.select(torch.arange(20)), CHANGES)
    assert not torch.equal(together, again)


def test_flip_mirrors_the_random_part(shared: Path) -> None:
    data = load_data(str(shared), size=SIZE)
    at = torch.arange(30)
    draws = draw(30, DataConfig(flip=True), torch.Generator().manual_seed(0))
    plain = data.train.augmented_at(at, draw(30, DataConfig(), torch.Generator()), DataConfig())
    still = DataConfig()
    unflipped = draw(30, still, torch.Generator().manual_seed(0))
    before = data.train.augmented_at(at, unflipped, still)
    after = data.train.augmented_at(at, draws, still)
    assert plain.shape == before.shape
    assert 5 < int(draws.flip.sum()) < 25
    assert torch.equal(after[draws.flip], before[draws.flip].flip(3))
    assert torch.equal(after[~draws.flip], before[~draws.flip])


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(shared: Path, workers: int) -> None:
    def shown(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        config = CHANGES.model_copy(update={"name": str(shared), "workers": count})
        data = load_configured(config)
        feed = TrainingFeed(data, config, 8, seed=5)
        assert data.workers == count
        augmented = [(batch.images, batch.labels) for batch in feed]
        return [*augmented, *batches_in_order(data, data.test, 5)]

    torch.manual_seed(0)
    alone = shown(0)
    after = torch.rand(1)
    torch.manual_seed(0)
    shared_out = shown(workers)
    assert torch.equal(torch.rand(1), after)  # starting them draws nothing from anybody else
    assert [len(labels) for _, labels in alone] == [8] * 7 + [5, 5, 2]
    for (images, labels), (images_too, labels_too) in zip(alone, shared_out, strict=True):
        assert torch.equal(images, images_too)
        assert torch.equal(labels, labels_too)


def test_workers_are_chosen_where_images_are_costly(shared: Path) -> None:
    assert load_configured(DataConfig(name=str(shared))).workers > 0
    assert load_configured(DataConfig(name=str(shared), workers=0)).workers == 0
    assert load_configured(DataConfig()).workers == 0
    assert load_configured(DataConfig(auto_augment="cifar10")).workers > 0
    assert load_configured(DataConfig(workers=3)).workers == 3


def test_images_are_brought_to_the_size_that_a_graph_takes(shared: Path) -> None:
    graph = view(
        (3, 12, 12),
        {"lif": lif((3, 12, 12))},
        input_mean="[0.5, 0.5, 0.5]",
        input_std="[1.0, 1.0, 1.0]",
    )
    data = data_for_graph(graph, "set", shared.parent, "net.nir")
    assert (data.image_shape, data.mean) == ((3, 12, 12), (0.5, 0.5, 0.5))
    wide = view((3, 12, 14), {"lif": lif((3, 12, 14))})
    with pytest.raises(UsageError, match=r"inputs of shape \(3, 12, 14\), images of 'set'"):
        data_for_graph(wide, "set", shared.parent, "net.nir")


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_missing_part_is_named(own: Path, part: str) -> None:
    shutil.rmtree(own / part)
    expect_refusal(own, f"has no folder {part}/")


def test_splits_with_other_classes_are_refused(own: Path) -> None:
    (own / "val" / CLASSES[1]).rename(own / "val" / "n99")
    expect_refusal(own, f"the class '{CLASSES[1]}' is in train/ but not in val/")
    (own / "val" / "n99").rename(own / "val" / CLASSES[1])
    shutil.copytree(own / "val" / CLASSES[1], own / "val" / "n99")
    expect_refusal(own, "the class 'n99' is in val/ but not in train/")
    shutil.rmtree(own / "val" / "n99")
    write_folder(own, test=1)
    shutil.rmtree(own / "test" / CLASSES[2])
    expect_refusal(own, f"the class '{CLASSES[2]}' is in train/ but not in test/")


def test_an_empty_class_is_named(own: Path) -> None:
    for path in (own / "train" / CLASSES[1]).iterdir():
        path.unlink()
    (own / "train" / CLASSES[1] / "notes.txt").touch()
    expect_refusal(own, f"train/{CLASSES[1]} holds no images (.jpg")


def test_a_flat_val_folder_is_refused(own: Path) -> None:
    for path in list((own / "val").glob("*/*")):
        path.rename(own / "val" / path.name)
    for name in CLASSES:
        (own / "val" / name).rmdir()
    expect_refusal(own, "val has no class folders; sort its images")


def test_a_single_class_is_refused(own: Path) -> None:
    for part in ("train", "val"):
        for name in CLASSES[1:]:
            shutil.rmtree(own / part / name)
    expect_refusal(own, "has 1 class folders")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def changed_png(content: bytes) -> bytes:
    """Another byte in the compressed pixels, whose checksum is then wrong."""
    at = content.index(b"IDAT") + 40
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


def huge_png(content: bytes) -> bytes:
    """A header, with a right checksum, that announces more pixels than any photo has."""
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


DAMAGE = {
    "cut JPEG": ("JPEG", cut),
    "cut PNG": ("png", cut),
    "changed PNG": ("png", changed_png),
    "huge PNG": ("png", huge_png),
    "empty": ("jpg", lambda content: b""),
    "text": ("JPEG", lambda content: b"<html>404 Not Found</html>"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_when_it_is_reached(own: Path, damage: str, workers: int) -> None:
    ending, harm = DAMAGE[damage]
    path = (
        own / "val" / CLASSES[1] / f"{CLASSES[1]}_{('JPEG', 'jpg', 'png').index(ending)}.{ending}"
    )
    path.write_bytes(harm(path.read_bytes()))
    config = DataConfig(name=str(own), size=SIZE, workers=workers)
    data = load_configured(config)
    with pytest.raises(InputFileError, match="is damaged or not an image") as caught:
        list(batches_in_order(data, data.test, 2))
    assert str(caught.value).startswith(f"{path} is damaged")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_training_file_is_named(own: Path, workers: int) -> None:
    path = own / "train" / CLASSES[2] / f"{CLASSES[2]}_3.JPEG"
    path.write_bytes(cut(path.read_bytes()))
    config = DataConfig(name=str(own), size=SIZE, workers=workers)
    with pytest.raises(InputFileError, match=f"{path.name} is damaged .*[Tt]runcated"):
        list(TrainingFeed(load_configured(config), config, 19, seed=0))


def test_a_file_that_has_gone_is_named(own: Path) -> None:
    data = load_data(str(own), size=SIZE)
    (own / "val" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG").unlink()
    with pytest.raises(InputFileError, match=r"_0\.JPEG .*No such file or directory"):
        data.test.images_at(torch.arange(3))
