"""Price operation counts with published figures; what has no figure stays unpriced."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tser.config_file import nearest
from tser.deploy.counting import LayerCount, OperationCount
from tser.errors import InputFileError, UsageError

PICOJOULE = 1e-12
Charge = Literal["accumulate", "multiply_accumulate", "neuron_update_driven", "neuron_update_idle"]
FirstLayer = Literal["charge", "host"]


class Figure(BaseModel):
    """One published energy figure."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    value_pj: float = Field(gt=0)
    """Energy of one operation [pJ]."""
    unit: str
    """What the operation is."""
    operating_point: str
    """Process, voltage, clock, as far as stated."""
    scope: str
    """What the figure includes and what not."""
    evidence: Literal["measured", "simulated", "vendor", "derived"]
    """How it was obtained."""
    second_hand: bool
    """Read in a work that cites the source, not in the source."""
    source: str
    """Publication."""


class Target(BaseModel):
    """A chip or process: which figure is charged for which operation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    schema_version: Literal[1]
    """Version of this format."""
    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Short name, as typed after --target."""
    title: str
    """Full name."""
    process_nm: int = Field(gt=0)
    """Process node [nm]."""
    left_out: tuple[str, ...]
    """What a total does not include, in words."""
    charges: dict[Charge, str]
    """Operation -> figure; an empty string: charged, but no figure is published."""
    figures: dict[str, Figure]
    """Figures by name."""

    @model_validator(mode="after")
    def _known(self) -> Target:
        for charge, figure in self.charges.items():
            if figure and figure not in self.figures:
                raise ValueError(f"{charge} is charged with {figure!r}, which is no figure here")
        return self

    def figure(self, charge: Charge) -> Figure | None:
        """The figure that ``charge`` is charged with, None when none is published."""
        return self.figures.get(self.charges.get(charge, ""))


@dataclass(frozen=True)
class Item:
    """One priced (or unpriced) line of a target's bill, per inference.

    Attributes:
        charge: which operation.
        count: operations per inference.
        joules: energy per inference [J], None when no figure is published.
        figure: the figure used.
    """

    charge: str
    count: float
    joules: float | None
    figure: Figure | None


@dataclass(frozen=True)
class Bill:
    """Energy of one inference on one target.

    Attributes:
        target: priced for.
        items: lines.
        energy_joules: total [J]; None while a charged line is unpriced.
        priced_joules: sum of the priced lines [J].
        unpriced: charged operations without a figure, in words.
        left_out: what the total does not include, in words.
    """

    target: Target
    items: list[Item]
    energy_joules: float | None
    priced_joules: float
    unpriced: list[str]
    left_out: list[str]


def target_names() -> list[str]:
    """Names of the targets that ship with tser."""
    folder = resources.files("tser.deploy") / "targets"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def load_target(name: str) -> Target:
    """A target that ships with tser.

    Raises:
        UsageError: no such target.
        InputFileError: its file is not valid.
    """
    if name not in target_names():
        raise UsageError(
            f"there is no target {name!r}{nearest(name, target_names())}; "
            f"targets are {', '.join(target_names())}"
        )
    text = (resources.files("tser.deploy") / "targets" / f"{name}.toml").read_text("utf-8")
    try:
        return Target.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise InputFileError(f"the target file {name}.toml is not valid: {reason}") from error


def charges(row: LayerCount, first_layer: FirstLayer = "charge") -> dict[Charge, int]:
    """Operations of one layer, over all samples, by what they are charged as.

    Args:
        row: exact counts.
        first_layer: "host" leaves out a layer with analog input, which then runs elsewhere.
    """
    return {
        "accumulate": int(row.sop_structural.sum()) if row.operation == "AC" else 0,
        "multiply_accumulate": row.macs if first_layer == "charge" else 0,
        "neuron_update_driven": row.neuron_updates_driven,
        "neuron_update_idle": row.neuron_updates - row.neuron_updates_driven,
    }


def layer_joules(
    row: LayerCount, samples: int, target: Target, first_layer: FirstLayer = "charge"
) -> float | None:
    """Energy of one layer per inference [J]; None while one of its operations has no figure."""
    total = 0.0
    for charge, count in charges(row, first_layer).items():
        figure = target.figure(charge)
        if count and figure is None:
            return None
        total += count / samples * figure.value_pj * PICOJOULE if figure else 0.0
    return total


def price(counts: OperationCount, target: Target, first_layer: FirstLayer = "charge") -> Bill:
    """Energy of one inference.

    Args:
        counts: exact totals over samples.
        target: figures.
        first_layer: see ``charges``.

    Returns:
        The itemised bill; its total is None while a charged operation has no figure, or while
        ``counts`` has gaps.
    """
    items: list[Item] = []
    unpriced = [
        f"{gap['name']} ({gap['kind']}): not counted, {gap['reason']}" for gap in counts.gaps
    ]
    rows = [charges(row, first_layer) for row in counts.layers]
    for charge in get_args(Charge):
        count = sum(row[charge] for row in rows) / counts.samples
        if not count:
            continue
        figure = target.figure(charge)
        if figure is None:
            items.append(Item(charge, count, None, None))
            unpriced.append(f"{charge.replace('_', ' ')}: no published figure for {target.title}")
        else:
            items.append(Item(charge, count, count * figure.value_pj * PICOJOULE, figure))
    priced = sum(item.joules for item in items if item.joules is not None)
    left_out = list(target.left_out)
    if first_layer == "host":
        analog = [row.name for row in counts.layers if row.operation == "MAC"]
        left_out += [f"{name}: analog input, computed on a host" for name in analog]
    return Bill(target, items, None if unpriced else priced, priced, unpriced, left_out)


def ann_twin(counts: OperationCount) -> dict[str, Any]:
    """The same architecture as a conventional network: every connection once, as a MAC.

    Returns:
        The target, MACs of one inference and their energy on 45 nm CMOS [J], arithmetic alone.
    """
    macs = sum(row.ann_macs for row in counts.layers)
    figure = load_target("cmos45").figures["mac_fp32"]
    return {
        "target": "cmos45",
        "macs": macs,
        "energy_joules": macs * figure.value_pj * PICOJOULE,
        "figure": figure.model_dump(),
    }
