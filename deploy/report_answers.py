"""The section on single answers: what is taken for what, and the most confident mistakes."""

from __future__ import annotations

from pathlib import Path

import torch

from tser.data import ImageData
from tser.deploy.report_blocks import (
    Block,
    Chart,
    Details,
    Gallery,
    Group,
    Heading,
    Note,
    Picture,
    Section,
    Table,
    Text,
    percent,
)
from tser.deploy.report_charts import confusion_chart
from tser.deploy.report_files import Evaluation, Mistake
from tser.deploy.report_images import images_of, picture_of
from tser.deploy.report_results import Commands, Results, missing
from tser.deploy.report_training import evaluation_age
from tser.errors import InputFileError

MOST_DRAWN = 100
"""Classes of the largest matrix that is drawn."""
MOST_LISTED = 20
"""Classes of the largest matrix whose numbers are all listed."""
PAIRS = 10


def answers(results: Results, root: Path | None = None) -> Section:
    """The confusion matrix, and the mistakes of which the student was surest.

    Args:
        results: of the run.
        root: folder of the data set; None: where the configuration says.
    """
    key, title, found = "answers", "Confusion and mistakes", results.evaluation
    if found is None:
        return Section(key, title, (missing("Not evaluated yet", Commands(results.run).evaluate),))
    if found.mistakes is None:
        text = "Not in eval.json, which is from an earlier version of tser. To add it, run"
        return Section(key, title, (Note(text, Commands(results.run).evaluate),))
    blocks = (*evaluation_age(results), *_confusion(found), *_mistakes(results, found, root))
    return Section(key, title, blocks)


def _names(found: Evaluation, classes: int) -> list[str]:
    """Of the classes; their numbers where there is not one name each."""
    names = found.class_names or []
    return names if len(names) == classes else [str(number) for number in range(classes)]


def _name(found: Evaluation, number: int) -> str:
    names = found.class_names or []
    return names[number] if number < len(names) else str(number)


def _confusion(found: Evaluation) -> tuple[Block, ...]:
    matrix = found.confusion
    if not matrix:
        return (Note("There are too many classes for a confusion matrix."),)
    classes = len(matrix)
    names = _names(found, classes)
    blocks: list[Block] = [
        Text(
            f"What {found.samples:,} test images of {found.data} are taken for after all "
            f"{found.timesteps} steps."
        )
    ]
    if classes <= MOST_DRAWN:
        drawing = confusion_chart(
            "confusion-chart", f"Confusion matrix of {classes} classes", matrix, names
        )
        caption = (
            "A row is the true class, a column the answer. Blue: right; orange: wrong. The fuller "
            "the colour, the larger the share of the row."
        )
        both = (Chart(drawing, caption), _pairs(matrix, names))
        blocks += [Group(both)] if classes <= MOST_LISTED else both
    else:
        blocks.append(_pairs(matrix, names))
    blocks.append(Details("Every class: images, recall and precision", (_classes(matrix, names),)))
    if classes <= MOST_LISTED:
        blocks.append(Details("The matrix as a table", (_matrix(matrix, names),)))
    return tuple(blocks)


def _pairs(matrix: list[list[int]], names: list[str]) -> Table | Text:
    wrong = [
        (count, i, j)
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if count and i != j
    ]
    if not wrong:
        return Text("Every image is given its class.")
    wrong.sort(key=lambda entry: (-entry[0], entry[1:]))
    rows = tuple(
        (f"{names[i]} → {names[j]}", f"{count:,}", percent(count / sum(matrix[i])))
        for count, i, j in wrong[:PAIRS]
    )
    heads = ("true → answer", "images", "of the class")
    return Table(f"The most frequent of {len(wrong)} confusions", heads, rows, "lrr")


def _classes(matrix: list[list[int]], names: list[str]) -> Table:
    given = [sum(column) for column in zip(*matrix, strict=True)]
    rows = tuple(
        (
            name,
            f"{sum(row):,}",
            f"{row[k]:,}",
            percent(row[k] / sum(row)) if sum(row) else "–",
            percent(row[k] / given[k]) if given[k] else "–",
        )
        for k, (name, row) in enumerate(zip(names, matrix, strict=True))
    )
    heads = ("class", "images", "right", "recall", "precision")
    caption = (
        "Recall: share of the images of a class that are given it. Precision: share of the answers "
        "of a class that are right"
    )
    return Table(caption, heads, rows, "lrrrr")


def _matrix(matrix: list[list[int]], names: list[str]) -> Table:
    rows = tuple(
        (name, *(f"{count:,}" for count in row)) for name, row in zip(names, matrix, strict=True)
    )
    return Table(
        "Images by true class (row) and answer (column)",
        ("true class", *names),
        rows,
        "l" + "r" * len(names),
    )


def _mistakes(results: Results, found: Evaluation, root: Path | None) -> tuple[Block, ...]:
    mistakes = found.mistakes or []
    if not mistakes:
        return ()
    heading = Heading("Most confident mistakes")
    text = Text(
        f"The {len(mistakes)} wrong answers of the highest confidence, the softmax of the mean "
        f"logits after all {found.timesteps} steps."
    )
    table = _list(mistakes, found)
    images = images_of(results, root)
    if isinstance(images, Note):
        return (heading, text, images, table)
    if any(m.index >= len(images.test) or _label(images, m) != m.true for m in mistakes):
        words = (
            "Not drawn: the test images are not those that eval.json was made from. To do so, run"
        )
        note = Note(words, Commands(results.run).evaluate, "caution")
        return (heading, text, note, table)
    try:
        gallery = Gallery(tuple(_picture(images, mistake, found) for mistake in mistakes))
    except InputFileError as error:
        return (heading, text, Note(f"Not drawn: {error}"), table)
    return (heading, text, gallery, Details("The mistakes as a table", (table,)))


def _label(images: ImageData, mistake: Mistake) -> int:
    return int(images.test.labels[mistake.index])


def _picture(images: ImageData, mistake: Mistake, found: Evaluation) -> Picture:
    true, given = _name(found, mistake.true), _name(found, mistake.predicted)
    return Picture(
        picture_of(images, torch.tensor([mistake.index])),
        f"Test image {mistake.index}, of class {true}, taken for {given}",
        f"{true}, taken for {given} ({percent(mistake.confidence)})",
    )


def _list(mistakes: list[Mistake], found: Evaluation) -> Table:
    rows = tuple(
        (
            str(mistake.index),
            _name(found, mistake.true),
            _name(found, mistake.predicted),
            percent(mistake.confidence),
        )
        for mistake in mistakes
    )
    return Table(
        "The most confident mistakes",
        ("test image", "true class", "answer", "confidence"),
        rows,
        "lllr",
    )
