"""What a report shows of an executor whose spikes differ: where, how near, and what follows."""

from __future__ import annotations

import numpy as np

from tser.deploy.report_blocks import (
    Block,
    Bullets,
    Chart,
    Details,
    Group,
    Heading,
    Table,
    Text,
    percent,
    step,
)
from tser.deploy.report_flip_charts import (
    Divergence as Surroundings,
)
from tser.deploy.report_flip_charts import (
    divergence_chart,
    flip_chart,
    membrane_chart,
    seed_chart,
)
from tser.deploy.report_validation_file import BackendResult, Divergence, LayerResult

MOST_EXPLAINED = 8
"""Layers whose explanations are shown at once."""


def flip_blocks(backend: BackendResult, name: str, timesteps: int, key: str) -> tuple[Block, ...]:
    """Everything about the flips of one executor; one sentence where there are none.

    Args:
        backend: with layers.
        name: of it, for people.
        timesteps: T.
        key: unique in the page.
    """
    if not backend.flips:
        count = f"{backend.neuron_steps:,}"
        text = f"All {count} spikes and silences are the same, so there is no divergence to show."
        return (Text(text), Details("Layers", (_layers(backend, name),)))
    return (
        *_explanations(backend),
        *_first(backend.first_divergence, name, key),
        *_spread(backend, name, key),
        _layers(backend, name),
        Details(
            "Flips and firing rates per layer and step as tables",
            (_per_step(backend, name, timesteps), _rates(backend, name, timesteps)),
        ),
    )


def _explanations(backend: BackendResult) -> tuple[Block, ...]:
    if not backend.diagnosis:
        return ()
    texts = [found.text for found in backend.diagnosis]
    lead = "Diagnosis: a small change of the rule that gives these spikes; a hint, not a proof."
    blocks: list[Block] = [Bullets(lead, tuple(texts[:MOST_EXPLAINED]))]
    rest = tuple(texts[MOST_EXPLAINED:])
    if rest:
        blocks.append(Details(f"{len(rest)} more layers", (Bullets("Diagnosis:", rest),)))
    return tuple(blocks)


def _first(found: Divergence | None, name: str, key: str) -> tuple[Block, ...]:
    if found is None:
        return ()
    window = found.window
    around = Surroundings(
        found.t,
        window.position,
        window.first_neuron,
        np.array(window.reference, bool),
        np.array(window.candidate, bool),
    )
    place = f"neuron {window.first_neuron + window.position} of {found.layer}"
    raster = Chart(
        divergence_chart(
            f"{key}-raster",
            f"Spikes of reference and {name} around the first flip: {place}, step {found.t + 1}",
            around,
            ("reference", "candidate"),
        ),
        "The first flip, ringed, among neighbours in its layer: a row is a neuron, a dash a spike, "
        "colour what only one run has. A single coloured row is one neuron that went the other "
        "way; colour in most rows is a whole layer that follows another rule.",
    )
    shown: tuple[Block, ...] = (raster,)
    membranes = window.membranes
    if membranes is not None:
        reference, candidate, threshold = membranes
        drawing = membrane_chart(
            f"{key}-membrane",
            f"Membrane of {place} against its threshold of {threshold:g} in reference and {name}",
            around,
            (reference, candidate),
            threshold,
        )
        shown = (Group((raster, Chart(drawing, _at_threshold(found)))),)
    return (Heading(f"{name}: the first flip"), Text(_reading(found, name)), *shown)


def _reading(found: Divergence, name: str) -> str:
    """What the first flip says."""
    first, second = ("fires", "is silent") if found.reference else ("is silent", "fires")
    place = ", ".join(map(str, found.neuron))
    number = found.window.first_neuron + found.window.position
    text = (
        f"Input {found.sample}, layer {found.layer}, neuron ({place}), which is number {number} of "
        f"the layer, {step(found.t + 1)}: the reference {first} and the candidate, {name}, "
        f"{second}; up to there both runs are the same. (Inputs and neurons are counted from 0, "
        "steps from 1.)"
    )
    margin, bound = found.v_minus_threshold, found.bound
    if margin is None or bound is None:
        return f"{text} How far rounding can move this membrane could not be bounded."
    distance = f"The membrane is {abs(margin):.3g} {'above' if margin > 0 else 'below'}"
    if margin == 0:
        distance = "The membrane is exactly at"
    text += f" {distance} the threshold, and rounding can move it by {bound:.3g}:"
    if abs(margin) <= bound and bound > 0:
        return f"{text} a tie, which either result is right for."
    return f"{text} no tie, so one of the two follows another rule."


