"""``tser distill``."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tser.cli.console import (
    DataRoot,
    Deterministic,
    JsonFlag,
    guarded,
    percent,
    say,
    show_json,
    show_table,
)


@guarded
def distill(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="PRESET|CONFIG.toml", help="What to train; presets are listed by tser presets."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/PRESET.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=V",
            help="Override one value of the configuration, as in train.epochs=5; may be repeated.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of weights, order, augmentation.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:N, mps or auto.")
    ] = None,
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
    deterministic: Deterministic = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take one step, print sizes and times, write nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a spiking student from an ANN teacher.

    The teacher is trained first unless --teacher names one. Without an argument: the preset digits.
    """
    from tser.config import RunConfig
    from tser.config_file import load_config
    from tser.determinism import deterministic as fixed_bits
    from tser.distill import distill as train
    from tser.distributed import first, process_group
    from tser.errors import UsageError
    from tser.evaluate import evaluate
    from tser.export.export import why_not_exported
    from tser.files import write_json
    from tser.runs import Run, new_run, resumed_run

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

        config = load_config(source or "digits", whole)
        with fixed_bits(config.train.deterministic, config.train.threads):
            outlook = look_ahead(config, factories)
        show_outlook(outlook, as_json)
        return

    def start() -> tuple[RunConfig, Run]:
        if resume:
            run = lock.enter_context(resumed_run(out, source, overrides))
            run = run.naming(student, taught_by)
            config = run.config()
            say(f"resuming {run.path}")
        else:
            if source is None:
                say("no preset named: training on the embedded digits (preset 'digits')")
            config = load_config(source or "digits", whole)
            run = lock.enter_context(new_run(out, Path(source or "digits").stem))
            run = replace(run, factories=factories)
        say(f"run folder: {run.path}")
        return config, run

    with ExitStack() as lock:
        with process_group() as share:
            config, run = first(start)
            try:
                train(config, run, resume=resume, held=True, foresee=why_not_exported)
            except KeyboardInterrupt:
                if share.rank > 0:
                    raise SystemExit(130) from None  # the first one says it
                say(_how_to_continue(run.path, share.world, student, taught_by))
                raise
        if share.rank > 0:
            return
        try:
            with fixed_bits(config.train.deterministic, config.train.threads):
                result = evaluate(run)
            write_json(run.evaluation, result)
        except KeyboardInterrupt:
            say(_how_to_continue(run.path, 1, student, taught_by))
            raise
    if as_json:
        show_json(result)
        return
    rows = [[f"t = {t}", percent(a)] for t, a in enumerate(result["accuracy"], 1)]
    show_table(
        f"Test accuracy, {result['samples']} images, last epoch",
        ["after", "accuracy"],
        [["teacher (ANN)", percent(result["teacher_accuracy"])], *rows],
    )
    suffix = _named(student, None)
    say(f"next: tser export {shlex.quote(str(run.path))} --format nir{suffix}")


def _how_to_continue(folder: Path, world: int, student: str | None, teacher: str | None) -> str:
    """What to do after an interruption of the run in ``folder``, trained by ``world`` processes."""
    from tser.runs import Run

    run, path, named = Run(folder), shlex.quote(str(folder)), _named(student, teacher)
    if run.student.exists():
        return f"the training is finished; to measure the student: tser eval {path}{named}"
    if not run.config_file.exists():
        return "nothing has been trained yet: there is nothing to continue"
    launcher = "tser" if world == 1 else "torchrun … -m tser"
    return f"to continue: {launcher} distill --out {path} --resume{named}"


def _named(student: str | None, teacher: str | None) -> str:
    """The factories of a run as options."""
    given = {"student": student, "teacher": teacher}
    return "".join(f" --{role} {shlex.quote(name)}" for role, name in given.items() if name)


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
