"""CIFAR-10 and CIFAR-100: small sets in the exact formats on disk, and damaged ones.

The originals were pickled by Python 2: text is of the opcodes SHORT_BINSTRING and BINSTRING,
which Python 3 never writes, so `Python2` writes them here.
"""

import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tser.data import cifar, load_data, places, plain_pickle
from tser.data.cifar_files import CIFAR10, CIFAR100, Cifar
from tser.data.stratify import stratified_take
from tser.errors import InputFileError, UsageError

EACH, TEST = 12, 20  # images of a training batch and of the test batch
KINDS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
FORMS = ("python", "binary", "python.tar.gz", "binary.tar.gz")


class Python2:
    """A pickle of protocol 2 as Python 2 and numpy 1 wrote it."""

    def __init__(self) -> None:
        self.out, self.puts = b"\x80\x02", 1

    def put(self, opcodes: bytes) -> "Python2":
        """Opcodes that leave one value, which goes to the memo as in the originals."""
        index = self.puts
        self.puts += 1
        self.out += opcodes
        self.out += b"q" + bytes((index,)) if index < 256 else b"r" + struct.pack("<I", index)
        return self

    def save(self, value: Any) -> "Python2":
        if isinstance(value, str | bytes):
            raw = value.encode() if isinstance(value, str) else value
            short = (
                b"U" + bytes((len(raw),)) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
            )
            return self.put(short + raw)
        if isinstance(value, int):
            self.out += b"K" + bytes((value,)) if value < 256 else b"M" + struct.pack("<H", value)
        elif isinstance(value, list):
            self.put(b"]")
            self.out += b"("
            for item in value:
                self.save(item)
            self.out += b"e"
        elif isinstance(value, dict):
            self.put(b"}")
            self.out += b"("
            for key, item in value.items():
                self.save(key).save(item)
            self.out += b"u"
        else:
            self.array(value)
        return self

    def array(self, value: np.ndarray) -> None:
        self.put(b"cnumpy.core.multiarray\n_reconstruct\n").put(b"cnumpy\nndarray\n")
        self.out += b"K\x00"
        self.put(b"\x85").save("b").put(b"\x87").put(b"R")
        self.out += b"(K\x01M" + struct.pack("<H", value.shape[0])
        self.out += b"M" + struct.pack("<H", value.shape[1])
        self.put(b"\x86").put(b"cnumpy\ndtype\n").save("u1")
        self.out += b"K\x00K\x01"
        self.put(b"\x87").put(b"R")
        self.out += b"(K\x03"
        self.save("|")
        self.out += b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00"
        self.put(b"t")
        self.out += b"b\x89"
        self.save(value.tobytes()).put(b"t")
        self.out += b"b"


def python2(value: Any) -> bytes:
    return Python2().save(value).out + b"."


