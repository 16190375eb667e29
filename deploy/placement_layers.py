"""Layers on cores, one a core: matched exactly to the cores whose memories are large enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tser.deploy.fit_limits import Chip
from tser.deploy.fit_network import Connection, Network, Population
from tser.deploy.placement import Placement


@dataclass(frozen=True)
class Words:
    """Memory of one layer, in words.

    Attributes:
        kernel: ``c 2^(ceil(log2(kx ky)) + ceil(log2 f))``.
        neuron: ``f 2^(ceil(log2 fx) + ceil(log2 fy))``.
        bias: one for each output channel, 0 where there is none.
    """

    kernel: int
    neuron: int
    bias: int

    @property
    def amounts(self) -> tuple[int, int, int]:
        """Kernel, neuron, bias."""
        return self.kernel, self.neuron, self.bias


def log2_up(value: int) -> int:
    """``ceil(log2(value))``."""
    return max(0, value - 1).bit_length()


def words(population: Population) -> Words:
    """Memory of a layer on a chip that gives each a core.

    Several sources share one kernel: their channels lie side by side.
    """
    outputs, height, width = population.size
    inputs = sum(c.arriving[0] for c in population.incoming)
    taps = max(math.prod(kernel_of(c)) for c in population.incoming)
    return Words(
        inputs * 2 ** (log2_up(taps) + log2_up(outputs)),
        outputs * 2 ** (log2_up(height) + log2_up(width)),
        outputs if any(c.biased for c in population.incoming) else 0,
    )


def kernel_of(c: Connection) -> tuple[int, int]:
    """Height and width of the kernel; of a linear layer the map that it takes."""
    if c.layer is not None:
        return int(c.layer.kernel[0]), int(c.layer.kernel[1])
    return (c.arriving[1], c.arriving[2]) if c.kind == "linear" else (1, 1)


def core_sizes(chip: Chip) -> list[tuple[int, int, int]]:
    """Kernel, neuron and bias words of every core."""
    limits = chip.limits
    memories = (limits.kernel_memory, limits.neuron_memory, limits.bias_memory)
    return list(zip(*(m.value for m in memories if m is not None), strict=True))


def match_layers(network: Network, chip: Chip) -> Placement:
    """Give every layer a core of its own, if that is possible."""
    cores = core_sizes(chip)
    fitting: dict[str, list[int]] = {}
    for p in network.populations:
        needed = words(p).amounts
        fitting[p.name] = [
            number
            for number, core in enumerate(cores)
            if all(n <= most for n, most in zip(needed, core, strict=True))
        ]
    taken: dict[int, str] = {}

    def place(name: str, seen: set[int]) -> bool:
        for core in fitting[name]:
            if core not in seen:
                seen.add(core)
                if core not in taken or place(taken[core], seen):
                    taken[core] = name
                    return True
        return False

    homeless = [p.name for p in network.populations if not place(p.name, set())]
    return Placement(
        len(network.populations),
        len(network.populations),
        assigned={name: core for core, name in sorted(taken.items())},
        stuck=tuple((name, "core", 1, 0) for name in homeless),
    )
