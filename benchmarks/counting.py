"""What counting operations costs on top of running a graph.

    python benchmarks/counting.py run    # a minute; adds a line of results for each network
    python benchmarks/counting.py table  # prints them as a table

Untrained students as their presets make them, in float32, on one batch of random images; batch norm
has seen the batch, so that the layers fire. The interpreter alone and `count_operations` take turns
in one process with one thread; what is compared is the processor time of the two in each round.
Over several batches, what is made once for a graph (the fan-out maps) is shared by them. The newest
line of each network in ``benchmarks/results/counting.jsonl`` counts.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interpreter
from document import Row, append_row, machine, markdown, read_rows, spread

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "counting.jsonl"
CASES = {
    "digits": ("digits", (), (1, 8, 8), 100),
    "fashion-mnist": ("fashion-mnist", (), (1, 28, 28), 100),
    "resnet18, width 16": ("cifar10-resnet18", ("student.width=16",), (3, 32, 32), 50),
    "resnet18, width 64": ("cifar10-resnet18", ("student.width=64",), (3, 32, 32), 20),
}
"""Name -> preset, what is changed in it, shape of an image, batch."""
BATCHES = 4

Call = Callable[[], Any]


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure")
    run.add_argument("--rounds", type=int, default=9)
    run.add_argument("--results", type=Path, default=RESULTS)
    run.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    show = commands.add_parser("table", help="print the newest results")
    show.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "run":
        for case in arguments.case:
            append_row(arguments.results, measure(case, arguments.rounds))
    sys.stdout.write(table(read_rows(arguments.results)))


def measure(case: str, rounds: int) -> Row:
    """One network: processor seconds of each round, in turns."""
    import torch

    from tser.deploy.counting import count_operations
    from tser.deploy.interpreter import run

    torch.set_num_threads(1)
    interpreter.CASES[case] = CASES[case]
    bench = interpreter.Bench(case)
    images, graph, steps = bench.images.numpy(), bench.graph, bench.timesteps

    def run_again() -> None:
        for _ in range(BATCHES):
            run(graph, images, steps)

    calls: dict[str, Call] = {
        "run": lambda: run(graph, images, steps),
        "run_again": run_again,
        "count": lambda: count_operations(graph, [images], steps),
        "count_again": lambda: count_operations(graph, [images] * BATCHES, steps),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - began)
    return {
        "case": case,
        "batch": len(images),
        "timesteps": steps,
        "neuron_steps": sum(math.prod(n.output_shape) for n in graph.spiking) * steps * len(images),
        "threads": 1,
        "seconds": seconds,
        "machine": machine(),
    }


def table(rows: list[Row]) -> str:
    """The newest line of each network."""
    newest = {row["case"]: row for row in rows}
    lines = []
    for case in CASES:
        if case not in newest:
            continue
        row = newest[case]
        seconds = row["seconds"]
        alone = statistics.median(seconds["run"])
        extra = [
            [
                100 * (counted / plain - 1)
                for plain, counted in zip(seconds[base], seconds[name], strict=True)
            ]
            for base, name in (("run", "count"), ("run_again", "count_again"))
        ]
        lines.append(
            [
                f"{case}, T = {row['timesteps']}, batch {row['batch']}",
                f"{alone * 1e3:.0f}",
                *(spread(values, 1) for values in extra),
            ]
        )
    columns = ["network", "run [ms]", "counting, one batch [%]", f"{BATCHES} batches [%]"]
    return markdown(columns, lines)


if __name__ == "__main__":
    main()
