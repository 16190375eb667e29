"""``tser compare``: what several runs are and what they reach, side by side."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from tser.deploy.charts import Line, line_chart
from tser.deploy.fit import fit
from tser.deploy.fit_limits import load_chip
from tser.deploy.fit_network import network_of
from tser.deploy.report import check_target, to_html
from tser.deploy.report_blocks import (
    Block,
    Chart,
    Note,
    Section,
    Table,
    Text,
    percent,
    rounded,
    step,
)
from tser.deploy.report_energy import price, total, twins
from tser.deploy.report_files import Evaluation
from tser.deploy.report_fit import CHIPS, mark
from tser.deploy.report_formats import to_csv, to_document, to_markdown
from tser.deploy.report_results import Freshness, Results, read_results
from tser.deploy.report_svg import INK, SERIES
from tser.errors import UsageError
from tser.files import to_json, write_text
from tser.runs import find_run

Format = Literal["text", "html", "md", "json", "csv"]
ABSENT = "–"
Show = Callable[[Results], str | None]
LOOKS = [(colour, dash) for dash in ("-", "--", ":", "-.") for colour in (*SERIES, INK)]


def compare_runs(
    paths: Sequence[Path], form: Format, out: Path | None = None
) -> tuple[str, list[Section]]:
    """Read runs and write their comparison.

    Args:
        paths: run folders.
        form: "text" leaves the writing to the caller.
        out: file to write; None: none.

    Returns:
        The text of the file, "" for "text", and the comparison apart from how it looks.

    Raises:
        UsageError: fewer than two runs, one twice, one that is not finished, or the file cannot
            be written.
        InputFileError: a file of a run is damaged or of another version.
    """
    if len(paths) < 2:
        raise UsageError("name at least two runs to compare")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UsageError(f"{path} is named twice; name different runs to compare")
        seen.add(path.resolve())
    runs = [find_run(path) for path in paths]
    for run in runs:
        if out is not None:
            check_target(out, run, form)
    found = [read_results(run) for run in runs]
    name, parts = " and ".join(titles(found)), comparison(found)
    if form == "text":
        return "", parts
    if form == "html":
        text = to_html(name, parts, kind="tser comparison")
    elif form == "csv":
        text = to_csv(parts)
    elif form == "json":
        text = to_json({"schema_version": 1, "runs": [to_document(one) for one in found]})
    else:
        text = to_markdown(f"Comparison of {name}", parts)
    if out is not None:
        write_text(out, text)
    return text, parts


def comparison(runs: Sequence[Results]) -> list[Section]:
    """The same tables for all runs, one column a run.

    Args:
        runs: at least two.
    """
    names = titles(runs)
    return [
        Section("settings", "Settings", _settings(runs, names)),
        Section("accuracy", "Accuracy", _accuracy(runs, names)),
        Section("learning", "Training", _learning(runs, names)),
        Section("firing", "Firing rates", _firing(runs, names)),
        Section("operations", "Operations per inference", _operations(runs, names)),
        Section("energy", "Energy per inference", _energy(runs, names)),
        Section("fit", "Fit per chip", _fit(runs, names)),
        Section("validation", "Validation of the exported graphs", _verdicts(runs, names)),
    ]


def titles(runs: Sequence[Results]) -> list[str]:
    """The folders' names; the whole paths where two are called the same."""
    short = [one.run.path.resolve().name for one in runs]
    return short if len(set(short)) == len(short) else [str(one.run.path) for one in runs]


def _table(
    caption: str,
    first: str,
    names: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    align: Literal["l", "r"] = "r",
) -> Table:
    return Table(caption, (first, *names), tuple(rows), "l" + align * len(names))


def _each(runs: Sequence[Results], title: str, show: Show) -> tuple[str, ...]:
    """One row: what ``show`` says of each run."""
    return (title, *(show(one) or ABSENT for one in runs))


def _settings(runs: Sequence[Results], names: Sequence[str]) -> tuple[Block, ...]:
    flat = [_flatten(tomllib.loads(one.config_text)) for one in runs]
    rows = []
    for key in dict.fromkeys(key for one in flat for key in one):
        values = [one.get(key, ABSENT) for one in flat]
        if len({repr(value) for value in values}) > 1:
            rows.append((key, *(str(value) for value in values)))
    blocks: list[Block] = []
    if len({one.config.data.name for one in runs}) > 1:
        words = "The runs are of different data sets: their accuracies cannot be compared."
        blocks.append(Note(words, tone="caution"))
    if not rows:
        return (*blocks, Text("All settings are the same."))
    return (*blocks, _table("Settings that differ", "setting", names, rows, "l"))


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _stale(
    runs: Sequence[Results], names: Sequence[str], file: str, state: Callable[[Results], Freshness]
) -> tuple[Block, ...]:
    """A warning for numbers that are not of what is in the folder now."""
    old = [name for name, one in zip(names, runs, strict=True) if state(one) == "stale"]
    if not old:
        return ()
    return (Note(f"Out of date: {file} of {', '.join(old)}; make it again.", tone="caution"),)


