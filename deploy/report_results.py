"""All that is known of a run, whether it still belongs together, and what makes what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tser.checkpoints import weights_digest
from tser.config import RunConfig
from tser.deploy.graph_file import open_nir
from tser.deploy.report_blocks import Note
from tser.deploy.report_energy_file import EnergyResult
from tser.deploy.report_files import Environment, Epoch, Evaluation
from tser.deploy.report_reading import read_document, read_epochs
from tser.deploy.report_validation_file import ValidationResult
from tser.export.graph import Graph
from tser.runs import Run, find_run

Freshness = Literal["current", "stale", "unknown"]


@dataclass(frozen=True)
class Results:
    """All that is known of a run; None or empty where a file is not there.

    Attributes:
        run: the folder.
        config: every value.
        config_text: the same, as written.
        epochs: of the teacher and of the student, in order of training.
        environment: versions, machine and command.
        evaluation: accuracy and firing rates of the student.
        validation: the spike-by-spike verdict.
        energy: operations and energy.
        graph: the exported NIR graph.
        weights: sha256 that student.safetensors carries.
    """

    run: Run
    config: RunConfig
    config_text: str
    epochs: list[Epoch]
    environment: Environment | None
    evaluation: Evaluation | None
    validation: ValidationResult | None
    energy: EnergyResult | None
    graph: Graph | None
    weights: str | None

    @property
    def digest(self) -> str | None:
        """sha256 that the exported graph carries."""
        return None if self.graph is None else self.graph.metadata.get("sha256")

    @property
    def evaluation_is(self) -> Freshness:
        """Whether eval.json can be of this student: the same data, T and weights."""
        found, wanted = self.evaluation, self.config
        if found is None:
            return "unknown"
        if self._retrained(found.student_weights):
            return "stale"
        same = (found.data, found.timesteps) == (wanted.data.name, wanted.student.timesteps)
        return "current" if same else "stale"

    @property
    def validation_is(self) -> Freshness:
        """Whether validation.json is of the graph and the student that are in the folder now."""
        found = self.validation
        if found is None:
            return "unknown"
        if self._retrained(found.student_weights):
            return "stale"
        # An identical graph that does not state its digest has the student's.
        own = found.student_digest if found.static.identical else None
        return self._freshness(found.graph_digest or own)

    @property
    def energy_is(self) -> Freshness:
        """Whether energy.json is of the graph that is in the folder now."""
        return self._freshness(None if self.energy is None else self.energy.graph_digest)

    def _retrained(self, weights: str | None) -> bool:
        return None not in (weights, self.weights) and weights != self.weights

    def _freshness(self, measured: str | None) -> Freshness:
        if measured is None or self.digest is None:
            return "unknown"
        return "current" if measured == self.digest else "stale"


@dataclass(frozen=True)
class Commands:
    """The command lines that make the files of a run, quoted for a shell."""

    run: Run

    def _line(self, *words: str | Path) -> str:
        return shlex.join(["tser", *map(str, words)])

    @property
    def evaluate(self) -> str:
        """Makes eval.json."""
        return self._line("eval", self.run.path)

    @property
    def evaluate_validation(self) -> str:
        """Prints the same for the images on which choices may be made."""
        return f"{self.evaluate} --split val"

    @property
    def export_nir(self) -> str:
        """Makes model.nir."""
        return self._line("export", self.run.path, "--format", "nir")

    @property
    def export_onnx(self) -> str:
        """Makes model.onnx."""
        return self._line("export", self.run.path, "--format", "onnx")

    @property
    def validate(self) -> str:
        """Makes validation.json."""
        return self._line("validate", self.run.nir, "--against", self.run.path)

    @property
    def energy(self) -> str:
        """Makes energy.json."""
        return self._line("energy", self.run.nir, "--against", self.run.path)

    def fit(self, chips: Sequence[str]) -> str:
        """Checks the graph against chips."""
        targets = [word for chip in chips for word in ("--target", chip)]
        return self._line("fit", self.run.nir, *targets)

    @property
    def report(self) -> str:
        """Makes report.html."""
        return self._line("report", self.run.path)


def read_results(run: Run) -> Results:
    """Read everything there is in a finished run.

    Raises:
        UsageError: not a run, not finished, or its configuration is not valid.
        InputFileError: a file is damaged or of another version.
    """
    run = find_run(run.path)
    commands = Commands(run)

    def again(command: str) -> str:
        return f"make it again with '{command}'"

    return Results(
        run=run,
        config=run.config(),
        config_text=run.config_file.read_text(encoding="utf-8"),
        epochs=read_epochs(run.metrics),
        environment=read_document(run.environment, Environment, "delete it to report without it"),
        evaluation=read_document(run.evaluation, Evaluation, again(commands.evaluate)),
        validation=read_document(run.validation, ValidationResult, again(commands.validate)),
        energy=read_document(run.energy, EnergyResult, again(commands.energy)),
        graph=open_nir(run.nir) if run.nir.exists() else None,
        weights=weights_digest(run.student),
    )


def missing(what: str, command: str, results: Results | None = None) -> Note:
    """Says which command makes what is not there.

    Args:
        what: "Not checked yet" and the like.
        command: that makes it.
        results: given where the command needs model.nir; adds how to make that.
    """
    if results is None or results.graph is not None:
        return Note(f"{what}. To do so, run", command)
    both = f"{Commands(results.run).export_nir}\n{command}"
    return Note(f"{what}, and there is no model.nir. To do so, run", both)


def age(freshness: Freshness, file: str, command: str) -> tuple[Note, ...]:
    """A warning when numbers are of another graph or student than the folder holds now.

    Args:
        freshness: of ``file``.
        file: its name.
        command: that makes it again.
    """
    if freshness == "current":
        return ()
    if freshness == "stale":
        text = (
            f"Out of date: {file} was made from another graph or student than the run folder "
            "holds now. To bring it up to date, run"
        )
        return (Note(text, command, "caution"),)
    text = (
        f"Whether {file} was made from the model.nir that is in the run folder now cannot be told. "
        "To be sure, run"
    )
    return (Note(text, command),)
