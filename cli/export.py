"""``tser export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tser.cli.console import DataRoot, JsonFlag, guarded, say, show_json


class Format(StrEnum):
    """File formats."""

    nir = "nir"
    onnx = "onnx"


class Encoding(StrEnum):
    """What an ONNX model takes: one image for all steps, or one input a step."""

    direct = "direct"
    sequence = "sequence"


@guarded
def export(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN|FILE.nir]", help="What to export; default: the newest run."),
    ] = None,
    file_format: Annotated[Format, typer.Option("--format", help="nir or onnx.")] = Format.nir,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: model.nir or .onnx in the run.")
    ] = None,
    timesteps: Annotated[
        int | None, typer.Option(min=1, help="ONNX: T; default: what the graph states.")
    ] = None,
    encoding: Annotated[
        Encoding, typer.Option(help="ONNX: input [B,C,H,W] or [T,B,C,H,W].")
    ] = Encoding.direct,
    dt: Annotated[
        float | None, typer.Option(help="Time step [s] of a NIR file that states none.")
    ] = None,
    data_root: DataRoot = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a run's student as NIR, or a NIR graph as ONNX."""
    from tser.errors import UsageError
    from tser.runs import find_run

    if source is not None and source.suffix == ".nir":
        if file_format is Format.nir:
            raise UsageError(f"{source} is a NIR file already; use --format onnx")
        run, nir_file = None, source
    else:
        run = find_run(source)
        nir_file = run.nir
        if source is None:
            say(f"run: {run.path}")

    from tser.export.export import export_nir, export_onnx

    root = Path(data_root) if data_root else None
    target = out or (nir_file if file_format is Format.nir else nir_file.with_suffix(".onnx"))
    if run is not None and file_format is Format.nir:
        graph = export_nir(run, target, root)
    else:
        if run is not None and not nir_file.exists():
            export_nir(run, nir_file, root)
            say(f"wrote {nir_file}")
        graph = export_onnx(nir_file, target, timesteps=timesteps, encoding=encoding.value, dt=dt)
    say(f"wrote {target} ({target.stat().st_size:,} bytes)")
    if as_json:
        show_json(
            {
                "schema_version": 1,
                "file": str(target),
                "format": file_format.value,
                "nodes": len(graph.nodes),
                "dt_seconds": graph.dt,
                "timesteps": timesteps or graph.timesteps,
                "graph_digest": graph.metadata.get("sha256"),
            }
        )
