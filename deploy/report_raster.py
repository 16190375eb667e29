"""The section that shows one test image at work: its spikes and predictions, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tser.data import ImageData
from tser.deploy.charts import raster_chart
from tser.deploy.inputs import image_batches
from tser.deploy.interpreter import run as execute
from tser.deploy.report_blocks import (
    Chart,
    Group,
    Note,
    Picture,
    Section,
    Table,
    Text,
    number,
    step,
)
from tser.deploy.report_images import images_of, picture_of
from tser.deploy.report_results import Commands, Results, missing
from tser.export.graph import Graph

SHOWN = 60
"""Neurons of a layer that are drawn at most."""


def raster(results: Results, root: Path | None = None) -> Section:
    """The spikes of the first test image through the exported graph.

    Args:
        results: of the run.
        root: folder of the data set; None: where the configuration says.
    """
    title, graph = "Spikes of one test image", results.graph
    if graph is None:
        note = missing("Not exported yet", Commands(results.run).export_nir)
        return Section("raster", title, (note,))
    data = images_of(results, root)
    if isinstance(data, Note):
        return Section("raster", title, (data,))
    x, labels = next(image_batches(data, 1))
    steps = graph.timesteps or results.config.student.timesteps
    layers = [node.name for node in graph.spiking]
    logits, spikes = execute(graph, x, steps, record=layers)
    trains = {name: spikes[name].reshape(steps, -1) > 0 for name in layers}
    names = class_names(graph, data, logits.shape[-1])
    subsampled = [name for name in layers if trains[name].shape[1] > SHOWN]
    text = (
        f"The first test image, run by the reference interpreter on model.nir for {steps} steps: "
        "it was not chosen for how it looks."
    )
    if subsampled:
        text += (
            f" Layers of more than {SHOWN} neurons are drawn with {SHOWN} of them, evenly spaced."
        )
    chart = raster_chart(
        "raster-chart",
        f"Spikes of every layer over {steps} steps",
        [(name, evenly(trains[name])) for name in layers],
    )
    label = names[int(labels[0])] if int(labels[0]) < len(names) else str(int(labels[0]))
    image = Picture(
        picture_of(data, torch.tensor([0])),
        f"Test image 0 of {data.name}, of class {label}",
        f"Test image 0 of {data.name}: class {label}."
        + (f" Its {data.frames} frames, averaged." if data.frames else ""),
    )
    table = _predictions(logits[:, 0], trains, names, label)
    return Section(
        "raster",
        title,
        (
            Text(text),
            Group((image, table)),
            Chart(chart, "A panel a layer: a row is a neuron, a column a step, a dash a spike."),
        ),
    )


def class_names(graph: Graph, data: ImageData, classes: int) -> list[str]:
    """Names of the outputs: as the graph states them, else those of the data set."""
    try:
        stated = graph.class_names
    except (TypeError, ValueError):  # not a list in JSON
        stated = None
    for names in (stated, list(data.class_names)):
        if names is not None and len(names) == classes:
            return names
    return [str(number) for number in range(classes)]


def evenly(spikes: NDArray[np.bool_], most: int = SHOWN) -> NDArray[np.bool_]:
    """At most ``most`` neurons of ``[T, N]``, evenly spaced from the first to the last."""
    neurons = spikes.shape[1]
    if neurons <= most:
        return spikes
    return np.asarray(spikes[:, np.linspace(0, neurons - 1, most).round().astype(int)])


def _predictions(
    logits: NDArray[Any], trains: dict[str, NDArray[np.bool_]], names: list[str], label: str
) -> Table:
    """Prediction after every step from ``logits [T, K]``."""
    rows = []
    for t in range(len(logits)):
        mean = logits[: t + 1].astype(np.float64).mean(0)
        first, *others = np.argsort(-mean, kind="stable")
        lead = "–" if not others else f"{mean[first] - mean[others[0]]:.2f}"
        predicted = names[int(first)]
        mark = "✓" if predicted == label else "✗"
        fired = sum(int(train[t].sum()) for train in trains.values())
        rows.append((step(t + 1), f"{predicted} {mark}", lead, number(fired)))
    return Table(
        "Prediction after every step",
        ("after", "prediction", "lead of its mean logit", "spikes in this step"),
        tuple(rows),
        "llrr",
    )
