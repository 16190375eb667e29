"""``tser energy``: operations and energy of an exported graph, as one JSON document."""

from __future__ import annotations

from typing import Any

from tser.data import ImageData
from tser.deploy.counting import LayerCount, OperationCount, count_operations
from tser.deploy.energy import FirstLayer, Target, ann_twin, layer_joules, price
from tser.deploy.inputs import image_batches
from tser.export.graph import Graph


def measure(
    graph: Graph,
    data: ImageData,
    targets: list[Target],
    *,
    origin: str,
    samples: int | None = None,
    timesteps: int | None = None,
    first_layer: FirstLayer = "charge",
) -> dict[str, Any]:
    """Count operations on test images and price them.

    Args:
        graph: the exported graph.
        data: scaled as the graph asks.
        targets: to price for.
        origin: path of the graph, for the record.
        samples: how many test images; None: all.
        timesteps: T; default what the graph states.
        first_layer: "host" leaves layers with analog input out of the price.

    Returns:
        Plain values, ready for JSON; all counts are means per inference.
    """
    batches = (x for x, _ in image_batches(data, samples))
    counts = count_operations(graph, batches, timesteps)
    return {
        "schema_version": 1,
        "graph": origin,
        "graph_digest": graph.metadata.get("sha256"),
        "data": data.name,
        "split": "test",
        "samples": counts.samples,
        "timesteps": counts.timesteps,
        "dt_seconds": graph.dt,
        "first_layer": first_layer,
        "layers": [_layer(layer, counts.samples) for layer in counts.layers],
        "totals": _totals(counts),
        "gaps": counts.gaps,
        "ann_twin": ann_twin(counts),
        "targets": [_target(counts, target, first_layer) for target in targets],
    }


COLUMNS = (
    "events",
    "sop_structural",
    "sop_effective",
    "dense",
    "dense_padded",
    "macs",
    "macs_once",
    "neuron_updates",
    "neuron_updates_driven",
)


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
        "events_per_step": [int(n) / samples for n in layer.events],
        "sop_structural_per_step": [int(n) / samples for n in layer.sop_structural],
    }


def _sum(layer: LayerCount, column: str) -> int:
    value = getattr(layer, column)
    return int(value if isinstance(value, int) else value.sum())


def _totals(counts: OperationCount) -> dict[str, float]:
    """Sums over layers, per inference; spikes (events of neurons) apart from synaptic events."""
    totals = {column: counts.total(column) / counts.samples for column in COLUMNS}
    spikes = sum(int(row.events.sum()) for row in counts.layers if row.kind == "neuron")
    totals["spikes"] = spikes / counts.samples
    totals["events"] -= totals["spikes"]
    accumulates = sum(int(r.sop_structural.sum()) for r in counts.layers if r.operation == "AC")
    totals["accumulates"] = accumulates / counts.samples
    return totals


def _target(counts: OperationCount, target: Target, first_layer: FirstLayer) -> dict[str, Any]:
    bill = price(counts, target, first_layer)
    return {
        "name": target.name,
        "title": target.title,
        "energy_joules": bill.energy_joules,
        "priced_joules": bill.priced_joules,
        "items": [
            {
                "charge": item.charge,
                "count": item.count,
                "joules": item.joules,
                "figure": None if item.figure is None else item.figure.model_dump(),
            }
            for item in bill.items
        ],
        "layers": [
            {"name": row.name, "joules": layer_joules(row, counts.samples, target, first_layer)}
            for row in counts.layers
        ],
        "unpriced": bill.unpriced,
        "left_out": bill.left_out,
    }
