"""``tser energy``."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tser.cli.console import (
    MOST_STEPS,
    DataRoot,
    Deterministic,
    JsonFlag,
    guarded,
    percent,
    say,
    show_json,
    show_table,
)
from tser.cli.targets import TargetFiles

DEFAULT_TARGETS = ["cmos45", "loihi"]


class FirstLayer(StrEnum):
    """How layers with analog input are charged."""

    charge = "charge"
    once = "once"
    host = "host"


class Model(StrEnum):
    """What a bill holds beside operations."""

    plain = "plain"
    memory = "memory"


class SplitName(StrEnum):
    """Which images are used."""

    test = "test"
    val = "val"


@guarded
def energy(
    graph: Annotated[
        Path | None,
        typer.Argument(metavar="GRAPH", help="A .nir file; default: the newest run's."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run whose test images are used.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data set whose test images are used.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Chip or process to price for; may be repeated; default: "
            f"{', '.join(DEFAULT_TARGETS)}; with --model memory cmos45. All: tser targets.",
        ),
    ] = None,
    target_file: TargetFiles = None,
    model: Annotated[
        Model,
        typer.Option(help="Operations alone, or with memory accesses (45 nm targets only)."),
    ] = Model.plain,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A choice of --model memory, such as ram=word64; may be repeated. "
            "All: docs/energy.md.",
        ),
    ] = None,
    hops: Annotated[
        float | None,
        typer.Option(
            metavar="HOPS",
            min=0,
            help="Mean hops of a spike between cores, for chips that charge them.",
        ),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Time of one inference, for static power."),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Test images, at most.")] = 1000,
    timesteps: Annotated[
        int | None,
        typer.Option(metavar="T", min=1, max=MOST_STEPS, help="T; default: what the graph states."),
    ] = None,
    dt: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time step of a file that states none.")
    ] = None,
    first_layer: Annotated[
        FirstLayer,
        typer.Option(
            help="Charge a layer with analog input at every step, once an inference, or to a host."
        ),
    ] = FirstLayer.charge,
    settings: Annotated[
        bool,
        typer.Option(
            "--settings",
            help="Also energy against accuracy for t = 1..T and for stopping when sure.",
        ),
    ] = False,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            min=0,
            max=100,
            help="Name the cheapest setting that loses at most so many percentage points of "
            "accuracy against all T steps; implies --settings.",
        ),
    ] = None,
    split: Annotated[
        SplitName, typer.Option(help="Images to count on; choose settings by val.")
    ] = SplitName.test,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the result as JSON; default for a run's own .nir: its energy.json.",
        ),
    ] = None,
    data_root: DataRoot = None,
    deterministic: Deterministic = False,
    as_json: JsonFlag = False,
) -> None:
    """Count synaptic operations on test images and price them.

    Energies are means per inference; what nobody has published stays unpriced.
    """
    from tser.deploy.graph_file import check_suffix, open_nir
    from tser.errors import UsageError
    from tser.files import check_json_target, write_json
    from tser.runs import find_run

    if graph is not None:
        check_suffix(graph, ".nir")
    if latency is not None and not 0 < latency < math.inf:
        raise UsageError(f"--latency {latency:g}: give the seconds of one inference, above 0")
    if hops is not None and not math.isfinite(hops):
        raise UsageError(f"--hops {hops:g}: give a mean number of hops, 0 or more")
    if max_drop is not None and not math.isfinite(max_drop):  # which Typer before 0.29 lets pass
        raise UsageError(f"--max-drop {max_drop:g}: give percentage points, 0 to 100")
    if memory and model is Model.plain:
        raise UsageError("--memory is a choice of the memory-aware model; add --model memory")
    if against is not None and data is not None:
        raise UsageError("--against RUN and --data NAME exclude each other; give one of them")
    run = None
    if data is None:
        if against is None and graph is not None and (graph.parent / "config.toml").exists():
            against = graph.parent
        if against is None and graph is not None:
            raise UsageError(f"{graph} needs inputs: add --against RUN or --data NAME")
        run = find_run(against)
    path = graph or (run.nir if run else Path())
    if graph is None:
        say(f"graph: {path}")
    if out is None and run is not None and path.resolve() == run.nir.resolve():
        out = run.energy
    if out is not None:
        check_json_target(out)
    from tser.deploy.energy import Assumptions
    from tser.deploy.inputs import data_for_graph
    from tser.deploy.measure import choices, measure
    from tser.deploy.memory_bills import check_process
    from tser.deploy.memory_model import memory_options
    from tser.deploy.target_files import choose_targets
    from tser.determinism import deterministic as fixed_bits

    options = memory_options(memory or []) if model is Model.memory else None
    default = ["cmos45"] if model is Model.memory else DEFAULT_TARGETS
    targets = choose_targets(target or ([] if target_file else default), target_file or [])
    for chosen in targets if model is Model.memory else []:
        check_process(chosen)
    check_suffix(path, ".nir")
    view = open_nir(path, dt)
    name, root = data or "", Path(data_root) if data_root else None
    if run is not None:
        chosen_data = run.config().data
        name = chosen_data.name
        root = root or (Path(chosen_data.root) if chosen_data.root else None)
    images = data_for_graph(view, name, root, str(path))
    with fixed_bits(deterministic):
        result = measure(
            view,
            images,
            targets,
            origin=str(path),
            samples=samples,
            timesteps=timesteps,
            assumptions=Assumptions(first_layer.value, hops, latency),
            memory=options,
            settings=settings or max_drop is not None,
            split=split.value,
        )
    if max_drop is not None:
        result["choices"] = choices(result, max_drop)
    if out is not None:
        write_json(out, result)
        say(f"wrote {out}")
    if as_json:
        show_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    from tser.deploy.units import format_count

    columns = ["events", "sop_structural", "sop_effective", "dense", "macs", "neuron_updates"]
    rows = [
        [layer["name"], layer["kind"], *(format_count(layer[column]) for column in columns)]
        for layer in result["layers"]
    ]
    totals = ["total", "", *(format_count(result["totals"][column]) for column in columns)]
    show_table(
        f"Operations per inference: {result['samples']} test images of {result['data']}, "
        f"T = {result['timesteps']}",
        ["layer", "kind", "events", "SOP", "SOP, w ≠ 0", "dense", "MAC", "neuron updates"],
        [*rows, totals],
    )
    _show_bills(result)
    if result.get("settings"):
        _show_settings(result)
    for gap in result["gaps"]:
        say(f"not counted: {gap['name']} ({gap['kind']}): {gap['reason']}")
    for bill in result["targets"]:
        for kind in ("unpriced", "inside", "left_out", "notes"):
            for line in bill[kind]:
                say(f"{bill['name']}: {kind.replace('_', ' ').removesuffix('s')}: {line}")
        if bill["unpriced"] and result["first_layer"] == "charge":
            say(f"{bill['name']}: --first-layer host leaves layers with analog input to a host")


def _show_bills(result: dict[str, Any]) -> None:
    from tser.deploy.units import format_count

    name = result["model"]["name"]
    options = ", ".join(f"{key}={value}" for key, value in result["model"]["options"].items())
    rows = [
        [
            bill["title"],
            _span(bill["energy_joules"], bill["low_joules"], bill["high_joules"]),
            _span(bill["priced_joules"], bill["priced_low_joules"], bill["priced_high_joules"]),
        ]
        for bill in result["targets"]
    ]
    for twin in [bill["ann_twin"] for bill in result["targets"] if bill["ann_twin"]] or [
        result["ann_twin"]
    ]:
        energy = _span(twin["energy_joules"], twin["low_joules"], twin["high_joules"])
        macs = format_count(twin["macs"])
        rows.append([f"ANN twin on {twin['title']}, {macs} MAC", energy, energy])
    show_table(
        f"Energy per inference, {name} model" + (f" ({options})" if options else ""),
        ["target", "total", "priced part"],
        rows,
    )
    for bill in result["targets"]:
        lines = [
            [
                item["charge"].replace("_", " "),
                format_count(item["count"]) + (" s" if item["charge"] == "static" else ""),
                "none published" if item["figure"] is None else _figure(item["figure"]),
                _span(item["joules"], item["low_joules"], item["high_joules"]),
            ]
            for item in bill["items"]
        ]
        show_table(bill["title"], ["charge", "count", "figure", "energy"], lines)
    rules = [
        [rule["quantity"], _value(rule), _bounds(rule), rule["verdict"]]
        for rule in result["break_even"]
    ]
    show_table(
        "Published break-even rules", ["quantity", "here", "break-even", "this network"], rules
    )
    for rule in result["break_even"]:
        say(f"{rule['name']}: {rule['text']} ({rule['source']})")


def _show_settings(result: dict[str, Any]) -> None:
    from tser.deploy.pareto import front
    from tser.deploy.units import format_count, format_joules

    ways = result["settings"]
    names = [bill["name"] for bill in result["targets"]]
    accuracy = [way["accuracy"] for way in ways]
    fronts = {name: front([way["energy"][name] for way in ways], accuracy) for name in names}
    rows = [
        [
            f"t = {way['t']}" if way["t"] else f"confidence {way['threshold']:g}",
            f"{way['mean_steps']:.2f}",
            percent(way["accuracy"]),
            format_count(way["sop"]),
            *(
                format_joules(way["energy"][name]) + (" *" if number in fronts[name] else "")
                for name in names
            ),
        ]
        for number, way in enumerate(ways)
    ]
    show_table(
        f"Settings, on {result['split']} images; * nothing else is both cheaper and better; of a "
        "range the upper end",
        ["setting", "mean steps", "accuracy", "SOP", *names],
        rows,
    )
    for choice in result.get("choices", []):
        say(choice["text"])
    if result.get("choices") and result["split"] == "test":
        say("chosen by test images: to report its accuracy fairly, choose with --split val")


def _span(value: float | None, low: float | None, high: float | None) -> str:
    from tser.deploy.units import format_joules

    if low is None or high is None:
        return format_joules(None)
    ends = format_joules(low), format_joules(high)
    if value is None:
        return ends[0] if ends[0] == ends[1] else " .. ".join(ends)
    middle = format_joules(value)
    return middle if {*ends} == {middle} else f"{middle} ({' .. '.join(ends)})"


def _figure(figure: dict[str, Any]) -> str:
    from tser.deploy.target_files import Figure

    return Figure.model_validate(figure).text


def _value(rule: dict[str, Any]) -> str:
    return "–" if rule["value"] is None else f"{rule['value']:.4g}"


def _bounds(rule: dict[str, Any]) -> str:
    low, high = rule["low"], rule["high"]
    return f"{low:g}" if low == high else f"{low:g} .. {high:g}"
