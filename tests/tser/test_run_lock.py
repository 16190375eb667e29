"""Two runs at once in one folder: the second is refused, and a killed one blocks nobody."""

import errno
import fcntl
import json
import os
import re
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import interrupts, processes
from tser.config import RunConfig
from tser.config_file import dump_config
from tser.distill import distill
from tser.errors import TserError, UsageError
from tser.run_lock import LOCK, Holder, InUse, find_holder, locked
from tser.runs import Run, create_run, find_run, new_run, resume_run, resumed_run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/usr/bin/tser", "distill", "a preset"])
    return tmp_path


def begun(name: str, age: int = 0) -> Run:
    """An unfinished run below runs/ whose config.toml is ``age`` seconds old."""
    run = Run(Path("runs") / name)
    run.path.mkdir(parents=True)
    run.config_file.write_text(dump_config(RunConfig()), encoding="utf-8")
    moment = 1_700_000_000 - age
    os.utime(run.config_file, (moment, moment))
    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the lock ------------------------------------------------------------------------------


def test_the_second_is_refused_and_told_who_holds_it() -> None:
    folder = Path("run")
    with locked(folder):
        assert names(folder) == [LOCK]
        with pytest.raises(InUse) as caught, locked(folder):
            pass
        text = str(caught.value)
        assert re.fullmatch(
            rf"run is in use by process {os.getpid()} on {re.escape(socket.gethostname())} since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(tser distill 'a preset'\); wait for it, stop it "
            rf"with 'kill {os.getpid()}', or choose another --out",
            text,
        )
        assert caught.value.exit_code == 2
        assert names(folder) == [LOCK]  # the refused one has taken nothing away
        found = find_holder(folder)
        assert found is not None
        assert found.pid == os.getpid()
    with locked(folder):
        pass


def test_nothing_is_left_of_it_where_nothing_was_written() -> None:
    with locked(Path("a/b/run")):
        Path("a/b/other").touch()
    assert names(Path("a/b")) == ["other"]
    Path("empty").mkdir()
    with pytest.raises(ZeroDivisionError), locked(Path("empty")):
        raise ZeroDivisionError
    assert names(Path("empty")) == []
    with locked(Path("run")):
        Path("run/config.toml").touch()
    assert names(Path("run")) == ["config.toml"]


def test_another_thread_is_refused_too() -> None:
    found: list[TserError] = []

    def second() -> None:
        try:
            with locked(Path("run")):
                pass
        except TserError as error:
            found.append(error)

    with locked(Path("run")):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert [type(error) for error in found] == [InUse]


def test_it_dies_with_its_owner_and_not_with_a_child_of_it(here: Path) -> None:
    folder = here / "run"
    owner = processes.start(interrupts.hold_lock, folder, here / "ready", here / "end")
    interrupts.wait_for(here / "ready")
    assert names(folder) == [LOCK]
    holder = find_holder(folder)
    assert holder is not None
    assert holder.pid == owner.pid
    with pytest.raises(InUse, match=f"kill {owner.pid}"), locked(folder):
        pass
    owner.kill()
    assert processes.finish(owner) == [-9]
    # The child that it had forked is still there, as a data worker is for some seconds.
    os.kill(int((here / "ready").read_text()), 0)
    assert names(folder) == [LOCK]
    assert find_holder(folder) is None
    with locked(folder):
        assert find_holder(folder) is not None
    (here / "end").touch()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[" * 16000,
        b'{"pid": "7"}',
        b'{"pid": -1}',
        b"[1]",
        b"\xff\xfe",
        b'{"pid": true}',
        b'{"pid": 7, "host": "h", "since": 3, "command": "c"}',
    ],
)
def test_who_holds_it_may_not_be_told(content: bytes, here: Path) -> None:
    with locked(here):
        (here / LOCK).write_bytes(content)
        with pytest.raises(InUse, match="is in use by another process; wait for it, stop it there"):
            create_run(here, "run")


def test_what_a_lock_says_is_shown_harmlessly(here: Path) -> None:
    told = {"pid": 12, "host": "other\x1b[2J", "since": "now\nerror: x", "command": "x" * 1000}
    with locked(here):
        (here / LOCK).write_text(json.dumps(told), encoding="utf-8")
        holder = find_holder(here)
    assert holder == Holder(12, "other\ufffd[2J", "now error: x", "x" * 160 + "…")


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_something_else_in_place_of_the_file_is_not_touched(kind: str, here: Path) -> None:
    (here / "target").write_text("kept", encoding="utf-8")
    if kind == "link":
        (here / LOCK).symlink_to(here / "target")
    else:
        (here / LOCK).mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*\.lock"), locked(here):
        pass
    assert find_holder(here) is None
    assert (here / "target").read_text(encoding="utf-8") == "kept"


def test_a_folder_that_cannot_be_written_is_named(here: Path) -> None:
    (here / "file").touch()
    place = "cannot write file/run/.lock: Not a directory"
    with pytest.raises(UsageError, match=place), locked(Path("file/run")):
        pass
    with pytest.raises(UsageError, match="cannot write /proc/run/"), locked(Path("/proc/run")):
        pass


def test_a_file_system_without_locks_is_told_and_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(Path("run")):
        assert find_holder(Path("run")) is None
    note = "note: run is on a file system without locks (Function not implemented); see to it that "
    assert capsys.readouterr().err == note + "no second run writes there\n"
    assert not Path("run").exists()


