"""``tser validate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tser.cli.console import (
    MOST_STEPS,
    DataRoot,
    Deterministic,
    JsonFlag,
    StudentFactory,
    guarded,
    percent,
    say,
    show_json,
    show_table,
)


class Bar(StrEnum):
    """The worst verdict that passes."""

    E0 = "E0"
    E1 = "E1"
    E2 = "E2"


@guarded
def validate(
    graph: Annotated[
        Path | None,
        typer.Argument(metavar="GRAPH", help="A .nir or .onnx file; default: the run's .nir."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN|GRAPH2",
            help="Run folder, or another .nir or .onnx file; default: GRAPH's folder, or the "
            "newest run.",
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="nir-f32, nir-f64, onnx, onnx-noopt, openvino, norse, snntorch, spikingjelly, "
            "nirtorch; may be repeated. Default: nir-f32 and onnx, of an ONNX file onnx.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Test images; default: all.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All test images (the default).")] = False,
    probes: Annotated[
        bool,
        typer.Option("--probes", help="Also inputs and weights made to show wrong rules."),
    ] = False,
    require: Annotated[Bar, typer.Option(help="The worst verdict that passes.")] = Bar.E1,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data set that two graphs are run on.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE.npy",
            help="Array [N, ...] or [T, N, ...] that two graphs are run on.",
        ),
    ] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(
            metavar="T", min=1, max=MOST_STEPS, help="T of two graphs; default: what they state."
        ),
    ] = None,
    dt: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Time step of NIR files that state none."),
    ] = None,
    save_trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            "--save-trace",
            metavar="FILE.npz",
            help="Write every spike of everything that ran, as bits.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the result as JSON; default for the run's own .nir: its validation.json.",
        ),
    ] = None,
    student: StudentFactory = None,
    data_root: DataRoot = None,
    deterministic: Deterministic = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare a graph with its student, or another, spike by spike.

    E0: every spike is the same. E1: spikes differ where rounding explains it, predictions do not.
    E2: rates and predictions agree. E3: not equivalent. Exit code 3: worse than --require.
    """
    from tser.deploy.graph_file import check_suffix
    from tser.deploy.validation import validate as check
    from tser.determinism import deterministic as fixed_bits
    from tser.errors import UsageError
    from tser.files import check_json_target, write_json
    from tser.runs import Run, find_run

    if every and samples is not None:
        raise UsageError("--all and --samples contradict each other; leave one out")
    if graph is not None and (graph / "config.toml").is_file():
        if against is not None:
            raise UsageError(f"{graph} is a run; name its model.nir, or leave out --against")
        graph, against = None, graph
    if graph is not None:
        check_suffix(graph, ".nir", ".onnx")
    if save_trace is not None and save_trace.suffix != ".npz":
        raise UsageError(f"--trace {save_trace} is not named .npz")
    if against is None and graph is not None and (graph.parent / "config.toml").exists():
        against = graph.parent
    other: Run | Path
    if against is not None and against.suffix in (".nir", ".onnx") and not against.is_dir():
        if graph is None:
            raise UsageError(f"name the graph that is to be compared with {against}")
        path, other, default_out = graph, against, None
        if student is not None:
            raise UsageError(f"{against} is a graph; leave out --student")
    else:
        run = find_run(against).naming(student)
        path, other = graph or run.nir, run
        default_out = run.validation if path.resolve() == run.nir.resolve() else None
        if against is None or graph is None:
            say(f"comparing {path} with the student of {run.path}")
    out = out or default_out
    if out is not None:
        check_json_target(out)
    with fixed_bits(deterministic):
        result = check(
            path,
            other,
            backends=tuple(backend or ()),
            samples=samples,
            source=source,
            data=data,
            dt=dt,
            timesteps=timesteps,
            probes=probes,
            trace=save_trace,
            root=Path(data_root) if data_root else None,
        )
    for target in (save_trace,):
        if target is not None:
            say(f"wrote {target}")
    if out is not None:
        write_json(out, result)
        say(f"wrote {out}")
    if as_json:
        show_json(result)
    else:
        _show(result)
    if result["verdict"] > require.value:
        raise typer.Exit(3)


def _show(result: dict[str, Any]) -> None:
    if result["backends"]:
        _show_executors(result)
        _show_layers(result["backends"])
    for backend in result["backends"]:
        say(f"{backend['name']} ({backend['source']}): {backend['reason']}")
        _say_divergence(backend["first_divergence"])
        for found in backend["diagnosis"]:
            say(f"  {found['text']}")
        if backend["remark"]:
            say(f"  {backend['remark']}")
    if result["probes"] is not None:
        _show_probes(result["probes"])
    for difference in result["static"]["differences"]:
        say(f"parameters: {difference}")
    for text in result["contradictions"]:
        say(f"the file says of itself what is not so: {text}")
    passed = result["verdict"] in ("E0", "E1")
    same = result["static"]["identical"]
    remark = " on these inputs; the graphs differ" if passed and not same else ""
    say(f"verdict: {result['verdict']}{remark}")


