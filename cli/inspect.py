"""``tser inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tser.cli.console import JsonFlag, guarded, say, show_json, show_table
from tser.printable import one_line

MARKS = {"correct": "✓ correct", "differs": "✗ differs", "fails": "✗ fails", "unknown": "? unknown"}

MANIFESTS = {
    "ok": "sha256 is right",
    "absent": "no sha256, so a change would not be noticed",
    "wrong": "sha256 is wrong",
}


@guarded
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .nir or .onnx file.")],
    dt: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Time step of a NIR file that states none."),
    ] = None,
    repair: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.nir",
            help="Write a copy whose declared shapes fit its weights, and show that; with --dt it "
            "states the time step too.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what a graph file holds, and which tools run it as meant.

    Nothing is run. Exit code 4: the file is damaged; what can be read of it is shown.
    """
    from tser.deploy.graph_file import check_suffix
    from tser.errors import InputFileError, UsageError

    check_suffix(file, ".nir", ".onnx")
    if file.suffix == ".onnx":
        if dt is not None or repair is not None:
            raise UsageError("--dt and --repair are for .nir files; leave them out")
        from tser.deploy.inspection_onnx import inspect_onnx

        document = inspect_onnx(file)
        show_json(document) if as_json else _show_onnx(document)
        if document["problem"]:
            raise InputFileError(document["problem"])
        return
    from tser.deploy.inspection import inspect_nir, repair_nir

    if repair is not None:
        changes = repair_nir(file, repair, dt)
        for change in changes:
            say(f"repaired: {change}")
        if changes:
            say(f"wrote {repair}")
            file, dt = repair, None
        else:
            say(f"nothing to repair, so {repair} was not written")
    document = inspect_nir(file, dt)
    show_json(document) if as_json else _show_nir(document)
    if document["problem"]:
        raise InputFileError(document["problem"])


def _show_nir(found: dict[str, Any]) -> None:
    columns = [
        "node",
        "type",
        "from",
        "in",
        "out",
        "neurons",
        "synapses",
        "parameters",
        "constants",
    ]
    rows = [
        [
            node["name"],
            node["type"],
            ", ".join(node["inputs"]),
            _shape(node["input_shape"]),
            _shape(node["output_shape"]),
            _count(node["neurons"]),
            _count(node["synapses"]),
            _count(node["parameters"]),
            ", ".join(f"{key} {_ends(ends)}" for key, ends in node["constants"].items()),
        ]
        for node in found["nodes"]
    ]
    totals = found["totals"]
    last = [f"{totals['nodes']} nodes", "", "", "", ""]
    last += [_count(totals[key]) for key in ("neurons", "synapses", "parameters")]
    show_table(found["file"], columns, [*rows, [*last, ""]])
    _section("The file", [f"{key}: {text}" for key, text in _about(found)])
    broken = found["portable"]["violations"]
    rules = [f"✗ {rule['rule']}: {rule['says']} ({_some(rule['nodes'])})" for rule in broken]
    _section("Portable profile", rules or ["✓ every rule is kept"])
    tools = []
    for tool in found["importers"]:
        tools.append(f"{tool['name']} {tool['version']}: {MARKS[tool['verdict']]}")
        tools += [f"    {reason}" for reason in tool["reasons"]]
    _section("Importers", tools)
    for gap in found["uncounted"]:
        say(f"synapses not counted: {gap['name']}: {gap['reason']}")
    if found["dt_origin"] == "missing":
        say("the file does not state its time step; other commands will need --dt SECONDS")
    _warn(found)


def _warn(found: dict[str, Any]) -> None:
    if found["manifest"] == "wrong":
        say("its contents are not what its sha256 says: other commands will refuse the file")


def _section(title: str, lines: list[str]) -> None:
    typer.echo("\n".join(map(one_line, [title, *(f"  {line}" for line in lines)])))


def _about(found: dict[str, Any]) -> list[tuple[str, str]]:
    cycles = [f"{edge['source']} → {edge['target']}" for edge in found["cycles"]]
    dt = found["dt_seconds"]
    return [
        ("producer", str(found["producer"] or "not stated")),
        ("manifest", MANIFESTS[found["manifest"]]),
        ("dt", found["dt_origin"] if dt is None else f"{dt:g} s ({found['dt_origin']})"),
        ("T", str(found["timesteps"] or "not stated")),
        ("encoding", str(found["encoding"] or "not stated")),
        ("one-step delays", ", ".join(cycles) or "none: no cycles"),
        ("graphs inside", ", ".join(found["nested"]) or "none"),
    ]


def _show_onnx(found: dict[str, Any]) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in found["opsets"].items())
    neurons = "not known: not a model of tser"
    if found["ours"]:
        neurons = "not known" if found["neurons"] is None else _count(found["neurons"])
    about = [
        ["producer", found["producer"] or "not stated"],
        ["one of tser's", "yes" if found["ours"] else "no"],
        ["manifest", MANIFESTS[found["manifest"]]],
        ["opset", f"{opsets} (IR {found['ir_version']})"],
        *(["input", _port(port)] for port in found["inputs"]),
        *(["output", _port(port)] for port in found["outputs"]),
        ["constants", _count(found["constants"])],
        ["spiking neurons", neurons],
    ]
    _section(found["file"], [f"{key}: {text}" for key, text in about])
    rows = [[name, _count(count)] for name, count in found["operators"].items()]
    show_table("Operators", ["operator", "times"], rows)
    if found["metadata"]:
        _section("Metadata", [f"{key}: {text[:200]}" for key, text in found["metadata"].items()])
    _warn(found)


def _port(port: dict[str, Any]) -> str:
    shape = "any shape" if port["shape"] is None else _shape(port["shape"])
    return f"{port['name']}: {port['type']} {shape}"


def _shape(sizes: list[int | str]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _ends(ends: list[float | str]) -> str:
    low, high = (end if isinstance(end, str) else f"{end:.6g}" for end in ends)
    return low if low == high else f"{low}..{high}"


def _some(nodes: Sequence[str], most: int = 5) -> str:
    more = f" and {len(nodes) - most} more" if len(nodes) > most else ""
    return ", ".join(nodes[:most]) + more
