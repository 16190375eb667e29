"""docs/energy.md: its worked layer is recomputed, and its table of figures is current."""

import re
from functools import cache
from pathlib import Path

import nir
import numpy as np
import pytest

from tests.graphs import flatten, full, lif, view
from tser.deploy.ann_twin import twin_bill
from tser.deploy.bills import Bill
from tser.deploy.counting import OperationCount, count_operations
from tser.deploy.energy import Assumptions, load_target, price
from tser.deploy.memory_bills import access_joules, price_memory
from tser.deploy.memory_model import MemoryOptions, layer_shapes, spiking_uses
from tser.deploy.target_table import with_figures
from tser.export.graph import Graph

TEXT = (Path(__file__).parents[2] / "docs" / "energy.md").read_text("utf-8")
WORKED = re.search("<!-- worked:begin -->\n(.*?)<!-- worked:end -->", TEXT, re.S)
CMOS, INT32, LOIHI = (load_target(name) for name in ("cmos45", "cmos45-int32", "loihi"))


def _table() -> dict[str, tuple[str, str]]:
    assert WORKED is not None
    rows = [line.strip("| ").split(" | ") for line in WORKED[1].splitlines()[2:]]
    return {name: (formula, value) for name, formula, value in rows}


def _network() -> Graph:
    nodes = {
        "conv": nir.Conv2d((3, 3), np.ones((2, 1, 3, 3)), 1, 1, 1, 1, np.full(2, 0.125)),
        "lif": lif((2, 3, 3), v_th=0.875),
        "flatten": flatten(),
        "readout": nir.Linear(full((2, 18), 1)),
    }
    return view((1, 3, 3), nodes)


def _images() -> np.ndarray:
    x = np.zeros((2, 1, 1, 3, 3))
    x[0, 0, 0, 1, 1] = x[0, 0, 0, 0, 0] = x[1, 0, 0, 0, 1] = 1
    return x


def _layer(bill: Bill, name: str, end: str = "low") -> float:
    energy = next(layer.energy for layer in bill.layers if layer.name == name)
    assert energy is not None
    return float(getattr(energy, end)) * 1e12


def _access(graph: Graph, counts: OperationCount, name: str, item: str) -> float:
    (row,) = (row for row in counts.layers if row.name == name)
    uses = spiking_uses(row, layer_shapes(graph)[name], 1, MemoryOptions(), 32, "charge")
    bits = next(use.bits for use in uses if use.item == item)
    return access_joules(bits, INT32, "linear") * 1e12


@cache
def _computed() -> dict[str, float]:
    """The values of the table, by tser."""
    graph = _network()
    counts = count_operations(graph, [_images()], 2)
    rows = {row.name: row for row in counts.layers}
    conv, neurons = rows["conv"], rows["lif"]
    loihi = price(counts, LOIHI, Assumptions(hops=2))
    cmos = price(counts, CMOS)
    memory = price_memory(counts, INT32, layer_shapes(graph))
    uses = list(spiking_uses(conv, layer_shapes(graph)["conv"], 1, MemoryOptions(), 32, "charge"))
    accesses = sum(u.count * access_joules(u.bits, INT32, "linear") for u in uses if not u.charge)
    return {
        "events": float(conv.events.sum()),
        "SOP": float(conv.sop_structural.sum()),
        "dense": conv.dense,
        "dense, padded": conv.dense_padded,
        "bias adds": conv.bias_adds,
        "neuron updates": neurons.neuron_updates,
        "neuron updates, driven": neurons.neuron_updates_driven,
        "spikes": float(neurons.events.sum()),
        "cmos45, convolution [pJ]": _layer(cmos, "conv"),
        "cmos45, neurons [pJ]": _layer(cmos, "lif"),
        "cmos45, ANN twin of the convolution [pJ]": _layer(twin_bill(counts, CMOS), "conv"),
        "loihi, convolution [pJ]": _layer(loihi, "conv"),
        "loihi, neurons, 2 hops east-west [pJ]": _layer(loihi, "lif"),
        "loihi, neurons, 2 hops north-south [pJ]": _layer(loihi, "lif", "high"),
        "one weight access: 20 values of 32 bits [pJ]": _access(
            graph, counts, "conv", "read_weight"
        ),
        "one potential access: 18 values of 32 bits [pJ]": _access(
            graph, counts, "lif", "read_potential"
        ),
        "one queue access: 1,000 messages [pJ]": _access(graph, counts, "conv", "read_input"),
        "memory, convolution, arithmetic and addresses [pJ]": _layer(memory, "conv")
        - accesses * 1e12,
        "memory, convolution, accesses [pJ]": accesses * 1e12,
        "memory, neurons [pJ]": _layer(memory, "lif"),
    }


def test_the_table_is_whole() -> None:
    assert list(_table()) == list(_computed())


@pytest.mark.parametrize("name", _table())
def test_the_worked_layer_is_recomputed(name: str) -> None:
    formula, value = _table()[name]
    assert re.fullmatch(r"[-\d.e×+() ]+", formula)
    by_hand = eval(formula.replace("×", "*"), {"__builtins__": {}})  # noqa: S307 - numbers only
    assert by_hand == pytest.approx(float(value), rel=1e-12)
    assert _computed()[name] == pytest.approx(float(value), rel=1e-12)


def test_the_table_of_figures_is_current() -> None:
    assert with_figures(TEXT) == TEXT, "python -m tser.deploy.target_table docs/energy.md"


def test_every_option_of_the_memory_model_is_explained() -> None:
    for name in MemoryOptions.__dataclass_fields__:
        assert f"| `{name}` | `{getattr(MemoryOptions(), name)}`" in TEXT


def test_there_is_room_for_other_counters() -> None:
    assert "## Other counters" in TEXT
    assert TEXT.index("<!-- counters:begin -->") < TEXT.index("<!-- counters:end -->")
