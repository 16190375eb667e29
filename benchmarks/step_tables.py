"""The tables of ``training_step.py``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from document import markdown, quartiles, spread

Row = dict[str, Any]

LABELS = {
    "ann": "ANN, eager",
    "ann-compiled": "ANN, compiled",
    "tser": "tser, eager",
    "tser-neuron": "tser, neurons compiled",
    "tser-step": "tser, network compiled",
    "tser-low-memory": "tser, network compiled, low memory",
    "norse": "Norse, eager",
    "norse-compiled": "Norse, compiled",
    "snntorch": "snnTorch, eager",
    "snntorch-compiled": "snnTorch, compiled",
    "spikingjelly": "SpikingJelly, eager",
    "spikingjelly-compiled": "SpikingJelly, compiled",
    "teacher": "teacher's forward pass, eager",
    "teacher-compiled": "teacher's forward pass, compiled",
}
"""Variant -> its name in the tables, in their order."""

TEACHERS = ("teacher", "teacher-compiled")
PRECISIONS = ("float32", "bf16")


def make_tables(rows: list[Row]) -> dict[str, Callable[[], str]]:
    """Mark in the document -> table."""
    newest = latest(rows)
    return {
        "training-goals": lambda: goal_table(newest),
        "training-float32": lambda: step_tables(newest, "float32"),
        "training-bf16": lambda: step_tables(newest, "bf16"),
        "training-runs": lambda: run_table(rows),
        "training-teacher": lambda: teacher_table(newest),
        "training-wait": lambda: wait_table(newest),
        "training-memory": lambda: memory_table(newest),
        "training-machine": lambda: machine_table(newest),
    }


def latest(rows: list[Row]) -> list[Row]:
    """The last of the rows that measure the same."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        found[identity(row)] = row
    return [found[key] for key in sorted(found)]


def identity(row: Row) -> tuple[Any, ...]:
    """What a row measures."""
    size = row["width"], row["batch"], row["timesteps"]
    return (
        row["part"],
        row["device"],
        row["threads"],
        *size,
        row["precision"],
        row.get("variant", ""),
    )


def ratios(row: Row, name: str, to: str = "floor") -> list[float] | None:
    """Time of a variant over that of another in the same round; None if it was not measured."""
    seconds = row["seconds"]
    if name not in seconds or to not in seconds:
        return None
    return [a / b for a, b in zip(seconds[name], seconds[to], strict=True)]


def step_tables(rows: list[Row], precision: str) -> str:
    """Time of a step over the floor, a table for every device, a column for every T."""
    chosen = [row for row in rows if row["part"] == "steps" and row["precision"] == precision]
    tables = []
    for where in dict.fromkeys(place(row) for row in chosen):
        here = [row for row in chosen if place(row) == where]
        lines = []
        for name, label in LABELS.items():
            values = [ratios(row, name) for row in here]
            if name not in TEACHERS and any(values):
                lines.append([label, *(spread(value) if value else "–" for value in values)])
        floors = [f"{1000 * statistics.median(row['seconds']['floor']):.0f} ms" for row in here]
        columns = [where, *(f"T = {row['timesteps']}" for row in here)]
        tables.append(markdown(columns, [*lines, ["the floor", *floors]]))
    return "\n".join(tables) or "Not measured yet.\n"


def run_table(rows: list[Row]) -> str:
    """Every run at T = 4 and width 16 on the CPU, the older ones too: how far runs differ."""
    names = ("tser-step", "tser-neuron", "tser", "norse")
    lines = []
    for row in rows:
        if (row["part"], row["device"], row["timesteps"], row["width"]) == ("steps", "cpu", 4, 16):
            values = [ratios(row, name) for name in names]
            floor = f"{1000 * statistics.median(row['seconds']['floor']):.0f} ms"
            cells = [spread(value) if value else "–" for value in values]
            lines.append([row["precision"], str(row["rounds"]), floor, *cells])
    columns = ["precision", "rounds", "the floor", *(LABELS[name] for name in names)]
    return markdown(columns, lines) if lines else "Not measured yet.\n"


def teacher_table(rows: list[Row]) -> str:
    """Forward pass of the teacher over the whole step of the student, in the same rounds."""
    lines = []
    for row in rows:
        if row["part"] == "steps":
            for name in TEACHERS:
                values = [ratios(row, name, to) for to in ("tser", "tser-step")]
                if any(values):
                    where = f"{place(row)}, T = {row['timesteps']}, {row['precision']}"
                    cells = [spread(value) if value else "–" for value in values]
                    lines.append([LABELS[name], where, *cells])
    columns = ["", "", "of the student's step, eager", "network compiled"]
    return markdown(columns, lines) if lines else "Not measured yet.\n"


