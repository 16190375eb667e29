"""The charts of a report that show where two runs differ, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from tser.deploy.report_svg import INK, SERIES, inline_svg, plain

STEPS_AROUND = 40
"""Steps that are drawn around a divergence at most."""
MOST_CELLS = 64
"""Columns of a heat map at most; where there are more steps, a column is several."""
MOST_LABELLED = 10
REFERENCE, CANDIDATE = SERIES[0], SERIES[1]


@dataclass(frozen=True)
class Divergence:
    """Two runs around the neuron and step at which they first differ.

    Attributes:
        t: the step, from 0.
        position: row of the neuron.
        first_neuron: number of the first row in its layer.
        reference: spikes ``[neurons, T]``.
        candidate: likewise.
    """

    t: int
    position: int
    first_neuron: int
    reference: NDArray[np.bool_]
    candidate: NDArray[np.bool_]

    @property
    def shown(self) -> slice:
        """The steps that are drawn."""
        steps = self.reference.shape[1]
        start = max(0, min(self.t - STEPS_AROUND // 2, steps - STEPS_AROUND))
        return slice(start, min(steps, start + STEPS_AROUND))


def divergence_chart(key: str, title: str, found: Divergence, names: tuple[str, str]) -> str:
    """Two rasters side by side; what only one of them has is coloured, the first of it ringed.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        found: the two runs.
        names: of the two, for the headings.
    """
    runs = (found.reference, found.candidate)
    shown = found.shown

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        parts = zip(panels, runs, runs[::-1], names, (REFERENCE, CANDIDATE), strict=True)
        for axes, spikes, others, name, colour in parts:
            axes.axhspan(
                found.first_neuron + found.position - 0.5,
                found.first_neuron + found.position + 0.5,
                color=INK,
                alpha=0.09,
                linewidth=0,
            )
            _dashes(axes, spikes & others, found, INK)
            _dashes(axes, spikes & ~others, found, colour)
            axes.plot(
                found.t + 1,
                found.first_neuron + found.position,
                "o",
                markersize=13,
                markerfacecolor="none",
                markeredgecolor=INK,
                markeredgewidth=1.2,
                clip_on=False,
            )
            axes.set_title(plain(name), fontsize=9)
            axes.grid(visible=False)
            axes.set_xlim(shown.start + 0.5, shown.stop + 0.5)
            axes.set_ylim(found.first_neuron + len(spikes) - 0.3, found.first_neuron - 0.7)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
            axes.set_xlabel("step")
        panels[0].set_ylabel("neuron of the layer")
        labels = ("spike in both", "in the reference alone", "in the candidate alone")
        colours = (INK, REFERENCE, CANDIDATE)
        handles = [
            Line2D([], [], color=colour, linewidth=3.4, label=label)
            for colour, label in zip(colours, labels, strict=True)
        ]
        _legend(figure, handles, 3)

    return inline_svg(key, title, (5.2, 3.7), draw)


def _dashes(axes: Axes, spikes: NDArray[np.bool_], found: Divergence, colour: str) -> None:
    neuron, t = np.nonzero(spikes[:, found.shown])
    t = t + found.shown.start
    gaps = np.full(len(t), np.nan)
    x = np.column_stack([t + 0.6, t + 1.4, gaps]).reshape(-1)
    y = np.column_stack([neuron, neuron, gaps]).reshape(-1) + found.first_neuron
    axes.plot(x, y, color=colour, linewidth=3.4, solid_capstyle="butt")


def membrane_chart(
    key: str,
    title: str,
    found: Divergence,
    membranes: tuple[Sequence[float], Sequence[float]],
    threshold: float,
) -> str:
    """The membrane of one neuron before its reset, in both runs, against its threshold.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        found: says when the neuron fires.
        membranes: of reference and candidate, ``[T]``.
        threshold: of the neuron.
    """
    shown = found.shown
    steps = np.arange(shown.start, shown.stop) + 1

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvline(found.t + 1, color=INK, alpha=0.14, linewidth=9, zorder=0)
        axes.axhline(threshold, color=INK, linestyle=":", linewidth=1.4)
        looks = (("-", REFERENCE, "o", 2.4, 8), ("--", CANDIDATE, "s", 1.4, 4.5))
        runs = (found.reference, found.candidate)
        for membrane, spikes, look in zip(membranes, runs, looks, strict=True):
            dash, colour, marker, width, size = look
            values = np.asarray(membrane)[shown]
            axes.plot(steps, values, dash, color=colour, linewidth=width)
            fired = spikes[found.position, shown]
            for chosen, face in ((fired, colour), (~fired, "none")):
                axes.plot(
                    steps[chosen],
                    values[chosen],
                    marker,
                    color=colour,
                    markersize=size,
                    markerfacecolor=face,
                    markeredgewidth=1.3,
                )
        axes.set(xlabel="step", ylabel="membrane before reset")
        axes.set_xlim(shown.start + 0.5, shown.stop + 0.5)
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        empty = {"color": INK, "linestyle": "", "marker": "o"}
        handles = [
            Line2D([], [], color=REFERENCE, linewidth=2.4, label="reference"),
            Line2D([], [], color=CANDIDATE, linestyle="--", linewidth=1.4, label="candidate"),
            Line2D([], [], color=INK, linestyle=":", linewidth=1.4, label="threshold"),
            Line2D([], [], label="fires", **empty),  # type: ignore[arg-type]
            Line2D([], [], label="is silent", markerfacecolor="none", **empty),  # type: ignore[arg-type]
        ]
        _legend(figure, handles, 3)

    return inline_svg(key, title, (5.2, 3.7), draw)


def flip_chart(
    key: str, title: str, layers: Sequence[tuple[str, Sequence[int], Sequence[int]]]
) -> str:
    """Flips per layer and step: darker by powers of ten, framed where seeds are among them.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        layers: name, flips and seeds of every step.
    """
    steps = max((len(flips) for _, flips, _ in layers), default=1)
    width = -(-steps // MOST_CELLS)
    starts = np.arange(0, steps, width)
    flips, seeds = (
        np.add.reduceat(np.array([layer[n] for layer in layers], np.int64), starts, axis=1)
        for n in (1, 2)
    )
    decades = np.floor(np.log10(np.maximum(flips, 1))).astype(int)
    present = range(int(decades[flips > 0].min(initial=9)), int(decades.max(initial=0)) + 1)
    shades = dict(zip(present, np.linspace(0.2, 0.62, max(2, len(present))), strict=False))

    def draw(figure: Figure) -> None:
        axes = _rows(figure, [name for name, _, _ in layers])
        handles: list[Artist] = []
        for decade, shade in shades.items():
            here = _cells((flips > 0) & (decades == decade))
            if here:
                colour = (SERIES[0], float(shade))
                axes.add_collection(PatchCollection(here, facecolor=colour, linewidth=0))
                handles.append(Patch(facecolor=colour, linewidth=0, label=_decade(decade)))
        framed = _cells(seeds > 0, inset=0.05)
        if framed:
            cells = PatchCollection(framed, facecolor="none", edgecolor=SERIES[1], linewidth=1.6)
            axes.add_collection(cells)
            label = "seeds among them"
            frame = Patch(facecolor="none", edgecolor=SERIES[1], linewidth=1.6, label=label)
            handles.append(frame)
        if len(starts) <= MOST_LABELLED:
            for (row, column), count in np.ndenumerate(flips):
                if count:
                    axes.text(
                        column, row, _short(int(count)), ha="center", va="center", fontsize=7.5
                    )
        axes.set_xlim(-0.5, len(starts) - 0.5)
        axes.grid(visible=False)
        places = np.unique(np.linspace(0, len(starts) - 1, min(12, len(starts))).astype(int))
        axes.set_xticks(places, [str(starts[place] + 1) for place in places])
        axes.set_xlabel("step" if width == 1 else f"step (columns of {width})")
        _legend(figure, handles, 3 if len(handles) < 5 else 4)

    return inline_svg(key, title, (5.2, 1.4 + 0.29 * len(layers)), draw)


def _cells(chosen: NDArray[np.bool_], inset: float = 0.0) -> list[Rectangle]:
    size = 1 - 2 * inset
    edge = 0.5 - inset
    return [
        Rectangle((float(column) - edge, float(row) - edge), size, size)
        for row, column in np.argwhere(chosen)
    ]


def _decade(exponent: int) -> str:
    low, high = 10**exponent, 10 ** (exponent + 1) - 1
    return f"{low}\N{EN DASH}{high}" if exponent < 3 else f"from {_short(low)}"


def _short(count: int) -> str:
    """A count in the width of a cell."""
    if count < 1000:
        return str(count)
    exponent = len(str(count)) - 1
    digits = 1 if exponent % 3 == 0 else 0
    cut = count // 10 ** (exponent - 1) * 10 ** (exponent - 1)  # not rounded into the next shade
    return EngFormatter(places=digits, sep="")(cut).replace(".0", "")


def seed_chart(key: str, title: str, layers: Sequence[tuple[str, int, int]]) -> str:
    """Per layer a square for the seeds and a disc for the flips that follow from earlier ones.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        layers: name, seeds and propagated flips.
    """

    def draw(figure: Figure) -> None:
        axes = _rows(figure, [name for name, _, _ in layers])
        places = np.arange(len(layers))
        axes.set_xscale("symlog", linthresh=1, linscale=0.5)
        seeds, others = (np.array([layer[n] for layer in layers], float) for n in (1, 2))
        axes.hlines(
            places,
            np.minimum(seeds, others),
            np.maximum(seeds, others),
            color=INK,
            alpha=0.3,
            linewidth=1.2,
        )
        axes.plot(others, places, "o", color=SERIES[0], markersize=6.5, label="propagated")
        axes.plot(
            seeds,
            places,
            "s",
            color=SERIES[1],
            markersize=8,
            markerfacecolor="none",
            markeredgewidth=1.8,
            label="seeds",
        )
        axes.set_xlim(-0.3, 10 * max(1.0, seeds.max(initial=0), others.max(initial=0)) ** 1.05)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("flips (logarithmic)")
        handles, _ = axes.get_legend_handles_labels()
        _legend(figure, handles, 2)

    return inline_svg(key, title, (5.2, 1.4 + 0.29 * len(layers)), draw)


def _rows(figure: Figure, names: list[str]) -> Axes:
    axes = figure.add_subplot()
    axes.set_yticks(range(len(names)), [plain(name, 24) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return axes


def _legend(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    figure.legend(handles=list(handles), loc="outside upper left", ncols=columns, handlelength=1.8)
