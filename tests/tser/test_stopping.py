"""Ctrl-C and SIGTERM in training: a checkpoint of the step just done, and the same bits after."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import interrupts, processes
from tests.interrupts import after, send
from tser import interrupt, loop, stopping
from tser.checkpoints import load_checkpoint
from tser.config import RunConfig
from tser.config_file import load_config
from tser.data import feed
from tser.data.feed import Share
from tser.distill import distill
from tser.interrupt import Interrupted
from tser.runs import Run
from tser.stopping import Stopped, Watch

TINY = (
    "data.limit_train=64",
    "teacher.width=4",
    "teacher.epochs=1",
    "student.width=4",
    "student.timesteps=2",
    "train.epochs=2",
    "train.batch_size=16",
    "train.device=cpu",
    "train.deterministic=true",
    "train.clip_norm=1",
)
FILES = {
    "config.toml",
    "environment.json",
    "metrics.jsonl",
    "teacher.safetensors",
    "student.safetensors",
    "checkpoint.pt",
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def tiny(*overrides: str) -> RunConfig:
    return load_config("digits", [*TINY, *overrides])


def outcome(run: Run) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """What equal runs share: both networks, and the metrics without the seconds."""
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        del row["seconds"], row["data_wait"]
    return run.teacher.read_bytes(), run.student.read_bytes(), rows


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Every test leaves the handlers of this process as they were."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run; tests leave it as it is."""
    run = Run(tmp_path_factory.mktemp("whole") / "run")
    distill(tiny(), run)
    return run


