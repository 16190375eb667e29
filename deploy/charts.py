"""The charts of a report, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
)
from numpy.typing import NDArray

from tser.deploy.report_svg import INK, LONGEST_NAME, SERIES, inline_svg, plain


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: in the legend.
        x: positions.
        y: values.
        colour: one of ``SERIES`` or ``INK``.
        dash: matplotlib's line style.
        low: lower edge of a band around it, if any.
        high: upper edge.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dash: str = "-"
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def line_chart(
    key: str,
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    percentages: bool = False,
    logarithmic: bool = False,
    from_zero: bool = False,
    engineering: str | None = None,
    level: tuple[str, float] | None = None,
) -> str:
    """Lines over whole numbers, such as steps or epochs.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        lines: at least one.
        x_label: with unit.
        y_label: with unit.
        percentages: values are shares of 1.
        logarithmic: values are positive and span decades.
        from_zero: the y axis begins at 0.
        engineering: y in this unit with prefixes (k, M, µ, n); "" for a count.
        level: a dashed line across, with its label.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for line in lines:
            few = len(line.x) <= 16
            axes.plot(
                line.x,
                line.y,
                color=line.colour,
                linestyle=line.dash,
                marker="o" if few else "",
                label=plain(line.label),
            )
            if line.low:
                axes.fill_between(
                    line.x, line.low, line.high, color=line.colour, alpha=0.15, linewidth=0
                )
        if level is not None:
            axes.axhline(level[1], color=INK, linestyle="--", linewidth=1.1, label=plain(level[0]))
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if engineering is not None:
            axes.yaxis.set_major_formatter(EngFormatter(engineering))
        if percentages:
            shares(axes.yaxis)
            low, high = axes.get_ylim()
            axes.set_ylim(low, min(high, 1 + 0.04 * (1 - low)))
        if from_zero:
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        legend(figure, axes)

    return inline_svg(key, title, (5.0, 3.2), draw)


def exit_chart(
    key: str, title: str, exits: Sequence[tuple[float, float, float]], fixed: Sequence[float]
) -> str:
    """Accuracy over the steps used: stopping at a confidence beside always taking t steps.

    A point tells its numbers to a mouse that rests on it, and its threshold to everyone where
    there is room.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        exits: threshold, mean steps and accuracy, by rising threshold.
        fixed: accuracy after t = 1..T steps.
    """
    hints = {
        f"stop-{number}": f"confidence {threshold:g}: {100 * right:.1f} % with {mean:.2f} steps"
        for number, (threshold, mean, right) in enumerate(exits)
    }

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        steps = np.arange(1, len(fixed) + 1)
        stops = [(mean, right) for _, mean, right in exits]
        for label, points, colour, look in (
            ("always t steps", list(zip(steps, fixed, strict=True)), INK, "s:"),
            ("stop at a confidence", stops, SERIES[0], "o-"),
        ):
            axes.plot(*zip(*points, strict=True), look, color=colour, label=label)
        for gid, point in zip(hints, stops, strict=True):  # unseen, and easier to hit than a dot
            axes.plot(*point, "o", markersize=11, alpha=0, gid=gid)
        axes.set(xlabel="mean steps used", ylabel="test accuracy")
        axes.margins(0.06, 0.12)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
        shares(axes.yaxis)
        for threshold, mean, right in _apart(exits, axes):
            axes.annotate(
                f"{threshold:g}",
                (mean, right),
                xytext=(-2, 4),  # beside a curve that rises or is level
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=SERIES[0],
            )
        legend(figure, axes)

    return inline_svg(key, title, (5.0, 3.2), draw, hints)


