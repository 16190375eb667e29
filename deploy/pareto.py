"""Which settings nothing else beats, and the cheapest that is good enough."""

from __future__ import annotations

from collections.abc import Sequence


def front(costs: Sequence[float | None], shares: Sequence[float]) -> list[int]:
    """Positions of the points that no other beats in one value without losing in the other.

    Args:
        costs: lower is better; None: not known, so in no front.
        shares: higher is better.

    Returns:
        By rising cost.

    >>> front([1.0, 2.0, 3.0, 2.0, None], [0.5, 0.9, 0.8, 0.7, 1.0])
    [0, 1]
    """
    known = [
        (cost, -share, at)
        for at, (cost, share) in enumerate(zip(costs, shares, strict=True))
        if cost is not None
    ]
    chosen: list[int] = []
    best = float("-inf")
    for _, negative, at in sorted(known):
        if -negative > best:
            best = -negative
            chosen.append(at)
    return chosen


def cheapest(costs: Sequence[float | None], shares: Sequence[float], least: float) -> int | None:
    """The position of the lowest cost that reaches ``least``; None where none does.

    Of several with that cost, the one with the highest share.

    >>> cheapest([3.0, 1.0, 2.0, None], [0.9, 0.5, 0.88, 0.9], 0.88)
    2
    """
    reaching = [
        (cost, -share, at)
        for at, (cost, share) in enumerate(zip(costs, shares, strict=True))
        if cost is not None and share >= least
    ]
    return min(reaching)[2] if reaching else None
