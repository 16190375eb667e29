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
from tser.deploy.report_checks import VERDICTS
from tser.deploy.report_costs import total
from tser.deploy.report_results import Commands, Freshness, Results, age
from tser.deploy.report_training import evaluation_age

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
    flips_text = f"at most {flips:,} flips in" if flips else "compared in"
    detail = (
        f"{VERDICTS[found.verdict]}; {flips_text} {rounded(steps)} neuron-steps of "
        f"{found.samples:,} images"
    )
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
            f"{percent(totals.sop_structural / totals.dense) if totals.dense else '–'} of dense",
        )
    ]
    for target in found.targets:
        if target.energy_joules is not None:
            tiles.append(Tile(target.title, joules(target.energy_joules), "per inference"))
        else:
            detail = f"{total(target)} per inference; {'; '.join(target.unpriced)}"
            tiles.append(Tile(target.title, "unpriced", detail.removeprefix("unpriced ")))
    twin = found.ann_twin
    detail = f"MACs per inference of the ANN twin; {joules(twin.energy_joules)} on 45 nm CMOS"
    tiles.append(Tile("ANN twin", rounded(twin.macs), detail))
    return tuple(_marked(tile, state) for tile in tiles)


def _marked(tile: Tile, freshness: Freshness) -> Tile:
    if freshness != "stale":
        return tile
    return Tile(tile.label, tile.value, f"out of date; {tile.detail}", "caution")