def _accuracy(runs: Sequence[Results], names: Sequence[str]) -> tuple[Block, ...]:
    longest = max((one.evaluation.timesteps for one in runs if one.evaluation), default=0)
    if not longest:
        return (Note("No run is evaluated yet. To do so, run", "tser eval RUN"),)

    def of(show: Callable[[Evaluation], str | None]) -> Show:
        return lambda one: show(one.evaluation) if one.evaluation else None

    def after(t: int) -> Show:
        return of(lambda found: percent(found.accuracy[t - 1], 2) if t <= found.timesteps else None)

    def teacher(found: Evaluation) -> str | None:
        return None if found.teacher_accuracy is None else percent(found.teacher_accuracy, 2)

    def calibration(found: Evaluation) -> str | None:
        errors = found.calibration_error
        return None if errors is None else percent(errors[-1], 2)

    rows = [_each(runs, f"after {step(t)}", after(t)) for t in range(1, longest + 1)]
    rows += [
        _each(runs, "teacher", of(teacher)),
        _each(runs, "calibration error after all steps", of(calibration)),
        _each(runs, "images", of(lambda found: f"{found.samples:,}")),
    ]
    stale = _stale(runs, names, "eval.json", lambda one: one.evaluation_is)
    return (*stale, _accuracy_chart(runs, names), _table("Test accuracy", "", names, rows))


def _accuracy_chart(runs: Sequence[Results], names: Sequence[str]) -> Chart:
    lines = []
    for number, (name, one) in enumerate(zip(names, runs, strict=True)):
        if one.evaluation is not None:
            colour, dash = LOOKS[number % len(LOOKS)]
            steps = list(range(1, one.evaluation.timesteps + 1))
            lines.append(Line(name, steps, one.evaluation.accuracy, colour, dash))
    drawing = line_chart(
        "accuracy-chart",
        f"Test accuracy of {len(lines)} runs over time steps",
        lines,
        x_label="time steps t",
        y_label="test accuracy",
        percentages=True,
    )
    return Chart(drawing, "Accuracy after t steps.")


def _learning(runs: Sequence[Results], names: Sequence[str]) -> tuple[Block, ...]:
    last = [next((e for e in one.epochs[::-1] if e.phase == "student"), None) for one in runs]
    if not any(last):
        return (Note("No run has a log of its training."),)
    parts = ("epoch", "loss", "ce", "kl", "entropy", "self_kl")
    heads = ("last epoch", "loss", "CE", "KL", "H", "S")
    rows = []
    for part, head in zip(parts, heads, strict=True):
        values = [getattr(epoch, part, None) for epoch in last]
        rows.append((head, *(ABSENT if value is None else f"{value:.4g}" for value in values)))
    accuracy = [ABSENT if e is None else percent(e.train_accuracy) for e in last]
    rows.append(("training accuracy", *accuracy))
    rows.append(
        (
            "validation accuracy",
            *(ABSENT if e is None else percent(e.val_accuracy[-1]) for e in last),
        )
    )
    seconds = [sum(e.seconds for e in one.epochs if e.phase == "student") for one in runs]
    rows.append(("all epochs [s]", *(f"{value:,.0f}" if value else ABSENT for value in seconds)))
    return (_table("The last epoch of the student; losses in nat", "", names, rows),)


def _firing(runs: Sequence[Results], names: Sequence[str]) -> tuple[Block, ...]:
    found = [
        {row.name: percent(row.firing_rate) for row in one.evaluation.layers}
        if one.evaluation
        else {}
        for one in runs
    ]
    if not any(found):
        return (Note("No firing rates are known."),)
    return (_by_layer("Firing rate per neuron and step", names, found),)


def _by_layer(caption: str, names: Sequence[str], found: Sequence[dict[str, str]]) -> Table:
    layers = list(dict.fromkeys(layer for one in found for layer in one))
    rows = [(layer, *(one.get(layer, ABSENT) for one in found)) for layer in layers]
    return _table(caption, "layer", names, rows)


TOTALS = {
    "spikes": "spikes",
    "sop_structural": "synaptic operations (SOP)",
    "sop_effective": "of them over weights that are not 0",
    "macs": "MACs of analog input",
    "accumulates": "accumulates",
    "dense": "dense operations",
    "neuron_updates": "neuron updates",
}


