"""``tser energy``: operations and energy of an exported graph, as one JSON document.

``energy.json``, schema_version 2; energies in joules, everything a mean per inference:

* ``graph``, ``graph_digest``, ``data``, ``split``, ``samples``, ``timesteps``, ``dt_seconds``.
* ``first_layer``: "charge", "once" or "host"; ``hops`` and ``latency_seconds``: null if not given.
* ``model``: ``name`` ("plain" or "memory") and ``options`` of the memory-aware model.
* ``layers``: counts of each row (`COLUMNS`), and per step ``events_per_step``,
  ``sop_structural_per_step``, ``sop_effective_per_step``, ``neuron_updates_driven_per_step``, all
  of T values; ``parameter_bits`` and ``state_bits`` are of the layer, not of an inference.
* ``totals``: the columns summed; ``spikes`` (events of neurons) apart from ``events``.
* ``gaps``: what was not counted.
* ``break_even``: published rules (`break_even.Rule`).
* ``ann_twin``: the conventional network under the same model, for the first 45 nm target.
* ``settings``, on request: ``kind`` "steps" (all samples take ``t``) or "early-exit" (each stops
  at the confidence ``threshold``), ``accuracy``, ``mean_steps``, ``sop``, and ``energy`` [J] by
  target (null where there is no total; of a range the upper end, the lower in ``energy_low``).
* ``targets``: per target ``energy_joules`` with ``low_joules`` and ``high_joules`` (all null while
  a charged line is unpriced; ``energy_joules`` alone null where a figure is only a range),
  ``priced_joules`` with its range, ``items``, ``layers``, ``unpriced``, ``inside``, ``left_out``,
  ``notes``;
  ``after_step``: the totals of a run that stops after step 1..T; ``ann_twin``: for a process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from tser.data import ImageData
from tser.deploy.ann_twin import ann_twin
from tser.deploy.bills import Amount, Bill, amount_document, first_steps, item_document
from tser.deploy.break_even import break_even
from tser.deploy.counting import LayerCount, OperationCount, count_operations
from tser.deploy.energy import Assumptions, price
from tser.deploy.inputs import image_batches
from tser.deploy.memory_bills import price_memory
from tser.deploy.memory_model import LayerShape, MemoryOptions, layer_shapes
from tser.deploy.pareto import cheapest
from tser.deploy.settings import Setting, count_settings
from tser.deploy.target_files import Target, load_target
from tser.export.graph import Graph

Pricer = Callable[[OperationCount, Assumptions], Bill]

COLUMNS = (
    "events",
    "sop_structural",
    "sop_effective",
    "dense",
    "dense_padded",
    "macs",
    "macs_once",
    "bias_adds",
    "neuron_updates",
    "neuron_updates_driven",
)
SIZES = ("parameter_bits", "state_bits")


def measure(
    graph: Graph,
    data: ImageData,
    targets: list[Target],
    *,
    origin: str,
    samples: int | None = None,
    timesteps: int | None = None,
    assumptions: Assumptions | None = None,
    memory: MemoryOptions | None = None,
    settings: bool = False,
    split: Literal["test", "val"] = "test",
) -> dict[str, Any]:
    """Count operations on test images and price them.

    Args:
        graph: the exported graph.
        data: scaled as the graph asks.
        targets: to price for.
        origin: path of the graph, for the record.
        samples: how many test images; None: all.
        timesteps: T; default what the graph states.
        assumptions: what the bills need to know beside the counts.
        memory: options of the memory-aware model; None: the plain model.
        settings: also every number of steps and early exit, see `deploy.settings`.
        split: which images.

    Returns:
        Plain values, ready for JSON, as described above.

    Raises:
        UsageError: the memory-aware model with a chip.
        InputFileError: outputs that are not finite.
    """
    known = assumptions or Assumptions()
    labelled = image_batches(data, samples, split=split)
    if not settings:
        counts = count_operations(graph, (x for x, _ in labelled), timesteps, origin=origin)
        document = energy_document(counts, graph, targets, data.name, origin, known, memory)
        return document | {"split": split}
    counts, ways = count_settings(graph, labelled, timesteps, origin=origin)
    document = energy_document(counts, graph, targets, data.name, origin, known, memory)
    shapes = None if memory is None else layer_shapes(graph)
    bills = {target.name: pricer(target, shapes, memory) for target in targets}
    return document | {
        "split": split,
        "settings": [_setting(way, bills, known) for way in ways],
    }


def _setting(way: Setting, bills: dict[str, Pricer], assumptions: Assumptions) -> dict[str, Any]:
    latency = assumptions.latency
    share = None if latency is None else latency * way.mean_steps / way.counts.timesteps
    known = Assumptions(assumptions.first_layer, assumptions.hops, share)
    energies = {name: bill(way.counts, known).energy for name, bill in bills.items()}
    return {
        "kind": "early-exit" if way.t is None else "steps",
        "t": way.t,
        "threshold": way.threshold,
        "accuracy": way.accuracy,
        "mean_steps": way.mean_steps,
        "sop": way.counts.total("sop_structural") / way.counts.samples,
        "energy": {name: None if e is None else _upper(e) for name, e in energies.items()},
        "energy_low": {name: None if e is None else e.low for name, e in energies.items()},
    }


def _upper(energy: Amount) -> float:
    """The value [J], or where there is only a range its upper end."""
    return energy.high if energy.value is None else energy.value


def energy_document(
    counts: OperationCount,
    graph: Graph,
    targets: list[Target],
    data: str,
    origin: str,
    assumptions: Assumptions,
    memory: MemoryOptions | None,
) -> dict[str, Any]:
    """Counts and bills as plain values; see `measure`."""
    shapes = None if memory is None else layer_shapes(graph)

    def twin(target: Target) -> dict[str, Any]:
        return ann_twin(counts, target, shapes, memory)

    process = next((t for t in targets if t.kind == "process"), None) or load_target("cmos45")
    return {
        "schema_version": 2,
        "graph": origin,
        "graph_digest": graph.metadata.get("sha256"),
        "data": data,
        "split": "test",
        "samples": counts.samples,
        "timesteps": counts.timesteps,
        "dt_seconds": graph.dt,
        "first_layer": assumptions.first_layer,
        "hops": assumptions.hops,
        "latency_seconds": assumptions.latency,
        "model": {
            "name": "plain" if memory is None else "memory",
            "options": {} if memory is None else asdict(memory),
        },
        "layers": [_layer(layer, counts.samples) for layer in counts.layers],
        "totals": _totals(counts),
        "gaps": counts.gaps,
        "break_even": break_even(counts),
        "ann_twin": twin(process),
        "targets": [
            {
                **_target(counts, target, pricer(target, shapes, memory), assumptions),
                "ann_twin": twin(target) if target.kind == "process" else None,
            }
            for target in targets
        ],
    }


def pricer(
    target: Target, shapes: dict[str, LayerShape] | None, memory: MemoryOptions | None
) -> Pricer:
    """How counts are priced for ``target``: plainly, or with memory."""

    def bill(counts: OperationCount, assumptions: Assumptions) -> Bill:
        if shapes is None:
            return price(counts, target, assumptions)
        return price_memory(counts, target, shapes, memory, assumptions)

    return bill


def bills_per_step(counts: OperationCount, bill: Pricer, assumptions: Assumptions) -> list[Bill]:
    """Bills of an inference that stops after step 1..T; time is shared among the steps alike."""
    bills = []
    for steps in range(1, counts.timesteps + 1):
        latency = assumptions.latency
        share = None if latency is None else latency * steps / counts.timesteps
        known = Assumptions(assumptions.first_layer, assumptions.hops, share)
        bills.append(bill(first_steps(counts, steps), known))
    return bills


def _layer(layer: LayerCount, samples: int) -> dict[str, Any]:
    values = {column: float(_sum(layer, column)) / samples for column in COLUMNS}
    return {
        "name": layer.name,
        "kind": layer.kind,
        "source": layer.source,
        "operation": layer.operation,
        "neurons": layer.neurons,
        "firing_rate": layer.firing_rate,
        **values,
        **{size: getattr(layer, size) for size in SIZES},
        "events_per_step": [int(n) / samples for n in layer.events],
        "sop_structural_per_step": [int(n) / samples for n in layer.sop_structural],
        "sop_effective_per_step": [int(n) / samples for n in layer.sop_effective],
        "neuron_updates_driven_per_step": [int(n) / samples for n in layer.driven_per_step],
    }


def _sum(layer: LayerCount, column: str) -> int:
    value = getattr(layer, column)
    return int(value if isinstance(value, int) else value.sum())


def _totals(counts: OperationCount) -> dict[str, float]:
    """Sums over layers, per inference; spikes (events of neurons) apart from synaptic events."""
    totals = {column: counts.total(column) / counts.samples for column in COLUMNS}
    totals |= {size: float(counts.total(size)) for size in SIZES}
    spikes = sum(int(row.events.sum()) for row in counts.layers if row.kind == "neuron")
    totals["spikes"] = spikes / counts.samples
    totals["events"] -= totals["spikes"]
    accumulates = sum(int(r.sop_structural.sum()) for r in counts.layers if r.operation == "AC")
    totals["accumulates"] = accumulates / counts.samples
    return totals


def _target(
    counts: OperationCount, target: Target, bill_of: Pricer, assumptions: Assumptions
) -> dict[str, Any]:
    bill = bill_of(counts, assumptions)
    energy, priced = amount_document(bill.energy), bill.priced
    return {
        "name": target.name,
        "title": target.title,
        "kind": target.kind,
        "energy_joules": energy["joules"],
        "low_joules": energy["low_joules"],
        "high_joules": energy["high_joules"],
        "priced_joules": priced.value,
        "priced_low_joules": priced.low,
        "priced_high_joules": priced.high,
        "items": [item_document(item) for item in bill.items],
        "layers": [{"name": layer.name, **amount_document(layer.energy)} for layer in bill.layers],
        "unpriced": bill.unpriced,
        "inside": bill.inside,
        "left_out": bill.left_out,
        "notes": list(target.notes),
        "after_step": [
            amount_document(after.energy) for after in bills_per_step(counts, bill_of, assumptions)
        ],
    }


def choices(document: dict[str, Any], max_drop: float) -> list[dict[str, Any]]:
    """Per target the cheapest setting that loses little accuracy against all T steps.

    Args:
        document: with ``settings``.
        max_drop: accuracy that may be lost, in percentage points.
    """
    ways = document["settings"]
    full = next(way for way in ways if way["t"] == document["timesteps"])
    accuracy = [way["accuracy"] for way in ways]
    # A hair less: the difference of two shares is not exact.
    least = full["accuracy"] - max_drop / 100 - 1e-12
    found = []
    for target in document["targets"]:
        name = target["name"]
        costs = [way["energy"][name] for way in ways]
        best = cheapest(costs, accuracy, least)
        if best is None:
            text = f"{name}: there is no total to choose by; see what is unpriced"
        else:
            way = ways[best]
            title = (
                f"t = {way['t']}" if way["t"] else f"stopping at confidence {way['threshold']:g}"
            )
            share = way["energy"][name] / full["energy"][name]
            text = (
                f"{name}: {title} is the cheapest within {max_drop:g} points: "
                f"accuracy {100 * way['accuracy']:.2f} % against {100 * full['accuracy']:.2f} % at "
                f"t = {full['t']} ({document['samples']:,} images), "
                f"{100 * share:.1f} % of the energy, {way['mean_steps']:.2f} steps on average"
            )
        found.append({"target": name, "max_drop": max_drop, "setting": best, "text": text})
    return found
