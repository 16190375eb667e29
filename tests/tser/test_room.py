"""What is said where a disk takes no more, and what is left behind: nothing, and the old file."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tser.deploy.report_reading import read_epochs
from tser.deploy.spike_file import SpikeFile
from tser.errors import TserError, UsageError
from tser.files import append_line, atomic_path, scratch, scratch_beside, write_json
from tser.leftovers import is_leftover, remove_leftovers
from tser.metrics_log import whole_lines


class WriterError(Exception):
    """Of a library that has its own kind."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "your disk quota in .* is used up"),
        (errno.EFBIG, "longer than a file may be"),
        (errno.EIO, "the disk failed"),
    ],
)
@pytest.mark.parametrize(
    "fail",
    [
        lambda number: OSError(number, os.strerror(number)),
        lambda number: WriterError(f"I/O error: {os.strerror(number)} (os error {number})"),
        lambda number: OSError(f"Can't write data (errno = {number}, error message = '...')"),
    ],
)
def test_every_writers_failure_is_one_sentence(
    number: int, words: str, fail: Callable[[int], Exception], tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(TserError, match=words) as caught, atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half", encoding="utf-8")
        raise fail(number)
    assert caught.value.exit_code == 1
    assert str(caught.value).startswith(f"cannot write {path}: ")
    assert "\n" not in str(caught.value)
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_writer_that_does_not_say_why_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch speaks of an unexpected position; the disk is asked then."""
    monkeypatch.setattr(os, "fsync", refusing(errno.ENOSPC))
    with pytest.raises(TserError, match="the disk is full"), atomic_path(tmp_path / "a.pt"):
        raise RuntimeError("unexpected pos 576 vs 534")
    assert not names(tmp_path)


def test_other_failures_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="unexpected"), atomic_path(tmp_path / "a.pt"):
        raise RuntimeError("unexpected pos 576 vs 534")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.pt"):
        raise FileNotFoundError(errno.ENOENT, "no such file")


def refusing(number: int) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_disk_that_takes_the_data_late_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refusing(errno.EIO))
        with pytest.raises(TserError, match="the disk failed"):
            write_json(path, "new")
    assert path.read_text(encoding="utf-8") == '"old"\n'
    assert names(tmp_path) == ["a.json"]


def test_a_line_that_is_not_taken_leaves_the_file_as_long_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    append_line(path, '{"a": 1}')
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refusing(errno.ENOSPC))
        with pytest.raises(TserError, match=r"cannot write .*a\.jsonl: the disk is full"):
            append_line(path, '{"a": 2}')
    append_line(path, '{"a": 3}')
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n{"a": 3}\n'


@pytest.mark.parametrize("torn", [b'{"phase": "stud', b"{", b"\0\0\0", b'{"a": "\xc3'])
def test_half_a_line_at_the_end_is_passed_over(torn: bytes, tmp_path: Path) -> None:
    row = b'{"phase":"teacher","epoch":1,"loss":1.0,"train_accuracy":0.5,"val_accuracy":[0.5]}'
    assert whole_lines(row + b"\n" + torn) == [row]
    assert whole_lines(row) == whole_lines(row + b"\n") == [row]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(row + b"\n" + torn)
    assert [epoch.epoch for epoch in read_epochs(path)] == [1]


def test_what_a_living_process_writes_is_left_to_it(tmp_path: Path) -> None:
    """And goes with the next writer once it has been killed."""
    path = tmp_path / "a.nir"
    ready, wait = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with atomic_path(path) as temporary, scratch_beside(path):
            temporary.write_bytes(b"half")
            os.write(ready[1], b".")
            os.read(wait[0], 1)  # for ever: it is killed
        os._exit(1)
    os.read(ready[0], 1)
    try:
        assert sum(map(is_leftover, tmp_path.iterdir())) == 2
        write_json(tmp_path / "b.json", 1)
        remove_leftovers(tmp_path)
        assert sum(map(is_leftover, tmp_path.iterdir())) == 2
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for end in (*ready, *wait):
        os.close(end)
    assert sum(map(is_leftover, tmp_path.iterdir())) == 2
    write_json(tmp_path / "b.json", 2)
    assert names(tmp_path) == ["b.json"]


def test_temporary_folders_go_and_come_where_they_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch() as folder:
        assert folder.parent == tmp_path
        assert is_leftover(folder)
        (folder / "a").touch()
    assert not names(tmp_path)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has no such call")
def test_room_for_spikes_is_taken_before_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it could not be, writing to the mapped memory would end the process (SIGBUS)."""
    path = tmp_path / "t.npz"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "posix_fallocate", refusing(errno.ENOSPC))
    with pytest.raises(TserError, match="the disk is full"), SpikeFile(path, {"a": (3,)}, 1, 2):
        pass
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["t.npz"]


def test_the_same_spikes_give_the_same_bytes(tmp_path: Path) -> None:
    for number in range(2):
        with SpikeFile(tmp_path / f"{number}.npz", {"a": (3,)}, 1, 2, packed=number > 2) as file:
            os.utime(next(path for path in tmp_path.iterdir() if path.is_dir()), (number, number))
            file.add({"a": np.ones((1, 2, 3), bool)})
            for array in file._folder.iterdir():
                os.utime(array, (10**9 * number, 10**9 * number))
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()
    with np.load(tmp_path / "0.npz") as found:
        np.testing.assert_array_equal(found["a"], np.ones((1, 2, 3), bool))


@pytest.mark.parametrize("name", ["x" * 256, "a/" + "x" * 300 + "/b.json"])
def test_names_that_are_too_long_are_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="File name too long; choose"):
        write_json(tmp_path / name, 1)
    assert not any(map(is_leftover, tmp_path.rglob("*")))


@pytest.mark.parametrize("name", ["/dev/null", "/dev/new.json", "/proc/self/new.json"])
def test_devices_are_not_replaced(name: str) -> None:
    with pytest.raises(UsageError, match="a device or a pipe"):
        write_json(Path(name), 1)
