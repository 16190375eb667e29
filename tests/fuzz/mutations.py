"""Seeded damage to bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

EXTREMES = (
    b"\x00" * 8,
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"\xff" * 7 + b"\x7f",
    b"\x80" + b"\x00" * 7,
)
"""Least and greatest numbers of both byte orders, signed and not."""
Edit = Callable[[bytearray, random.Random], None]


def _place(data: bytearray, rng: random.Random) -> tuple[int, int]:
    size = rng.randint(1, 8)
    return rng.randrange(max(1, len(data) - size)), size


def flip(data: bytearray, rng: random.Random) -> None:
    """Change bits of 1 to 8 bytes."""
    start, size = _place(data, rng)
    for at in range(start, min(start + size, len(data))):
        data[at] ^= rng.randint(1, 255)


def flip_bit(data: bytearray, rng: random.Random) -> None:
    """Change one bit."""
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def insert(data: bytearray, rng: random.Random) -> None:
    """Put in 1 to 8 bytes."""
    start, size = _place(data, rng)
    data[start:start] = rng.randbytes(size)


def delete(data: bytearray, rng: random.Random) -> None:
    """Take out 1 to 8 bytes."""
    start, size = _place(data, rng)
    del data[start : start + size]


def duplicate(data: bytearray, rng: random.Random) -> None:
    """Write 1 to 8 bytes twice."""
    start, size = _place(data, rng)
    data[start:start] = data[start : start + size]


def extreme(data: bytearray, rng: random.Random) -> None:
    """Set 1, 2, 4 or 8 bytes to the least or the greatest number."""
    start, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 8))
    data[start : start + size] = rng.choice(EXTREMES)[: min(size, len(data) - start)]


def swap(data: bytearray, rng: random.Random) -> None:
    """Exchange two blocks of 1 to 8 bytes."""
    (a, size), b = _place(data, rng), rng.randrange(max(1, len(data) - 8))
    first, second = bytes(data[a : a + size]), bytes(data[b : b + size])
    data[a : a + len(second)] = second
    data[b : b + len(first)] = first


def digit(data: bytearray, rng: random.Random) -> None:
    """Make a digit another one."""
    digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if digits:
        at = rng.choice(digits)
        data[at] = 48 + (data[at] - 48 + rng.randint(1, 9)) % 10


def write(data: bytearray, rng: random.Random) -> None:
    """Write 1 to 8 printable letters over others."""
    start, size = _place(data, rng)
    letters = bytes(rng.randint(32, 126) for _ in range(min(size, len(data) - start)))
    data[start : start + len(letters)] = letters


def cut(data: bytearray, rng: random.Random) -> None:
    """End anywhere."""
    del data[rng.randrange(len(data)) :]


EDITS: tuple[Edit, ...] = (
    flip,
    flip_bit,
    insert,
    delete,
    duplicate,
    extreme,
    swap,
    digit,
    write,
    cut,
)


def mutant(data: bytes, seed: str) -> bytes:
    """``data`` after one edit or, of every fourth, after two or three; never unchanged.

    Half of the edits fall on the first or the last kilobyte, where headers and directories are.
    """
    rng = random.Random(seed)
    while True:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, rng.randint(2, 3)))):
            edge = min(len(changed), 1024)
            where = rng.choice(("head", "tail", "any", "any"))
            if where == "any" or edge == len(changed):
                parts = bytearray(), changed, bytearray()
            elif where == "head":
                parts = bytearray(), changed[:edge], changed[edge:]
            else:
                parts = changed[:-edge], changed[-edge:], bytearray()
            if parts[1]:
                rng.choice(EDITS)(parts[1], rng)
            changed = parts[0] + parts[1] + parts[2]
        if changed != data:
            return bytes(changed)
