"""What is in a ``.nir`` file, and who will run it as it is meant."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np

from tser.deploy.facts import Facts, gather, parameters
from tser.deploy.importers import judge, load_importers
from tser.deploy.portable import violations
from tser.deploy.synapses import Uncounted, fan_out, find_synapses
from tser.errors import InputFileError, UsageError
from tser.export.graph import MISSING, NEURONS, Graph, Node, resolve
from tser.export.graph_checks import brief
from tser.export.nir_file import Manifest, damage, read_unverified, write_nir
from tser.export.repair import repair

DtOrigin = Literal["metadata", "option", "missing", "not needed"]
_WEIGHTS = ("weight", "bias", "scale")


def inspect_nir(path: Path, dt: float | None = None) -> dict[str, Any]:
    """Everything that `tser inspect` says about a ``.nir`` file.

    Nothing is run, and the file may lack a time step. A file whose digest is wrong is described
    too; the caller has to say that it is damaged, in the words of ``"problem"``.

    Args:
        path: the file.
        dt: time step [s] of a file that states none.

    Returns:
        A JSON document.

    Raises:
        InputFileError: missing, not readable or contradictory.
        UsageError: the file states another dt.
    """
    raw, state = read_unverified(path)
    try:
        graph = resolve(raw, dt, str(path), timeless=True)
    except InputFileError as error:
        if state == "wrong":  # that is the cause
            raise InputFileError(damage(path, raw)) from error
        raise
    document = describe(raw, graph, state)
    problem = damage(path, raw) if state == "wrong" else ""
    return {"schema_version": 1, "file": str(path), "format": "nir", **document, "problem": problem}


def repair_nir(path: Path, out: Path, dt: float | None = None) -> list[str]:
    """Write a copy of ``path`` to ``out`` whose declared shapes fit, and its time step if given.

    Returns:
        One sentence for each change; none, and no file, where nothing is to be repaired.

    Raises:
        InputFileError: damaged, or beyond such a repair.
        UsageError: ``out`` is the file itself or no ``.nir`` file.
    """
    if out.suffix != ".nir":
        raise UsageError(f"--repair writes NIR; name a .nir file, not {out}")
    if out.resolve() == path.resolve():
        raise UsageError(f"--repair writes a copy; name another file than {path} itself")
    raw, state = read_unverified(path)
    if state == "wrong":
        raise InputFileError(damage(path, raw))
    _, changes = repair(raw, dt, str(path))
    if changes:
        raw.metadata["repaired"] = "; ".join(changes)
        write_nir(raw, out)
    return changes


def describe(raw: nir.NIRGraph, graph: Graph, state: Manifest) -> dict[str, Any]:
    """A graph as a JSON document: nodes, totals, time, conformance and importers."""
    facts = gather(raw, graph)
    connections, uncounted = _connections(graph)
    nodes = [_node(node, connections) for node in graph.nodes.values()]
    totals = {
        key: sum(node[key] for node in nodes)
        for key in ("neurons", "synapses", "synapses_effective", "parameters")
    }
    broken = [
        {"rule": violation.rule, "says": violation.says, "nodes": list(violation.nodes)}
        for violation in violations(facts)
    ]
    return {
        "manifest": state,
        "sha256": _stated(graph, "sha256"),
        "producer": _stated(graph, "producer"),
        "dt_seconds": None if math.isnan(graph.dt) or _needless(graph) else graph.dt,
        "dt_origin": _dt_origin(graph),
        "timesteps": graph.timesteps,
        "encoding": _stated(graph, "encoding"),
        "nodes": nodes,
        "totals": {"nodes": len(nodes), **totals},
        "uncounted": uncounted,
        "nested": list(facts.nested),
        "cycles": [
            {"source": edge.source, "target": node.name}
            for node in graph.nodes.values()
            for edge in node.inputs
            if edge.delayed
        ],
        "portable": {"conforms": not broken, "violations": broken},
        "importers": _importers(facts),
    }


def _stated(graph: Graph, key: str) -> str | None:
    """Text of the metadata; others may hold anything there."""
    value = graph.metadata.get(key)
    return value if value is None or isinstance(value, str) else brief(value)


def _needless(graph: Graph) -> bool:
    return graph.dt_origin.startswith("not needed")


def _dt_origin(graph: Graph) -> DtOrigin:
    if graph.dt_origin == MISSING:
        return "missing"
    if _needless(graph):
        return "not needed"
    return "metadata" if "dt" in graph.metadata else "option"


def _importers(facts: Facts) -> list[dict[str, Any]]:
    judgements = [judge(importer, facts) for importer in load_importers()]
    return [
        {
            "name": found.importer.name,
            "version": found.importer.version,
            "call": found.importer.call,
            "verdict": found.verdict,
            "reasons": list(found.reasons),
        }
        for found in judgements
    ]


def _connections(graph: Graph) -> tuple[dict[str, tuple[int, int]], list[dict[str, str]]]:
    """(all, those with a non-zero weight) into each node, and what cannot be counted."""
    found: dict[str, tuple[int, int]] = {}
    uncounted = []
    for synapse in find_synapses(graph):
        try:
            counts = [int(fan_out(synapse, effective=used).sum()) for used in (False, True)]
        except Uncounted as error:
            uncounted.append({"name": synapse.name, "reason": str(error)})
            continue
        every, used = found.get(synapse.sink.name, (0, 0))
        found[synapse.sink.name] = (every + counts[0], used + counts[1])
    return found, uncounted


def _node(node: Node, connections: dict[str, tuple[int, int]]) -> dict[str, Any]:
    every, used = connections.get(node.name, (0, 0))
    weights = [getattr(node.op, key, None) for key in _WEIGHTS]
    return {
        "name": node.name,
        "type": node.kind,
        "inputs": [edge.source for edge in node.inputs],
        "input_shape": list(node.input_shape),
        "output_shape": list(node.output_shape),
        "neurons": math.prod(node.output_shape) if isinstance(node.op, NEURONS) else 0,
        "synapses": every,
        "synapses_effective": used,
        "parameters": sum(int(np.size(value)) for value in weights if value is not None),
        "constants": {key: _range(value) for key, value in _constants(node).items()},
    }


def _constants(node: Node) -> dict[str, Any]:
    if isinstance(node.op, NEURONS):
        return dict(parameters(node.op))
    if isinstance(node.op, nir.Threshold):
        return {"threshold": node.op.threshold}
    if isinstance(node.op, nir.Delay):
        return {"delay": node.op.delay}
    return {}


def _range(value: Any) -> list[float | str]:
    """Smallest and largest value; infinities, which JSON lacks, as text."""
    array = np.asarray(value, np.float64)
    ends = [float(array.min()), float(array.max())]
    return [end if math.isfinite(end) else str(end) for end in ends]
