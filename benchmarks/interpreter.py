"""The reference interpreter beside PyTorch, and the memory that it takes.

    python benchmarks/interpreter.py run    # a few minutes; a line of results for each network
    python benchmarks/interpreter.py table  # puts the tables into docs/performance.md

Untrained students as their presets make them, in float32, on one batch of random images; batch norm
has seen the batch, so that the layers fire. What is compared: the student in eager PyTorch, in
inference mode, and the interpreter on its NIR graph, in float32 and in float64, recording the
spikes of every layer. They take turns in one process, which has as many threads as stated. Memory
is the peak of a run in a process of its own, over that of the process before it. The newest line of
``benchmarks/results/interpreter.jsonl`` counts.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from document import Row, append_row, machine, markdown, read_rows, spread, write_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "interpreter.jsonl"
DOCUMENT = ROOT / "docs" / "performance.md"
FLOOR = "torch"
LABELS = {"nir-f32": "float32", "nir-f64": "float64"}
CASES: dict[str, tuple[str, tuple[str, ...], tuple[int, int, int], int]] = {
    "digits": ("digits", (), (1, 8, 8), 100),
    "fashion-mnist": ("fashion-mnist", (), (1, 28, 28), 100),
    "resnet18": ("cifar10-resnet18", ("student.width=64",), (3, 32, 32), 50),
}
"""Name -> preset, what is changed in it, shape of an image, batch."""
WARM_UP = 1

Call = Callable[[], Any]


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--rounds", type=int, default=7)
    shared.add_argument("--results", type=Path, default=RESULTS)
    run = commands.add_parser("run", parents=[shared], help="measure all")
    run.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    run.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    one = commands.add_parser("one", parents=[shared], help="what 'run' starts for each line")
    one.add_argument("--case", choices=CASES, required=True)
    one.add_argument("--memory", choices=LABELS, help="only print the peak memory of one run")
    table = commands.add_parser("table", help="put the tables into the document")
    table.add_argument("--check", action="store_true", help="only say whether it is up to date")
    arguments = parser.parse_args()
    if arguments.command == "run":
        for case in arguments.case:
            for threads in arguments.threads:
                options = ["--rounds", str(arguments.rounds), "--results", str(arguments.results)]
                start(threads, "--case", case, *options)
        rows = read_rows(arguments.results)
        sys.stdout.write("\n".join(make(rows) for make in TABLES.values()))
    elif arguments.command == "one" and arguments.memory:
        sys.stdout.write(f"{peak_bytes(arguments.case, arguments.memory)}\n")
    elif arguments.command == "one":
        append_row(arguments.results, measure(arguments.case, arguments.rounds))
    else:
        rows = read_rows(RESULTS)
        tables = {name: functools.partial(make, rows) for name, make in TABLES.items()}
        write_tables(DOCUMENT, tables, check=arguments.check)


def start(threads: int, *options: str) -> str:
    """Run this script with another number of threads, which has to be known when it begins."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "one", *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


class Bench:
    """One student and its graph.

    Args:
        case: of `CASES`.
    """

    def __init__(self, case: str) -> None:
        import torch

        from tser.config_file import load_config
        from tser.export.graph import resolve
        from tser.export.lower import lower
        from tser.students import build_student

        preset, changes, shape, batch = CASES[case]
        config = load_config(preset, changes)
        torch.manual_seed(0)
        self.student = build_student(config.student, config.neuron, shape, 10)
        self.images = torch.randn(batch, *shape)
        for module in self.student.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # averages over all batches
        with torch.no_grad():
            self.student(self.images)
        self.student.eval()
        self.lowered = lower(self.student)
        self.graph = resolve(self.lowered.graph)
        self.timesteps = config.student.timesteps

    def calls(self) -> dict[str, Call]:
        """What takes turns."""
        import numpy as np
        import torch

        from tser.deploy.interpreter import run

        names = [node.name for node in self.graph.spiking]
        images = self.images.numpy()

        def eager() -> Any:
            with torch.inference_mode():
                return self.student(self.images)

        def interpreted(dtype: Any) -> Any:
            return run(self.graph, images, self.timesteps, dtype=dtype, record=names)

        return {
            FLOOR: eager,
            "nir-f32": functools.partial(interpreted, np.float32),
            "nir-f64": functools.partial(interpreted, np.float64),
        }

    def differences(self) -> dict[str, int]:
        """Spikes of the interpreter, in float32, that are not those of the student."""
        from tser.deploy.backends import NirBackend, TorchBackend

        images = self.images.numpy()
        expected = TorchBackend(self.student, self.lowered.modules, "student")(images).spikes
        found = NirBackend(self.graph, self.timesteps, "graph")(images).spikes
        return {
            "flips": sum(int((found[name] != expected[name]).sum()) for name in expected),
            "spikes": sum(int(value.sum()) for value in expected.values()),
            "neuron_steps": sum(value.size for value in expected.values()),
        }


