"""A training step of a spiking network against that of the plain ANN, and against other libraries.

    python benchmarks/training_step.py run steps     # time of a step, all variants in turn
    python benchmarks/training_step.py run start     # wait for the first step, memory of a step
    python benchmarks/training_step.py profile tser  # where the time of a variant goes
    python benchmarks/training_step.py table         # puts the tables into docs/performance.md

Six convolutions with batch norm and LIF neurons on images 3x32x32, forward, cross-entropy,
backward, SGD. The floor is the same network with ReLU, eager, channels-last, float32, run on T * B
images. All times of one column are measured in one process, one step of each variant after the
other. Every measurement is one line of ``benchmarks/results/training_step.jsonl`` and is not
repeated unless ``--again`` asks for it; the newest one counts. ``pip install -e '.[bench]'``
brings the other libraries; what is not installed is left out.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from step_tables import LABELS, Row, make_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "training_step.jsonl"
DOCUMENT = ROOT / "docs" / "performance.md"
FLOOR = "floor"
PEERS = ("norse", "snntorch", "spikingjelly")
SEED_STEPS = 3
"""Steps of every variant before measuring: compilation, then memory that is allocated once."""


def main() -> None:
    """Parse the command line."""
    arguments = parse()
    if arguments.command == "table":
        from document import read_rows, write_tables

        write_tables(DOCUMENT, make_tables(read_rows(arguments.results)), check=arguments.check)
    elif arguments.command == "profile":
        print_profile(arguments)
    elif arguments.command == "worker":
        sys.stdout.write(json.dumps(WORKERS[arguments.task](json.loads(arguments.job))) + "\n")
    else:
        run_all(jobs(arguments), arguments.results, again=arguments.again)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)

    setting = argparse.ArgumentParser(add_help=False)
    setting.add_argument("--device", default="cpu", help="cpu or cuda")
    setting.add_argument("--threads", type=int, default=2)
    setting.add_argument("--width", type=int, default=16, help="channels of the first convolution")
    setting.add_argument("--batch", type=int, default=32)

    results = argparse.ArgumentParser(add_help=False)
    results.add_argument("--results", type=Path, default=RESULTS)

    run = commands.add_parser("run", parents=[setting, results], help="measure what is missing")
    run.add_argument("part", choices=("steps", "start"))
    run.add_argument("--timesteps", type=int, nargs="+", help="default: 1 2 4 8, start: 4")
    run.add_argument("--precision", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    run.add_argument("--variants", nargs="+", default=list(LABELS), choices=list(LABELS))
    run.add_argument("--rounds", type=int, default=15, help="steps of each variant")
    run.add_argument("--again", action="store_true", help="measure what is there already too")

    show = commands.add_parser("profile", parents=[setting], help="time by kind of operation")
    show.add_argument("variant", choices=list(LABELS))
    show.add_argument("--timesteps", type=int, default=4)
    show.add_argument("--precision", default="float32", choices=PRECISIONS)

    table = commands.add_parser("table", parents=[results], help="put the tables into the document")
    table.add_argument("--check", action="store_true", help="only say whether it is up to date")

    worker = commands.add_parser("worker")  # what run starts, a process for every line
    worker.add_argument("task", choices=list(WORKERS))
    worker.add_argument("job")
    return parser.parse_args()


def jobs(arguments: argparse.Namespace) -> list[Row]:
    """What to measure: a line of results without the measured values."""
    size = {"width": arguments.width, "batch": arguments.batch}
    common = {"part": arguments.part, "device": arguments.device, "threads": arguments.threads}
    points = [
        {**common, **size, "timesteps": timesteps, "precision": precision}
        for timesteps in arguments.timesteps or ([4] if arguments.part == "start" else [1, 2, 4, 8])
        for precision in arguments.precision
    ]
    if arguments.part == "steps":
        chosen = {"variants": arguments.variants, "rounds": arguments.rounds}
        return [{**point, **chosen} for point in points]
    wanted = [name for name in arguments.variants if not name.startswith("teacher")]
    return [{**point, "variant": name} for point in points for name in wanted]


def run_all(wanted: list[Row], results: Path, *, again: bool) -> None:
    """Measure what the results file lacks, each in a process of its own."""
    from document import append_row, machine, read_rows

    for number, job in enumerate(wanted, 1):
        if not again and any(job.items() <= row.items() for row in read_rows(results)):
            continue
        setting = {"machine": machine() | {"peers": peer_versions()}}  # the load is that before
        measured = measure_start(job) if job["part"] == "start" else work("time", job)
        if "missing" in measured:
            sys.stderr.write(f"{job['variant']} is left out: {measured['missing']}\n")
            continue
        append_row(results, {**job, **measured, **setting})
        name = f"{job.get('variant', '')} T = {job['timesteps']} {job['precision']}"
        sys.stderr.write(f"[{number}/{len(wanted)}] {name.strip()}\n")


def measure_start(job: Row) -> Row:
    """First steps with an empty and with a filled cache of compiled code, and memory."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TRITON_CACHE_DIR": str(Path(cache) / "triton"),
            "MALLOC_MMAP_THRESHOLD_": "65536",  # see measuring.occupied_bytes
        }
        cold = work("start", job, **environment)
        if "missing" in cold:
            return cold
        warm = work("start", job, **environment)
    return {
        "cold_seconds": cold["first_seconds"],
        "warm_seconds": warm.pop("first_seconds"),
        **warm,
    }


