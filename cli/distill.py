"""``tser distill``."""

from __future__ import annotations

import json
from dataclasses import replace
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
    student: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Train the model that this returns."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|MODULE:FUNCTION",
            help="Weights of a trained teacher, or a function that returns one.",
        ),
    ] = None,
    teacher_cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the teacher's logits here, and use what is there."),
    ] = None,
    data_root: DataRoot = None,
    compile_: Annotated[
        str | None,
        typer.Option(
            "--compile",
            metavar="auto|neuron|step|off",
            help="What torch.compile makes faster after a wait; auto: what pays off.",
        ),
    ] = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Keep less for the backward pass, recompute it.")
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits on every run, or an error.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take one step, print sizes and times, write nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a spiking student from an ANN teacher (which is trained first if none is given)."""
    from tser.config import RunConfig
    from tser.config_file import load_config
    from tser.distill import distill as train
    from tser.distributed import first, process_group
    from tser.errors import UsageError
    from tser.evaluate import evaluate
    from tser.files import write_json
    from tser.runs import Run, create_run, resume_run

    overrides = list(settings or [])
    for key, value in {
        "train.seed": seed,
        "train.device": device and json.dumps(device),
        "train.compile": compile_ and json.dumps(compile_),
        "train.low_memory": "true" if low_memory else None,
        "train.deterministic": "true" if deterministic else None,
        "teacher.path": teacher and _weights_file(teacher),
        "teacher.cache": teacher_cache and json.dumps(str(teacher_cache.resolve())),
        "data.root": data_root and json.dumps(str(Path(data_root).resolve())),
    }.items():
        if value is not None:
            overrides.append(f"{key}={value}")
    taught_by = teacher if teacher and not _weights_file(teacher) else None
    whole = [*overrides, *_factory_settings(student, taught_by, overrides)]
    factories = tuple(name for name in (student, taught_by) if name)
    if dry_run:
        if resume:
            raise UsageError("--dry-run is of a new run; leave out --resume")
        from tser.cli.outlook import show_outlook
        from tser.dry_run import dry_run as look_ahead

        show_outlook(look_ahead(load_config(source or "digits", whole), factories), as_json)
        return

    def start() -> tuple[RunConfig, Run]:
        if resume:
            run = resume_run(out, source, overrides).naming(student, taught_by)
            config = run.config()
            say(f"resuming {run.path}")
        else:
            if source is None:
                say("no preset named: training on the embedded digits (preset 'digits')")
            config = load_config(source or "digits", whole)
            run = replace(create_run(out, Path(source or "digits").stem), factories=factories)
        say(f"run folder: {run.path}")
        return config, run

    with process_group() as share:
        config, run = first(start)
        try:
            train(config, run, resume=resume)
        except KeyboardInterrupt:
            if share.rank == 0:
                named = f" --student {student}" if student else ""
                named += f" --teacher {taught_by}" if taught_by else ""
                say(f"to continue: tser distill --out {run.path} --resume{named}")
            raise
    if share.rank > 0:
        return
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
    suffix = f" --student {student}" if student else ""
    say(f"next: tser export {run.path} --format nir{suffix}")


def _weights_file(teacher: str) -> str | None:
    """``--teacher`` as the TOML text of a path, or None where it names a factory."""
    is_file = ":" not in teacher or teacher.endswith(".safetensors") or Path(teacher).exists()
    return json.dumps(str(Path(teacher).resolve())) if is_file else None


def _factory_settings(student: str | None, teacher: str | None, given: list[str]) -> list[str]:
    """What naming factories stands for; a teacher's weights are used as they are by default."""
    settings = [f"student.factory={json.dumps(student)}"] if student else []
    if teacher:
        settings.append(f"teacher.factory={json.dumps(teacher)}")
        if not any(text.startswith("teacher.train=") for text in given):
            settings.append("teacher.train=false")
    return settings
