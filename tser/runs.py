"""The run folder: where its files are, how a run is found, created and described."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tser import __version__
from tser.config import RunConfig
from tser.config_file import load_config
from tser.errors import UsageError
from tser.leftovers import is_leftover
from tser.run_lock import LOCK, InUse, find_holder, in_use, locked

RUNS = Path("runs")
PACKAGES = (
    "torch",
    "torchvision",
    "norse",
    "nir",
    "onnx",
    "onnxruntime",
    "numpy",
    "h5py",
    "safetensors",
)


@dataclass(frozen=True)
class Run:
    """Paths inside one run folder.

    Attributes:
        path: the folder.
        factories: factories of models that the command line named, and so may be imported.
    """

    path: Path
    factories: tuple[str, ...] = ()

    @property
    def config_file(self) -> Path:
        """Every configuration value, defaults filled in."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def teacher(self) -> Path:
        """Weights of the teacher."""
        return self.path / "teacher.safetensors"

    @property
    def student(self) -> Path:
        """Weights of the trained student; present once training has finished."""
        return self.path / "student.safetensors"

    @property
    def checkpoint(self) -> Path:
        """State of the last finished epoch, to resume from."""
        return self.path / "checkpoint.pt"

    @property
    def environment(self) -> Path:
        """Versions, machine and command line."""
        return self.path / "environment.json"

    @property
    def nir(self) -> Path:
        """The exported NIR graph."""
        return self.path / "model.nir"

    @property
    def onnx(self) -> Path:
        """The exported ONNX graph."""
        return self.path / "model.onnx"

    @property
    def evaluation(self) -> Path:
        """Accuracy after each step and firing rates."""
        return self.path / "eval.json"

    @property
    def validation(self) -> Path:
        """The spike-by-spike verdict."""
        return self.path / "validation.json"

    @property
    def energy(self) -> Path:
        """Synaptic operations and energy."""
        return self.path / "energy.json"

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.path / "report.html"

    def naming(self, student: str | None = None, teacher: str | None = None) -> Run:
        """This run, with the factories that the command line named.

        Args:
            student: of ``--student``.
            teacher: of ``--teacher``.

        Raises:
            UsageError: the run's model is made by something else.
        """
        for role, named in (("student", student), ("teacher", teacher)):
            made_by = getattr(self.config(), role).factory if named else None
            if named != made_by:
                text = f"the {role} of {self.path} is "
                if made_by:
                    text += f"made by {made_by}, not by {named}; add --{role} {made_by} if you "
                    text += "trust it"
                else:
                    text += f"tser's own, not made by {named}; leave out --{role}"
                raise UsageError(text)
        return replace(self, factories=tuple(name for name in (student, teacher) if name))

    def config(self) -> RunConfig:
        """The resolved configuration.

        Raises:
            UsageError: it is missing or not valid.
        """
        return load_config(str(self.config_file))


def create_run(out: Path | None, name: str) -> Run:
    """Choose an empty run folder: ``out``, or the first free ``runs/<name>[-N]``.

    Nothing is made yet, so that a run that fails before training leaves nothing behind.

    Raises:
        UsageError: ``out`` holds something already, another process trains in it, or it is a file.
    """
    if out is None:
        number = 1
        out = RUNS / name
        while out.exists() and not _is_abandoned(out):
            number += 1
            out = RUNS / f"{name}-{number}"
    try:
        occupied = out.exists() and not _is_empty(out)
    except OSError as error:
        raise UsageError(
            f"cannot use {out} as a run folder: {error.strerror}; choose another --out"
        ) from error
    holder = find_holder(out)
    if holder:
        raise in_use(out, holder)
    if occupied:
        raise UsageError(
            f"{out} is not empty and nothing is overwritten; add --resume to continue that run, "
            "or choose another --out"
        )
    return Run(out)


def _is_empty(folder: Path) -> bool:
    """Whether nothing is in ``folder`` but what a killed process may leave there."""
    return all(is_leftover(path) or path.name == LOCK for path in folder.iterdir())


