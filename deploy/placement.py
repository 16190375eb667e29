"""Layers on cores, each cut into equal tiles: greedy, with a lower bound.

Of all blocks of channels, rows and columns that a core holds, a layer takes the one that
needs the fewest cores. Tiles that fill a core only in part then share cores, first fit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tser.deploy.fit_limits import Chip
from tser.deploy.fit_network import Connection, Network, Population, Size

_WORD, _BLOCK, _HEADER = 64, 64, 10
_INDEX_BITS = (0, 6, 7, 8, 9, 10, 11, 12)
_SHARED = 4
"""Tiles for each core of the chip above which tiles are no longer put together."""
RESOURCES = ("neurons", "axons_in", "axons_out", "synaptic_memory")


@dataclass(frozen=True)
class Load:
    """What a tile takes of a core.

    Attributes:
        neurons: copies among them.
        axons_in: axons that arrive.
        axons_out: axons that leave.
        synaptic_memory: in bits; 0 where the chip has no such limit.
    """

    neurons: int
    axons_in: int
    axons_out: int
    synaptic_memory: int

    def __add__(self, other: Load) -> Load:
        return Load(*(a + b for a, b in zip(self.amounts, other.amounts, strict=True)))

    @property
    def amounts(self) -> tuple[int, ...]:
        """In the order of `RESOURCES`."""
        return (self.neurons, self.axons_in, self.axons_out, self.synaptic_memory)


@dataclass(frozen=True)
class Tiling:
    """How one layer is cut.

    Attributes:
        layer: its name.
        tile: channels, height, width.
        tiles: how many.
        load: of one.
    """

    layer: str
    tile: Size
    tiles: int
    load: Load


@dataclass(frozen=True)
class Placement:
    """Where the layers go.

    Attributes:
        cores: needed.
        lower_bound: cores that no placement needs fewer than.
        tilings: for each layer that was cut.
        assigned: core number of each layer, where a layer takes a core.
        stuck: (layer, resource, needed, held) where not even one neuron fits a core.
    """

    cores: int
    lower_bound: int
    tilings: tuple[Tiling, ...] = ()
    assigned: dict[str, int] = field(default_factory=dict)
    stuck: tuple[tuple[str, str, int, int], ...] = ()


def capacity(chip: Chip) -> dict[str, int]:
    """What a core holds; resources without a published limit are not in it."""
    limits = chip.limits
    stated = {
        "neurons": limits.neurons_per_core,
        "axons_in": limits.axons_in,
        "axons_out": limits.axons_out,
        "synaptic_memory": limits.synaptic_memory,
    }
    return {name: limit.value for name, limit in stated.items() if limit is not None}


def tile_layers(network: Network, chip: Chip, weight_bits: int | None = None) -> Placement:
    """Cut every layer into tiles and put the tiles on cores.

    Args:
        network: what goes onto the chip.
        chip: with the placement "tiles".
        weight_bits: of stored weights; default: as many as the chip has.
    """
    held, bits = capacity(chip), _width(chip, weight_bits)
    chosen: dict[str, Tiling] = {}
    stuck: dict[str, tuple[str, str, int, int]] = {}
    passes = 2 if any(c.delayed for _, c in network.connections) else 1
    for _ in range(passes):  # the second: what leaves along cycles is known
        for population in reversed(network.populations):
            found = _best(network, population, chosen, held, chip.axons, bits)
            if isinstance(found, Tiling):
                chosen[population.name] = found
                stuck.pop(population.name, None)
            else:
                stuck[population.name] = (population.name, *found)
    tilings = [chosen[p.name] for p in network.populations if p.name in chosen]
    cores = chip.limits.cores.value if chip.limits.cores else 0
    needed = _packed(tilings, held, _SHARED * cores)
    return Placement(
        needed,
        lower_bound(network, chip, weight_bits),
        tuple(tilings),
        stuck=tuple(stuck[p.name] for p in network.populations if p.name in stuck),
    )


def _best(
    network: Network,
    population: Population,
    chosen: dict[str, Tiling],
    held: dict[str, int],
    axons: str,
    bits: int,
) -> Tiling | tuple[str, int, int]:
    """The tile of the fewest cores, or what one neuron needs too much of."""
    channels, height, width = population.size
    targets = [
        (c, chosen[p.name].tile, p.size)
        for p, c in network.targets(population.name)
        if p.name in chosen
    ]

    def load(tile: Size) -> Load:
        return _load(population, tile, targets, axons, bits)

    def channels_for(h: int, w: int) -> int | None:
        return _most_channels(_steps(channels), lambda c: _holds(held, load((c, h, w))))

    best: tuple[tuple[int, int], Size] | None = None
    room = held["neurons"]
    for h in _steps(height):
        for w in _steps(width):
            area = -(-height // h) * -(-width // w)
            fewest = area * -(-channels // max(1, room // (h * w)))
            if h * w > room or (best is not None and fewest > best[0][0]):
                continue
            c = channels_for(h, w)
            if c is None:
                continue
            # Of equal ones the most compact: fewer axons arrive and leave.
            order = (area * -(-channels // c), load((c, h, w)).axons_in)
            if best is None or order < best[0]:
                best = order, (c, h, w)
    if best is None:
        amounts = dict(zip(RESOURCES, load((1, 1, 1)).amounts, strict=True))
        name = max(held, key=lambda n: amounts[n] / held[n])
        return name, amounts[name], held[name]
    return Tiling(population.name, best[1], best[0][0], load(best[1]))


@functools.lru_cache(maxsize=1024)
def _steps(size: int) -> tuple[int, ...]:
    """Sides of tiles worth a try, largest first: the smallest for each number of tiles."""
    return tuple(sorted({-(-size // count) for count in range(1, size + 1)}, reverse=True))


def _most_channels(steps: Sequence[int], holds: Callable[[int], bool]) -> int | None:
    """The first of the descending ``steps`` that a core holds; more channels need more."""
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        if holds(steps[middle]):
            high = middle
        else:
            low = middle + 1
    return steps[low] if low < len(steps) else None


def _holds(held: dict[str, int], load: Load) -> bool:
    amounts = dict(zip(RESOURCES, load.amounts, strict=True))
    return all(amounts[name] <= most for name, most in held.items())


def _load(
    population: Population,
    tile: Size,
    targets: list[tuple[Connection, Size, Size]],
    axons: str,
    bits: int,
) -> Load:
    total, neurons = population.size[0], math.prod(tile)
    leaving = sum(_leaving(population.size, tile, *target) for target in targets)
    if axons == "position":
        leaving = sum(_leaving(population.size, tile, *t, positions=True) for t in targets)
    copies = max(neurons, leaving) if axons == "copy" else neurons
    arriving = sum(_arriving(c, tile, total, axons) for c in population.incoming)
    memory = sum(_memory(c, tile, total, bits, axons) for c in population.incoming)
    return Load(copies, arriving, leaving, memory)


def _arriving(c: Connection, tile: Size, total: int, axons: str) -> int:
    """Axons from one source into one tile at most."""
    several = max(1, c.weights.values) if axons == "copy" and c.weights.values <= 4 else 1
    if c.kind == "linear":
        return c.inputs * several
    area = c.y.widest(tile[1]) * c.x.widest(tile[2])
    if axons == "position" and c.kind == "conv":
        return area
    return area * c.channels_in(tile[0], total) * several


def _leaving(
    size: Size, tile: Size, c: Connection, other: Size, whole: Size, *, positions: bool = False
) -> int:
    """Pairs of a neuron (or position) of one tile and a core that it sends to, at most."""
    cores = [-(-n // t) for n, t in zip(whole, other, strict=True)]
    if c.kind == "linear":
        return math.prod(tile) * math.prod(cores)
    area = c.y.overlap(tile[1], other[1]) * c.x.overlap(tile[2], other[2])
    if positions and c.kind == "conv":
        return area * cores[0]
    one_to_one = c.groups == size[0] and c.groups > 1
    return area * tile[0] * (1 if one_to_one else cores[0])


def _memory(c: Connection, tile: Size, total: int, bits: int, axons: str) -> int:
    """Bits for the synapses of one tile where like positions share their weights."""
    if axons != "position":
        return 0
    if c.kind == "linear":
        return c.inputs * stored_bits(math.prod(tile), bits)
    tall, wide = c.y.shapes(tile[1]), c.x.shapes(tile[2])
    if c.kind == "identity":
        each = stored_bits(1, bits + index_bits(math.prod(tile)))
        return tile[0] * c.y.widest(tile[1]) * c.x.widest(tile[2]) * each
    sources = c.channels_in(tile[0], total)
    outputs = tile[0] if c.groups == 1 else max(1, total // c.groups)
    span = ((max(tall) - 1) * tile[2] + max(wide)) * tile[0]
    each_bits = bits + index_bits(span)
    return sum(stored_bits(sources * outputs * a * b, each_bits) for a in tall for b in wide)


def index_bits(targets: int) -> int:
    """Width of an index to one of ``targets`` neurons."""
    needed = max(0, targets - 1).bit_length()
    return next((width for width in _INDEX_BITS if width >= needed), needed)


@functools.lru_cache(maxsize=65536)
def stored_bits(synapses: int, bits: int) -> int:
    """Memory of one list of synapses: blocks of 64 with 10 bits more, in words of 64 bits."""
    full, rest = divmod(synapses, _BLOCK)
    words = full * -(-(_BLOCK * bits + _HEADER) // _WORD)
    if rest:
        words += -(-(rest * bits + _HEADER) // _WORD)
    return words * _WORD


def _packed(tilings: list[Tiling], held: dict[str, int], most: int) -> int:
    """Cores for all tiles, first fit, the fullest first."""
    count = sum(t.tiles for t in tilings)
    if count > most:
        return count
    names = list(held)

    def fullness(load: Load) -> float:
        amounts = dict(zip(RESOURCES, load.amounts, strict=True))
        return max(amounts[name] / held[name] for name in names)

    cores: list[Load] = []
    for tiling in sorted(tilings, key=lambda t: fullness(t.load), reverse=True):
        first = 0  # cores before it have no room for such a tile
        for _ in range(tiling.tiles):
            while first < len(cores) and not _holds(held, cores[first] + tiling.load):
                first += 1
            if first == len(cores):
                cores.append(tiling.load)
            else:
                cores[first] += tiling.load
    return len(cores)


def _width(chip: Chip, weight_bits: int | None) -> int:
    """Bits of a stored weight: 8 at most, a ninth is the sign that 8 bits are shifted for."""
    stated = chip.limits.weight_bits
    return min(weight_bits or 8, 8, stated.value if stated else 8)


def lower_bound(network: Network, chip: Chip, weight_bits: int | None = None) -> int:
    """Cores that no placement needs fewer than: totals over what one holds, nothing lost."""
    held, bits = capacity(chip), _width(chip, weight_bits)
    least = -(-sum(p.neurons for p in network.populations) // held["neurons"])
    if "synaptic_memory" in held and chip.axons == "position":
        # Each weight is stored once at least.
        weights = 0
        for p, c in network.connections:
            if c.kind == "linear":
                weights += c.inputs * p.neurons
            elif c.kind == "conv":
                taps = c.layer.kernel[0] * c.layer.kernel[1]
                weights += p.size[0] * (c.size[0] // c.groups) * taps
        least = max(least, -(-weights * bits // held["synaptic_memory"]))
    return least