def measure(case: str, rounds: int) -> Row:
    """Seconds of every variant and round, and what goes with them."""
    import torch

    threads = torch.get_num_threads()
    setup = {"threads": threads, "rounds": rounds, "machine": machine()}  # the load before
    memory = {name: int(start(threads, "--case", case, "--memory", name)) for name in LABELS}
    bench = Bench(case)
    calls = bench.calls()
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        shift = number % len(names)  # none always follows the same one
        for name in names[shift:] + names[:shift]:
            started = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - started)
    return {
        "case": case,
        "batch": len(bench.images),
        "timesteps": bench.timesteps,
        "seconds": seconds,
        "peak_bytes": memory,
        **bench.differences(),
        **setup,
    }


def peak_bytes(case: str, name: str) -> int:
    """Growth of this process's memory at the peak of a run."""
    bench = Bench(case)
    small, bench.images = bench.images, bench.images[:1]
    bench.calls()[name]()  # what is loaded and set up once is not counted
    bench.images = small
    call = bench.calls()[name]
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _kilobytes("VmRSS")
    call()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(key: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (value,) = re.findall(rf"{key}:\s+(\d+) kB", status)
    return int(value)


def newest(rows: list[Row]) -> list[Row]:
    """The last line of each network and number of threads."""
    found = {(row["case"], row["threads"]): row for row in rows}
    order = list(CASES)
    return [found[key] for key in sorted(found, key=lambda key: (order.index(key[0]), key[1]))]


def time_table(rows: list[Row]) -> str:
    """Ratios to PyTorch."""
    lines = []
    for row in newest(rows):
        floor = sorted(row["seconds"][FLOOR])[len(row["seconds"][FLOOR]) // 2]
        cells = []
        for name in LABELS:
            pairs = zip(row["seconds"][name], row["seconds"][FLOOR], strict=True)
            cells.append(spread([a / b for a, b in pairs]))
        what = f"{row['case']}, B = {row['batch']}, T = {row['timesteps']}"
        lines.append([what, str(row["threads"]), f"{floor * 1000:.0f} ms", *cells])
    columns = ["student", "threads", "PyTorch, eager", *(f"{v} / PyTorch" for v in LABELS.values())]
    return markdown(columns, lines)


def memory_table(rows: list[Row]) -> str:
    """Peaks, and spikes."""
    lines = [
        [
            f"{row['case']}, B = {row['batch']}, T = {row['timesteps']}",
            *(f"{row['peak_bytes'][name] / 2**20:.0f} MiB" for name in LABELS),
            f"{row['flips']:,} of {row['neuron_steps']:,}",
            f"{row['spikes'] / row['neuron_steps']:.1%}",
        ]
        for row in newest(rows)
        if row["threads"] == 1
    ]
    columns = ["student", *(f"peak, {label}" for label in LABELS.values())]
    return markdown([*columns, "spikes that differ from PyTorch's, float32", "firing"], lines)


def machine_table(rows: list[Row]) -> str:
    """What it was measured on."""
    lines = []
    for row in newest(rows):
        found = row["machine"]
        versions = ", ".join(f"{k} {found['packages'][k]}" for k in ("torch", "numpy"))
        processor = f"{found['processor']} ({found['vectors']}), {row['threads']} threads"
        lines.append([row["case"], processor, versions, f"{found['load']:.1f}", str(row["rounds"])])
    return markdown(["student", "processor", "versions", "load before", "rounds"], lines)


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "interpreter-time": time_table,
    "interpreter-memory": memory_table,
    "interpreter-machine": machine_table,
}


if __name__ == "__main__":
    main()
