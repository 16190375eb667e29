"""``tser run``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tser.cli.console import (
    MOST_STEPS,
    DataRoot,
    JsonFlag,
    guarded,
    percent,
    say,
    show_json,
    show_table,
)

SHOWN = 10


class RuntimeName(StrEnum):
    """What executes the graph."""

    nir = "nir"
    onnx = "onnx"


@guarded
def run(
    graph: Annotated[
        Path, typer.Argument(metavar="GRAPH", help="A .nir file of any tool, or a .onnx of tser.")
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE.npy",
            help="Array [N, ...], or [T, N, ...] with a frame for each step, as the network "
            "takes it (normalised).",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data set whose test images are used.")
    ] = None,
    runtime: Annotated[
        RuntimeName | None,
        typer.Option(help="nir: the NumPy interpreter; onnx: ONNX Runtime. Default: by GRAPH."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=".npz: logits, predictions, labels; .npy: logits [T, N, K]."
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Every spike, one bool array [T, N, ...] a layer."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Inputs, at most; default: all.")
    ] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(metavar="T", min=1, max=MOST_STEPS, help="T; default: what the graph states."),
    ] = None,
    dt: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Time step of a NIR file that states none."),
    ] = None,
    data_root: DataRoot = None,
    as_json: JsonFlag = False,
) -> None:
    """Execute a graph: logits, predictions and, if asked, every spike."""
    from tser.deploy.run_graph import run_graph

    result = run_graph(
        graph,
        source=source,
        data=data,
        runtime=runtime.value if runtime else None,
        dt=dt,
        timesteps=timesteps,
        samples=samples,
        out=out,
        trace=trace,
        root=Path(data_root) if data_root else None,
    )
    for path in (out, trace):
        if path is not None:
            say(f"wrote {path}")
    if as_json:
        show_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    say(
        f"{result['graph']} by {result['runtime']}: {result['samples']:,} samples of "
        f"{result['input']}, T = {result['timesteps']}"
    )
    predictions, names = result["predictions"], result["class_names"] or []
    if predictions is not None:
        rows = [
            [str(number), names[one] if one < len(names) else str(one)]
            for number, one in enumerate(predictions[:SHOWN])
        ]
        if len(predictions) > SHOWN:
            rows.append(["…", f"{len(predictions) - SHOWN:,} more"])
        show_table("Predictions", ["sample", "class"], rows)
    if result["accuracy"] is not None:
        show_table(
            "Accuracy",
            ["after step", "correct"],
            [[str(t), percent(value)] for t, value in enumerate(result["accuracy"], 1)],
        )
    if result["firing_rates"]:
        rows = [[name, percent(rate)] for name, rate in result["firing_rates"].items()]
        show_table("Firing rates", ["layer", "a neuron and step"], rows)
