"""``tser distill``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tser.cli.console import DataRoot, JsonFlag, guarded, percent, say, show_json, show_table


@guarded
def distill(
    source: Annotated[
        str | None, typer.Argument(metavar="[PRESET|CONFIG.toml]", help="What to train.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/PRESET.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=V", help="Override one value; may be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order, augmentation.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N, mps or auto.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of a trained teacher.")
    ] = None,
    data_root: DataRoot = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a spiking student from an ANN teacher (which is trained first if none is given)."""
    from tser.config import load_config
    from tser.distill import distill as train
    from tser.evaluate import evaluate
    from tser.files import write_json
    from tser.runs import create_run, resume_run

    overrides = list(settings or [])
    for key, value in {
        "train.seed": seed,
        "train.device": device and json.dumps(device),
        "teacher.path": teacher and json.dumps(str(teacher.resolve())),
        "data.root": data_root and json.dumps(str(Path(data_root).resolve())),
    }.items():
        if value is not None:
            overrides.append(f"{key}={value}")
    if resume:
        run = resume_run(out, source, overrides)
        config = run.config()
        say(f"resuming {run.path}")
    else:
        if source is None:
            source = "digits"
            say("no preset named: training on the embedded digits (preset 'digits')")
        config = load_config(source, overrides)
        run = create_run(out, Path(source).stem)
    say(f"run folder: {run.path}")
    try:
        train(config, run, resume=resume)
    except KeyboardInterrupt:
        say(f"to continue: tser distill --out {run.path} --resume")
        raise
    result = evaluate(run)
    write_json(run.evaluation, result)
    if as_json:
        show_json(result)
        return
    rows = [[f"t = {t}", percent(a)] for t, a in enumerate(result["accuracy"], 1)]
    show_table(
        f"Test accuracy, {result['samples']} images, last epoch",
        ["after", "accuracy"],
        [["teacher (ANN)", percent(result["teacher_accuracy"])], *rows],
    )
    say(f"next: tser export {run.path} --format nir")
