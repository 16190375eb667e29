"""What ``tser fit`` prints with ``--json``, as typed models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tser.deploy.report_files import Count, Document, Part, Share

Place = Literal["chip", "host"]


class FitRow(Part):
    """The verdict on one limit."""

    constraint: str
    """Name of the limit."""
    group: Literal["wall", "budget"]
    """A property that each layer has or has not, or an amount."""
    verdict: Literal["fits", "does not fit", "unchecked"]
    """Unchecked: the limit is not published, or the layer is not known."""
    layers: list[str]
    """That do not fit, the worst first; of a row that fits, the one with most."""
    used: int | float | str | None
    """Of the limit; null: no amount."""
    limit: int | float | str | None
    """Null: there is none."""
    unit: str
    """Of both."""
    excess: int | float | str | None
    """Used beyond the limit; null: nothing, or no amount."""
    reason: str
    """In words."""
    change: str
    """What would make it fit; may be empty."""
    by_width: bool
    """Whether a narrower network could fit."""
    source: str
    """Publication of the limit."""
    second_hand: bool
    """Read in a work that cites it."""
    used_fraction: float | None
    """Used of limit; null: no amounts."""


class PlacedLayer(Part):
    """A layer that is cut into parts for the cores of a chip."""

    layer: str
    """Name."""
    tile: list[Count]
    """Channels, height and width of one part."""
    tiles: Count
    """How many parts."""
    neurons: Count
    """Of one part."""
    axons_in: Count
    """That arrive at one part."""
    axons_out: Count
    """That leave one part."""
    synaptic_memory_bits: Count
    """Of one part [bit]; 0: the chip has no such limit."""


class StuckLayer(Part):
    """A layer of which not even one neuron fits a core."""

    layer: str
    """Name."""
    resource: str
    """That is too small."""
    needed: Count
    """By one neuron."""
    held: Count
    """By a core."""


class FitPlacement(Part):
    """Layers on cores."""

    kind: Literal["tiles", "layer_a_core", "one_pool", "none"]
    """How layers come to cores."""
    cores: Count | None
    """Taken; null: a layer is stuck."""
    lower_bound: Count
    """That no placement undercuts."""
    layers: list[PlacedLayer]
    """In execution order."""
    assigned: dict[str, Count]
    """Core of each layer, where a layer takes a core."""
    stuck: list[StuckLayer]
    """Layers that fit no core."""


class FitTarget(Part):
    """One chip."""

    name: str
    """As named by --target."""
    title: str
    """Full name."""
    exact: bool
    """Whether its rules are those of the chip or of its mapping tool."""
    verdict: Literal["fits", "fits as far as checked", "does not fit"]
    """The worst of the rows."""
    counts: dict[Literal["fits", "does not fit", "unchecked"], Count]
    """Rows by verdict."""
    width_factor: Share | None
    """Of all hidden layers, with which it would fit; null: it fits, or none was found."""
    rows: list[FitRow]
    """One a limit."""
    placement: FitPlacement | None
    """Null: how the chip is filled is not published."""


class FitLayer(Part):
    """A population of neurons."""

    name: str
    """As in the graph."""
    kind: str
    """Class in NIR; readout: sums without neurons."""
    size: list[Count]
    """Channels, height and width."""
    fan_in: Count
    """Synapses of the neuron with most."""
    synapses: Count
    """Of all its neurons."""
    sources: list[str]
    """That send to it."""


class FitDocument(Document):
    """What ``tser fit --json`` prints."""

    schema_version: Literal[1]
    graph: str
    """The file."""
    dt_seconds: float | None
    """Time step [s]; null: not stated."""
    encoding: str | None
    """As stated."""
    weight_bits: Annotated[int, Field(ge=1)] | None
    """As taken for the check; null: as they are."""
    first_layer: Place
    """Who computes it."""
    readout: Place
    """Who adds it up."""
    neurons: Count
    """How many."""
    synapses: Count
    """How many."""
    layers: list[FitLayer]
    """In execution order."""
    targets: list[FitTarget]
    """As they were named; exit code 3 where one does not fit."""
