"""A disk that is full, a limit on files, a folder that is read-only: one sentence, and no loss.

A small tmpfs is mounted where the system lets us. TSER_DISK=all tries every command at many sizes
of free space.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kills import Outcome, Server, server
from tser.leftovers import is_leftover

ALL = os.environ.get("TSER_DISK") == "all"
TINY = (
    "--set=data.limit_train=64",
    "--set=teacher.width=4",
    "--set=teacher.epochs=1",
    "--set=student.width=4",
    "--set=student.timesteps=2",
    "--set=train.epochs=2",
    "--set=train.batch_size=16",
    "--set=train.checkpoint_steps=2",
    "--set=train.curriculum_epochs=1",
    "--set=train.device=cpu",
    "--deterministic",
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "model.nir": ("export", "run"),
    "model.onnx": ("export", "run", "--format", "onnx"),
    "validation.json": ("validate", "run", "--samples", "4", "--backend", "nir-f32"),
    "trace.npz": (
        *("validate", "run", "--samples", "4", "--backend", "nir-f32"),
        *("--out", "run/v.json", "--save-trace", "run/trace.npz"),
    ),
    "energy.json": ("energy", "run/model.nir", "--samples", "4"),
    "eval.json": ("eval", "run"),
    "out.npz": (
        *("run", "run/model.nir", "--data", "digits", "--samples", "4"),
        *("--out", "run/out.npz", "--trace", "run/spikes.npz"),
    ),
    "report.json": ("report", "run", "--format", "json"),
}
QUICK = ("model.nir", "model.onnx", "validation.json", "out.npz")


@pytest.fixture(scope="module")
def tser() -> Iterator[Server]:
    with server() as found:
        yield found


def ran(tser: Server, folder: Path, *args: str, **how: int | str) -> Outcome:
    scratch = folder.with_name(f"{folder.name}-scratch")
    scratch.mkdir(exist_ok=True)
    return tser.run(*args, folder=folder, scratch=scratch, **how)


@pytest.fixture(scope="module")
def whole(tser: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and all that is made of one; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    for args in (("distill", "digits", "--out", "run", *TINY), *COMMANDS.values()):
        done = ran(tser, folder, *args)
        assert done.code == 0, done.stderr
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    command = [mount, "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("this system does not mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path, free: int) -> None:
    """Leave ``free`` bytes, rounded down to pages."""
    (place / "filler").unlink(missing_ok=True)
    size = shutil.disk_usage(place).free - free
    with (place / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, size // 4096 * 4096))


def sentence(done: Outcome, code: int = 1) -> str:
    assert done.code == code, (done.code, done.stderr)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return said[0]


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS if ALL else QUICK)
def test_a_full_disk_is_told_and_takes_nothing_away(
    name: str, tser: Server, whole: Path, disk: Path
) -> None:
    """However much too little is free; with more, the command gives the same bytes as ever."""
    size = (whole / "run" / name).stat().st_size
    shutil.copytree(whole / "run", disk / "run")
    before = contents(disk / "run")
    tried = {0, 4096, size // 8192 * 4096}
    if ALL:
        tried |= {1024, 8192, *range(0, max(1, size), max(4096, size // 16)), size - 4096}
    for free in sorted(one for one in tried if one >= 0):
        fill(disk, free)
        done = ran(tser, disk, *COMMANDS[name])
        if done.code == 0:  # what it wrote is smaller than what stood there, or fits the last page
            assert free + 8192 >= size, free
            continue
        text = sentence(done)
        assert re.search(r"the disk is full|are free; use --samples", text), text
        assert "run" in text
        assert contents(disk / "run") == before, free
    (disk / "filler").unlink()
    assert ran(tser, disk, *COMMANDS[name]).code == 0
    after = contents(disk / "run")
    assert set(after) == set(before)
    assert after == before


@pytest.mark.slow
def test_a_training_that_met_a_full_disk_goes_on(tser: Server, whole: Path, disk: Path) -> None:
    """It keeps its last good checkpoint and ends with the bits of a run that was not disturbed."""
    full = 0
    for free in range(4096, 512 * 1024, 8192 if ALL else 24576):
        fill(disk, free)
        run = disk / "run"
        args = ("--resume",) if (run / "config.toml").exists() else ("digits", *TINY)
        kept = contents(run) if run.exists() else {}
        done = ran(tser, disk, "distill", "--out", "run", *args)
        if done.code == 0:
            break
        assert "the disk is full" in sentence(done)
        full += 1
        found = contents(run) if run.exists() else {}
        assert not any(map(is_leftover, map(Path, found)))
        assert set(kept) - {".lock"} <= set(found)
        (disk / "filler").unlink()
    assert full >= 3
    for name in ("teacher.safetensors", "student.safetensors", "config.toml"):
        assert (run / name).read_bytes() == (whole / "run" / name).read_bytes()
    assert set(contents(run)) == {
        *("teacher.safetensors", "student.safetensors", "config.toml", "eval.json"),
        *("checkpoint.pt", "metrics.jsonl", "environment.json"),
    }


def test_a_full_folder_for_temporary_files_is_told(
    tser: Server, whole: Path, disk: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(whole, folder)
    before = contents(folder / "run")
    for free in (8192, 65536):
        fill(disk, free)
        done = tser.run(*COMMANDS["energy.json"], folder=folder, scratch=disk)
        assert "set TMPDIR to another folder" in sentence(done)
        assert contents(folder / "run") == before
        assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("name", ["model.nir", "model.onnx", "out.npz"])
def test_a_limit_on_the_length_of_files_is_told(
    name: str, tser: Server, whole: Path, tmp_path: Path
) -> None:
    """This runs everywhere: it stands for a full disk where none can be mounted."""
    folder = tmp_path / "work"
    shutil.copytree(whole, folder)
    before = contents(folder / "run")
    largest = (folder / "run" / name).stat().st_size // 2
    text = sentence(ran(tser, folder, *COMMANDS[name], largest=largest))
    assert "longer than a file may be" in text
    assert contents(folder / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize("largest", [1000, 30_000] if ALL else [30_000])
def test_a_training_within_a_limit_on_files(
    largest: int, tser: Server, whole: Path, tmp_path: Path
) -> None:
    done = ran(tser, tmp_path, "distill", "digits", "--out", "run", *TINY, largest=largest)
    assert "longer than a file may be" in sentence(done)
    resumed = (tmp_path / "run" / "config.toml").exists()
    args = ("--resume",) if resumed else ("digits", *TINY)
    assert ran(tser, tmp_path, "distill", "--out", "run", *args).code == 0
    for name in ("teacher.safetensors", "student.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / "run" / name).read_bytes()


@pytest.mark.parametrize(
    "args",
    [
        ("targets", "--json"),
        ("targets",),
        ("env", "--json"),
        ("--help",),
        ("energy", "run/model.nir", "--samples", "4", "--json"),
    ],
)
def test_data_that_nobody_takes_are_a_failure(
    args: tuple[str, ...], tser: Server, whole: Path
) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("this system has no /dev/full")
    text = sentence(ran(tser, whole, *args, stdout="/dev/full"))
    assert "cannot write to the standard output: the disk that it goes to is full" in text


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("{}/missing/" + "x" * 260 + ".json", "File name too long"),
        ("{}/" + "x" * 300 + "/e.json", "File name too long"),
        ("/dev/null/e.json", "Not a directory|not a folder"),
        ("/proc/e.json", "device|No such file|may write"),
        ("{}/folder.json", "is a folder"),
        ("{}/run/student.safetensors/e.json", "Not a directory|not a folder"),
    ],
)
def test_a_place_where_nothing_can_be_written(
    target: str, words: str, tser: Server, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "student.safetensors").touch()
    args = ("energy", "run/model.nir", "--samples", "4", "--out", target.format(tmp_path))
    assert re.search(words, sentence(ran(tser, whole, *args), 2))


def test_names_of_any_kind_are_written(tser: Server, whole: Path, tmp_path: Path) -> None:
    """As long as a name may be, with a line break, without a suffix of usual length."""
    for name in ("e" * 250 + ".json", "a\nb.json", "ä ö.json"):
        path = tmp_path / name
        args = ("energy", "run/model.nir", "--samples", "4", "--out", str(path))
        done = ran(tser, whole, *args)
        assert done.code == 0, done.stderr
        assert path.read_bytes() == (whole / "run" / "energy.json").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_devices_are_not_replaced(tser: Server, whole: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "p.html"
    os.mkfifo(pipe)
    text = sentence(ran(tser, whole, "report", "run", "--out", str(pipe)), 2)
    assert "a device or a pipe" in text
    assert pipe.is_fifo()
