"""Matplotlib drawings as inline SVG, and images as ``data:`` addresses.

A drawing takes the page's colours: what is drawn in ``INK`` becomes ``currentColor`` and what is
drawn in a colour of ``SERIES`` becomes a CSS variable, so that one drawing suits a light and a
dark page. The same data give the same bytes.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

INK = "#010203"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Okabe and Ito's colours, told apart by everyone; ``--series-1`` and so on in the page."""
_PAGE_COLOURS = {INK: "currentColor"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelpad": 7,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
}
LONGEST_NAME = 30


def inline_svg(
    key: str,
    title: str,
    inches: tuple[float, float],
    draw: Callable[[Figure], None],
    hints: Mapping[str, str] | None = None,
) -> str:
    """A drawing that is fit to stand in an HTML page: ``<svg role="img">`` and nothing around it.

    Args:
        key: unique in the page; all ids begin with it.
        title: for who cannot see it.
        inches: width and height.
        draw: draws on the empty figure.
        hints: what is shown while the mouse rests on an artist, by its ``gid``.
    """
    file = io.BytesIO()
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # whatever the user's own settings are
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": key})
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure = Figure(figsize=inches)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    root = ET.fromstring(file.getvalue())  # noqa: S314 drawn a line above
    for element in list(root.iter()):
        hint = (hints or {}).get(element.get("id", ""))
        _make_inline(element, key)
        if hint is not None:
            note = ET.Element("title")
            note.text = plain(hint, 200)
            element.insert(0, note)
    for child in root.findall("defs"):
        if child.find("style") is not None:  # a rule for the whole page
            root.remove(child)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {
        "role": "img",
        "aria-labelledby": f"{key}-title",
        "class": "chart",
        # Grown by the page's zoom, never blown up; letters stay readable where it is scrolled.
        "style": f"max-width: {inches[0]:g}in; --least: {0.75 * inches[0]:g}in",
    }
    label = ET.Element("title", {"id": f"{key}-title"})
    label.text = plain(title, 200)
    root.insert(0, label)
    return ET.tostring(root, encoding="unicode")


def _make_inline(element: ET.Element, key: str) -> None:
    """No namespaces, ids of its own in the page, and the page's colours."""
    element.tag = element.tag.rpartition("}")[2]
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    if "id" in attributes:
        attributes["id"] = f"{key}-{attributes['id']}"
    if attributes.get("href", "").startswith("#"):
        attributes["href"] = f"#{key}-{attributes['href'][1:]}"
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{key}-")
    if "style" in attributes:
        style = re.sub(r"font-family:[^;]*;?\s*", "", attributes["style"])
        for colour, page in _PAGE_COLOURS.items():
            style = style.replace(colour, page)
        attributes["style"] = style
    element.attrib.clear()
    element.attrib |= attributes


def picture(image: NDArray[np.uint8], max_value: int) -> str:
    """An image ``[C, H, W]`` as a ``data:`` address; one or three channels, else their mean."""
    scaled = image.astype(np.float64) / max_value
    pixels: NDArray[Any] = scaled.transpose(1, 2, 0) if len(scaled) == 3 else scaled.mean(0)
    file = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        nothing = {"Software": None}
        imsave(file, pixels, format="png", cmap="gray", vmin=0, vmax=1, metadata=nothing)  # type: ignore[arg-type]
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def plain(name: str, longest: int = LONGEST_NAME) -> str:
    r"""A name from a file as one short line of printable characters.

    >>> plain("a\nb"), plain("block12.downsample.conv", 12)
    ('a b', 'block…e.conv')
    """
    text = "".join(letter if letter.isprintable() else " " for letter in name)
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[len(text) - (longest - 1 - half) :]}"
