"""Numbers for people: energies and counts with fitting prefixes."""

from __future__ import annotations

_JOULES = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ"), (1e-12, "pJ"))
_COUNTS = ((1e9, " G"), (1e6, " M"), (1e3, " k"))


def format_joules(joules: float | None) -> str:
    """Energy [J] with three digits and a prefix; None is "unpriced".

    >>> format_joules(1.665e-6), format_joules(0.0), format_joules(None)
    ('1.67 µJ', '0 J', 'unpriced')
    """
    if joules is None:
        return "unpriced"
    if joules == 0:
        return "0 J"
    for scale, unit in _JOULES:
        if abs(joules) >= scale:
            return f"{joules / scale:.3g} {unit}"
    return f"{joules / 1e-12:.3g} pJ"


def format_count(count: float) -> str:
    """A number of operations with three or four digits and a prefix.

    >>> format_count(1366049.9), format_count(61952.0), format_count(12.5)
    ('1.366 M', '61.95 k', '12.5')
    """
    for scale, unit in _COUNTS:
        if abs(count) >= scale:
            return f"{count / scale:.4g}{unit}"
    return f"{count:.4g}"
