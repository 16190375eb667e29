"""Several processes: the same gradient as one, one run folder, and nobody waits for the dead."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import processes
from tser import distributed
from tser.checkpoints import load_checkpoint
from tser.config import RunConfig, TrainConfig
from tser.config_file import load_config
from tser.data.feed import ALONE, Share
from tser.distributed import check_share, current_share, first, gather, own_device, process_group
from tser.errors import UsageError
from tser.runs import Run

ROOT = Path(__file__).parents[2]
TINY = (
    "data.limit_train=64",
    "teacher.width=4",
    "teacher.epochs=1",
    "student.width=4",
    "student.timesteps=2",
    "train.epochs=2",
    "train.batch_size=16",
    "train.device=cpu",
)
TIMES = ("seconds", "data_wait")
FILES = {
    "config.toml",
    "environment.json",
    "metrics.jsonl",
    "teacher.safetensors",
    "student.safetensors",
    "checkpoint.pt",
}


def tiny(*overrides: str) -> RunConfig:
    return load_config("digits", [*TINY, *overrides])


def timeless(run: Run) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


# --- the mathematics -----------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_have_the_gradient_of_one(accumulate: int, tmp_path: Path) -> None:
    """At the same global batch; batch norm, whose statistics are of each process, is fixed."""
    alone, joint = tmp_path / "alone.pt", tmp_path / "joint.pt"
    processes.gradients(tiny(), alone)
    config = tiny(f"train.accumulate={accumulate}")
    assert processes.together(2, processes.gradients, config, joint) == [0, 0]
    wanted, found = torch.load(alone), torch.load(joint)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        scale = float(value.abs().max())
        assert scale > 0, name
        assert float((found[name] - value).abs().max()) < 1e-5 * scale, name


def test_the_metrics_are_of_all_processes_and_the_statistics_of_the_first(tmp_path: Path) -> None:
    assert processes.together(2, processes.one_epoch, tiny(), tmp_path) == [0, 0]
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("0", "1"))
    assert first == second
    assert first["row"]["loss"] == 1.5


# --- a whole run ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two processes; tests leave it as it is."""
    run = Run(tmp_path_factory.mktemp("whole") / "run")
    config = tiny("train.checkpoint_steps=2", "train.clip_norm=1")
    assert processes.together(2, processes.distil, config, run) == [0, 0]
    return run


def test_two_processes_leave_one_run(whole: Run) -> None:
    assert {path.name for path in whole.path.iterdir()} == FILES
    rows = timeless(whole)
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        ("teacher", 1),
        ("student", 1),
        ("student", 2),
    ]
    validation = 200
    for row in rows:
        accuracy, shown = row["val_accuracy"], row["train_accuracy"]
        assert isinstance(accuracy, list)
        assert isinstance(shown, float)
        assert accuracy[-1] * validation == pytest.approx(round(accuracy[-1] * validation))
        assert shown * 64 == pytest.approx(round(shown * 64))  # all samples, not one share
    state = load_checkpoint(whole.checkpoint)
    student = load_file(whole.student)
    assert state["model"].keys() == student.keys()  # as it is without a wrapper
    assert all(torch.equal(state["model"][name], value) for name, value in student.items())


def test_its_accuracy_is_that_of_the_saved_student(whole: Run) -> None:
    from tser.evaluate import evaluate

    last = timeless(whole)[-1]["val_accuracy"]
    assert evaluate(whole, split="val")["accuracy"] == pytest.approx(last)


def test_it_can_be_resumed_by_two_or_by_one(whole: Run, tmp_path: Path) -> None:
    for world in (2, 1):
        run = Run(tmp_path / str(world))
        run.path.mkdir()
        for name in ("config.toml", "environment.json", "teacher.safetensors", "metrics.jsonl"):
            (run.path / name).write_bytes((whole.path / name).read_bytes())
        target = processes.distil
        config = whole.config()
        assert processes.together(world, target, config, run, True) == [0] * world
        assert {path.name for path in run.path.iterdir()} == FILES
        assert len(timeless(run)) == 3
        if world == 2:
            assert run.student.read_bytes() == whole.student.read_bytes()
            assert timeless(run) == timeless(whole)


@pytest.mark.slow
def test_torchrun_leaves_one_complete_run_folder(tmp_path: Path) -> None:
    """The command line of the manual, on two gloo processes."""
    settings = [f"--set={text}" for text in TINY]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "tser", "distill", "digits", *settings),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits"]
    run = Run(tmp_path / "runs" / "digits")
    assert {path.name for path in run.path.iterdir()} == FILES | {"eval.json"}
    assert len(timeless(run)) == 3
    assert done.stderr.count("student 2/2") == 1
    assert done.stdout.count("Test accuracy") == 1


# --- failures ------------------------------------------------------------------------------


def test_nobody_waits_for_a_process_that_failed(tmp_path: Path) -> None:
    processes.together(2, processes.one_fails, tmp_path)
    assert (tmp_path / "1").read_text() == "ValueError: the reason"
    waiting = (tmp_path / "0").read_text()
    assert waiting.startswith("TserError: another process of this run has stopped"), waiting


def test_a_network_that_outlives_the_processes_group_owns_nothing_of_it(tmp_path: Path) -> None:
    """Otherwise the group ended with it, and now and then waited for ever for its own thread."""
    assert processes.together(2, processes.leave_with_an_error, tmp_path) == [0, 0]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["None", "None"]


def test_what_the_first_process_refuses_is_said_once(tmp_path: Path) -> None:
    processes.together(2, processes.first_refuses, tmp_path)
    assert (tmp_path / "0").read_text() == "ValueError: only once"
    assert (tmp_path / "1").read_text() == "SystemExit: 1"


@pytest.mark.parametrize(
    ("settings", "world", "words"),
    [
        ({"batch_size": 65}, 2, "cannot be split over 2; use 64 or 66"),
        ({"batch_size": 3}, 4, "cannot be split over 4; use 4 or 8"),
        ({"batch_size": 4}, 4, "use at least 8"),
        ({"batch_size": 16, "accumulate": 8}, 2, "train.accumulate = 8 leaves fewer than two"),
    ],
)
def test_a_batch_that_cannot_be_split_is_refused(
    settings: dict[str, int], world: int, words: str
) -> None:
    train = TrainConfig.model_validate(settings)
    with pytest.raises(UsageError, match=words):
        check_share(train, Share(0, world))


def test_a_batch_that_can_be_split_is_not_refused() -> None:
    check_share(TrainConfig(batch_size=16, accumulate=4), Share(1, 2))
    check_share(TrainConfig(batch_size=2), ALONE)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "current_share", lambda: Share(5, 8))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("auto") == own_device("cuda") == "cuda:1"
    assert own_device("cpu") == "cpu"
    for name in ("cuda:0", "mps"):
        with pytest.raises(UsageError, match="is one device, and there are 8 processes"):
            own_device(name)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="no GPU for process 3 on this machine, which has 2"):
        own_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device("auto") == "cpu"


def test_one_process_is_the_first_and_needs_no_group() -> None:
    with process_group() as share:
        assert share == current_share() == ALONE
        assert not torch.distributed.is_initialized()
        assert first(lambda: 3) == 3
        assert gather("x") == ["x"]
    assert own_device("cuda:1") == "cuda:1"
