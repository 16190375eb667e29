"""Mutation test of ``tser validate``: exports with one mistake each, and what it says of them.

    python benchmarks/mutations.py run      # trains a student, about a minute, or --run FOLDER
    python benchmarks/mutations.py table    # puts the table into docs/validation.md

The student is `mutants.student`, trained by the preset digits. Numbers are changed in its NIR
graph, which the interpreter and ONNX Runtime then run; rules are changed in the operators of its
ONNX graph. Each is judged by ``validate`` on test images and on the probes. The newest line of
``benchmarks/results/mutations.jsonl`` counts.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

from document import Row, append_row, machine, markdown, read_rows, write_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mutations.jsonl"
SOUNDNESS = ROOT / "benchmarks" / "results" / "mutations-soundness.jsonl"
"""What the test of soundness reports, see there."""
DOCUMENT = ROOT / "docs" / "validation.md"
EPOCHS = 30
TEACHER_EPOCHS = 10
GRAPHS = ("given", "dyadic twin, as_is")
"""Networks of the probes that are the graph itself."""


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make and judge every mutant")
    run.add_argument("--run", type=Path, help="a run folder of this student; default: trains one")
    run.add_argument("--samples", type=int, default=100, help="test images")
    run.add_argument("--seed", type=int, default=0)
    table = commands.add_parser("table", help="put the table into the document")
    table.add_argument("--check", action="store_true", help="only say whether it is up to date")
    for command in (run, table):
        command.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "table":
        rows = read_rows(arguments.results)
        tables = {name: functools.partial(make, rows) for name, make in TABLES.items()}
        write_tables(DOCUMENT, tables, check=arguments.check)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.run or trained(Path(folder) / "run", arguments.seed)
        found = judge_all(path, Path(folder), arguments.samples)
        row = {"student": accuracy(path), "samples": arguments.samples, "seed": arguments.seed}
        row |= {"epochs": EPOCHS, "mutants": found, "machine": machine()}
    append_row(arguments.results, row)
    wrong = [one for one in found if complaint(one)]
    sys.exit("\n".join(f"{one['name']} ({one['where']}): {complaint(one)}" for one in wrong) or 0)


def trained(path: Path, seed: int = 0, epochs: int = EPOCHS) -> Path:
    """A run folder with a student trained on the digits, and its exports."""
    from mutants import FACTORY

    from tser.config_file import load_config
    from tser.distill import distill
    from tser.export.export import export_nir, export_onnx
    from tser.runs import Run

    options = [
        f"student.factory={FACTORY}",
        "teacher.width=16",
        f"teacher.epochs={TEACHER_EPOCHS}",
        f"train.epochs={epochs}",
        f"train.seed={seed}",
        "train.compile=off",
    ]
    path.mkdir(parents=True)
    run = Run(path, (FACTORY,))
    distill(load_config("digits", options), run)
    export_nir(run, run.nir)
    export_onnx(run.nir, run.onnx)
    return path


def accuracy(path: Path) -> list[float]:
    """Of the faultless export on all test images, after each step; it must pass."""
    from mutants import FACTORY

    from tser.deploy.validation import validate
    from tser.runs import Run

    document = validate(path / "model.nir", Run(path, (FACTORY,)), probes=True)
    if document["verdict"] not in ("E0", "E1"):
        raise SystemExit(f"the export without a mistake is judged {document['verdict']}")
    found: list[float] = document["accuracy"]["torch"]
    return found


def judge_all(path: Path, folder: Path, samples: int) -> list[Row]:
    """Every mutant of the run ``path``, in files in ``folder``."""
    from mutants import FACTORY, MUTANTS, Made

    from tser.checkpoints import load_run_data, load_student
    from tser.export.lower import lower
    from tser.export.nir_file import read_nir
    from tser.export.onnx_file import read_onnx
    from tser.runs import Run

    run = Run(path, (FACTORY,))
    student = load_student(run, load_run_data(run, None))
    modules = dict(student.layers.named_modules())
    made = Made(read_nir(run.nir), read_onnx(run.onnx), {})
    for name in lower(student).graph.nodes:
        parts = [key for key in modules if key.replace(".", "_") == name]
        if parts and hasattr(modules[parts[0]], "weight"):
            made.raw[name] = modules[parts[0]].weight.detach().numpy()
    return [judge(mutant, made, run, folder, samples) for mutant in MUTANTS]


def judge(mutant: Any, made: Any, run: Any, folder: Path, samples: int) -> Row:
    """What ``validate`` says of one mutant.

    Returns:
        ``flips`` on images and on the probes, the worst ``verdict`` of the spikes, what is
        ``static``, the ``layers`` that are blamed, in execution order, whether the mistake is
        ``named``, and with how many ``others``; ``refused``: why it cannot be run at all.
    """
    import nir

    from tser.deploy.validation import validate
    from tser.errors import InputFileError
    from tser.export.nir_file import write_nir
    from tser.export.onnx_file import write_onnx

    row: Row = {"name": mutant.name, "where": mutant.where, "expected": list(mutant.layers)}
    row |= {"rule": mutant.rule, "refused": "", "flips": [0, 0], "verdict": "", "layers": []}
    row |= {"static": [], "named": False, "others": 0, "says": "", "told": False}
    changed = mutant.change(made)
    if isinstance(changed, nir.NIRGraph):
        path = folder / "mutant.nir"
        write_nir(changed, path)
        row["made_in"] = "NIR"
    else:
        path = folder / "mutant.onnx"
        write_onnx(changed, path)
        row["made_in"] = "ONNX"
    try:
        document = validate(path, run, samples=samples, probes=True)
    except InputFileError as error:
        return row | {"refused": str(error).replace(str(path), "the file")}
    return row | _summary(document, mutant.rule)


def _summary(document: Row, rule: str) -> Row:
    """Of a validation; where several executors differ, the one that sees least counts."""
    probes = [one for one in document["probes"] if one["network"] in GRAPHS and one["verdict"]]
    seen = []
    for backend in document["backends"]:
        own = [one for one in probes if one["backend"] == backend["name"]]
        verdicts = [backend["verdict"], *(one["verdict"] for one in own)]
        blamed = [one for part in (backend, *own) for one in part["diagnosis"]]
        wrong = {one["name"] for one in backend["layers"] if one["violations"]}
        wrong |= {one["layer"] for one in blamed}
        layers = [one["name"] for one in backend["layers"] if one["name"] in wrong]
        if not layers and backend["logits"]["outside_bound"]:
            layers = ["logits"]
        first = [one for one in blamed if one["layer"] == ("" if layers == ["logits"] else
                                                          next(iter(layers), None))]  # fmt: skip
        # Test images tell more than a probe; where nothing differs on them, the probes speak.
        shown = first[0] if first else {"rules": [], "alternatives": [], "text": ""}
        named = [rule] in (shown["rules"], *shown["alternatives"])
        seen.append(
            {
                "flips": [backend["flips"], sum(one["flips"] for one in own)],
                "verdict": max(verdicts),
                "layers": layers,
                "named": named,
                "others": len(shown["alternatives"]),
                "says": shown["text"].partition(": ")[2],
                "told": bool(shown["rules"]),
            }
        )
    least = min(seen, key=lambda one: (one["verdict"], one["named"]))
    static = [*document["static"]["differences"], *document["contradictions"]]
    return {**least, "static": static, "argmax": document["backends"][0]["argmax_differences"]}


def complaint(row: Row) -> str:
    """What is wrong with the judgement of a mutant; "" when nothing is."""
    if row["refused"]:
        known = [row["where"], *row["expected"]]
        return "" if any(name in row["refused"] for name in known) else "refused without the layer"
    caught = row["verdict"] not in ("E0", "E1")
    if not any(row["flips"]) and row["expected"] != ["logits"]:
        return "" if not caught else "no spike differs, and yet it is wrong"
    if not caught:
        return "" if row["static"] else "spikes differ, and it is not found"
    if not row["layers"] or not set(row["layers"]) <= set(row["expected"]):
        return f"blamed on {', '.join(row['layers']) or 'no layer'}"
    return "named as something else" if row["rule"] and not row["named"] else ""


# --- table ---------------------------------------------------------------------------------


def mutants_table(rows: list[Row]) -> str:
    """Every mutation, whether it is found and whether it is named."""
    if not rows:
        return "Not measured yet.\n"
    head = ["mistake", "where", "made in", "flips: images", "probes", "verdict", "found", "named"]
    lines = [
        [
            one["name"],
            one["where"],
            one["made_in"],
            *([""] * 2 if one["refused"] else [f"{count:,}" for count in one["flips"]]),
            one["verdict"] or "refused",
            _found(one),
            _named(one),
        ]
        for one in rows[-1]["mutants"]
    ]
    return markdown(head, lines)


def _found(row: Row) -> str:
    if row["refused"]:
        return "names the layer"
    if row["verdict"] in ("E0", "E1"):
        return "static check only" if row["static"] else "no"
    if complaint(row).startswith("blamed"):
        return complaint(row)
    return "right layer" if row["layers"] != ["logits"] else "the logits"


def _named(row: Row) -> str:
    if not row["rule"]:
        return f"no such rule; says: {row['says']}" if row["told"] else "no such rule"
    if not row["named"]:
        return "no"
    return f"yes, or {row['others']} more" if row["others"] else "yes"


def setting_table(rows: list[Row]) -> str:
    """What the table was made with."""
    if not rows:
        return "Not measured yet.\n"
    row = rows[-1]
    made = row["machine"]
    others = {
        one["seed"]: sum(bool(complaint(mutant)) for mutant in one["mutants"])
        for one in rows[:-1]
        if one["seed"] != row["seed"]
    }
    more = "".join(
        f" Another student, seed {seed}: {missed or 'none'} of the mistakes that show in a spike "
        "missed, blamed on another layer or misnamed."
        for seed, missed in others.items()
    )
    versions = made["packages"]
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "onnxruntime", "nir"))
    return (
        f"Student: `benchmarks/mutants.py`, digits, {row['epochs']} epochs, seed {row['seed']}, "
        f"accuracy {row['student'][-1]:.1%} after {len(row['student'])} steps. {row['samples']} "
        f"test images and the probes. {made['processor']}, Python {made['python']}, {shown}."
        f"{more}\n"
    )


def soundness_table(rows: list[Row]) -> str:
    """What the random networks of tests/deploy/test_soundness.py showed, of the newest run."""
    found = {row["property"]: row for row in read_rows(SOUNDNESS)}
    if len(found) < 2:
        return "Not measured yet.\n"
    order, change = found["order"], found["change"]
    lines = [
        ["networks, other order of sums", f"{order['networks']:,}"],
        ["of these with a flip", f"{order['networks with a flip']:,}"],
        ["flips, all certified", f"{order['flips']:,}"],
        ["seeds, all certified", f"{order['seeds']:,}"],
        [
            "networks with a real change that shows",
            f"{change['networks that a change contradicts']:,}",
        ],
        ["of these certified", "0"],
    ]
    return markdown(["random networks", ""], lines)


TABLES = {
    "mutations": mutants_table,
    "mutations-setting": setting_table,
    "soundness": soundness_table,
}


if __name__ == "__main__":
    main()
