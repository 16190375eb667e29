"""The examples of docs/validation.md: a tie in a run of ours, and wrong graphs of other libraries.

    python benchmarks/validation_examples.py run      # trains for a minute, or --run FOLDER
    python benchmarks/validation_examples.py table    # puts the examples into docs/validation.md

Needs the extra: pip install -e '.[interop]'. The newest line of
``benchmarks/results/validation_examples.jsonl`` counts.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from document import Row, append_row, machine, markdown, read_rows, write_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "validation_examples.jsonl"
DOCUMENT = ROOT / "docs" / "validation.md"
TRAINING = (
    "distill digits --out runs/digits --set teacher.epochs=3 --set train.epochs=3",
    "export runs/digits",
)
RUN = "validate runs/digits/model.nir"
NORSE = "validate norse.nir --against ours.nir --input x.npy --dt 1e-3"
IMPORTER = "validate reset.nir --against reset.nir --input x.npy --backend norse"
TIES = "onnx-noopt"
BATCH = 250
STEPS, INPUTS, CLASSES = 12, 16, 4


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the examples")
    run.add_argument("--run", type=Path, help="a finished digits run; default: trains one")
    table = commands.add_parser("table", help="put the examples into the document")
    table.add_argument("--check", action="store_true", help="only say whether it is up to date")
    for command in (run, table):
        command.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "table":
        rows = read_rows(arguments.results)
        tables = {name: functools.partial(make, rows) for name, make in TABLES.items()}
        write_tables(DOCUMENT, tables, check=arguments.check)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.run:
            shutil.copytree(arguments.run, folder / "runs" / "digits")
        else:
            for command in TRAINING:
                said(command, folder)
        write_graphs(folder)
        row: Row = {command: said(command, folder) for command in (RUN, NORSE, IMPORTER)}
        row |= {"tie": tie(folder / "runs" / "digits"), "machine": machine()}
    append_row(arguments.results, row)


def said(command: str, folder: Path) -> str:
    """What ``tser COMMAND`` prints in a folder."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tser", *shlex.split(command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if found.returncode not in (0, 3):
        raise SystemExit(f"tser {command} ends with {found.returncode}: {found.stdout}")
    return "\n".join(line.rstrip() for line in found.stdout.strip().splitlines())


# --- wrong graphs --------------------------------------------------------------------------


def write_graphs(folder: Path) -> None:
    """One network of Norse, as tser and as Norse write it, another with v_reset, and inputs."""
    import nir
    import norse.torch
    import torch

    from tser.export.lower import lower
    from tser.export.nir_file import write_nir
    from tser.user_models import UserStudent

    for name, v_reset in (("ours.nir", 0.0), ("reset.nir", -0.2)):
        student = UserStudent(_network(v_reset), STEPS, (INPUTS,), CLASSES, "the example")  # type: ignore[arg-type]
        write_nir(lower(student).graph, folder / name)
    theirs = norse.torch.to_nir(_network(0.0), torch.zeros(INPUTS), dt=1e-3)
    nir.write(folder / "norse.nir", theirs, compression=None)
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", np.float32(2) * (rng.random((20, INPUTS)) < 0.5))


def _network(v_reset: float) -> Any:
    """Three linear layers and two of Norse's LIF between; dt = 1 ms, tau = 2 ms."""
    import torch
    from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState
    from torch import nn

    torch.manual_seed(0)
    values = LIFBoxParameters(
        tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(0.3), v_reset=torch.tensor(v_reset)
    )
    cells = [LIFBoxCell(values, dt=1e-3) for _ in range(2)]
    return SequentialState(
        nn.Linear(INPUTS, 12), cells[0], nn.Linear(12, 10), cells[1], nn.Linear(10, CLASSES)
    )


# --- a tie ---------------------------------------------------------------------------------


def tie(path: Path) -> Row:
    """The one neuron that rounding lets fire otherwise and that changes most, on shifted digits.

    The student in PyTorch against its graph in ONNX Runtime without graph optimisation, on all
    images of the data set, as they are and moved by one pixel in eight directions.
    """
    from tser.deploy.candidates import executors, open_subject
    from tser.deploy.equivalence import compare
    from tser.deploy.references import student_of
    from tser.runs import Run

    run = Run(path)
    reference, subject = student_of(run, None), open_subject(run.nir)
    steps = reference.timesteps or 1
    student = reference.start(steps, False)
    backends = executors(subject, [TIES], steps, False)
    touched: list[Row] = []

    def watch(traces: dict[str, Any]) -> None:
        a, b = (traces[name].spikes for name in (student.name, TIES))
        flips = sum((a[key] != b[key]).sum((0, *range(2, a[key].ndim))) for key in a)
        touched.extend(
            {"flips": int(flips[sample]), "x": batches[-1][sample : sample + 1]}
            for sample in np.flatnonzero(flips)
        )

    batches: list[Any] = []

    def given() -> Iterator[tuple[Any, None]]:
        for batch in _moved(run):
            batches[:] = [batch]
            yield batch, None

    def compared(inputs: Any, **options: Any) -> Any:
        evidence = compare(
            reference.graph, student, backends, inputs, reference.bias_magnitude, **options
        )
        return evidence.comparisons[0]

    whole = compared(given(), watch=watch)
    found: Row = {
        "samples": whole.samples,
        "neuron_steps": whole.neuron_steps,
        "flips": whole.flips,
        "seeds": sum(layer.seeds for layer in whole.layers.values()),
        "verdict": whole.verdict,
        "predictions": whole.argmax_differences,
        "touched": len(touched),
    }
    for one in sorted(touched, key=lambda one: -one["flips"]):
        alone = compared([(one["x"], None)])
        if sum(layer.seeds for layer in alone.layers.values()) == 1:
            first = alone.first_divergence
            shown = {key: first[key] for key in ("t", "layer", "neuron", "reference")}
            shown |= {"margin": first["v_minus_threshold"], "bound": first["bound"]}
            return found | {"one": shown | {"flips": alone.flips, "verdict": alone.verdict}}
    raise SystemExit("no sample has a single tie; train with another seed")


def _moved(run: Any) -> Iterator[Any]:
    import torch

    from tser.checkpoints import load_run_data

    data = load_run_data(run, None)
    images = data.normalise(torch.cat([data.test.images, data.train.images])).numpy()
    for shift in itertools.product((0, -1, 1), repeat=2):
        moved = np.roll(images, shift, (2, 3))
        for start in range(0, len(moved), BATCH):
            yield moved[start : start + BATCH]


# --- what the document shows ---------------------------------------------------------------


def transcript(command: str, rows: list[Row]) -> str:
    """A command and what it printed."""
    if not rows:
        return "Not run yet.\n"
    return f"```text\n$ tser {command}\n{rows[-1][command]}\n```\n"


def tie_table(rows: list[Row]) -> str:
    """The tie and what it led to."""
    if not rows:
        return "Not run yet.\n"
    found = rows[-1]["tie"]
    one = found["one"]
    neuron = ", ".join(map(str, one["neuron"]))
    fires = "fires in PyTorch" if one["reference"] else "is silent in PyTorch"
    lines = [
        ["images", f"{found['samples']:,}"],
        ["neuron-steps", f"{found['neuron_steps']:,}"],
        ["flips", f"{found['flips']:,}, in {found['touched']} images"],
        ["seeds", f"{found['seeds']:,}, all certified"],
        ["predictions that differ", f"{found['predictions']:,}"],
        ["verdict", found["verdict"]],
        ["one of the images: the seed", f"{one['layer']}, neuron ({neuron}), t = {one['t'] + 1}"],
        ["the exact v − v_th there", f"{one['margin']:.2g}; the neuron {fires}"],
        ["what rounding can do there", f"{one['bound']:.2g}"],
        ["flips that it led to", f"{one['flips']:,}"],
    ]
    return markdown(["student of digits, PyTorch against ONNX Runtime", ""], lines)


TABLES = {
    "example-run": functools.partial(transcript, RUN),
    "example-tie": tie_table,
    "example-norse": functools.partial(transcript, NORSE),
    "example-importer": functools.partial(transcript, IMPORTER),
}


if __name__ == "__main__":
    main()
