"""One line of a fit check, and the usual ways to come to its verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tser.deploy.fit_limits import Chip
from tser.deploy.fit_network import Network
from tser.deploy.placement import Placement

Verdict = Literal["fits", "does not fit", "unchecked"]
Group = Literal["wall", "budget"]
Amount = int | float | str | None
FITS: Verdict = "fits"
DOES_NOT: Verdict = "does not fit"
UNCHECKED: Verdict = "unchecked"


@dataclass(frozen=True)
class Case:
    """What a rule looks at.

    Attributes:
        network: what goes onto the chip.
        chip: its limits.
        weight_bits: stated by the user: weights are taken as quantised to so many.
        placement: of the layers on cores; None where the chip's is not published.
    """

    network: Network
    chip: Chip
    weight_bits: int | None
    placement: Placement | None


@dataclass(frozen=True)
class Row:
    """The verdict on one constraint.

    Attributes:
        constraint: its kind.
        group: "wall" (a property each layer has or has not) or "budget" (an amount).
        verdict: "fits", "does not fit" or "unchecked".
        layers: that do not fit, the worst first; of a row that fits, the one with most.
        used: of the limit, by the first layer or in all; None where it is no amount.
        limit: the limit; None where there is none.
        unit: of both.
        excess: used beyond the limit; None where it fits or is no amount.
        reason: why, in words.
        change: what would make it fit; "" where nothing is to be changed.
        by_width: whether a narrower network could fit.
        source: of the limit.
        second_hand: whether it was not read in the source itself.
    """

    constraint: str
    group: Group
    verdict: Verdict
    layers: tuple[str, ...] = ()
    used: Amount = None
    limit: Amount = None
    unit: str = ""
    excess: float | None = None
    reason: str = ""
    change: str = ""
    by_width: bool = False
    source: str = ""
    second_hand: bool = False

    @property
    def share(self) -> float | None:
        """Used over limit; None where they are no amounts."""
        if isinstance(self.used, int | float) and isinstance(self.limit, int | float):
            return self.used / self.limit if self.limit else None
        return None


@dataclass(frozen=True)
class Finding:
    """What a rule found, before it is known by which limit.

    Attributes are those of `Row`.
    """

    verdict: Verdict
    layers: tuple[str, ...] = ()
    used: Amount = None
    limit: Amount = None
    excess: float | None = None
    reason: str = ""
    change: str = ""
    by_width: bool = False


Rule = Callable[[Case, Any], Finding]
"""(what to look at, value of the limit) -> what it comes to."""


def at_most(
    amounts: Iterable[tuple[str, float]],
    limit: float,
    *,
    nothing: str = "",
    change: Callable[[str, float], str] | str = "",
    by_width: bool = False,
) -> Finding:
    """Every amount is within the limit.

    Args:
        amounts: (layer, amount).
        limit: the most.
        nothing: reason for a network without such amounts.
        change: for the worst layer and its amount.
        by_width: see `Row`.
    """
    ranked = sorted(amounts, key=lambda pair: -pair[1])
    if not ranked:
        return Finding(FITS, limit=limit, reason=nothing)
    worst, used = ranked[0]
    if used <= limit:
        return Finding(FITS, (worst,) if worst else (), used, limit)
    over = tuple(name for name, amount in ranked if amount > limit and name)
    text = change if isinstance(change, str) else change(worst, used)
    return Finding(DOES_NOT, over, used, limit, used - limit, change=text, by_width=by_width)


def one_of(
    values: Iterable[tuple[str, Any]],
    allowed: Sequence[Any],
    *,
    nothing: str = "",
    change: Callable[[Any], str] | str = "",
) -> Finding:
    """Every value is among those allowed."""
    found = list(values)
    listed = _listed(allowed)
    if not found:
        return Finding(FITS, limit=listed, reason=nothing)
    wrong = [(name, value) for name, value in found if value not in allowed]
    if not wrong:
        used = _listed(sorted({value for _, value in found}))
        return Finding(FITS, used=used, limit=listed)
    value = wrong[0][1]
    layers = tuple(dict.fromkeys(name for name, _ in wrong))
    text = change if isinstance(change, str) else change(value)
    return Finding(DOES_NOT, layers, str(value), listed, change=text)


def _listed(values: Sequence[Any]) -> str:
    whole = [v for v in values if isinstance(v, int)]
    if len(whole) == len(values) > 2 and list(values) == list(range(whole[0], whole[-1] + 1)):
        return f"{whole[0]}..{whole[-1]}"
    return ", ".join(map(str, values)) or "none"
