"""Targets: what is published on the energy of a chip or process, one TOML file each.

A charge is what a bill can hold. Each is named once in the file:

* ``[charges]``: the figure it is charged with; an empty string where none is published.
* ``[inside]``: the charge whose figure holds it already (an all-in figure holds the neurons).
* ``[omitted]``: why it is left out of the total, in words.

A charge that the file does not name has no published figure. Without a figure, routing and static
power are left out of the total in words; every other charge keeps the total from being made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tser.deploy.data_files import load_shipped, read_own, shipped_names
from tser.errors import UsageError

PICOJOULE = 1e-12
MILLIWATT = 1e-3

Charge = Literal[
    "accumulate",
    "multiply_accumulate",
    "bias_add",
    "neuron_update_driven",
    "neuron_update_idle",
    "spike",
    "spike_hop",
    "static",
]
"""What is counted: operations; spikes sent, and their hops between cores; seconds (static)."""
Arithmetic = Literal["address_accumulate", "address_multiply_accumulate"]
"""Charged by the memory-aware model alone."""
Named = Charge | Arithmetic
Scope = Literal["per operation", "incremental", "all-in", "chip"]
SRAM = {"sram_8k": 8 * 1024, "sram_32k": 32 * 1024, "sram_1m": 1024 * 1024}
"""Figures of a process: energy of one 64-bit access by the size of the memory [byte]."""


class Figure(BaseModel):
    """One published figure: a value, a range, or a value within a range."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
    value: float | None = Field(default=None, gt=0)
    """As published for one operating point; none where sources only bound it."""
    low: float | None = Field(default=None, gt=0)
    """Lowest published value; default: ``value``."""
    high: float | None = Field(default=None, gt=0)
    """Highest published value; default: ``value``."""
    unit: Literal["pJ", "mW"]
    """Of the values: energy of one operation, or power."""
    per: str = Field(min_length=1)
    """What the operation is, or what draws the power."""
    operating_point: str = Field(min_length=1)
    """Process, voltage, clock, rates, as far as stated."""
    scope: Scope
    """The operation alone; its share over idle; everything divided by operations; a chip's power"""
    covers: str = Field(min_length=1)
    """What the figure includes and what not."""
    evidence: Literal["measured", "simulated", "vendor", "derived"]
    """How it was obtained."""
    second_hand: bool
    """Read in a work that cites the source, not in the source."""
    source: str = Field(min_length=1)
    """Publication."""
    url: str = Field(pattern=r"^https://")
    """Where the publication is, a DOI where it has one."""

    @model_validator(mode="after")
    def _ordered(self) -> Figure:
        if self.value is None and (self.low is None or self.high is None):
            raise ValueError("a figure needs a value, or low and high")
        low, high = self.bounds
        if not low <= (low if self.value is None else self.value) <= high:
            raise ValueError(f"low {low:g}, value {self.value} and high {high:g} are out of order")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high), both the value where no range is published."""
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        return float(low or 0), float(high or 0)

    @property
    def text(self) -> str:
        """Value, range and unit: ``26 pJ (2.5..26)``, ``10..450 pJ``, ``23.6 pJ``."""
        low, high = self.bounds
        span = f"{low:g}..{high:g}"
        if self.value is None:
            return f"{span} {self.unit}"
        return f"{self.value:g} {self.unit}" + (f" ({span})" if low < high else "")


class Target(BaseModel):
    """A chip or process: which figure is charged for what."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    schema_version: Literal[2]
    """Version of this format."""
    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Short name, as typed after --target."""
    title: str
    """Full name."""
    kind: Literal["chip", "process"]
    """A process prices arithmetic and memory, so an ANN can be priced for it as well."""
    process_nm: int | None = Field(default=None, gt=0)
    """Process node [nm], where it has one."""
    word_bits: int | None = Field(default=None, gt=0)
    """Bits of a weight or potential of a process."""
    left_out: tuple[str, ...] = ()
    """What a total does not include, in words."""
    notes: tuple[str, ...] = ()
    """What else a reader of a total must know."""
    charges: dict[Named, str]
    """Charge -> figure; an empty string: charged, but no figure is published."""
    inside: dict[Named, Named] = {}
    """Charge -> the charge whose figure holds it already."""
    omitted: dict[Named, str] = {}
    """Charge -> why the total leaves it out."""
    figures: dict[str, Figure] = {}
    """Figures by name."""

    @model_validator(mode="after")
    def _consistent(self) -> Target:
        for charge, name in self.charges.items():
            if name and name not in self.figures:
                raise ValueError(f"{charge} is charged with {name!r}, which is no figure here")
            unit = "mW" if charge == "static" else "pJ"
            if name and self.figures[name].unit != unit:
                raise ValueError(f"{charge} needs a figure in {unit}, which {name!r} is not")
        for charge, holder in self.inside.items():
            if self.figure(holder) is None:
                raise ValueError(f"{charge} is inside {holder}, which is charged with no figure")
        for charge in self.inside.keys() | self.omitted.keys():
            places = sum(charge in part for part in (self.charges, self.inside, self.omitted))
            if places > 1:
                raise ValueError(f"{charge} is in more than one of charges, inside and omitted")
        figure = self.figure("accumulate")
        if figure is not None and figure.scope == "all-in":
            for charge in ("neuron_update_driven", "neuron_update_idle", "static"):
                if self.inside.get(charge) != "accumulate":
                    raise ValueError(f"an all-in figure holds {charge}: list it under [inside]")
        if not self.left_out and not self.notes:
            raise ValueError("say under left_out or notes what a total does not hold")
        if self.kind == "process" and self.word_bits is None:
            raise ValueError("a process needs word_bits")
        return self

    def figure(self, charge: Named) -> Figure | None:
        """The figure that ``charge`` is charged with, None when none is published."""
        return self.figures.get(self.charges.get(charge, ""))


def target_names() -> list[str]:
    """Names of the targets that ship with tser."""
    return shipped_names("targets")


def load_target(name: str) -> Target:
    """A target that ships with tser.

    Raises:
        UsageError: no such target.
        InputFileError: its file is not valid.
    """
    return load_shipped("targets", name, Target, "target", "; --target-file takes your own")


def read_target(path: Path) -> Target:
    """A user's own target.

    Raises:
        InputFileError: the file cannot be read or is not valid.
    """
    return read_own(path, Target, "target")


def choose_targets(names: list[str], files: list[Path]) -> list[Target]:
    """Targets by name, then a user's own, which may be named as well.

    Raises:
        UsageError: no such target, or two of one name.
        InputFileError: a file is not valid.
    """
    own: list[Target] = []
    for path in files:
        target = read_target(path)
        if target.name in {*target_names(), *(other.name for other in own)}:
            raise UsageError(
                f"{path}: there is already a target {target.name!r}; give it another name"
            )
        own.append(target)
    given = {target.name for target in own}
    chosen = [load_target(name) for name in dict.fromkeys(names) if name not in given]
    return chosen + own