def _operations(runs: Sequence[Results], names: Sequence[str]) -> tuple[Block, ...]:
    if not any(one.energy for one in runs):
        return (Note("No operations are counted yet. To do so, run", "tser energy RUN/model.nir"),)

    def of(key: str) -> Show:
        return lambda one: rounded(getattr(one.energy.totals, key)) if one.energy else None

    rows = [_each(runs, title, of(key)) for key, title in TOTALS.items()]
    rows += [
        _each(
            runs,
            "MACs of the ANN twin",
            lambda one: rounded(one.energy.ann_twin.macs) if one.energy else None,
        ),
        _each(runs, "images", lambda one: f"{one.energy.samples:,}" if one.energy else None),
        _each(runs, "T", lambda one: str(one.energy.timesteps) if one.energy else None),
    ]
    layers = [
        {row.name: rounded(row.sop_structural) for row in one.energy.layers if row.kind != "neuron"}
        if one.energy
        else {}
        for one in runs
    ]
    return (
        *_stale(runs, names, "energy.json", lambda one: one.energy_is),
        _table("Means per inference", "", names, rows),
        _by_layer("Synaptic operations by layer", names, layers),
    )


def _energy(runs: Sequence[Results], names: Sequence[str]) -> tuple[Block, ...]:
    targets = {t.name: t.title for one in runs if one.energy for t in one.energy.targets}
    if not targets:
        return (Note("No energy is priced yet. To do so, run", "tser energy RUN/model.nir"),)

    def of(name: str) -> Show:
        def show(one: Results) -> str | None:
            bills = one.energy.targets if one.energy else []
            return next((total(bill) for bill in bills if bill.name == name), None)

        return show

    def twin_on(name: str) -> Show:
        def show(one: Results) -> str | None:
            known = twins(one.energy) if one.energy else []
            return next((price(twin.total) for twin in known if twin.target == name), None)

        return show

    stale = _stale(runs, names, "energy.json", lambda one: one.energy_is)
    processes = {t.target: t.title for one in runs if one.energy for t in twins(one.energy)}
    rows = [_each(runs, title, of(name)) for name, title in targets.items()]
    rows += [_each(runs, f"ANN twin, {processes[name]}", twin_on(name)) for name in processes]
    rows += [
        _each(runs, "model", lambda one: one.energy.model.name if one.energy else None),
        _each(runs, "first layer", lambda one: one.energy.first_layer if one.energy else None),
        _each(runs, "T", lambda one: str(one.energy.timesteps) if one.energy else None),
        _each(runs, "images", lambda one: f"{one.energy.samples:,}" if one.energy else None),
    ]
    ways = {
        (one.energy.model.name, one.energy.first_layer, one.energy.timesteps)
        for one in runs
        if one.energy
    }
    if len(ways) > 1:
        stale = (
            *stale,
            Note(
                "Not priced alike: the model, the first layer or T differs; see the last rows.",
                tone="caution",
            ),
        )
    note = Text("A total is unpriced where nothing is published for an operation that it charges.")
    return (*stale, _table("Energy of one inference", "target", names, rows), note)


def _fit(runs: Sequence[Results], names: Sequence[str]) -> tuple[Block, ...]:
    if not any(one.graph for one in runs):
        return (Note("No graph is exported yet. To do so, run", "tser export RUN --format nir"),)
    networks = [None if one.graph is None else network_of(one.graph) for one in runs]
    rows = []
    for name in CHIPS:
        chip = load_chip(name)
        cells = [ABSENT if found is None else mark(fit(found, chip).verdict) for found in networks]
        rows.append((chip.title, *cells))
    return (_table("Verdict on the whole network", "chip", names, rows, "l"),)


def _verdicts(runs: Sequence[Results], names: Sequence[str]) -> tuple[Block, ...]:
    if not any(one.validation for one in runs):
        return (Note("No export is checked yet. To do so, run", "tser validate RUN/model.nir"),)
    backends = dict.fromkeys(
        backend.name for one in runs if one.validation for backend in one.validation.backends
    )

    def of(name: str) -> Show:
        def show(one: Results) -> str | None:
            for backend in one.validation.backends if one.validation else []:
                if backend.name == name:
                    return f"{backend.verdict}, {backend.flips:,} flips"
            return None

        return show

    rows = [_each(runs, "verdict", lambda one: one.validation.verdict if one.validation else None)]
    rows += [_each(runs, name, of(name)) for name in backends]
    stale = _stale(runs, names, "validation.json", lambda one: one.validation_is)
    return (*stale, _table("Verdict and flips by executor", "executor", names, rows))
