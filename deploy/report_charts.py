"""Charts of single answers and of choices between settings, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

from tser.deploy.charts import legend, shares
from tser.deploy.report_svg import INK, SERIES, inline_svg, plain


def confusion_chart(
    key: str, title: str, matrix: Sequence[Sequence[int]], names: Sequence[str]
) -> str:
    """A confusion matrix: right answers in one colour, wrong ones in another.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        matrix: row: true class; column: answer.
        names: of the classes.
    """
    classes = len(matrix)
    written = classes <= 16
    side = max(3.2, min(0.34 * classes + 1.1, 6.5))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(aspect="equal")
        axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5))
        for i, row in enumerate(matrix):
            for j, count in enumerate(row):
                if count:
                    share = count / sum(row)
                    colour = SERIES[0 if i == j else 1]
                    # The root: one image of a hundred is still seen.
                    depth = 0.1 + 0.55 * share**0.5
                    corner = (j - 0.5, i - 0.5)
                    cell = Rectangle(corner, 1, 1, facecolor=colour, alpha=depth, linewidth=0)
                    axes.add_patch(cell)
                    if written:
                        axes.text(j, i, f"{count:,}", ha="center", va="center", fontsize=7.5)
        every = range(0, classes, max(1, -(-classes // 25)))
        labels = [plain(names[k], 14) for k in every]
        long = max(map(len, labels)) > 2
        axes.set_xticks(list(every), labels, rotation=90 if long else 0)
        axes.set_yticks(list(every), labels)
        axes.tick_params(length=0)
        axes.set(xlabel="answer", ylabel="true class")
        axes.grid(visible=False)

    return inline_svg(key, title, (side, side), draw)


def tradeoff_chart(
    key: str,
    title: str,
    groups: Sequence[tuple[str, Sequence[tuple[str, float, float]]]],
    front: Sequence[tuple[float, float]],
    x_label: str,
) -> str:
    """Accuracy over a cost, with the front of what nothing else beats in both.

    A point tells its name to a mouse that rests on it.

    Args:
        key: unique in the page.
        title: for who cannot see it.
        groups: label, and the name, cost [J] and accuracy of each of its points.
        front: cost and accuracy of the points of the front, by rising cost.
        x_label: with unit.
    """
    hints = {
        f"point-{number}-{place}": name
        for number, (_, points) in enumerate(groups)
        for place, (name, _, _) in enumerate(points)
    }

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(*zip(*front, strict=True), "-", color=INK, alpha=0.5, label="Pareto front")
        for number, (label, points) in enumerate(groups):
            costs, right = [cost for _, cost, _ in points], [share for _, _, share in points]
            axes.plot(costs, right, "os"[number % 2], color=SERIES[number], label=label)
            for place, (_, cost, share) in enumerate(points):  # unseen, easier to hit than a dot
                gid = f"point-{number}-{place}"
                axes.plot(cost, share, "o", markersize=11, alpha=0, gid=gid)
        axes.set(xlabel=x_label, ylabel="test accuracy")
        axes.margins(0.06, 0.12)
        axes.xaxis.set_major_formatter(EngFormatter("J"))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        shares(axes.yaxis)
        legend(figure, axes)

    return inline_svg(key, title, (5.0, 3.2), draw, hints)