def _mark(good: bool) -> str:
    return "✓" if good else "✗"


def _show_executors(result: dict[str, Any]) -> None:
    accuracy = {name: percent(after[-1]) for name, after in result["accuracy"].items()}
    rows = [
        [
            backend["name"],
            f"{_mark(backend['verdict'] in ('E0', 'E1'))} {backend['verdict']}",
            f"{backend['flips']:,}",
            f"{backend['seeds']:,}",
            f"{backend['neuron_steps']:,}",
            accuracy.get(backend["name"], ""),
        ]
        for backend in result["backends"]
    ]
    known = {backend["name"] for backend in result["backends"]}
    reference = [[f"{n} (reference)", "", "", "", "", a] for n, a in accuracy.items()]
    reference = [row for row in reference if row[0].removesuffix(" (reference)") not in known]
    show_table(
        f"{result['graph']} against {result['against']}: {result['samples']:,} "
        f"{'inputs' if result['samples'] != 1 else 'input'} of {result['data']}",
        [
            "backend",
            "verdict",
            "flips",
            "seeds",
            "of neuron-steps",
            *([f"accuracy t = {result['timesteps']}"] if accuracy else []),
        ],
        [row if accuracy else row[:-1] for row in (*reference, *rows)],
    )


def _show_layers(backends: list[dict[str, Any]]) -> None:
    rows = []
    for backend in backends:
        layers = backend["layers"]
        shown = [layer for layer in layers if any(layer["flips"]) or layer["violations"]]
        same = len(layers) - len(shown)
        for layer in shown:
            margin = "-"
            if layer["certified_bound"]:
                margin = f"{layer['certified_margin']:.2g} of {layer['certified_bound']:.2g}"
            good = not layer["violations"] and not layer["uncertified_seeds"]
            mark = "-" if backend["uncertifiable"] else _mark(good)
            rows.append(
                [
                    backend["name"],
                    layer["name"],
                    mark,
                    f"{sum(layer['flips']):,}",
                    f"{layer['seeds']:,}",
                    margin,
                    f"{layer['rate_error']:.2g}",
                    f"{layer['best_lag']:+d}" if layer["best_lag"] else "0",
                ]
            )
        if same:
            others = "other " if shown else ""
            title = f"{same} {others}layer{'s' * (same > 1)}"
            rows.append([backend["name"], title, _mark(True), "0", "0", "-", "0", "0"])
    if rows:
        show_table(
            "Layers: margin is the largest |v - v_th| at a seed that rounding explains, of its "
            "bound",
            ["backend", "layer", "", "flips", "seeds", "margin", "rate error", "lag"],
            rows,
        )


def _say_divergence(first: dict[str, Any] | None) -> None:
    if not first:
        return
    text = (
        f"  first flip: sample {first['sample']}, t = {first['t'] + 1}, layer "
        f"{first['layer']}, neuron {first['neuron']}"
    )
    if first["bound"] is not None:
        text += (
            f": v - v_th = {first['v_minus_threshold']:.3g}, rounding bound {first['bound']:.3g}"
        )
    say(text)


def _show_probes(probes: list[dict[str, Any]]) -> None:
    backends = list(dict.fromkeys(one["backend"] for one in probes if one["backend"] != "all"))
    found: dict[str, dict[str, str]] = {}
    for one in probes:
        row = found.setdefault(f"{one['network']}: {one['probe']}", {})
        shown = "not run" if one["verdict"] is None else f"{_mark(one['passed'])} {one['verdict']}"
        for name in backends if one["backend"] == "all" else [one["backend"]]:
            row[name] = shown
    rows = [[title, *(row.get(name, "") for name in backends)] for title, row in found.items()]
    show_table("Probes", ["network: input", *backends], rows)
    said = set()
    for one in probes:
        key = one["backend"], one["network"], one["probe"] if not one["counts"] else ""
        if one["passed"] or key in said:
            continue
        said.add(key)
        text = one["diagnosis"][0]["text"] if one["diagnosis"] else one["reason"]
        say(f"probe {one['network']}: {one['probe']}: {one['backend']}: {text}")
    if any(one["passed"] is False and not one["counts"] for one in probes):
        say("probes of networks that are not the graph itself have no say in the verdict")