def _is_abandoned(folder: Path) -> bool:
    """Whether ``folder`` is that of a run that was killed before it had begun to train."""
    try:
        return any(folder.iterdir()) and _is_empty(folder) and not find_holder(folder)
    except OSError:
        return False


@contextmanager
def new_run(out: Path | None, name: str) -> Iterator[Run]:
    """The folder that `create_run` chooses, locked for the length of the block.

    Raises:
        UsageError: as for `create_run`, or nothing can be written there.
        TserError: the disk is full.
    """
    with ExitStack() as lock:
        while True:
            run = create_run(out, name)
            try:
                lock.enter_context(locked(run.path))
                if _is_empty(run.path):
                    break
            except InUse:  # another run has taken the folder since it was chosen
                if out is not None:
                    raise
            lock.close()
        yield run


@contextmanager
def resumed_run(out: Path | None, source: str | None, overrides: list[str]) -> Iterator[Run]:
    """The run that `resume_run` finds, locked for the length of the block.

    Raises:
        UsageError: as for `resume_run`, or another process trains in the folder.
        TserError: the disk is full.
    """
    run = resume_run(out, source, overrides)
    with locked(run.path):
        yield resume_run(run.path, None, [])  # again: it may have been finished meanwhile


def find_run(path: Path | None = None, *, trained: bool = True) -> Run:
    """The run at ``path``, or the newest one below ``runs/``.

    Args:
        path: a run folder; None means the newest.
        trained: require that training has finished.

    Raises:
        UsageError: there is no such run, or it is incomplete.
    """
    if path is None:
        configs = sorted(RUNS.glob("*/config.toml"), key=lambda file: file.stat().st_mtime)
        fitting = [file for file in configs if not trained or Run(file.parent).student.exists()]
        if not fitting:
            raise UsageError(
                f"there is no {'finished ' * trained}run below {RUNS}/ in this folder; "
                "make one with 'tser distill', or name a run folder"
            )
        return Run(fitting[-1].parent)
    run = Run(path)
    if not path.is_dir():
        raise UsageError(f"there is no run folder {path}")
    if not run.config_file.is_file():
        raise UsageError(f"{path} is not a run folder: it has no config.toml")
    holder = find_holder(path) if trained and not run.student.is_file() else None
    if holder:
        raise UsageError(f"the run {path} is still being trained by {holder}; wait for its end")
    if trained and not run.student.is_file():
        raise UsageError(
            f"the run {path} is incomplete: it has no student.safetensors; "
            f"finish it with 'tser distill --out {path} --resume'"
        )
    return run


def resume_run(out: Path | None, source: str | None, overrides: list[str]) -> Run:
    """The interrupted run to continue: ``out``, or the newest unfinished one.

    Args:
        out: a run folder; None means the newest that is not finished and not being trained.
        source: a preset or file named beside it, which is refused.
        overrides: settings named beside it, which are refused.

    Raises:
        UsageError: no such run, one that is finished, or settings that it would ignore.
    """
    given = [source] if source else overrides
    if given:
        raise UsageError(
            f"--resume continues with the run's own configuration; drop {given[0]!r}, "
            "or start a new run"
        )
    if out is None:
        configs = sorted(RUNS.glob("*/config.toml"), key=lambda file: file.stat().st_mtime)
        open_ = [file.parent for file in configs if not Run(file.parent).student.exists()]
        if not open_:
            raise UsageError(f"there is no unfinished run below {RUNS}/ in this folder")
        idle = [folder for folder in open_ if find_holder(folder) is None]
        out = (idle or open_)[-1]
    run = find_run(out, trained=False)
    if run.student.exists():
        raise UsageError(f"the run {out} is finished; start a new one without --resume")
    return run


def environment() -> dict[str, Any]:
    """Versions and machine, without importing the packages."""
    versions: dict[str, str | None] = {"tser": __version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "schema_version": 1,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
