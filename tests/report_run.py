"""A small synthetic run, for tests of what reads the files of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nir
import numpy as np

from tests.graphs import full, lif, network
from tests.validation_files import validation
from tser.config_file import dump_config, parse_config
from tser.export.nir_file import write_nir
from tser.runs import Run

EVIL = "<script>alert(1)</script>"
URL = "https://doi.org/10.1000/chip"
FIGURE = {
    "value": 23.6,
    "low": None,
    "high": None,
    "unit": "pJ",
    "per": "synaptic operation",
    "operating_point": "0.75 V",
    "scope": "per operation",
    "covers": "one synaptic operation",
    "evidence": "simulated",
    "second_hand": True,
    "source": "A. Author, A chip, 2018",
    "url": URL,
}


def graph() -> nir.NIRGraph:
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((70, 64)).astype(np.float32)
    out = rng.standard_normal((10, 70)).astype(np.float32)
    nodes = {
        "flat": nir.Flatten({"input": np.array([1, 8, 8])}, start_dim=-3, end_dim=-1),
        "hidden": nir.Affine(hidden, full(70, 0)),
        "neurons": lif((70,), v_th=0.5),
        "readout": nir.Affine(out, full(10, 0)),
    }
    return network(
        (1, 8, 8), nodes, timesteps=2, class_names=json.dumps([EVIL + str(n) for n in range(10)])
    )


def evaluation() -> dict[str, Any]:
    layer = {"name": "neurons $x_1$ <b>", "neurons": 70, "firing_rate": 0.25}
    return {
        "schema_version": 1,
        "data": "digits",
        "samples": 50,
        "timesteps": 2,
        "accuracy": [0.9, 0.98],
        "calibration_error": [0.0712, 0.0345],
        "early_exit": [
            {"threshold": 0.5, "accuracy": 0.94, "mean_steps": 1.1},
            {"threshold": 0.9, "accuracy": 0.98, "mean_steps": 1.5},
            {"threshold": 0.99, "accuracy": 0.98, "mean_steps": 1.75},
        ],
        "teacher_accuracy": 0.96,
        "layers": [layer | {"firing_rate_per_step": [0.2, 0.3]}],
        "class_names": [EVIL + str(n) for n in range(10)],
        "confusion": confusion(),
        "mistakes": [{"index": 1, "true": 9, "predicted": 8, "confidence": 0.875}],
    }


def confusion() -> list[list[int]]:
    """Fifty images, of which one 9 is taken for an 8: test image 1 of the digits is a 9."""
    rows = [[5 * (i == j) for j in range(10)] for i in range(10)]
    rows[9][9], rows[9][8] = 4, 1
    return rows


def amount(joules: float | None, low: float | None = None) -> dict[str, float | None]:
    return {"joules": joules, "low_joules": low or joules, "high_joules": joules}


def total(joules: float | None) -> dict[str, float | None]:
    return {"energy_joules": joules, "low_joules": joules, "high_joules": joules}


COUNTS = (
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


def energy(digest: str | None) -> dict[str, Any]:
    """energy.json with a chip that has no total and a process that has one."""
    bits = {"parameter_bits": 8192, "state_bits": 2240}
    row = dict.fromkeys(COUNTS, 1000.0) | bits | {"sop_structural_per_step": [400.0, 600.0]}
    silent = dict.fromkeys(COUNTS, 0.0) | bits | {"sop_structural_per_step": [0.0, 0.0]}
    synapse = row | {"name": "hidden", "kind": "linear", "operation": "MAC"}
    neuron = silent | {"name": "neurons", "kind": "neuron", "operation": ""}
    priced = amount(2.36e-8) | {"charge": "accumulate", "count": 1000.0, "figure": FIGURE}
    ranged = {**FIGURE, "value": None, "low": 3.0, "high": 4.0, "per": "hop"}
    unpriced = amount(None) | {"charge": "multiply_accumulate", "count": 5.0, "figure": None}
    hops = amount(None) | {"charge": "spike_hop", "count": 5.0, "figure": ranged}
    twin = {
        "target": "process",
        "title": "A process",
        "macs": 500.0,
        "figure": FIGURE,
        "items": [priced],
        "unpriced": [],
        "left_out": ["clocks of the twin"],
        **total(4.72e-8),
    }
    shared = {
        "layers": [{"name": name, **amount(1e-9)} for name in ("hidden", "neurons")],
        "inside": ["bias add: inside the figure of accumulate"],
        "left_out": ["static power"],
        "notes": ["a minimum"],
    }
    part = {"priced_joules": 2.36e-8, "priced_low_joules": 2.36e-8, "priced_high_joules": 2.36e-8}
    chip = {
        "name": "chip",
        "title": "A chip",
        "kind": "chip",
        "items": [priced, unpriced, hops],
        "unpriced": ["multiply accumulate: no published figure for A chip"],
        "after_step": [amount(None), amount(None)],
        "ann_twin": None,
        **total(None),
        **shared,
        **part,
    }
    process = {
        "name": "process",
        "title": "A process",
        "kind": "process",
        "items": [priced],
        "unpriced": [],
        "after_step": [amount(1.0e-8, 0.5e-8), amount(2.36e-8, 1e-8)],
        "ann_twin": twin,
        **total(2.36e-8),
        **shared,
        **part,
    }
    return {
        "schema_version": 2,
        "graph": "model.nir",
        "graph_digest": digest,
        "data": "digits",
        "split": "test",
        "samples": 50,
        "timesteps": 2,
        "first_layer": "charge",
        "hops": None,
        "latency_seconds": None,
        "model": {"name": "plain", "options": {}},
        "layers": [synapse, neuron],
        "totals": dict.fromkeys((*COUNTS, "spikes", "accumulates", *bits), 1000.0),
        "gaps": [{"name": "odd", "kind": "Scale", "reason": "not on spikes"}],
        "break_even": [
            {
                "name": "firing rate",
                "quantity": "spikes per neuron and step",
                "value": 0.25,
                "low": 0.057,
                "high": 0.057,
                "verdict": "above",
                "applies": False,
                "text": "above 5.7 %",
                "source": "B. Author, A rule, 2024",
                "url": "https://doi.org/10.1000/rule",
            }
        ],
        "ann_twin": twin,
        "targets": [chip, process],
    }


def settings() -> list[dict[str, Any]]:
    """What energy.json may hold of every way to run the network."""
    steps = [
        {"kind": "steps", "t": t, "accuracy": share, "mean_steps": float(t), "sop": 500.0 * t}
        for t, share in ((1, 0.9), (2, 0.98))
    ]
    stop = {"kind": "early-exit", "threshold": 0.9, "accuracy": 0.98, "mean_steps": 1.5}
    rows = [*steps, stop | {"sop": 750.0}, stop | {"threshold": 0.5, "accuracy": 0.8, "sop": 750.0}]
    joules = (1.0e-8, 2.36e-8, 1.7e-8, 1.2e-8)
    return [
        row | {"energy": {"process": price, "chip": None}}
        for row, price in zip(rows, joules, strict=True)
    ]


def epochs() -> list[dict[str, Any]]:
    teacher = {"phase": "teacher", "epoch": 1, "loss": 1.0, "train_accuracy": 0.5, "seconds": 1.5}
    rows = [teacher | {"val_accuracy": [0.5]}]
    for epoch in (1, 2):
        parts = {"loss": 2.0 / epoch, "ce": 1.0 / epoch, "kl": 0.5, "entropy": 1.2, "self_kl": 0.0}
        accuracy = {"train_accuracy": 0.5, "val_accuracy": [0.4, 0.45 * epoch], "seconds": 2.0}
        rows.append({"phase": "student", "epoch": epoch, **parts, **accuracy})
    return rows


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def make_bare(folder: Path, **sections: dict[str, Any]) -> Run:
    """A run that has been trained and nothing else."""
    run = Run(folder)
    run.path.mkdir(parents=True)
    values: dict[str, Any] = {"student": {"timesteps": 2}, "train": {"epochs": 2}}
    run.config_file.write_text(dump_config(parse_config(values | sections, "test")), "utf-8")
    run.student.touch()
    return run


def complete_run(run: Run) -> Run:
    """Every file that there can be beside those of `make_bare`."""
    digest = write_nir(graph(), run.nir)
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in epochs()), encoding="utf-8")
    command = ["tser", "distill", "a b"]
    described = {"python": "3.11", "platform": "here", "processor": "some", "cpus": 2}
    packages = {"torch": "2.6", "nir": None}
    known = {"schema_version": 1, **described, "packages": packages, "command": command}
    write(run.environment, known)
    write(run.evaluation, evaluation())
    write(run.validation, validation(digest))
    write(run.energy, energy(digest))
    return run
