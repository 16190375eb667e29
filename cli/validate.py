"""``tser validate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tser.cli.console import (
    DataRoot,
    JsonFlag,
    StudentFactory,
    guarded,
    percent,
    say,
    show_json,
    show_table,
)


@guarded
def validate(
    graph: Annotated[
        Path | None,
        typer.Argument(metavar="[GRAPH]", help="A .nir or .onnx file; default: the run's .nir."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Run folder; default: GRAPH's folder, or the newest."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Test images; default: all.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default for the run's own .nir: validation.json."),
    ] = None,
    openvino: Annotated[
        bool, typer.Option("--openvino", help="Run the ONNX file by OpenVINO too.")
    ] = False,
    student: StudentFactory = None,
    data_root: DataRoot = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare an exported graph with the PyTorch student, spike by spike (exit code 3: no)."""
    from tser.files import check_json_target, write_json
    from tser.runs import find_run

    if against is None and graph is not None and (graph.parent / "config.toml").exists():
        against = graph.parent
    run = find_run(against).naming(student)
    path = graph or run.nir
    if against is None or graph is None:
        say(f"comparing {path} with the student of {run.path}")
    if out is None and path.resolve() == run.nir.resolve():
        out = run.validation
    if out is not None:
        check_json_target(out)
    from tser.deploy.validation import validate as check

    root = Path(data_root) if data_root else None
    result = check(path, run, samples=samples, root=root, openvino=openvino)
    if out is not None:
        write_json(out, result)
        say(f"wrote {out}")
    if as_json:
        show_json(result)
    else:
        _show(result)
    if result["verdict"] not in ("E0", "E1"):
        raise typer.Exit(3)


def _show(result: dict[str, Any]) -> None:
    rows = []
    for backend in result["backends"]:
        mark = "✓" if backend["verdict"] in ("E0", "E1") else "✗"
        accuracy = percent(result["accuracy"][backend["name"]][-1])
        steps = f"{backend['neuron_steps']:,}"
        flips = f"{backend['flips']:,}"
        rows.append([backend["name"], f"{mark} {backend['verdict']}", flips, steps, accuracy])
    torch = ["torch (reference)", "", "", "", percent(result["accuracy"]["torch"][-1])]
    show_table(
        f"{result['graph']} against {result['against']}: {result['samples']} test images",
        ["backend", "verdict", "flips", "of neuron-steps", f"accuracy t = {result['timesteps']}"],
        [torch, *rows],
    )
    for backend in result["backends"]:
        say(f"{backend['name']} ({backend['source']}): {backend['reason']}")
        first = backend["first_divergence"]
        if first:
            text = (
                f"  first flip: sample {first['sample']}, t = {first['t'] + 1}, layer "
                f"{first['layer']}, neuron {first['neuron']}"
            )
            if first["bound"] is not None:
                text += (
                    f": v - v_th = {first['v_minus_threshold']:.3g}, "
                    f"rounding bound {first['bound']:.3g}"
                )
            say(text)
    same = result["static"]["identical"]
    for difference in result["static"]["differences"]:
        say(f"parameters: {difference}")
    for text in result["contradictions"]:
        say(f"the file says of itself what is not so: {text}")
    passed = result["verdict"] in ("E0", "E1")
    remark = " on these images; the parameters differ" if passed and not same else ""
    say(f"verdict: {result['verdict']}{remark}")