def wait_table(rows: list[Row]) -> str:
    """Seconds until the first step is done."""
    return start_table(
        rows,
        {"empty cache": ("cold_seconds", "{:.1f} s"), "second run": ("warm_seconds", "{:.1f} s")},
    )


def memory_table(rows: list[Row]) -> str:
    """Bytes for every neuron and step."""
    return start_table(
        rows,
        {
            "kept for backward": ("kept", "{:.1f} B"),
            "process after forward": ("held", "{:.1f} B"),
            "process at the peak": ("peak", "{:.1f} B"),
        },
    )


def start_table(rows: list[Row], values: dict[str, tuple[str, str]]) -> str:
    """A line for every variant, columns for every precision."""
    chosen = [row for row in rows if row["part"] == "start"]
    tables = []
    for where in dict.fromkeys((place(row), row["timesteps"]) for row in chosen):
        here = {
            (row["variant"], row["precision"]): row
            for row in chosen
            if (place(row), row["timesteps"]) == where
        }
        lines = []
        for name, label in LABELS.items():
            found = [here.get((name, precision)) for precision in PRECISIONS]
            if any(found):
                cells = [
                    text.format(row[key]) if row else "–"
                    for row in found
                    for key, text in values.values()
                ]
                lines.append([label, *cells])
        columns = [f"{precision}, {value}" for precision in PRECISIONS for value in values]
        tables.append(markdown([f"{where[0]}, T = {where[1]}", *columns], lines))
    return "\n".join(tables) or "Not measured yet.\n"


def place(row: Row) -> str:
    """Where a row was measured, and on which size."""
    cores = f"CPU, {row['threads']} threads" if row["device"] == "cpu" else row["device"]
    return f"{cores}, width {row['width']}, B = {row['batch']}"


def goal_table(rows: list[Row]) -> str:
    """What was to be reached at T = 4 on two cores, and what was."""
    here = [
        row
        for row in rows
        if (row["device"], row["threads"], row["timesteps"], row["width"]) == ("cpu", 2, 4, 16)
    ]
    steps = {row["precision"]: row for row in here if row["part"] == "steps"}
    starts = {(r["variant"], r["precision"]): r for r in here if r["part"] == "start"}

    def ratio(precision: str, name: str, to: str = "floor") -> list[float] | None:
        return ratios(steps[precision], name, to) if precision in steps else None

    def single(name: str, key: str) -> list[float] | None:
        return [starts[name, "float32"][key]] if (name, "float32") in starts else None

    low_memory = ratio("float32", "tser-low-memory", "tser-step")
    goals = (
        ("float32, network compiled / floor", 0.90, ratio("float32", "tser-step"), ""),
        ("float32, eager / floor", 1.7, ratio("float32", "tser"), ""),
        ("bf16, network compiled / float32 floor", 0.48, ratio("bf16", "tser-step"), ""),
        ("kept for backward, eager", 12.5, single("tser", "kept"), " B"),
        ("kept for backward, network compiled", 12.5, single("tser-step", "kept"), " B"),
        ("kept for backward, low memory", 4.5, single("tser-low-memory", "kept"), " B"),
        ("low memory / network compiled", 1.10, low_memory, ""),
        ("first step, second run", 5.0, single("tser-step", "warm_seconds"), " s"),
    )
    lines = []
    for what, goal, values, unit in goals:
        if values:
            measured = spread(values) if len(values) > 1 else f"{values[0]:.2f}"
            lines.append([what, f"≤ {goal:g}{unit}", measured + unit, verdict(values, goal)])
    return markdown(["T = 4, width 16, two cores", "goal", "measured", "met"], lines)


def verdict(values: list[float], goal: float) -> str:
    """Whether values stay at or below a goal; unclear if it lies between their quartiles."""
    low, _, high = quartiles(values)
    return "yes" if high <= goal else "no" if low > goal else "unclear"


def machine_table(rows: list[Row]) -> str:
    """On what, and with which versions; a line for every different setting."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        machine = row["machine"]
        packages = {**machine["packages"], **machine["peers"]}
        names = ("tser", "torch", "norse", "snntorch", "spikingjelly", "numpy")
        versions = ", ".join(f"{name} {packages[name]}" for name in names if packages[name])
        line = [
            machine["processor"],
            f"{machine['cpus']}, {machine['vectors']}",
            f"{machine['platform']}, Python {machine['python']}",
            versions,
        ]
        lines[tuple(line)] = line
    loads = [row["machine"]["load"] for row in rows if row["part"] == "steps"]
    load = f"\nLoad of the machine before a measurement: {max(loads, default=0):.1f} at most.\n"
    return markdown(["processor", "cores", "system", "versions"], lines.values()) + load
