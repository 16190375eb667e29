"""``tser export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from tser.cli.console import MOST_STEPS, DataRoot, JsonFlag, StudentFactory, guarded, say, show_json


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
        int | None,
        typer.Option(min=1, max=MOST_STEPS, help="ONNX: T; default: what the graph states."),
    ] = None,
    encoding: Annotated[
        Encoding | None,
        typer.Option(
            help="ONNX: input [B,C,H,W] or [T,B,C,H,W]; default: sequence where the data are "
            "frames, else direct."
        ),
    ] = None,
    dt: Annotated[
        float | None, typer.Option(help="Time step [s] of a NIR file that states none.")
    ] = None,
    student: StudentFactory = None,
    data_root: DataRoot = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a run's student as NIR, or a NIR graph as ONNX."""
    from tser.errors import UsageError
    from tser.runs import find_run

    _check_options(file_format, out, {"--timesteps": timesteps, "--encoding": encoding, "--dt": dt})
    if source is not None and source.is_file() and source.suffix != ".nir":
        raise UsageError(f"{source} is neither a run folder nor a .nir file; name one of these")
    if source is not None and source.suffix == ".nir" and not source.is_dir():
        if file_format is Format.nir:
            raise UsageError(f"{source} is a NIR file already; use --format onnx")
        run, nir_file = None, source
    else:
        run = find_run(source).naming(student)
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
        form: Literal["direct", "sequence"] | None = encoding.value if encoding else None
        graph = export_onnx(nir_file, target, timesteps=timesteps, encoding=form, dt=dt)
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


def _check_options(file_format: Format, out: Path | None, of_onnx: dict[str, object]) -> None:
    """Refuse what would be ignored, and a file whose name says that it is something else."""
    from tser.errors import UsageError

    given = [name for name, value in of_onnx.items() if value is not None]
    if file_format is Format.nir and given:
        raise UsageError(f"{given[0]} is of --format onnx; add it, or leave out {given[0]}")
    if out is not None and out.suffix in (".nir", ".onnx") and out.suffix != f".{file_format}":
        raise UsageError(
            f"--out {out} is named like another format than --format {file_format}; change one"
        )