def _apart(
    exits: Sequence[tuple[float, float, float]], axes: Axes
) -> list[tuple[float, float, float]]:
    """The points whose labels do not touch, by rising threshold."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    kept: list[tuple[float, float, float]] = []
    for point in exits:
        near = (
            abs(point[1] - other[1]) < 0.08 * (right - left)
            and abs(point[2] - other[2]) < 0.08 * (high - low)
            for other in kept
        )
        if not any(near):
            kept.append(point)
    return kept


def rate_chart(
    key: str, title: str, layers: Sequence[tuple[str, float, Sequence[float]]], x_label: str
) -> str:
    """A bar a layer, and a dot a step: pale for the first, dark for the last.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        layers: name, mean and the value of every step.
        x_label: with unit.
    """

    def draw(figure: Figure) -> None:
        axes = _rows(figure, [name for name, _, _ in layers])
        places = np.arange(len(layers))
        means = [mean for _, mean, _ in layers]
        axes.barh(places, means, height=0.62, color=SERIES[0], alpha=0.45, label="mean")
        steps = max((len(values) for _, _, values in layers), default=0)
        for t in range(steps):
            shown = {0: "step 1", steps - 1: f"step {steps}"} if steps > 1 else {}
            axes.plot(
                [values[t] for _, _, values in layers],
                places,
                "o",
                color=INK,
                alpha=0.25 + 0.75 * t / max(1, steps - 1),
                markeredgewidth=0,
                label=shown.get(t),
            )
        axes.set_xlabel(x_label)
        shares(axes.xaxis)
        axes.set_xlim(left=0)
        legend(figure, axes)

    return inline_svg(key, title, (5.4, 1.0 + 0.27 * len(layers)), draw)


def operations_chart(
    key: str, title: str, layers: Sequence[tuple[str, float, float, bool]], x_label: str
) -> str:
    """Operations that are done in front of those that a dense execution would do.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        layers: name, done, dense, and whether they are multiply-accumulates.
        x_label: with unit.
    """

    def draw(figure: Figure) -> None:
        axes = _rows(figure, [name for name, _, _, _ in layers])
        places = np.arange(len(layers))
        axes.barh(
            places,
            [dense for _, _, dense, _ in layers],
            height=0.62,
            color=INK,
            alpha=0.13,
            label="dense",
        )
        for macs, colour, label in ((False, SERIES[0], "accumulate"), (True, SERIES[1], "MAC")):
            chosen = [n for n, layer in enumerate(layers) if layer[3] == macs]
            if chosen:
                done = [layers[n][1] for n in chosen]
                axes.barh(places[chosen], done, height=0.62, color=colour, label=label)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlim(left=0)
        legend(figure, axes)

    return inline_svg(key, title, (5.4, 1.0 + 0.27 * len(layers)), draw)


def raster_chart(key: str, title: str, layers: Sequence[tuple[str, NDArray[np.bool_]]]) -> str:
    """A spike raster: a panel a layer, a row a neuron, a dash a spike.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        layers: name and spikes ``[T, N]``; N differs between layers.
    """
    steps = max((len(spikes) for _, spikes in layers), default=1)
    columns = max(1, min(len(layers), 3 if steps <= 16 else 2 if steps <= 40 else 1))
    rows = -(-len(layers) // columns)

    def draw(figure: Figure) -> None:
        for position, (name, spikes) in enumerate(layers, 1):
            axes = figure.add_subplot(rows, columns, position)
            t, neuron = np.nonzero(spikes)
            # One path of dashes with gaps between them: a spike costs few bytes.
            gaps = np.full(len(t), np.nan)
            x = np.column_stack([t + 0.58, t + 1.42, gaps]).reshape(-1)
            y = np.column_stack([neuron, neuron, gaps]).reshape(-1)
            axes.plot(x, y, color=INK, linewidth=1.3, solid_capstyle="butt")
            axes.set(xlim=(0.5, steps + 0.5), ylim=(-1, spikes.shape[1]))
            axes.set_title(plain(name, 22 if columns > 2 else LONGEST_NAME), fontsize=8)
            axes.grid(visible=False)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            axes.tick_params(labelsize=7.5)
            axes.set_xlabel("step", fontsize=8)
            if position % columns == 1 or columns == 1:
                axes.set_ylabel("neuron shown", fontsize=8)

    return inline_svg(key, title, (5.4, 2.1 * rows), draw)


def _rows(figure: Figure, names: list[str]) -> Axes:
    axes = figure.add_subplot()
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return axes


def shares(axis: Axis) -> None:
    """Shares of 1 as percentages, with no more digits than they need."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.set_major_locator(MaxNLocator(nbins=6))


def legend(figure: Figure, axes: Axes) -> None:
    """A legend above the axes, where more than one artist is labelled."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = 3 if len(handles) == 3 else 2
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.6)