# --- one process ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "place", "count", "phase", "epoch", "step"),
    [
        (signal.SIGINT, "step", 1, "teacher", 0, 1),
        (signal.SIGTERM, "step", 4, "teacher", 0, 4),  # the last of its epoch
        (signal.SIGINT, "correct_per_step", 1, "teacher", 0, 4),  # in the validation
        (signal.SIGTERM, "correct_per_step", 4, "teacher", 0, 4),  # in the last batch of it
        (signal.SIGINT, "epoch", 1, "teacher", 1, 0),
        (signal.SIGTERM, "save_weights", 1, "teacher", 1, 0),
        (signal.SIGHUP, "step", 6, "student", 0, 2),
        (signal.SIGINT, "correct_per_step", 6, "student", 0, 4),
        (signal.SIGTERM, "save_checkpoint", 2, "student", 1, 0),
        (signal.SIGINT, "step", 12, "student", 1, 4),
    ],
)
def test_a_signal_stops_after_the_step_and_no_bit_is_lost(
    number: int,
    place: str,
    count: int,
    phase: str,
    epoch: int,
    step: int,
    whole: Run,
    tmp_path: Path,
) -> None:
    run = Run(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        owner = loop.Reporter if place in ("step", "epoch") else loop
        call = getattr(owner, place)
        patch.setattr(owner, place, after(count, lambda: send(number), call))
        with pytest.raises(KeyboardInterrupt):
            distill(tiny(), run)
    assert {path.name for path in run.path.iterdir()} <= FILES - {"student.safetensors"}
    state = load_checkpoint(run.checkpoint)
    assert (state["phase"], state["epoch"], state["step"]) == (phase, epoch, step)
    torch.manual_seed(999)
    distill(run.config(), run, resume=True)
    assert {path.name for path in run.path.iterdir()} == FILES
    assert outcome(run) == outcome(whole)


def test_a_signal_after_the_last_step_leaves_a_finished_run(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop, "save_weights", after(2, lambda: send(signal.SIGTERM), loop.save_weights)
        )
        with pytest.raises(Stopped):
            distill(tiny(), run)
    assert outcome(run) == outcome(whole)


def test_a_checkpoint_being_written_is_finished(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rename = Run(tmp_path / "run"), Path.replace

    def slow(path: Path, target: Path) -> Path:
        if target == run.checkpoint:
            send(signal.SIGINT)
            assert path.exists()
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", slow)
    with pytest.raises(KeyboardInterrupt):
        distill(tiny("train.checkpoint_steps=2"), run)
    monkeypatch.undo()
    state = load_checkpoint(run.checkpoint)
    assert (state["epoch"], state["step"]) == (0, 2)
    distill(run.config(), run, resume=True)
    assert run.student.read_bytes() == whole.student.read_bytes()


def requests(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Let signals come at these times."""
    times = iter(seconds)
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(interrupt._state, "last", -interrupt.REPEATED)


def test_the_second_request_stops_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    requests(monkeypatch, 100.0, 100.9, 101.0)
    reached = []
    with pytest.raises(Interrupted), stopping_alone(monkeypatch):  # noqa: PT012
        send(signal.SIGINT)
        send(signal.SIGTERM)  # a repetition
        reached.append(1)
        send(signal.SIGINT)
        reached.append(2)
    assert reached == [1]
    assert capfd.readouterr().err == "stopping after this step; a second time stops at once\n"


def stopping_alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`stopping`, whose clock is not that of the signals."""
    monkeypatch.setattr(stopping, "time", FakeClock())
    return stopping.stopping()


class FakeClock:
    """Time that a test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_programs_own_handler_is_called_when_the_checkpoint_is_there(tmp_path: Path) -> None:
    run, found = Run(tmp_path / "run"), []
    own = signal.signal(
        signal.SIGTERM, lambda number, frame: found.append((number, run.checkpoint.exists()))
    )
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):  # noqa: PT012
            call = loop.Reporter.step
            patch.setattr(loop.Reporter, "step", after(2, lambda: send(signal.SIGTERM), call))
            distill(tiny(), run)
    finally:
        signal.signal(signal.SIGTERM, own)
    assert found == [(signal.SIGTERM, True)]


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.stopping() as watch:
            send(signal.SIGINT)
            assert not watch.poll()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_of_the_training_is_told_though_a_signal_came() -> None:
    with pytest.raises(ValueError, match="the reason"), stopping.stopping():  # noqa: PT012
        send(signal.SIGTERM)
        raise ValueError("the reason")


def test_a_thread_trains_without_touching_the_handlers(whole: Run, tmp_path: Path) -> None:
    run, during = Run(tmp_path / "run"), []
    before = [signal.getsignal(number) for number in SIGNALS]

    def look(call: Callable[..., None]) -> Callable[..., None]:
        return after(1, lambda: during.extend(signal.getsignal(number) for number in SIGNALS), call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Reporter, "step", look(loop.Reporter.step))
        thread = threading.Thread(target=distill, args=(tiny(), run))
        thread.start()
        thread.join()
    assert during == before
    assert outcome(run) == outcome(whole)


def test_data_workers_heed_their_parent_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C and schedulers send their signals to all processes of a run."""
    run, told = Run(tmp_path / "run"), []

    def tell_all() -> None:
        workers = multiprocessing.active_children()
        told.extend(workers)
        for worker in workers:
            # As from another process: the parent's own SIGTERM does end a worker.
            os.system(f"kill -INT {worker.pid}; kill -TERM {worker.pid}")  # noqa: S605

    def tell_all_and_this() -> None:
        tell_all()
        send(signal.SIGTERM)

    step = after(2, tell_all, loop.Reporter.step)
    monkeypatch.setattr(loop.Reporter, "step", after(3, tell_all_and_this, step))
    with pytest.raises(Stopped):
        distill(tiny("data.workers=2"), run)
    assert len(told) == 4
    assert not multiprocessing.active_children()
    assert load_checkpoint(run.checkpoint)["step"] == 3


def test_data_workers_begin_with_signals_blocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal to the whole group must not end a worker that has only just been forked."""
    began: list[set[int]] = []

    class Loader(feed.DataLoader[Any]):
        def __iter__(self) -> Any:
            began.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            return super().__iter__()

    monkeypatch.setattr(feed, "DataLoader", Loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    distill(tiny("data.workers=2"), Run(tmp_path / "run"))
    assert began
    assert all(mask >= set(SIGNALS) for mask in began)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


# --- several processes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "count", "interval", "place"),
    [(0, 2, 0.0, ("teacher", 0, 2)), (1, 6, 1e9, ("student", 0, 4))],
)
def test_processes_stop_together_where_one_was_told_to(
    rank: int,
    count: int,
    interval: float,
    place: tuple[str, int, int],
    pair: Run,
    tmp_path: Path,
) -> None:
    """Where they do not ask each other after every step, they do so in the validation."""
    run, told = Run(tmp_path / "run"), tmp_path / "told"
    told.mkdir()
    arguments = (tiny(), run, False, rank, count, interval, told)
    assert processes.together(2, interrupts.train_together, *arguments) == [0, 0]
    assert sorted(path.name for path in told.iterdir()) == ["0", "1"]
    state = load_checkpoint(run.checkpoint)
    assert (state["phase"], state["epoch"], state["step"]) == place
    assert {path.name for path in run.path.iterdir()} <= FILES - {"student.safetensors"}
    if rank == 1:
        assert processes.together(2, processes.distil, run.config(), run, True) == [0, 0]
        assert outcome(run) == outcome(pair)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run of two processes; tests leave it as it is."""
    run = Run(tmp_path_factory.mktemp("pair") / "run")
    assert processes.together(2, processes.distil, tiny(), run) == [0, 0]
    return run


def test_the_others_are_asked_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = FakeClock(), []

    def largest(*values: float) -> list[float]:
        asked.append(clock.now)
        return [values[0], 2 * values[1]]  # the slowest takes twice as long

    monkeypatch.setattr(stopping, "time", clock)
    monkeypatch.setattr(stopping, "largest", largest)
    monkeypatch.setattr(stopping, "current_share", lambda: Share(0, 2))
    watch = Watch()
    for number in range(1, 31):
        clock.now = number * 0.05
        assert not watch.poll()
    assert asked == pytest.approx([0.05, 0.55, 1.05])
    watch.signal = signal.SIGTERM
    assert [watch.poll() for _ in range(2)] == [True, False]
    assert watch.agree()


def test_one_process_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "largest", None)
    watch = Watch()
    assert not watch.poll()
    assert not watch.agree()
    watch.signal = signal.SIGINT
    assert watch.poll()
    assert watch.agree()
