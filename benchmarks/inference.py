"""Inference of a spiking network: PyTorch, ONNX Runtime, OpenVINO and other libraries.

    python benchmarks/inference.py run      # batch 1 and 32, time and spikes
    python benchmarks/inference.py profile  # where ONNX Runtime's time goes
    python benchmarks/inference.py table    # puts the tables into docs/performance.md

The network of ``training_step.py`` on images 3x32x32, in float32. The floor is ONNX Runtime on the
same network with ReLU, exported in the same way, run on T * B images. All variants of one batch
size are measured in one process and take turns. Every measurement is one line of
``benchmarks/results/inference.jsonl``; the newest one counts. ``pip install -e
'.[bench,openvino]'`` brings the other libraries; what is not installed is left out.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from document import Row, append_row, machine, markdown, read_rows, spread, write_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "inference.jsonl"
DOCUMENT = ROOT / "docs" / "performance.md"
FLOOR = "onnx-ann"
LABELS = {
    FLOOR: "ONNX Runtime, ANN with ReLU on T · B images (floor)",
    "openvino-ann": "OpenVINO, the same ANN",
    "onnx": "**ONNX Runtime**, exported graph",
    "openvino": "**OpenVINO**, the same file",
    "torch": "PyTorch, eager",
    "torch-compiled": "PyTorch, torch.compile",
    "spikingjelly": "SpikingJelly, multi-step",
    "norse": "Norse, SequentialState",
}
WARM_UP = 3
PEERS = ("openvino", "norse", "spikingjelly")

Call = Callable[[], Any]


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    setting = argparse.ArgumentParser(add_help=False)
    setting.add_argument("--results", type=Path, default=RESULTS)
    setting.add_argument("--threads", type=int, default=2)
    setting.add_argument("--width", type=int, default=16, help="channels of the first convolution")
    setting.add_argument("--timesteps", type=int, default=4)
    run = commands.add_parser("run", parents=[setting], help="measure every variant")
    run.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    run.add_argument("--rounds", type=int, default=30)
    commands.add_parser("profile", parents=[setting], help="time by kind of operation")
    table = commands.add_parser("table", help="put the tables into the document")
    table.add_argument("--results", type=Path, default=RESULTS)
    table.add_argument("--check", action="store_true", help="only say whether it is up to date")
    arguments = parser.parse_args()
    if arguments.command == "table":
        rows = read_rows(arguments.results)
        tables = {name: functools.partial(make, rows) for name, make in TABLES.items()}
        write_tables(DOCUMENT, tables, check=arguments.check)
        return
    warnings.simplefilter("ignore")  # libraries warn about things that are not ours to change
    batches = arguments.batch if arguments.command == "run" else [32]
    for batch in batches:
        job = {"part": arguments.command, "batch": batch, "width": arguments.width}
        job |= {"timesteps": arguments.timesteps, "threads": arguments.threads}
        setup = {"machine": machine() | {"peers": peer_versions()}}  # the load is that before
        if arguments.command == "run":
            row = {**job, "rounds": arguments.rounds, **measure(job, arguments.rounds), **setup}
        else:
            row = {**job, "milliseconds": profile(job), **setup}
        append_row(arguments.results, row)


class Bench:
    """One network in every form.

    Args:
        job: batch, width, timesteps and threads.
    """

    def __init__(self, job: Row) -> None:
        import torch
        from networks import Size, data, same_weights, student

        from tser.export.graph import resolve
        from tser.export.lower import lower
        from tser.export.onnx_file import compile_onnx

        self.threads: int = job["threads"]
        torch.set_num_threads(self.threads)
        self.size = Size(job["width"], job["timesteps"], job["batch"])
        self.cpu = torch.device("cpu")
        self.student = same_weights(student(self.size), self.size.width)
        for module in self.student.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # averages over all batches
        with torch.no_grad():  # without statistics of its data the network would hardly fire
            self.student(data(self.size, self.cpu)[0])
        self.student.eval()
        self.lowered = lower(self.student)
        self.graph = resolve(self.lowered.graph)
        self.images = data(self.size, self.cpu)[0].numpy()
        self.model, self.floor = compile_onnx(self.graph), relu_model(self.graph)
        self.repeated = self.images.repeat(self.size.timesteps, axis=0)

    def calls(self) -> tuple[dict[str, Call], dict[str, str]]:
        """A function for every variant that is installed, and why others are not."""
        from tser.errors import UsageError

        found: dict[str, Call] = {
            FLOOR: self._onnx(self.floor, self.repeated),
            "onnx": self._onnx(self.model, self.images),
        }
        rest: dict[str, Callable[[], Call]] = {
            "openvino-ann": lambda: self._openvino(self.floor, self.repeated),
            "openvino": lambda: self._openvino(self.model, self.images),
            "torch": lambda: self._torch("off"),
            "torch-compiled": lambda: self._torch("step"),
            "norse": lambda: self._peer("norse"),
            "spikingjelly": lambda: self._peer("spikingjelly"),
        }
        left_out = {}
        for name, build in rest.items():
            try:
                found[name] = build()
            except (ImportError, UsageError) as error:
                left_out[name] = str(error)
        return found, left_out

    def verdicts(self) -> Row:
        """Spikes of each of our executors against the PyTorch student."""
        from tser.deploy.backends import Backend, NirBackend, TorchBackend
        from tser.deploy.equivalence import compare
        from tser.deploy.onnx_backend import OnnxBackend
        from tser.deploy.openvino_backend import OpenVinoBackend
        from tser.errors import UsageError

        layers = {node.name: node.output_shape for node in self.graph.spiking}
        candidates: list[Backend] = [
            OnnxBackend(self.model, layers, "onnx"),
            NirBackend(self.graph, self.size.timesteps, "nir"),
        ]
        try:
            candidates.append(OpenVinoBackend(self.model, layers, "openvino"))
        except UsageError as error:
            sys.stderr.write(f"{error}\n")
        reference = TorchBackend(self.student, self.lowered.modules, "student")
        batches = [(self.images, None)]
        bias = self.lowered.bias_magnitude
        evidence = compare(self.graph, reference, candidates, batches, bias)
        return {
            one.name: {
                "verdict": one.verdict,
                "flips": one.flips,
                "neuron_steps": one.neuron_steps,
                "spikes": sum(int(layer.reference.sum()) for layer in one.layers.values()),
            }
            for one in evidence.comparisons
        }

    def session(self, model: Any, **options: Any) -> Any:
        """ONNX Runtime's session for ``model``."""
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = self.threads
        # Waiting threads would take the cores from the variant whose turn is next.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for name, value in options.items():
            setattr(settings, name, value)
        return onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )

    def _onnx(self, model: Any, images: Any) -> Call:
        session = self.session(model)
        return lambda: session.run(None, {"input": images})

    def _openvino(self, model: Any, images: Any) -> Call:
        from tser.deploy.openvino_backend import make_core, program

        run = program(make_core(), model, images.shape, self.threads)
        return lambda: run({"input": images})

    def _torch(self, mode: str) -> Call:
        from networks import build_student

        return self._call(build_student(self.size, self.cpu, mode=mode))

    def _peer(self, name: str) -> Call:
        import peers

        return self._call(getattr(peers, name)(self.size, self.cpu))

    def _call(self, variant: Any) -> Call:
        """``variant`` in evaluation, with the weights of the student."""
        import torch

        # The layers come in the same order; scalars and what is empty are not weights.
        sources = [v for v in self.student.state_dict().values() if v.ndim]
        targets = [v for v in variant.module.state_dict().values() if v.ndim and v.numel()]
        with torch.no_grad():
            for source, target in zip(sources, targets, strict=True):
                target.copy_(source)
        variant.module.eval()

        def call() -> Any:
            with torch.inference_mode():
                return variant.logits(variant.images)

        return call


