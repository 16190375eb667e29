"""The ablation of TSER on Fashion-MNIST: what each term of the loss is worth.

    python benchmarks/ablation.py run grid      # alpha, gamma, temperature, on the validation split
    python benchmarks/ablation.py run ladder    # every method, on the test set
    python benchmarks/ablation.py table         # puts the tables into docs/results.md

Every finished training run is one line of ``benchmarks/results/ablation.jsonl``; a second call
goes on where the first one stopped, in the middle of a training run too. Grid and ladder, or
several processes of either, may run side by side.

The methods of one seed share the teacher, the student's first weights and the order and
augmentation of the images, so their differences are paired. The grid uses seeds of its own.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ablation.jsonl"
DOCUMENT = ROOT / "docs" / "results.md"
WORK = ROOT / "runs" / "ablation"

RECIPE = (
    "data.limit_train=4000",
    "data.shift=1",
    "teacher.width=16",
    "teacher.stages=3",
    "teacher.epochs=10",
    "teacher.lr=0.05",
    "student.width=8",
    "student.stages=3",
    "student.timesteps=4",
    "train.epochs=10",
    "train.batch_size=32",
    "train.lr=0.1",
    "train.compile=neuron",
    "train.device=cpu",
)
"""Over the preset fashion-mnist, the same for every run: what two CPU cores manage in hours."""

LADDER_SEEDS = range(5)
GRID_SEEDS = range(100, 102)
CENTRE = {"loss.alpha": 1.0, "loss.gamma": 0.01, "loss.temperature": 3.0}
GRID = {
    "loss.alpha": (0.25, 0.5, 1.0, 2.0),
    "loss.gamma": (0.0, 0.001, 0.01, 0.1),
    "loss.temperature": (1.0, 2.0, 3.0, 6.0),
}
"""Varied one at a time around ``CENTRE``."""

ENERGY_SAMPLES = 500
TARGETS = ("cmos45", "loihi")

Row = dict[str, Any]


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is missing")
    run.add_argument("part", choices=("grid", "ladder"))
    table = commands.add_parser("table", help="put the tables into the document")
    table.add_argument("--check", action="store_true", help="only say whether it is up to date")
    arguments = parser.parse_args()
    if arguments.command == "table":
        before = DOCUMENT.read_text(encoding="utf-8")
        after = with_tables(before, read_results())
        if arguments.check:
            sys.exit(before != after and f"{DOCUMENT} is not what the results say")
        DOCUMENT.write_text(after, encoding="utf-8")
    else:
        run_all(grid_runs() if arguments.part == "grid" else ladder_runs())


def ladder_runs() -> list[Row]:
    """Every method with every seed, one seed after the other."""
    from tser.methods import METHODS

    return [
        {"part": "ladder", "split": "test", "seed": seed, "set": [f"loss.method={method}"]}
        for seed in LADDER_SEEDS
        for method in METHODS
    ]


def grid_runs() -> list[Row]:
    """Every point of the grid with every seed; the centre is in all three lines, and run once."""
    rows: list[Row] = []
    for seed in GRID_SEEDS:
        for key, values in GRID.items():
            for value in values:
                point = CENTRE | {key: value}
                settings = ["loss.method=tser", *(f"{k}={v}" for k, v in point.items())]
                row = {"part": "grid", "split": "val", "seed": seed, "set": settings}
                if row not in rows:
                    rows.append(row)
    return rows


def run_all(wanted: list[Row]) -> None:
    """Train and measure the runs that the results file lacks and no other process is at."""
    for number, row in enumerate(wanted, 1):
        with reserved(row) as mine:
            if not mine or any(row.items() <= old.items() for old in read_results()):
                continue
            started = time.monotonic()
            result = measure_run(row)
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
        accuracy = " ".join(f"{value:.2%}" for value in result["accuracy"])
        seconds = time.monotonic() - started
        sys.stderr.write(
            f"[{number}/{len(wanted)}] seed {row['seed']} {' '.join(row['set'])}: "
            f"{accuracy}, {seconds:.0f} s\n"
        )


@contextmanager
def reserved(row: Row) -> Iterator[bool]:
    """Whether this process alone holds ``row`` for the length of the block."""
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / f"{folder_name(row)}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def folder_name(row: Row) -> str:
    """Of the run of ``row``."""
    values = "-".join(setting.partition("=")[2] for setting in row["set"])
    return f"{row['part']}-{values}-seed{row['seed']}"


def read_results() -> list[Row]:
    """The results of this recipe; those of another one are passed over."""
    if not RESULTS.exists():
        return []
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["recipe"] == list(RECIPE)]


def measure_run(row: Row) -> Row:
    """Train as ``row`` says, then measure accuracy, firing, operations and energy."""
    from tser.checkpoints import load_student
    from tser.config_file import load_config
    from tser.data import load_data
    from tser.deploy.energy import load_target
    from tser.deploy.measure import measure
    from tser.distill import distill
    from tser.evaluate import evaluate
    from tser.export.graph import resolve
    from tser.export.lower import lower
    from tser.runs import Run, environment

    seed = row["seed"]
    teacher = WORK / f"teacher-{row['part']}-{seed}.safetensors"
    settings = [*RECIPE, f"train.seed={seed}", *row["set"]]
    if teacher.exists():
        settings.append(f"teacher.path={json.dumps(str(teacher))}")
    run = Run(WORK / folder_name(row))
    resume = run.config_file.exists()
    config = run.config() if resume else load_config("fashion-mnist", settings)
    if not run.student.exists():
        distill(config, run, resume=resume)
    if not teacher.exists():
        teacher.write_bytes(run.teacher.read_bytes())

    result = evaluate(run, split=row["split"])
    neurons = sum(layer["neurons"] for layer in result["layers"])
    spikes = sum(layer["neurons"] * layer["firing_rate"] for layer in result["layers"])
    costs: Row = {}
    if row["part"] == "ladder":  # the grid must not see the test images
        data = load_data(config.data.name, limit_train=config.data.limit_train)
        counted = measure(
            resolve(lower(load_student(run, data), data).graph),
            data,
            [load_target(target) for target in TARGETS],
            origin=str(run.path),
            samples=ENERGY_SAMPLES,
        )
        costs = {
            "sop": counted["totals"]["sop_structural"],
            "joules": {bill["name"]: bill["priced_joules"] for bill in counted["targets"]},
        }
    return {
        **row,
        "recipe": list(RECIPE),
        "accuracy": result["accuracy"],
        "calibration_error": result["calibration_error"],
        "teacher_accuracy": result["teacher_accuracy"],
        "samples": result["samples"],
        "firing_rate": spikes / neurons,
        **costs,
        "machine": environment(),
    }


def with_tables(text: str, rows: list[Row]) -> str:
    """``text`` with the tables between its marks made anew."""
    for name, make in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(start)
        _, found, tail = rest.partition(end)
        if not found:
            raise SystemExit(f"{DOCUMENT} has no marks for the table {name!r}")
        text = head + start + "\n" + make(rows) + "\n" + end + tail
    return text


def ladder_table(rows: list[Row]) -> str:
    """Accuracy after every step, firing and cost of every method."""
    columns = ["method", *(f"t = {t}" for t in STEPS), "firing rate", "SOP", "45 nm", "Loihi*"]
    lines = []
    for method, runs in by_method(rows).items():
        cells = [spread([run["accuracy"][t - 1] for run in runs], 100, 2) for t in STEPS]
        cells += [
            spread([run["firing_rate"] for run in runs], 1, 4),
            spread([run["sop"] for run in runs], 1e-6, 3) + " M",
            spread([run["joules"]["cmos45"] for run in runs], 1e6, 3) + " µJ",
            spread([run["joules"]["loihi"] for run in runs], 1e6, 2) + " µJ",
        ]
        lines.append([f"`{method}`", *cells])
    return markdown(columns, lines)


def difference_table(rows: list[Row]) -> str:
    """Paired differences in percentage points, with their 95 % confidence intervals."""
    methods = by_method(rows)
    columns = ["difference", *(f"t = {t}" for t in STEPS), "firing rate", "45 nm"]
    lines = []
    for after, before in PAIRS:
        pairs = [(a, b) for a in methods[after] for b in methods[before] if a["seed"] == b["seed"]]
        cells = [
            interval([100 * (a["accuracy"][t - 1] - b["accuracy"][t - 1]) for a, b in pairs], 2)
            for t in STEPS
        ]
        cells += [
            interval([100 * (pick(a) / pick(b) - 1) for a, b in pairs], 1) + " %"
            for pick in (lambda r: r["firing_rate"], lambda r: r["joules"]["cmos45"])
        ]
        lines.append([f"`{after}` - `{before}`", *cells])
    return markdown(columns, lines)


def grid_table(rows: list[Row]) -> str:
    """Validation accuracy along each line of the grid."""
    points: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["part"] == "grid":
            points.setdefault(tuple(row["set"]), []).append(row)
    lines = []
    for key, values in GRID.items():
        for value in values:
            point = CENTRE | {key: value}
            runs = points.get(("loss.method=tser", *(f"{k}={v}" for k, v in point.items())), [])
            if runs:
                cells = [spread([run["accuracy"][t - 1] for run in runs], 100, 2) for t in STEPS]
                chosen = " (default)" if value == CENTRE[key] else ""
                lines.append([f"`{key}` = {value:g}{chosen}", str(len(runs)), *cells])
    return markdown(["setting", "seeds", *(f"t = {t}" for t in STEPS)], lines)


def setting_table(rows: list[Row]) -> str:
    """What was run, and on what."""
    ladder = [row for row in rows if row["part"] == "ladder"]
    machine = ladder[0]["machine"]
    packages = ", ".join(f"{k} {machine['packages'][k]}" for k in ("torch", "norse", "numpy"))
    teachers = {row["seed"]: row["teacher_accuracy"] for row in ladder}
    seeds = sorted(teachers)
    lines = [
        ["recipe", "preset `fashion-mnist` with " + ", ".join(f"`{text}`" for text in RECIPE)],
        ["seeds", ", ".join(map(str, seeds))],
        ["test images", f"{ladder[0]['samples']:,}"],
        ["teacher", spread([teachers[seed] for seed in seeds], 100, 2) + " %"],
        ["machine", f"{machine['cpus']} cores of {machine['processor']}, {packages}"],
        ["operations and energy", f"first {ENERGY_SAMPLES} test images, exported NIR graph"],
    ]
    return markdown(["", ""], lines)


TABLES = {
    "setting": setting_table,
    "ladder": ladder_table,
    "differences": difference_table,
    "grid": grid_table,
}
STEPS = range(1, 5)
PAIRS = (
    ("kd", "snn"),
    ("ce-per-step", "kd"),
    ("kl-per-step", "kd"),
    ("separation", "kd"),
    ("tser", "separation"),
    ("tser", "kd"),
    ("tser-self", "tser"),
)
"""Each row of the ladder against the one that it adds something to."""


def by_method(rows: list[Row]) -> dict[str, list[Row]]:
    """The ladder's runs by method, in the order of the ladder, seeds ascending."""
    from tser.methods import METHODS

    runs = sorted((row for row in rows if row["part"] == "ladder"), key=lambda row: row["seed"])
    return {
        method: [row for row in runs if row["set"] == [f"loss.method={method}"]]
        for method in METHODS
    }


def spread(values: list[float], scale: float, digits: int) -> str:
    """Mean ± sample standard deviation; the mean alone of a single value."""
    scaled = [scale * value for value in values]
    mean = f"{statistics.fmean(scaled):.{digits}f}"
    return f"{mean} ± {statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else mean


def interval(values: list[float], digits: int) -> str:
    """Mean and 95 % confidence interval of Student's t."""
    from scipy.stats import t

    mean, error = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"


def markdown(columns: list[str], lines: Iterable[list[str]]) -> str:
    """A table."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