def test_a_file_that_its_owner_removed_is_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened before, and locked after, the owner took it away."""
    flock, stale = fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if not stale:
            stale.append(os.fstat(handle).st_ino)
            Path("run", LOCK).unlink()
            Path("run", LOCK).touch()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(Path("run")):
        assert Path("run", LOCK).stat().st_ino != stale[0]
        monkeypatch.setattr(fcntl, "flock", flock)
        assert find_holder(Path("run")) is not None


# --- runs ----------------------------------------------------------------------------------


def test_two_without_a_name_take_two_folders() -> None:
    with new_run(None, "digits") as one, new_run(None, "digits") as other:
        assert [one.path, other.path] == [Path("runs/digits"), Path("runs/digits-2")]
    assert not Path("runs").exists()


def test_of_two_that_choose_the_same_folder_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other has taken it after it was looked at, and keeps it or ends there."""
    with ExitStack() as stack:
        taken = iter([True, False])

        def take(folder: Path) -> Holder | None:
            if next(taken, False):
                stack.enter_context(locked(folder))
            return None

        monkeypatch.setattr("tser.runs.find_holder", take)
        with pytest.raises(InUse), new_run(Path("run"), "digits"):
            pass
        monkeypatch.undo()
    with new_run(Path("run").absolute(), "digits") as run:
        assert names(run.path) == [LOCK]


def test_many_at_the_same_instant_share_no_folder(here: Path) -> None:
    (here / "runs").mkdir()
    started = [processes.start(interrupts.take_new_run, here, here / str(n)) for n in range(4)]
    for number in range(4):
        interrupts.wait_for(here / f"{number}.loaded")
    (here / "go").touch()
    for number in range(4):
        interrupts.wait_for(here / str(number))
    (here / "end").touch()
    assert processes.finish(*started) == [0] * 4
    taken = {(here / str(number)).read_text() for number in range(4)}
    assert taken == {"runs/digits", *(f"runs/digits-{n}" for n in (2, 3, 4))}
    assert names(here / "runs") == []


def test_a_folder_in_use_is_not_called_full() -> None:
    run = begun("a")
    with locked(run.path), pytest.raises(InUse, match="is in use by process"):
        create_run(run.path, "a")
    with pytest.raises(UsageError, match="is not empty"):
        create_run(run.path, "a")


def test_what_a_killed_run_left_is_taken_again() -> None:
    folder = Path("runs/digits")
    folder.mkdir(parents=True)
    (folder / LOCK).write_text('{"pid": 1}', encoding="utf-8")
    (folder / ".config-abcdefgh.tser-tmp.toml").touch()
    assert create_run(None, "digits").path == folder
    assert create_run(folder, "digits").path == folder
    (folder / "notes.txt").touch()
    assert create_run(None, "digits").path == Path("runs/digits-2")


def test_a_run_is_not_resumed_beside_itself() -> None:
    older, newer = begun("older", age=10), begun("newer")
    with resumed_run(None, None, []) as run:
        assert run == newer
        with pytest.raises(InUse), resumed_run(newer.path, None, []):
            pass
        with resumed_run(None, None, []) as other:  # the newest that nobody trains
            assert other == older
            both = pytest.raises(InUse, match="runs/newer is in use by process")
            with both, resumed_run(None, None, []):
                pass
    assert names(newer.path) == ["config.toml"]
    with resumed_run(newer.path, None, []) as run:
        assert run == newer


def test_a_run_that_ended_while_it_was_chosen_is_not_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = begun("a")

    def end(*args: object) -> Run:
        found = resume_run(run.path, None, [])
        run.student.touch()
        return found

    monkeypatch.setattr("tser.runs.resume_run", iter_of(end, resume_run))
    with pytest.raises(UsageError, match="is finished"), resumed_run(run.path, None, []):
        pass
    assert names(run.path) == ["config.toml", "student.safetensors"]


def iter_of(*functions: object) -> object:
    """Calls the first function first, and the last one from then on."""
    left = list(functions)

    def call(*args: object) -> object:
        function = left.pop(0) if len(left) > 1 else left[0]
        return function(*args)  # type: ignore[operator]

    return call


def test_a_command_on_a_run_in_training_says_so() -> None:
    run = begun("a")
    with locked(run.path), pytest.raises(UsageError) as caught:
        find_run(run.path)
    assert re.match(
        rf"the run runs/a is still being trained by process {os.getpid()} on .*; wait for its end",
        str(caught.value),
    )
    with pytest.raises(UsageError, match="finish it with 'tser distill --out runs/a --resume'"):
        find_run(run.path)
    run.student.touch()
    with locked(run.path):  # while its accuracy is measured
        assert find_run(run.path) == run


def test_the_library_takes_the_lock_and_leaves_nothing(here: Path) -> None:
    run = Run(here / "run")
    config = RunConfig.model_validate({"data": {"name": "mnist", "root": str(here)}})
    with locked(run.path), pytest.raises(InUse):
        distill(config, run)
    with pytest.raises(TserError):
        distill(config, run)  # there is no such data
    assert names(here) == []


def test_a_refused_run_refuses_all_its_processes(here: Path) -> None:
    with locked(here / "run"):
        codes = processes.together(2, processes.distil, RunConfig(), Run(here / "run"))
    assert codes == [1, 2]  # the first raises what the command line makes a 2 of