def _at_threshold(found: Divergence) -> str:
    text = (
        "The membrane of that neuron before its reset, in float64, by the stated rule from the "
        "inputs and resets that each run had. The grey bar is the step of the first flip."
    )
    if found.bound is not None and abs(found.v_minus_threshold or 0.0) <= found.bound:
        return f"{text} There it touches the threshold."
    return (
        f"{text} A filled mark below the threshold, or a hollow one above it, is not what the rule "
        "says."
    )


def _spread(backend: BackendResult, name: str, key: str) -> tuple[Block, ...]:
    touched = [layer for layer in backend.layers if layer.all_flips or layer.seeds]
    most = max(touched, key=lambda layer: max(layer.flips))
    at = most.flips.index(max(most.flips))
    heat = Chart(
        flip_chart(
            f"{key}-flips",
            f"Flips of {name} per layer and step; most, {max(most.flips):,}, in {most.name} at "
            f"step {at + 1}",
            [(layer.name, layer.flips, layer.seeds_per_step) for layer in touched],
        ),
        "Flips per layer, in order of execution, and step. Where colour begins, at the top left, "
        "is where it started"
        + (
            "; frames mark cells in which flips begin, all others follow from them."
            if backend.judged
            else "."
        ),
    )
    blocks: list[Block] = [Heading(f"{name}: where flips begin and where they go")]
    quiet = len(backend.layers) - len(touched)
    if quiet:
        without = "1 layer has" if quiet == 1 else f"{quiet} layers have"
        blocks.append(Text(f"{without} no flip and {'is' if quiet == 1 else 'are'} not drawn."))
    if not backend.judged:
        return (*blocks, heat)
    seeds = Chart(
        seed_chart(
            f"{key}-seeds",
            f"Seeds and propagated flips of {name} per layer: {backend.seeds:,} seeds in "
            f"{backend.flips:,} flips",
            [(layer.name, layer.seeds, max(0, layer.all_flips - layer.seeds)) for layer in touched],
        ),
        "Flips that begin in a layer (squares) against those that follow from earlier ones "
        "(discs). Few squares and many discs are ties that spread; many squares in a layer are "
        "errors of its own.",
    )
    return (*blocks, Group((heat, seeds)))


def _layers(backend: BackendResult, name: str) -> Table:
    heads = (
        "layer",
        "",
        "neurons",
        "flips",
        "certified seeds",
        "margin of bound",
        "not explained",
        "rate error",
        "lag",
        "replayed",
        "one step",
    )
    rows = tuple(_layer(layer, judged=backend.judged) for layer in backend.layers)
    caption = f"Layers of {name}: ✓ where rounding explains every difference, else ✗"
    return Table(caption, heads, rows, "l" + "r" * (len(heads) - 1))


def _layer(layer: LayerResult, *, judged: bool) -> tuple[str, ...]:
    flips = layer.all_flips
    mark = "–" if flips and not judged else "✓" if layer.certified else "✗"
    margin = "–"
    if layer.certified_bound:
        margin = f"{layer.certified_margin:.2g} of {layer.certified_bound:.2g}"
    return (
        layer.name,
        mark,
        f"{layer.neurons:,}",
        f"{flips:,}",
        f"{layer.seeds - layer.uncertified_seeds:,} of {layer.seeds:,}" if layer.seeds else "–",
        margin,
        f"{layer.violations:,}" if judged else "–",
        f"{layer.rate_error:.2g}",
        f"{layer.best_lag:+d}" if layer.best_lag else "0",
        _count(layer.replayed_flips),
        _count(layer.one_step_flips),
    )


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _per_step(backend: BackendResult, name: str, timesteps: int) -> Table:
    return Table(
        f"Flips per layer and step, in brackets the seeds among them: {name}",
        ("layer", *(step(t) for t in range(1, timesteps + 1))),
        tuple(
            (
                layer.name,
                *(
                    f"{flips:,} ({seeds:,})" if seeds else f"{flips:,}"
                    for flips, seeds in zip(layer.flips, layer.seeds_per_step, strict=True)
                ),
            )
            for layer in backend.layers
        ),
        "l" + "r" * timesteps,
    )


def _rates(backend: BackendResult, name: str, timesteps: int) -> Table:
    rows = []
    for layer in backend.layers:
        pairs = zip(layer.firing_rate_reference, layer.firing_rate_candidate, strict=True)
        rows.append((layer.name, *(f"{percent(a, 2)} → {percent(b, 2)}" for a, b in pairs)))
    return Table(
        f"Share of neurons that fire per layer and step: reference → {name}",
        ("layer", *(step(t) for t in range(1, timesteps + 1))),
        tuple(rows),
        "l" + "r" * timesteps,
    )
