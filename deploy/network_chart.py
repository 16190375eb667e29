"""A graph of layers as a drawing: rows in the order of execution, edges that pass no box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from tser.deploy.report_svg import INK, SERIES, inline_svg, plain

ROW, WIDE, HIGH = 0.56, 2.15, 0.4
"""Distance of rows, and size of a box [inch]."""
GAP = 0.2
"""Between boxes of a row [inch]."""
LANE = 0.16
"""Distance of the lanes in which edges pass boxes [inch]."""


@dataclass(frozen=True)
class Box:
    """One node.

    Attributes:
        name: unique.
        text: its second line.
        look: what it is.
        sources: nodes it takes from, and whether their step before.
    """

    name: str
    text: str
    look: Literal["neuron", "synapse", "other"]
    sources: tuple[tuple[str, bool], ...]


def places(boxes: Sequence[Box]) -> dict[str, tuple[int, int]]:
    """Row and column of every box: one row below the lowest source, columns from the left.

    Args:
        boxes: in the order of execution, so that only delayed sources come later.
    """
    row: dict[str, int] = {}
    for box in boxes:
        row[box.name] = 1 + max((row[s] for s, late in box.sources if not late), default=-1)
    # In a row, what leads on for longest comes first: the main path is one straight column.
    length = dict.fromkeys(row, 1)
    for box in reversed(boxes):
        for source, late in box.sources:
            if not late and row[source] + 1 == row[box.name]:
                length[source] = max(length[source], 1 + length[box.name])
    taken: dict[int, int] = {}
    found: dict[str, tuple[int, int]] = {}
    for box in sorted(boxes, key=lambda box: -length[box.name]):
        column = taken.get(row[box.name], 0)
        taken[row[box.name]] = column + 1
        found[box.name] = (row[box.name], column)
    return found


def network_chart(key: str, title: str, boxes: Sequence[Box]) -> str:
    """The graph from top to bottom.

    An edge to the next row is straight; others run beside the boxes, in a lane of their own where
    they would meet.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        boxes: in the order of execution.
    """
    where = places(boxes)
    rows = 1 + max(row for row, _ in where.values())
    columns = 1 + max(column for _, column in where.values())
    passing = [
        (source, box.name, late)
        for box in boxes
        for source, late in box.sources
        if late or where[box.name][0] != where[source][0] + 1
    ]
    lanes = _lanes([_ends(where, source, target) for source, target, _ in passing])
    right = columns * (WIDE + GAP)
    width = right + LANE * (max(lanes, default=-1) + 2)
    last = {where[box.name] for box in boxes} - {(row, n - 1) for row, n in where.values()}

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, width), ylim=(rows * ROW, 0))
        for box in boxes:
            _box(axes, box, *_centre(where[box.name]))
            for source, late in box.sources:
                if (source, box.name, late) not in passing:
                    _straight(axes, _centre(where[source]), _centre(where[box.name]))
        for (source, target, late), lane in zip(passing, lanes, strict=True):
            out, into = _port(where[source], last, 1), _port(where[target], last, -1)
            beside = right + LANE * lane
            _arrow(
                axes, Path([*out, (beside, out[-1][1]), (beside, into[-1][1]), *into[::-1]]), late
            )

    return inline_svg(key, title, (width, rows * ROW), draw)


def _ends(where: dict[str, tuple[int, int]], source: str, target: str) -> tuple[int, int]:
    one, other = where[source][0], where[target][0]
    return min(one, other), max(one, other)


def _lanes(spans: Sequence[tuple[int, int]]) -> list[int]:
    """The first lane for each span of rows in which no other overlaps it; short ones inside."""
    chosen: dict[int, int] = {}
    for number in sorted(range(len(spans)), key=lambda n: spans[n][1] - spans[n][0]):
        low, high = spans[number]
        used = {
            lane
            for other, lane in chosen.items()
            if spans[other] == spans[number] or (spans[other][0] < high and low < spans[other][1])
        }
        chosen[number] = next(lane for lane in range(len(spans) + 1) if lane not in used)
    return [chosen[number] for number in range(len(spans))]


def _centre(place: tuple[int, int]) -> tuple[float, float]:
    row, column = place
    return 0.1 + WIDE / 2 + column * (WIDE + GAP), ROW * (row + 0.5)


def _box(axes: Axes, box: Box, x: float, y: float) -> None:
    colour = {"neuron": SERIES[0], "synapse": SERIES[1], "other": INK}[box.look]
    corner = (x - WIDE / 2, y - HIGH / 2)
    shade = 0.06 if box.look == "other" else 0.16
    style = "round,pad=0,rounding_size=0.06"
    for filled in (True, False):
        axes.add_patch(
            FancyBboxPatch(
                corner,
                WIDE,
                HIGH,
                boxstyle=style,
                facecolor=colour if filled else "none",
                edgecolor="none" if filled else colour,
                alpha=shade if filled else 1,
                linewidth=0.9,
            )
        )
    axes.text(x, y - 0.08, plain(box.name), ha="center", va="center", fontsize=8.5)
    axes.text(x, y + 0.085, plain(box.text, 36), ha="center", va="center", fontsize=7.5, alpha=0.85)


def _arrow(axes: Axes, path: Path, dashed: bool = False) -> None:
    axes.add_patch(
        FancyArrowPatch(
            path=path,
            arrowstyle="-|>,head_length=3,head_width=1.6",
            color=INK,
            alpha=0.75,
            linewidth=0.9,
            linestyle="--" if dashed else "-",
        )
    )


def _straight(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    _arrow(axes, Path([(start[0], start[1] + HIGH / 2), (end[0], end[1] - HIGH / 2)]))


def _port(
    place: tuple[int, int], last: set[tuple[int, int]], way: Literal[-1, 1]
) -> list[tuple[float, float]]:
    """Where an edge that passes boxes leaves (way 1) or enters (-1): first point at the box.

    By the side where no box is to the right, else by the gap between the rows.
    """
    x, y = _centre(place)
    if place in last:
        return [(x + WIDE / 2, y + 0.07 * way)]
    out = x + WIDE / 4
    return [(out, y + way * HIGH / 2), (out, y + way * (ROW + HIGH) / 4)]
