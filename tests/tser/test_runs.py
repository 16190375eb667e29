"""Run folders: a new one is empty, the newest is found, and each refusal says what to do."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tser.config import RunConfig
from tser.config_file import dump_config, load_config
from tser.errors import UsageError
from tser.runs import Run, create_run, environment, find_run, resume_run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(name: str, age: int = 0, *, trained: bool = True) -> Run:
    """A run folder below runs/ whose config.toml is ``age`` seconds old."""
    run = Run(Path("runs") / name)
    run.path.mkdir(parents=True)
    run.config_file.write_text(dump_config(RunConfig()), encoding="utf-8")
    moment = 1_700_000_000 - age
    os.utime(run.config_file, (moment, moment))
    if trained:
        run.student.write_bytes(b"weights")
    return run


def refusal(call: Callable[[], object]) -> str:
    """What a usage error says: one line, exit code 2."""
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "\n" not in text
    return text


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- create --------------------------------------------------------------------------------


def test_runs_are_numbered_and_nothing_is_made(here: Path) -> None:
    assert create_run(None, "digits").path == Path("runs/digits")
    assert everything(here) == []
    for wanted in ("runs/digits", "runs/digits-2", "runs/digits-3"):
        run = create_run(None, "digits")
        assert run.path == Path(wanted)
        run.path.mkdir(parents=True)
    assert create_run(None, "other").path == Path("runs/other")


def test_the_first_free_number_is_taken_and_a_file_is_not_free() -> None:
    for name in ("digits", "digits-3"):
        make(name)
    assert create_run(None, "digits").path == Path("runs/digits-2")
    Path("runs/digits-2").write_text("a file", encoding="utf-8")
    assert create_run(None, "digits").path == Path("runs/digits-4")


def test_a_named_folder_may_be_new_or_empty(here: Path) -> None:
    assert create_run(here / "new" / "run", "digits") == Run(here / "new" / "run")
    (here / "empty").mkdir()
    assert create_run(here / "empty", "digits").path == here / "empty"
    assert everything(here) == ["empty"]


@pytest.mark.parametrize("name", ["config.toml", ".hidden", "folder"])
def test_a_folder_that_holds_anything_is_refused(name: str, here: Path) -> None:
    (here / "run").mkdir()
    (here / "run" / name).mkdir() if name == "folder" else (here / "run" / name).touch()
    text = refusal(lambda: create_run(Path("run"), "digits"))
    assert text.startswith("run is not empty and nothing is overwritten; add --resume")
    assert everything(here) == ["run", f"run/{name}"]


def test_a_file_in_place_of_the_folder_is_refused(here: Path) -> None:
    (here / "run").write_text("kept", encoding="utf-8")
    text = refusal(lambda: create_run(Path("run"), "digits"))
    assert text.startswith("cannot use run as a run folder: Not a directory")
    assert (here / "run").read_text(encoding="utf-8") == "kept"


# --- find ----------------------------------------------------------------------------------


def test_the_newest_finished_run_is_found() -> None:
    make("a", age=20)
    make("b", age=10)
    make("c", age=30)
    make("d", age=5, trained=False)
    Path("runs/not-a-run").mkdir()
    assert find_run().path == Path("runs/b")
    assert find_run(trained=False).path == Path("runs/d")
    os.utime("runs/c/config.toml")
    assert find_run().path == Path("runs/c")


def test_a_named_run_is_found() -> None:
    make("a")
    assert find_run(Path("runs/a")) == Run(Path("runs/a"))
    make("b", trained=False)
    assert find_run(Path("runs/b"), trained=False).path == Path("runs/b")


def test_no_run_at_all(here: Path) -> None:
    text = refusal(find_run)
    assert text.startswith("there is no finished run below runs/ in this folder; make one with")
    make("a", trained=False)
    assert refusal(find_run) == text
    assert everything(here) == ["runs", "runs/a", "runs/a/config.toml"]


def test_a_run_that_is_not_there(here: Path) -> None:
    assert refusal(lambda: find_run(Path("nowhere"))) == "there is no run folder nowhere"
    (here / "file").touch()
    assert refusal(lambda: find_run(Path("file"))) == "there is no run folder file"
    (here / "folder").mkdir()
    text = refusal(lambda: find_run(Path("folder")))
    assert text == "folder is not a run folder: it has no config.toml"


def test_an_incomplete_run_says_how_to_finish_it() -> None:
    make("a", trained=False)
    text = refusal(lambda: find_run(Path("runs/a")))
    assert text.startswith("the run runs/a is incomplete: it has no student.safetensors")
    assert "'tser distill --out runs/a --resume'" in text


# --- resume --------------------------------------------------------------------------------


def test_the_newest_unfinished_run_is_resumed() -> None:
    make("a", age=20, trained=False)
    make("b", age=10, trained=False)
    make("c", age=0)
    assert resume_run(None, None, []).path == Path("runs/b")
    assert resume_run(Path("runs/a"), None, []).path == Path("runs/a")


@pytest.mark.parametrize(
    ("source", "overrides", "named"),
    [("digits", [], "'digits'"), (None, ["train.lr=0.01"], "'train.lr=0.01'")],
)
def test_a_resumed_run_takes_no_other_settings(
    source: str | None, overrides: list[str], named: str
) -> None:
    make("a", trained=False)
    text = refusal(lambda: resume_run(None, source, overrides))
    assert "--resume continues with the run's own configuration" in text
    assert named in text


def test_there_must_be_something_to_resume() -> None:
    text = refusal(lambda: resume_run(None, None, []))
    assert "there is no unfinished run below runs/" in text
    make("a")
    assert refusal(lambda: resume_run(None, None, [])) == text
    assert "runs/a is finished" in refusal(lambda: resume_run(Path("runs/a"), None, []))
    assert "no run folder nowhere" in refusal(lambda: resume_run(Path("nowhere"), None, []))


# --- what is in a run ----------------------------------------------------------------------


def test_the_files_of_a_run_are_its_own() -> None:
    run = Run(Path("somewhere"))
    files = [
        *(run.config_file, run.metrics, run.teacher, run.student, run.checkpoint),
        *(run.environment, run.nir, run.onnx, run.evaluation, run.validation),
        *(run.energy, run.report),
    ]
    assert len(set(files)) == len(files)
    assert {file.parent for file in files} == {run.path}


def test_its_configuration_is_read_back(here: Path) -> None:
    config = load_config("digits", ["train.seed=5"])
    run = make("a")
    run.config_file.write_text(dump_config(config), encoding="utf-8")
    assert run.config() == config
    run.config_file.write_text("[train]\nepoch = 3\n", encoding="utf-8")
    assert "'train.epoch' in runs/a/config.toml" in refusal(run.config)
    run.config_file.unlink()
    assert refusal(run.config) == "there is no configuration file runs/a/config.toml"


def test_the_environment_names_versions_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/bin/tser", "distill", "digits"])
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["schema_version"] == 1
    assert found["command"] == ["tser", "distill", "digits"]
    assert found["packages"]["torch"]
    assert found["packages"]["norse"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tser.runs.PACKAGES", ("numpy", "no-such-package-here"))
    packages = environment()["packages"]
    assert packages["numpy"]
    assert packages["no-such-package-here"] is None
