"""The first section: what was trained on what, and the figures that matter."""

from __future__ import annotations

from tser.deploy.report_blocks import (
    NBSP,
    Block,
    Section,
    Text,
    Tile,
    Tiles,
    Tone,
    joules,
    percent,
    rounded,
)
from tser.deploy.report_energy import price, total, twins
from tser.deploy.report_energy_file import TargetBill
from tser.deploy.report_results import Commands, Freshness, Results, age
from tser.deploy.report_training import evaluation_age
from tser.deploy.report_validation import VERDICTS, cause

TONES: dict[str, Tone] = {"E0": "good", "E1": "good", "E2": "caution", "E3": "bad"}


def summary(results: Results) -> Section:
    """Key figures, each marked when it is out of date."""
    commands = Commands(results.run)
    stale: list[Block] = [*evaluation_age(results)]
    if results.validation_is == "stale":
        stale += age("stale", "validation.json", commands.validate)
    if results.energy_is == "stale":
        stale += age("stale", "energy.json", commands.energy)
    tiles = (_accuracy(results), _verdict(results), *_costs(results))
    return Section("summary", "Summary", (Text(_sentence(results)), *stale, Tiles(tiles)))


def _sentence(results: Results) -> str:
    config = results.config
    student, neuron, teacher = config.student, config.neuron, config.teacher
    given = f"the teacher {teacher.path}" if teacher.path else "a convolutional ANN teacher"
    how = f"distilled from {given}" if config.loss.kl != "none" else "trained without a teacher"
    shape: str = student.arch
    if shape == "convnet":
        shape += f" of {student.stages} residual block{'s' * (student.stages != 1)}"
    return (
        f"A spiking student ({shape}, {student.width} channels in the first layer) with T = "
        f"{student.timesteps} time steps of {1e3 * neuron.dt:g}{NBSP}ms and LIF neurons with a "
        f"time constant of {1e3 * neuron.tau_mem:g}{NBSP}ms, {how} on {config.data.name}."
    )


def _accuracy(results: Results) -> Tile:
    found, label = results.evaluation, "Test accuracy"
    if found is None:
        return Tile(label, "–", "not evaluated yet")
    detail = f"at t = {found.timesteps}, {found.samples:,} images"
    if found.teacher_accuracy is not None:
        detail += f"; teacher {percent(found.teacher_accuracy)}"
    return _marked(Tile(label, percent(found.accuracy[-1]), detail), results.evaluation_is)


def _verdict(results: Results) -> Tile:
    found, label = results.validation, "Exported graph"
    if found is None:
        return Tile(label, "–", "not checked yet")
    flips = max((backend.flips for backend in found.backends), default=0)
    steps = max((backend.neuron_steps for backend in found.backends), default=0)
    reason = cause(found)
    detail = VERDICTS[found.verdict] + (f": {reason}" if reason else "")
    if steps:
        flips_text = f"at most {flips:,} flip{'s' * (flips > 1)} in" if flips else "compared in"
        detail += f"; {flips_text} {rounded(steps)} neuron-steps of {found.samples:,} images"
    tile = Tile(label, found.verdict, detail, TONES[found.verdict])
    return _marked(tile, results.validation_is)


def _costs(results: Results) -> tuple[Tile, ...]:
    found, state = results.energy, results.energy_is
    if found is None:
        return (Tile("Synaptic operations", "–", "not measured yet"),)
    totals = found.totals
    tiles = [
        Tile(
            "Synaptic operations",
            rounded(totals.sop_structural),
            f"SOP per inference, {rounded(totals.macs)} of them MACs of the analog input; "
            f"{percent(totals.sop_structural / totals.dense) if totals.dense else '–'} of dense; "
            f"T = {found.timesteps}, {found.samples:,} images, {found.model.name} pricing",
        )
    ]
    tiles += [_target(target) for target in found.targets]
    for twin in twins(found):
        detail = f"MACs per inference of the ANN twin; {price(twin.total)} on {twin.title}"
        tiles.append(Tile("ANN twin", rounded(twin.macs), detail))
    return tuple(_marked(tile, state) for tile in tiles)


def _target(target: TargetBill) -> Tile:
    if target.low_joules is not None:
        value = joules(target.energy_joules) if target.energy_joules else price(target.total)
        ranged = target.low_joules != target.high_joules and target.energy_joules is not None
        detail = f"per inference; {price(target.total)}" if ranged else "per inference"
        return Tile(target.title, value, detail)
    gaps = ", ".join(line.split(": ")[0] for line in target.unpriced)
    part = total(target).removeprefix("unpriced").strip(" ()")
    return Tile(target.title, "unpriced", f"{part} per inference; no price for {gaps}".strip())


def _marked(tile: Tile, freshness: Freshness) -> Tile:
    if freshness != "stale":
        return tile
    return Tile(tile.label, tile.value, f"out of date; {tile.detail}", "caution")