def relu_model(graph: Any) -> Any:
    """The network of ``graph`` with ReLU for its neurons, in the same operators."""
    from onnx import TensorProto, helper

    from tser.export.graph import SPIKING
    from tser.export.onnx_emitter import Emitter
    from tser.export.onnx_file import IR_VERSION, OPSET
    from tser.export.onnx_ops import STATELESS_EMITTERS

    emitter, values = Emitter(graph), {graph.input.name: "input"}
    for node in graph.nodes.values():
        if node is graph.input:
            continue
        (value,) = (values[edge.source] for edge in node.inputs)
        if isinstance(node.op, SPIKING):
            values[node.name] = emitter.emit("Relu", [value], node.name)
        else:
            emit = STATELESS_EMITTERS[type(node.op)]
            values[node.name] = emit(emitter, node, value, node.name)
    ends = [("input", graph.input), (values[graph.output.name], graph.output)]
    first, last = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *node.output_shape])]
        for name, node in ends
    )
    nodes, initialisers = emitter.live(ends[1][0])
    return helper.make_model(
        helper.make_graph(nodes, "ann", first, last, initialisers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def measure(job: Row, rounds: int) -> Row:
    """Seconds of every variant and round, wall clock and of all cores together, and verdicts."""
    bench = Bench(job)
    calls, left_out = bench.calls()
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    repeats = 1 if job["batch"] > 1 else 10  # a single image takes milliseconds
    for number in range(rounds):
        shift = number % len(names)  # none always follows the same one
        for name in names[shift:] + names[:shift]:
            started, used = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                calls[name]()
            wall[name].append((time.perf_counter() - started) / repeats)
            cpu[name].append((time.process_time() - used) / repeats)
    for name, reason in left_out.items():
        sys.stderr.write(f"{name} is left out: {reason}\n")
    return {"seconds": wall, "cpu_seconds": cpu, "left_out": left_out, "spikes": bench.verdicts()}


def profile(job: Row) -> Row:
    """Milliseconds of a run by kind of operator, ONNX Runtime's own count."""
    bench, found, runs = Bench(job), {}, 20
    for name, model, images in (
        (FLOOR, bench.floor, bench.repeated),
        ("onnx", bench.model, bench.images),
    ):
        with tempfile.TemporaryDirectory() as folder:
            session = bench.session(
                model, enable_profiling=True, profile_file_prefix=str(Path(folder) / "profile")
            )
            for _ in range(runs):
                session.run(None, {"input": images})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        times: Counter[str] = Counter()
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                times[event["args"]["op_name"]] += event["dur"] / 1000 / runs
        found[name] = dict(times.most_common())
    return found


def peer_versions() -> dict[str, str | None]:
    """Of what the extras bring."""
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str | None] = {}
    for name in PEERS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def newest(rows: list[Row], part: str) -> dict[int, Row]:
    """The last line of each batch size."""
    return {row["batch"]: row for row in rows if row["part"] == part}


def time_table(rows: list[Row]) -> str:
    """Ratios to the floor."""
    runs = dict(sorted(newest(rows, "run").items()))
    columns = ["variant"]
    for batch in runs:
        columns += [f"batch {batch}", f"batch {batch}, CPU time"]
    lines = []
    for name, label in LABELS.items():
        cells = []
        for row in runs.values():
            for key in ("seconds", "cpu_seconds"):
                if name not in row[key]:
                    cells.append("not installed")
                    continue
                pairs = zip(row[key][name], row[key][FLOOR], strict=True)
                cells.append(spread([a / b for a, b in pairs]))
        lines.append([label, *cells])
    return markdown(columns, lines)


def spike_table(rows: list[Row]) -> str:
    """Verdicts."""
    lines = [
        [
            LABELS.get(name, "NIR interpreter, float32").partition(",")[0].strip("*"),
            str(batch),
            f"{one['flips']:,} of {one['neuron_steps']:,}",
            f"{one['spikes'] / one['neuron_steps']:.1%}",
            one["verdict"],
        ]
        for batch, row in sorted(newest(rows, "run").items())
        for name, one in row["spikes"].items()
    ]
    columns = ["runtime", "batch", "spikes that differ from PyTorch's", "firing", "verdict"]
    return markdown(columns, lines)


def profile_table(rows: list[Row]) -> str:
    """Shares of the floor's time, operator by operator."""
    found = newest(rows, "profile")
    if not found:
        return "Not measured yet.\n"
    times = found[max(found)]["milliseconds"]
    total = sum(times[FLOOR].values())
    kinds = sorted(set(times["onnx"]) | set(times[FLOOR]), key=lambda k: -times["onnx"].get(k, 0))
    lines = [
        [kind, *(f"{times[name].get(kind, 0) / total:.3f}" for name in (FLOOR, "onnx"))]
        for kind in kinds
        if max(times[name].get(kind, 0) for name in times) >= total / 500
    ]
    lines.append(["all", *(f"{sum(times[name].values()) / total:.3f}" for name in (FLOOR, "onnx"))])
    return markdown(["operator", "ANN on T · B images", "exported graph"], lines)


def machine_table(rows: list[Row]) -> str:
    """What it was measured on."""
    lines = []
    for batch, row in sorted(newest(rows, "run").items()):
        found = row["machine"]
        versions = {k: found["packages"][k] for k in ("torch", "onnxruntime", "onnx")}
        versions |= found["peers"]
        lines.append(
            [
                str(batch),
                f"{found['processor']} ({found['vectors']}), {row['threads']} threads",
                ", ".join(f"{k} {v}" for k, v in versions.items() if v),
                f"{found['load']:.1f}",
                f"width {row['width']}, T = {row['timesteps']}, {row['rounds']} rounds",
            ]
        )
    return markdown(["batch", "processor", "versions", "load before", "network"], lines)


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "inference-time": time_table,
    "inference-spikes": spike_table,
    "inference-profile": profile_table,
    "inference-machine": machine_table,
}


if __name__ == "__main__":
    main()
