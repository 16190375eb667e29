"""Numbers for people: energies and counts with fitting prefixes."""

from __future__ import annotations

_JOULES = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ"), (1e-12, "pJ"))
_COUNTS = ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1.0, ""))


def format_joules(joules: float | None) -> str:
    """Energy [J] with three digits and a prefix; None is "unpriced".

    >>> format_joules(1.674e-6), format_joules(0.0), format_joules(None)
    ('1.67 µJ', '0 J', 'unpriced')
    >>> format_joules(9.9999e-4), format_joules(4e-13)
    ('1 mJ', '0.4 pJ')
    """
    if joules is None:
        return "unpriced"
    if joules == 0:
        return "0 J"
    rounded = float(f"{joules:.3g}")  # before the prefix is chosen: 999.99 µJ is 1 mJ
    scale, unit = next((pair for pair in _JOULES if abs(rounded) >= pair[0]), _JOULES[-1])
    return f"{rounded / scale:.3g} {unit}"


def format_count(count: float) -> str:
    """A number of operations with four digits and a prefix.

    >>> format_count(1366049.9), format_count(61952.0), format_count(12.5), format_count(999960.0)
    ('1.366 M', '61.95 k', '12.5', '1 M')
    """
    rounded = float(f"{count:.4g}")
    scale, prefix = next((pair for pair in _COUNTS if abs(rounded) >= pair[0]), _COUNTS[-1])
    return f"{rounded / scale:.4g}{prefix}"
