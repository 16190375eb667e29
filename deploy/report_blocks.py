"""What a report is made of, apart from how it looks: sections of blocks, and numbers as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tser.deploy.units import format_count, format_joules

Tone = Literal["info", "good", "caution", "bad"]
NBSP = "\u00a0"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    type: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    type: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Note:
    """Something to know or to do.

    Attributes:
        text: what.
        command: the line to type, if any.
        tone: "info", or "caution" for what must not be overlooked.
    """

    type: ClassVar[str] = "note"
    text: str
    command: str = ""
    tone: Tone = "info"


@dataclass(frozen=True)
class Tile:
    """One key figure: what it is, its value, and what the value means."""

    label: str
    value: str
    detail: str
    tone: Tone = "info"


@dataclass(frozen=True)
class Tiles:
    """Key figures."""

    type: ClassVar[str] = "tiles"
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Facts:
    """Names and values, one pair a line."""

    type: ClassVar[str] = "facts"
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        caption: what the numbers are, with units.
        columns: heads.
        rows: cells as text.
        align: a letter a column: "l" text, "r" numbers.
        footer: a last row of totals.
    """

    type: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str
    footer: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse rows of another length than the head."""
        for row in (self.align, *self.rows, *([self.footer] if self.footer else [])):
            if len(row) != len(self.columns):
                raise ValueError(f"{row!r} has not the {len(self.columns)} cells of {self.caption}")


@dataclass(frozen=True)
class Bullets:
    """A list with a line in front."""

    type: ClassVar[str] = "bullets"
    text: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """A drawing of ours.

    Attributes:
        svg: from ``tser.deploy.charts``, which escapes what it draws; goes into the page as it is.
        caption: what there is to see.
        wide: keeps its size on a narrow screen, where it is scrolled.
    """

    type: ClassVar[str] = "chart"
    svg: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """A small image: a ``data:`` address, its description for who cannot see it, its caption."""

    type: ClassVar[str] = "picture"
    address: str
    description: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Small images in rows, as many as there is room for."""

    type: ClassVar[str] = "gallery"
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Sources:
    """Publications, numbered from 1: what each is, and its ``https:`` address or ""."""

    type: ClassVar[str] = "sources"
    text: str
    items: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        """Refuse addresses that a click must not open: ``javascript:`` would run."""
        for _, address in self.items:
            if address and not address.startswith("https://"):
                raise ValueError(f"{address!r} is not an https address")


@dataclass(frozen=True)
class Code:
    """Text as typed or as in a file."""

    type: ClassVar[str] = "code"
    caption: str
    text: str


@dataclass(frozen=True)
class Group:
    """Blocks side by side where there is room."""

    type: ClassVar[str] = "group"
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Details:
    """Blocks that open on demand (and in print)."""

    type: ClassVar[str] = "details"
    summary: str
    blocks: tuple[Block, ...]


Block = (
    Text
    | Heading
    | Note
    | Tiles
    | Facts
    | Table
    | Bullets
    | Chart
    | Picture
    | Gallery
    | Sources
    | Code
    | Group
    | Details
)


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        key: its address in the page, ``#key``.
        title: its heading.
        blocks: its contents.
    """

    key: str
    title: str
    blocks: tuple[Block, ...]


def step(t: int) -> str:
    r"""Time after ``t`` steps, counted from 1.

    >>> step(2)
    't\xa0=\xa02'
    """
    return f"t{NBSP}={NBSP}{t}"


def percent(share: float, digits: int = 1) -> str:
    r"""A share of 1 as a percentage.

    >>> percent(0.994)
    '99.4\xa0%'
    """
    return f"{100 * share:.{digits}f}{NBSP}%"


def number(value: float) -> str:
    """A count or a mean of counts: whole from 1000 on, else with up to three decimals.

    >>> number(447366.72), number(256.0), number(329.718), number(0.02)
    ('447,367', '256', '329.7', '0.02')
    """
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def rounded(value: float) -> str:
    r"""A large count in short.

    >>> rounded(1428001.916)
    '1.428\xa0M'
    """
    return format_count(value).replace(" ", NBSP)


def joules(value: float | None) -> str:
    r"""An energy [J] with the unit that suits it; None is unpriced.

    >>> joules(3.489e-05)
    '34.9\xa0µJ'
    """
    return format_joules(value).replace(" ", NBSP)


def span(value: float | None, low: float | None, high: float | None) -> str:
    r"""An energy [J] with its range, if it has one; without ends it is unpriced.

    >>> span(2.6e-8, 2.5e-9, 2.6e-8), span(None, 3e-12, 4e-12), span(None, None, None)
    ('26\xa0nJ (2.5\xa0nJ – 26\xa0nJ)', '3\xa0pJ – 4\xa0pJ', 'unpriced')
    """
    if low is None or high is None:
        return joules(None)
    least, most = joules(low), joules(high)
    ends = least if least == most else f"{least} – {most}"
    middle = ends if value is None else joules(value)
    return middle if middle == ends else f"{middle} ({ends})"
