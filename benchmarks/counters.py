"""Counters of synaptic operations of other libraries beside ours, on small layers.

    python benchmarks/counters.py run            # seconds; adds a line of results
    python benchmarks/counters.py table          # puts the table into docs/energy.md
    python benchmarks/counters.py table --check  # only says whether it is up to date

The layers are those of which totals are published: 4 -> 8 channels on 8 x 8, 2 samples, 108 events.
Each counter is called as its documentation has it, and the first column follows every event along
every connection, one by one. The newest line of ``benchmarks/results/counters.jsonl`` counts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from counter_cases import Case, cases
from document import Row, append_row, machine, markdown, read_rows
from torch import nn

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "counters.jsonl"
DOCUMENT = ROOT / "docs" / "energy.md"
BEGIN, END = "<!-- counters:begin -->\n", "<!-- counters:end -->"

Place = tuple[int, ...]


@dataclass(frozen=True)
class Ops:
    """Operations over all samples.

    Attributes:
        ac: accumulations.
        mac: multiply-accumulations.
        effective: accumulations over weights that are not 0; None where nothing is said of them.
    """

    ac: int
    mac: int
    effective: int | None = None


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="count")
    run.add_argument("--results", type=Path, default=RESULTS)
    show = commands.add_parser("table", help="put the table into the document")
    show.add_argument("--check", action="store_true", help="only say whether it is up to date")
    arguments = parser.parse_args()
    if arguments.command == "run":
        append_row(arguments.results, measure())
        sys.stdout.write(table(read_rows(arguments.results)))
        return
    before = DOCUMENT.read_text(encoding="utf-8")
    head, _, rest = before.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise SystemExit(f"{DOCUMENT} has no marks for the table")
    after = f"{head}{BEGIN}{table(read_rows(RESULTS))}{END}{tail}"
    if arguments.check:
        sys.exit(before != after and f"{DOCUMENT} is not what the results say")
    DOCUMENT.write_text(after, encoding="utf-8")


def measure() -> Row:
    """All counters on all cases; None for a library that is not installed."""
    counted: dict[str, Any] = {}
    for case in cases():
        counted[case.title] = {"why": case.why}
        for name, counter in COUNTERS.items():
            try:
                counted[case.title][name] = vars(counter(case))
            except ModuleNotFoundError as error:
                sys.stderr.write(f"{name}: {error}\n")
                counted[case.title][name] = None
    libraries = {"neurobench", "syops", "spikingjelly"}
    found = {name: version(name) for name in sorted(libraries) if importlib.util.find_spec(name)}
    return {"cases": counted, "libraries": found, "machine": machine()}


# --- the counters --------------------------------------------------------------------------


def brute_force(case: Case) -> Ops:
    """Every event along every connection, one by one."""
    shape = tuple(case.batches[0].shape[1:])
    reach = _reached(case, shape)
    heights = {abs(float(v)) for batch in case.batches for v in batch.reshape(-1)} - {0.0}
    if len(heights) > case.trains:
        taps = sum(len(targets) for targets in reach.values())
        return Ops(0, taps * sum(len(batch) for batch in case.batches))
    every = effective = 0
    for batch in case.batches:
        for sample, place in itertools.product(range(len(batch)), reach):
            value = float(batch[(sample, *place)])
            events = int(value) if case.trains > 1 else int(value != 0)
            every += events * len(reach[place])
            effective += events * sum(reach[place].values())
    return Ops(every, 0, effective)


def _reached(case: Case, shape: Place) -> dict[Place, dict[Place, bool]]:
    """Distinct targets of every input, and whether a weight on the way is not 0."""
    reach = {place: {place: True} for place in np.ndindex(*shape)}
    for layer in case.layers:
        wires = _connections(layer, shape)
        for place, sources in reach.items():
            targets: dict[Place, bool] = {}
            for source, used in sources.items():
                for target, weight in wires[source]:
                    targets[target] = targets.get(target, False) or (used and weight != 0)
            reach[place] = targets
        shape = tuple(layer(torch.zeros(1, *shape)).shape[1:])
    return reach


def _connections(layer: Any, shape: Place) -> dict[Place, list[tuple[Place, float]]]:
    """Targets and weights of every input of a convolution or a pool."""
    pool = isinstance(layer, nn.AvgPool2d)
    channels, rows, columns = layer(torch.zeros(1, *shape)).shape[1:]
    (kh, kw), (sh, sw) = (_pair(v) for v in (layer.kernel_size, layer.stride))
    (top, left), (dh, dw) = _pair(layer.padding), _pair(1 if pool else layer.dilation)
    groups = channels if pool else layer.groups
    weight = np.ones((channels, 1, kh, kw)) if pool else layer.weight.detach().numpy()
    found: dict[Place, list[tuple[Place, float]]] = {place: [] for place in np.ndindex(*shape)}
    for o, y, x in np.ndindex(channels, rows, columns):
        first = o // (channels // groups) * weight.shape[1]
        for c, i, j in np.ndindex(*weight.shape[1:]):
            source = (first + c, y * sh + i * dh - top, x * sw + j * dw - left)
            if source in found:
                found[source].append(((o, y, x), float(weight[o, c, i, j])))
    return found


def _pair(value: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(value, 2).tolist()
    return first, second


def ours(case: Case) -> Ops:
    """The exact counts of `tser energy`."""
    from tser.deploy.counting import count_operations
    from tser.export.graph import resolve

    counts = count_operations(resolve(as_nir(case)), [x[None].numpy() for x in case.batches])
    rows = [row for row in counts.layers if row.kind == "conv"]
    added = [row for row in rows if row.operation == "AC"]
    macs = sum(row.macs for row in rows)
    effective = sum(int(row.sop_effective.sum()) for row in added)
    return Ops(
        sum(int(row.sop_structural.sum()) for row in added), macs, effective if added else None
    )


def as_nir(case: Case) -> nir.NIRGraph:
    """The layers of ``case``, and before them the trains whose sum it is fed."""
    shape = tuple(case.batches[0].shape[1:])
    nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(shape)})}
    edges: list[tuple[str, str]] = []
    ends = ["input"]
    if case.trains > 1:
        ends = [f"train{number}" for number in range(case.trains)]
        for number, name in enumerate(ends):
            nodes[name] = nir.Threshold(np.full(shape, number + 0.5, np.float32))
        edges = [("input", name) for name in ends]
    for number, layer in enumerate(case.layers):
        name = f"layer{number}"
        nodes[name] = _node(layer)
        edges += [(end, name) for end in ends]
        ends = [name]
    result = nn.Sequential(*case.layers)(case.batches[0]).shape[1:]
    nodes["output"] = nir.Output({"output": np.array(result)})
    return nir.NIRGraph(nodes, [*edges, (ends[0], "output")], type_check=False)


def _node(layer: Any) -> nir.NIRNode:
    if isinstance(layer, nn.AvgPool2d):
        sizes = (layer.kernel_size, layer.stride, layer.padding)
        return nir.AvgPool2d(*(np.broadcast_to(v, 2).copy() for v in sizes))
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()
    return nir.Conv2d(
        None,
        layer.weight.detach().numpy(),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias.numpy(),
    )


def neurobench(case: Case) -> Ops:
    """The metric ``SynapticOperations`` of a benchmark; a mean over samples."""
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import SynapticOperations
    from neurobench.models import TorchModel

    data = [(x, torch.zeros(len(x))) for x in case.batches]
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    metrics = [[], [SynapticOperations]]
    with _silence():
        bench = Benchmark(TorchModel(nn.Sequential(*case.layers)), loader, [], [], metrics)
        found = bench.run(verbose=False)["SynapticOperations"]
    samples = sum(len(x) for x in case.batches)
    return Ops(round(found["Effective_ACs"] * samples), round(found["Effective_MACs"] * samples))


def syops(case: Case) -> Ops:
    """``get_model_complexity_info`` with a loader; a mean over samples."""
    from spikingjelly.activation_based import neuron

    # syops 0.0.5 asks for classes that SpikingJelly 2 has no more; no layer here is one of them.
    for name in ("MultiStepIFNode", "MultiStepLIFNode", "MultiStepParametricLIFNode"):
        if not hasattr(neuron, name):
            setattr(neuron, name, type(name, (), {}))
    from syops import get_model_complexity_info

    shape = tuple(case.batches[0].shape[1:])
    with _silence():
        (_, ac, mac, _), _ = get_model_complexity_info(
            nn.Sequential(*case.layers),
            shape,
            [(x, None) for x in case.batches],
            as_strings=False,
            print_per_layer_stat=False,
        )
    samples = sum(len(x) for x in case.batches)
    return Ops(round(ac * samples), round(mac * samples))


def spikingjelly(case: Case) -> Ops:
    """``SynOpCounter`` and ``MACCounter`` around the forward passes."""
    from spikingjelly.activation_based.op_counter import (
        DispatchCounterMode,
        MACCounter,
        SynOpCounter,
    )

    added, multiplied = SynOpCounter(), MACCounter()
    network = nn.Sequential(*case.layers)
    with torch.no_grad(), DispatchCounterMode([added, multiplied]):
        for x in case.batches:
            network(x)
    return Ops(int(added.get_total()), int(multiplied.get_total()))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


COUNTERS: dict[str, Callable[[Case], Ops]] = {
    "one by one": brute_force,
    "tser": ours,
    "NeuroBench": neurobench,
    "syops": syops,
    "SpikingJelly": spikingjelly,
}


# --- the table -----------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """The newest results."""
    newest = rows[-1]
    lines = []
    for title, found in newest["cases"].items():
        exact = found["one by one"]
        cells = [_cell(found[name], exact) for name in COUNTERS]
        lines.append(
            [
                title.replace("x", "×").replace("-1", "−1"),
                *cells,
                found["why"].replace(" x ", " × "),
            ]
        )
    versions = ", ".join(f"{name} {number}" for name, number in newest["libraries"].items())
    head = (
        "Operations over 2 samples with 108 events, 4 → 8 channels on 8 × 8 (the case of two "
        f"batches: 4 samples). {versions}; by `benchmarks/counters.py`. In brackets: how far from "
        "the first column, or that accumulations are taken for multiplications or the other way "
        "round.\n\n"
    )
    return head + markdown(["layer", *COUNTERS, "why they differ"], lines)


def _cell(found: Row | None, exact: Row) -> str:
    if found is None:
        return "not installed"
    kinds = [(found[kind], kind.upper()) for kind in ("ac", "mac") if found[kind]]
    text = " + ".join(f"{number:,} {kind}" for number, kind in kinds) or "0"
    effective = found["effective"]
    if effective is not None and effective != found["ac"]:
        text += f", {effective:,} effective"
    kind = "ac" if exact["ac"] else "mac"
    if [name for _, name in kinds] != [kind.upper()]:
        return f"{text} (**kind**)"
    if found[kind] in (exact[kind], exact["effective"]):
        return text
    return f"{text} ({found[kind] / exact[kind] - 1:+.0%})"


if __name__ == "__main__":
    main()
