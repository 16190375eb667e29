"""``tser energy``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tser.cli.console import MOST_STEPS, DataRoot, JsonFlag, guarded, say, show_json, show_table

DEFAULT_TARGETS = ["cmos45", "loihi"]


class FirstLayer(StrEnum):
    """Whether layers with analog input are charged to the target or run on a host."""

    charge = "charge"
    host = "host"


@guarded
def energy(
    graph: Annotated[
        Path | None,
        typer.Argument(metavar="[GRAPH]", help="A .nir file; default: the newest run's."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run whose test images are used.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data set whose test images are used.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help=f"May be repeated; default: {', '.join(DEFAULT_TARGETS)}."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Test images, at most.")] = 1000,
    timesteps: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_STEPS, help="T; default: what the graph states."),
    ] = None,
    dt: Annotated[
        float | None, typer.Option(help="Time step, in seconds, of a file that states none.")
    ] = None,
    first_layer: Annotated[
        FirstLayer, typer.Option(help="Charge the analog first layer, or leave it to a host.")
    ] = FirstLayer.charge,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default for a run's own .nir: energy.json.")
    ] = None,
    data_root: DataRoot = None,
    as_json: JsonFlag = False,
) -> None:
    """Count synaptic operations on test images and price them."""
    from tser.errors import UsageError
    from tser.files import check_json_target, write_json
    from tser.runs import find_run

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
    from tser.deploy.energy import load_target
    from tser.deploy.graph_file import check_suffix, open_nir
    from tser.deploy.inputs import data_for_graph
    from tser.deploy.measure import measure

    targets = [load_target(name) for name in dict.fromkeys(target or DEFAULT_TARGETS)]
    check_suffix(path, ".nir")
    view = open_nir(path, dt)
    name, root = data or "", Path(data_root) if data_root else None
    if run is not None:
        settings = run.config().data
        name, root = settings.name, root or (Path(settings.root) if settings.root else None)
    images = data_for_graph(view, name, root, str(path))
    result = measure(
        view,
        images,
        targets,
        origin=str(path),
        samples=samples,
        timesteps=timesteps,
        first_layer=first_layer.value,
    )
    if out is not None:
        write_json(out, result)
        say(f"wrote {out}")
    if as_json:
        show_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    from tser.deploy.units import format_count, format_joules

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
    twin = result["ann_twin"]
    bills = [
        [bill["title"], format_joules(bill["energy_joules"]), format_joules(bill["priced_joules"])]
        for bill in result["targets"]
    ]
    ann = format_joules(twin["energy_joules"])
    show_table(
        "Energy per inference",
        ["target", "total", "priced part"],
        [*bills, [f"ANN twin on 45 nm, {format_count(twin['macs'])} MAC", ann, ann]],
    )
    for gap in result["gaps"]:
        say(f"not counted: {gap['name']} ({gap['kind']}): {gap['reason']}")
    for bill in result["targets"]:
        for line in bill["unpriced"]:
            say(f"{bill['name']}: unpriced: {line}")
        for line in bill["left_out"]:
            say(f"{bill['name']}: left out: {line}")
        if bill["unpriced"] and result["first_layer"] == "charge":
            say(f"{bill['name']}: --first-layer host leaves layers with analog input to a host")