def python3(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


def images_of(kind: Cifar, batch: int) -> tuple[np.ndarray, list[int]]:
    count = TEST if batch == len(kind.python.batches) else EACH
    pixels = np.random.default_rng(batch).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, [(at * 7 + batch) % kind.classes for at in range(count)]


def content_of(kind: Cifar, binary: bool, dump: Callable[[Any], bytes]) -> dict[str, bytes]:
    """Every file of one version of the set, by name."""
    version = kind.binary if binary else kind.python
    names, content = [f"class_{k}" for k in range(kind.classes)], {}
    for batch, name in enumerate((*version.batches, version.test)):
        pixels, labels = images_of(kind, batch)
        if binary:
            heads = [bytes([3] * (kind.label_bytes - 1) + [label]) for label in labels]
            rows = zip(heads, pixels, strict=True)
            content[name] = b"".join(head + row.tobytes() for head, row in rows)
        else:
            content[name] = dump(
                {
                    "batch_label": f"training batch {batch + 1}",
                    kind.labels_key: labels,
                    "data": pixels,
                    "filenames": [f"image_{at}.png" for at in range(len(labels))],
                }
            )
    meta = dump({"num_vis": 3072, kind.names_key: names})
    content[version.meta] = ("\n".join(names) + "\n\n").encode() if binary else meta
    return content


def pack(path: Path, content: dict[str, bytes], prefix: str) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_set(
    root: Path, name: str, form: str = "python", dump: Callable[[Any], bytes] = python2
) -> Path:
    """The set in one form below ``root``; returns its folder or its archive."""
    kind, binary = KINDS[name], form.startswith("binary")
    version = kind.binary if binary else kind.python
    content = content_of(kind, binary, dump)
    root.mkdir(parents=True, exist_ok=True)
    if form.endswith(".tar.gz"):
        return pack(root / version.archive, content, f"{version.folder}/")
    folder = root / version.folder
    folder.mkdir()
    for file, data in content.items():
        (folder / file).write_bytes(data)
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data sets; its home folder is returned."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("TSER_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for kind in KINDS.values():
        official = places.torchvision_class(kind.torchvision_class)
        monkeypatch.setattr(official, "url", "http://127.0.0.1:9/x.tar.gz")  # nobody listens
    return tmp_path


def expect_refusal(root: Path, where: object, message: str, name: str = "cifar10") -> None:
    with pytest.raises(InputFileError, match=message) as caught:
        load_data(name, root)
    assert str(where) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


# --- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", KINDS)
def test_every_form_gives_the_same_images(tmp_path: Path, name: str, form: str) -> None:
    kind = KINDS[name]
    write_set(tmp_path, name, form)
    before = snapshot(tmp_path)
    data = load_data(name, tmp_path)
    assert snapshot(tmp_path) == before
    assert data.name == name
    assert data.class_names == tuple(f"class_{k}" for k in range(kind.classes))
    assert data.image_shape == (3, 32, 32)
    assert data.max_value == 255

    batches = [images_of(kind, batch) for batch in range(len(kind.python.batches) + 1)]
    pixels = np.concatenate([images for images, _ in batches[:-1]]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([classes for _, classes in batches[:-1]])
    val = stratified_take(labels, len(labels) // 10)
    train = np.setdiff1d(np.arange(len(labels)), val)
    assert (data.val.images.numpy() == pixels[val]).all()
    assert (data.val.labels.numpy() == labels[val]).all()
    assert (data.train.images.numpy() == pixels[train]).all()
    assert (data.train.labels.numpy() == labels[train]).all()
    assert data.test.images.numpy().tobytes() == batches[-1][0].tobytes()
    assert data.test.labels.tolist() == batches[-1][1]


CIFAR10_NAMES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def test_the_official_list_of_names_is_made_to_the_byte_and_read(tmp_path: Path) -> None:
    meta = {"num_cases_per_batch": 10_000, "label_names": CIFAR10_NAMES, "num_vis": 3072}
    content = python2(meta)
    official = places.torchvision_class("CIFAR10").meta
    assert hashlib.md5(content).hexdigest() == official["md5"]  # noqa: S324
    folder = write_set(tmp_path, "cifar10")
    (folder / "batches.meta").write_bytes(content)
    # The other files are not official, and the first of them is named.
    expect_refusal(tmp_path, folder / "data_batch_1", "is not the official file of CIFAR-10")
    binary = write_set(tmp_path / "binary", "cifar10", "binary")
    (binary / "batches.meta.txt").write_text("\n".join(CIFAR10_NAMES) + "\n\n")
    assert load_data("cifar10", binary).class_names == tuple(CIFAR10_NAMES)
    assert plain_pickle.read_dictionary(content) == meta


def test_the_pickles_are_what_torchvision_reads() -> None:
    pixels, labels = images_of(CIFAR10, 0)
    read = pickle.loads(  # noqa: S301
        content_of(CIFAR10, False, python2)["data_batch_1"], encoding="latin1"
    )
    assert (read["data"] == pixels).all()
    assert read["labels"] == labels


def test_pickles_of_python_3_and_arrays_by_columns_are_read(tmp_path: Path) -> None:
    folder = write_set(tmp_path, "cifar10", dump=python3)
    pixels, labels = images_of(CIFAR10, 0)
    by_columns = {b"data": np.asfortranarray(pixels), b"labels": labels}
    (folder / "data_batch_1").write_bytes(python3(by_columns))
    data = load_data("cifar10", tmp_path)
    twin = tmp_path / "twin"
    write_set(twin, "cifar10")
    assert torch.equal(data.train.images, load_data("cifar10", twin).train.images)


def test_the_official_50000_give_5000_for_validation_and_equal_classes() -> None:
    for classes in (10, 100):
        labels = np.arange(50_000) * 7 % classes
        val = stratified_take(labels, 50_000 // cifar.VAL_SHARE)
        assert np.bincount(labels[val]).tolist() == [5000 // classes] * classes


def test_the_folder_itself_may_be_the_root(tmp_path: Path) -> None:
    assert len(load_data("cifar10", write_set(tmp_path, "cifar10")).test) == TEST
    assert len(load_data("cifar100", write_set(tmp_path, "cifar100", "binary")).test) == TEST


def test_an_archive_with_dots_before_its_names_is_read(tmp_path: Path) -> None:
    content = content_of(CIFAR10, False, python2)
    pack(tmp_path / CIFAR10.python.archive, content, f"./{CIFAR10.python.folder}/")
    assert len(load_data("cifar10", tmp_path).test) == TEST


def test_places_are_tried_in_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(nowhere / ".cache" / "tser", "cifar10")
    assert len(load_data("cifar10").test) == TEST
    monkeypatch.setenv("TSER_DATA", str(nowhere / "named"))
    archive = write_set(nowhere / "named", "cifar10", "python.tar.gz")
    archive.write_bytes(b"")
    with pytest.raises(InputFileError, match=f"{archive} is damaged"):
        load_data("cifar10")


@pytest.mark.parametrize("name", KINDS)
def test_offline_it_says_where_it_looked(nowhere: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"CIFAR-100? was not found in .*\.cache/tser") as caught:
        load_data(name)
    assert "refused" in str(caught.value)
    assert "--data-root" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert snapshot(nowhere) == {}


@pytest.fixture
def server(nowhere: Path) -> Iterator[str]:
    """The address, on this machine, that serves the files of the home folder."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    httpd = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(nowhere))
    )
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_a_download_fills_the_cache(
    nowhere: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of(CIFAR10, False, python2)
    packed = pack(nowhere / "cifar.tar.gz", content, "cifar-10-batches-py/")
    md5 = {
        name: hashlib.md5(data).hexdigest()  # noqa: S324
        for name, data in content.items()
    }
    official = places.torchvision_class("CIFAR10")
    for key, value in {
        "url": f"{server}/{packed.name}",
        "tgz_md5": hashlib.md5(packed.read_bytes()).hexdigest(),  # noqa: S324
        "train_list": [[name, md5[name]] for name in CIFAR10.python.batches],
        "test_list": [["test_batch", md5["test_batch"]]],
        "meta": {**official.meta, "md5": md5["batches.meta"]},
    }.items():
        monkeypatch.setattr(official, key, value)
    assert len(load_data("cifar10").test) == TEST
    cache = nowhere / ".cache" / "tser"
    assert [path.name for path in cache.iterdir()] == ["cifar-10-batches-py"]
    packed.unlink()
    assert len(load_data("cifar10").test) == TEST
    # With the others official, one that is not is a damaged one.
    path = cache / "cifar-10-batches-py" / "data_batch_4"
    path.write_bytes(path.read_bytes().replace(b"training batch 4", b"training batch 5"))
    expect_refusal(cache, path, "is not the official file of CIFAR-10, though others")


# --- damage ----------------------------------------------------------------------------------


class Bomb:
    """What a pickle may run when it is loaded: here it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
@pytest.mark.parametrize("form", ["python", "python.tar.gz"])
def test_a_malicious_pickle_is_named_and_does_not_run(
    tmp_path: Path, form: str, file: str, protocol: int
) -> None:
    mark = tmp_path / "executed"
    evil = pickle.dumps({"data": Bomb(mark), "labels": [1]}, protocol=protocol)
    pickle.loads(evil)  # noqa: S301
    assert mark.exists()  # the bomb works
    mark.unlink()
    content = {**content_of(CIFAR10, False, python2), file: evil}
    if form == "python":
        folder = write_set(tmp_path, "cifar10")
        (folder / file).write_bytes(evil)
    else:
        pack(tmp_path / CIFAR10.python.archive, content, "cifar-10-batches-py/")
    expect_refusal(tmp_path, file, "is damaged or not a file of CIFAR-10: its pickle")
    assert not mark.exists()


def test_a_pickle_that_asks_for_os_system_is_quoted(tmp_path: Path) -> None:
    path = write_set(tmp_path, "cifar10") / "test_batch"
    path.write_bytes(b"\x80\x02cos\nsystem\nq\x00U\x04trueq\x01\x85q\x02Rq\x03.")
    expect_refusal(tmp_path, path, "its pickle asks for 'os system', which it should not")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a place in the memo far away: no memory is taken for it
        b"\x80\x02T\xff\xff\xff\x7fabc.",
        b"\x80\x02(((((u.",
        b"\x80\x02}}u.",
        b"\x80\x02}]K\x01s.",
        b"\x80\x02cnumpy\ndtype\n}b.",
        b"\x80\x02cnumpy\ndtype\nK\x01R.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
        b"\x80\x02h\x07.",
        b"\x80\x02.",
        b"\x80\x02]\x94.",
        b"\x80\x02K\x01.",
        b"\x80\x02}K\x01K\x02s.",
        b"",
        b"<html>not found</html>",
    ],
)
def test_broken_pickles_are_named(tmp_path: Path, content: bytes) -> None:
    path = write_set(tmp_path, "cifar10") / "data_batch_3"
    path.write_bytes(content)
    expect_refusal(tmp_path, path, "is damaged or not a file of CIFAR-10")


def test_random_damage_never_escapes() -> None:
    content = python2({"data": np.zeros((2, 8), dtype=np.uint8), "labels": [1, 300, 2]})
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        mutant = bytearray(content)
        for at in rng.integers(2, len(content), rng.integers(1, 4)):
            mutant[at] = rng.integers(0, 256)
        try:
            read = plain_pickle.read_dictionary(bytes(mutant))
            plain_pickle.as_uint8(read.get("data"), 8)
        except ValueError as error:
            assert str(error)  # noqa: PT017
            refused += 1
    assert refused > 1000


PIXELS, LABELS = images_of(CIFAR10, 0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": LABELS}, r"it lacks a uint8 array \[N, 3072\]"),
        ({"data": [1, 2], "labels": LABELS}, "it lacks a uint8 array"),
        ({"data": PIXELS[:, :100], "labels": LABELS}, r"of shape \[12, 100\]"),
        ({"data": PIXELS[:0], "labels": []}, r"of shape \[0, 3072\]"),
        ({"data": PIXELS}, "no list of whole numbers 'labels'"),
        ({"data": PIXELS, "labels": ["a"] * EACH}, "no list of whole numbers"),
        ({"data": PIXELS, "fine_labels": LABELS}, "no list of whole numbers"),
        ({"data": PIXELS, "labels": LABELS[:-1]}, "12 images but 11 labels"),
        ({"data": PIXELS, "labels": [*LABELS[:-1], 10]}, r"the label 10, beyond 0\.\.9"),
        ({"data": PIXELS[:-1], "labels": LABELS[:-1]}, "holds 11 images but .*_1 12"),
    ],
)
def test_a_wrong_batch_is_named(tmp_path: Path, batch: dict[str, Any], message: str) -> None:
    path = write_set(tmp_path, "cifar10") / "data_batch_2"
    path.write_bytes(python2(batch))
    expect_refusal(tmp_path, path, message)


def test_an_array_of_another_type_is_named(tmp_path: Path) -> None:
    path = write_set(tmp_path, "cifar10") / "data_batch_2"
    path.write_bytes(python3({"data": PIXELS.astype(np.float32), "labels": LABELS}))
    expect_refusal(tmp_path, path, "its array is not a uint8 array")
    path.write_bytes(python3({"data": np.array([[None]]), "labels": LABELS}))
    expect_refusal(tmp_path, path, "its array is not a uint8 array")


@pytest.mark.parametrize("names", [["a"] * 9, "abcdefghij", [1] * 10, None])
def test_wrong_class_names_are_named(tmp_path: Path, names: Any) -> None:
    path = write_set(tmp_path, "cifar10") / "batches.meta"
    path.write_bytes(python3({"label_names": names}))
    expect_refusal(tmp_path, path, "does not hold the 10 class names of CIFAR-10")


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("train.bin", lambda content: content[:-1], "cut short or too long"),
        ("test.bin", lambda content: content + b"x", "not a whole number of images of 3,074 bytes"),
        ("test.bin", lambda _: b"", "0 bytes are not"),
        ("train.bin", lambda content: b"\x14" + content[1:], r"coarse label 20, beyond 0\.\.19"),
        ("train.bin", lambda content: b"\x00\x64" + content[2:], r"the label 100, beyond 0\.\.99"),
        ("fine_label_names.txt", lambda _: b"a\nb\n", "the 100 class names"),
        ("fine_label_names.txt", lambda _: b"\xff\xfe", "it is not text"),
    ],
)
def test_a_damaged_binary_file_is_named(
    tmp_path: Path, file: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = write_set(tmp_path, "cifar100", "binary") / file
    path.write_bytes(damage(path.read_bytes()))
    expect_refusal(tmp_path, path, message, "cifar100")


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-8] + bytes(8),
        lambda packed: packed[:-30] + bytes(1) + packed[-29:],
        lambda _: b"<html>not found</html>",
        lambda _: b"",
    ],
    ids=["half", "checksum", "changed", "page", "empty"],
)
def test_a_damaged_archive_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_set(tmp_path, "cifar10", "python.tar.gz")
    path.write_bytes(damage(path.read_bytes()))
    expect_refusal(tmp_path, path, "damaged")


def test_an_archive_cannot_lead_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    content = content_of(CIFAR10, False, python2)
    path = tmp_path / CIFAR10.python.archive
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            if name == "test_batch":
                member.type, member.linkname = tarfile.SYMTYPE, str(secret)
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    expect_refusal(tmp_path, path, "does not hold cifar-10-batches-py/test_batch")


def test_an_incomplete_folder_is_not_taken(tmp_path: Path) -> None:
    (write_set(tmp_path, "cifar10") / "data_batch_5").unlink()
    with pytest.raises(UsageError, match=r"does not hold CIFAR-10: .*data_batch_5"):
        load_data("cifar10", tmp_path)


def test_a_single_image_is_too_few(tmp_path: Path) -> None:
    folder = write_set(tmp_path, "cifar100")
    (folder / "train").write_bytes(python2({"data": PIXELS[:1], "fine_labels": [0]}))
    expect_refusal(tmp_path, folder / "train", "single image", "cifar100")
