"""``tser export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tser.cli.console import (
    MOST_STEPS,
    DataRoot,
    Deterministic,
    JsonFlag,
    StudentFactory,
    guarded,
    say,
    show_json,
)


class Format(StrEnum):
    """File formats."""

    nir = "nir"
    onnx = "onnx"


class Encoding(StrEnum):
    """What an ONNX model takes: one image for all steps, or one input a step."""

    direct = "direct"
    sequence = "sequence"


class FormName(StrEnum):
    """How an ONNX model treats time."""

    sequence = "sequence"
    step = "step"
    scan = "scan"


class WeightsName(StrEnum):
    """How an ONNX model stores the weights of synapses."""

    float32 = "float32"
    float16 = "float16"


class GainName(StrEnum):
    """Conventions of a neuron's r."""

    physical = "physical"
    unit = "unit"


@guarded
def export(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="RUN|FILE.nir", help="What to export; default: the newest run."),
    ] = None,
    file_format: Annotated[
        Format, typer.Option("--format", help="Of the file to write.")
    ] = Format.nir,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File to write; default: model.nir or model.onnx in the run."
        ),
    ] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(
            metavar="T", min=1, max=MOST_STEPS, help="ONNX: T; default: what the graph states."
        ),
    ] = None,
    encoding: Annotated[
        Encoding | None,
        typer.Option(
            help="ONNX: input [B,C,H,W] or [T,B,C,H,W]; default: sequence where the data are "
            "frames, else direct."
        ),
    ] = None,
    form: Annotated[
        FormName | None,
        typer.Option(
            help="ONNX: all steps unrolled (sequence, default), one step with its states in and "
            "out, or a loop over any T (scan)."
        ),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KINDS",
            help="ONNX: logits, spikes, membranes of every layer; comma list or repeated.",
        ),
    ] = None,
    weights: Annotated[
        WeightsName | None,
        typer.Option(help="ONNX: weights as float32 (default) or float16; counts the effect."),
    ] = None,
    dt: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="NIR: time step to write for, with time constants rescaled. ONNX: of a NIR file "
            "that states none.",
        ),
    ] = None,
    gain: Annotated[
        GainName | None,
        typer.Option(help="NIR: r = 1 (physical, default), or r = tau/dt and smaller weights."),
    ] = None,
    compat: Annotated[
        bool, typer.Option("--compat", help="NIR: no v_reset, for readers of nir <= 1.0.5.")
    ] = False,
    compression: Annotated[
        int | None,
        typer.Option(metavar="LEVEL", min=0, max=9, help="NIR: gzip, 0 is none; default: 4."),
    ] = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="NIR: compare spikes of a few test images before writing; default: do.",
        ),
    ] = None,
    student: StudentFactory = None,
    data_root: DataRoot = None,
    deterministic: Deterministic = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a run's student as NIR, or a NIR graph as ONNX.

    An ONNX model is compiled from the run's NIR file, which is written first where it is not there.
    """
    from tser.errors import UsageError
    from tser.runs import find_run

    of_onnx: dict[str, object] = {
        "--timesteps": timesteps,
        "--encoding": encoding,
        "--form": form,
        "--outputs": outputs,
        "--weights": weights,
    }
    of_nir: dict[str, object] = {
        "--gain": gain,
        "--compat": compat or None,
        "--compression": compression,
    }
    _check_options(file_format, out, of_onnx if file_format is Format.nir else of_nir)
    from tser.deploy.graph_file import check_suffix

    if source is not None and source.suffix == ".onnx":
        check_suffix(source, ".onnx")
    if source is not None and source.is_file() and source.suffix != ".nir":
        raise UsageError(f"{source} is neither a run folder nor a .nir file; name one of these")
    if source is not None and source.suffix == ".nir":
        check_suffix(source, ".nir")
        if file_format is Format.nir:
            raise UsageError(f"{source} is a NIR file already; use --format onnx")
        run, nir_file = None, source
    else:
        run = find_run(source).naming(student)
        nir_file = run.nir
        if source is None:
            say(f"run: {run.path}")
    if check is not None and file_format is Format.onnx and nir_file.exists():
        option = "--check" if check else "--no-check"
        raise UsageError(
            f"{option} is of an export to NIR, and {nir_file} is there already; leave it out"
        )

    from tser.deploy.export_check import QuickCheck
    from tser.determinism import deterministic as fixed_bits
    from tser.export.export import export_nir, export_onnx
    from tser.export.nir_file import COMPRESSION
    from tser.export.onnx_file import OPSET, OnnxOptions, weights_file
    from tser.export.variants import Variant

    options = OnnxOptions(
        form.value if form else "sequence", _kinds(outputs), weights.value if weights else "float32"
    )

    if options.form == "step" and timesteps is not None:
        say(f"a step runs one time step at a call: T = {timesteps} is only noted in the file")
    quick = None if check is False else QuickCheck()
    root = Path(data_root) if data_root else None
    target = out or (nir_file if file_format is Format.nir else nir_file.with_suffix(".onnx"))
    of_format: dict[str, Any] = {}
    with fixed_bits(deterministic):
        if run is not None and file_format is Format.nir:
            graph = export_nir(
                run,
                target,
                root,
                variant=Variant(gain.value if gain else "physical", dt),
                compat=compat,
                compression=COMPRESSION if compression is None else compression,
                check=quick,
            )
        else:
            if run is not None and not nir_file.exists():
                export_nir(run, nir_file, root, check=quick)
                say(f"wrote {nir_file}")
            feed: Literal["direct", "sequence"] | None = encoding.value if encoding else None
            graph = export_onnx(
                nir_file, target, timesteps=timesteps, encoding=feed, dt=dt, options=options
            )
        if quick is not None and quick.verdict is not None:
            say(f"checked {quick.spikes:,} spikes of {quick.samples} test images: {quick.verdict}")
        if file_format is Format.onnx:
            say(f"ONNX: {options.form} form, opset {OPSET}, {options.weights} weights")
            of_format = {
                "opset": OPSET,
                "form": options.form,
                "outputs": ["logits", *options.outputs],
                "weights": options.weights,
                "float16_effect": _effect(graph, run, root, timesteps)
                if options.weights == "float16"
                else None,
            }
    say(f"wrote {target} ({target.stat().st_size:,} bytes)")
    if outside := weights_file(target) if file_format is Format.onnx else None:
        say(f"its weights are in {outside} ({outside.stat().st_size:,} bytes), keep it beside it")
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
                "gain": graph.metadata.get("gain", "physical"),
                "check": quick and quick.verdict,
                **of_format,
            }
        )


def _kinds(outputs: list[str] | None) -> tuple[Literal["spikes", "membranes"], ...]:
    from tser.errors import UsageError

    given = [kind.strip() for text in outputs or [] for kind in text.split(",")]
    for kind in given:
        if kind not in ("logits", "spikes", "membranes"):
            raise UsageError(
                f"--outputs {kind!r} is not known; choose from logits, spikes and membranes"
            )
    kinds: tuple[Literal["spikes", "membranes"], ...] = ("spikes", "membranes")
    return tuple(kind for kind in kinds if kind in given)


def _effect(graph: Any, run: Any, root: Path | None, timesteps: int | None) -> dict[str, Any]:
    """What float16 weights change, on test images where they can be had, told and returned."""
    from tser.checkpoints import load_run_data
    from tser.deploy.inputs import image_batches
    from tser.deploy.weights_effect import SAMPLES, first_images, float16_effect, random_inputs
    from tser.errors import TserError

    inputs, name = None, "random inputs"
    if run is not None:
        try:
            data = load_run_data(run, root)
            inputs, name = first_images(image_batches(data, SAMPLES)), f"test images of {data.name}"
        except TserError as error:
            say(f"no test images, so float16 weights are tried on random inputs: {error}")
    if inputs is None:
        inputs = random_inputs(graph.input.output_shape)
    effect = float16_effect(graph, inputs, timesteps)
    say(
        f"float16 weights, on {effect['samples']} {name}: {effect['flips']:,} flips beside "
        f"{effect['spikes']:,} spikes of float32 weights ({effect['neuron_steps']:,} "
        f"neuron-steps), {effect['changed_predictions']} predictions changed"
    )
    if not effect["spikes"]:
        say("these inputs made no spike, so what float16 weights change is not known")
    return {"inputs": name, **effect}


def _check_options(file_format: Format, out: Path | None, others: dict[str, object]) -> None:
    """Refuse what would be ignored, and a file whose name says that it is something else."""
    from tser.errors import UsageError

    given = [name for name, value in others.items() if value is not None]
    if given:
        other = "onnx" if file_format is Format.nir else "nir"
        raise UsageError(f"{given[0]} is of --format {other}; add it, or leave out {given[0]}")
    if out is not None and out.is_dir():  # so is what an empty name stands for
        raise UsageError(f"--out names the folder {out}; name a .{file_format} file in it")
    # Any other name may be that of a file that is no export, such as a run's own weights.
    if out is not None and out.suffix != f".{file_format}":
        raise UsageError(
            f"--out {str(out)!r} does not end in .{file_format}, as --format {file_format} does; "
            "change one"
        )