def work(task: str, job: Row, **environment: str) -> Row:
    """What a process of its own measures."""
    done = subprocess.run(
        [sys.executable, __file__, "worker", task, json.dumps(job)],
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"measuring {job} failed with exit code {done.returncode}")
    answer: Row = json.loads(done.stdout.splitlines()[-1])
    return answer


def time_steps(job: Row) -> Row:
    """Seconds of every step of every variant; the worker of ``run steps``."""
    from measuring import interleave

    trainers = {FLOOR: trainer({**job, "precision": "float32"}, "ann")}
    left_out = {}
    for name in job["variants"]:
        try:
            trainers[name] = trainer(job, name)
        except ImportError as error:
            left_out[name] = missing(error)
    for each in trainers.values():
        for _ in range(SEED_STEPS):
            each.step()
    return {"seconds": interleave(trainers, job["rounds"]), "left_out": left_out}


def start(job: Row) -> Row:
    """First step and memory of one variant; the worker of ``run start``."""
    from measuring import kept_bytes, occupied_bytes
    from networks import Size

    try:
        each = trainer(job, job["variant"])
    except ImportError as error:
        return {"missing": missing(error)}
    first = each.seconds()
    for _ in range(SEED_STEPS):
        each.step()
    neuron_steps = Size(job["width"], job["timesteps"], job["batch"]).neuron_steps()
    kept = kept_bytes(each)
    each.step()
    held, peak = occupied_bytes(each)
    return {
        "first_seconds": first,
        "kept": kept / neuron_steps,
        "held": held / neuron_steps,
        "peak": peak / neuron_steps,
    }


def print_profile(arguments: argparse.Namespace) -> None:
    """Shares of the time of a variant's step."""
    import torch
    from measuring import profile

    torch._inductor.config.cpp.enable_kernel_profile = True  # or compiled kernels have no names
    each = trainer(vars(arguments), arguments.variant)
    for _ in range(SEED_STEPS):
        each.step()
    kinds, longest = profile(each)
    for name, share in [*kinds.items(), ("", 0.0), *longest]:
        sys.stdout.write(f"{share:7.1%}  {name}\n" if name else "\n")


def trainer(job: Row, name: str) -> Any:
    """The trainer of a variant.

    Raises:
        ImportError: its library is not installed.
    """
    import torch
    from measuring import Trainer
    from networks import Size

    from tser.compilation import shapes_setting

    # Libraries warn about things that are not ours to change.
    warnings.simplefilter("ignore")
    torch.set_num_threads(job["threads"])
    # Variants that are compiled side by side must not count as recompilations of one.
    setattr(torch._dynamo.config, shapes_setting(), 256)
    size = Size(job["width"], job["timesteps"], job["batch"])
    return Trainer(builders()[name](size, torch.device(job["device"])), job["precision"])


def builders() -> dict[str, Callable[..., Any]]:
    """Variant -> function of size and device that builds it."""
    from networks import build_ann, build_student, build_teacher

    found: dict[str, Callable[..., Any]] = {
        "ann": build_ann,
        "ann-compiled": functools.partial(build_ann, compiled=True),
        "tser": functools.partial(build_student, mode="off"),
        "tser-neuron": functools.partial(build_student, mode="neuron"),
        "tser-step": functools.partial(build_student, mode="step"),
        "tser-low-memory": functools.partial(build_student, mode="low-memory"),
        "teacher": build_teacher,
        "teacher-compiled": functools.partial(build_teacher, compiled=True),
    }
    for name in PEERS:
        build = getattr(importlib.import_module("peers"), name)
        found |= {name: build, f"{name}-compiled": functools.partial(build, compiled=True)}
    return found


def missing(error: ImportError) -> str:
    """Why a variant is left out."""
    return f"{error}; install it with: pip install -c constraints.txt -e '.[bench]'"


def peer_versions() -> dict[str, str | None]:
    """Of the libraries that are compared."""
    versions: dict[str, str | None] = {}
    for name in PEERS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


PRECISIONS = ["float32", "bf16"]
WORKERS: dict[str, Callable[[Row], Row]] = {"time": time_steps, "start": start}


if __name__ == "__main__":
    main()
