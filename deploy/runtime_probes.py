r"""Networks of one or two neurons whose spikes are known by hand, to test an executor by itself.

All numbers are dyadic, so no rounding excuses another answer. dt / tau is 1/2, r = 1 and the
threshold 1, so that a step is :math:`v \leftarrow (v + i + v_{leak}) / 2` and a spike follows from
v > 1. Each answer differs from that of the rule that its probe is named after.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

DT = 2.0**-10
"""Time step [s] unless another is asked for."""


@dataclass(frozen=True)
class RuntimeProbe:
    """A network and what it fires.

    Attributes:
        name: what is tested.
        wrong: what an executor with another answer gets wrong, for people.
        graph: with dt and T in its metadata.
        x: ``[1, N]``, held over all steps.
        spikes: by layer, bool ``[T, 1, N]``.
    """

    name: str
    wrong: str
    graph: nir.NIRGraph
    x: NDArray[np.float32]
    spikes: dict[str, NDArray[np.bool_]]


def runtime_probes(dt: float = DT) -> list[RuntimeProbe]:
    """The probes, each with the membrane before the reset that its spikes come from.

    * tie, i = 2: 1 (no spike at the threshold itself), 3/2, 1, 3/2. With >=, a spike each step.
    * reset value -1, i = 5/2: 5/4, 3/4, 13/8, 3/4. With a reset to 0, a spike each step.
    * leak value 1/2, i = 5/4: 9/8, 7/8, 21/16, 7/8, from v = 1/2. From v = 0 the first spike comes
      at the second step, without the value at the third.
    * reset, i = 7/4: 7/8, 21/16, 7/8, 21/16. Subtracting the threshold leaves 5/16, so that the
      third step has 33/32 and fires.
    * gain and bias, i = 1 + 1/4: 5/8, 15/16, 35/32, 5/8, 15/16, 35/32. Counted once it fires each
      step, with exp(-1/2) instead of 1/2 at the second.
    * timing, i = 3: the first layer has 3/2 and fires each step; the second gets 7/4 in the same
      step, as under "reset". A step late, it fires at steps 3 and 5.
    * IF with dt r = 1, i = 3/8: 3/8, 3/4, 9/8, and again.
    * current, x = 3, dt / tau_syn = 1/2: I is 3/2, 9/4, 21/8, 45/16 and v 3/4, 3/2, 21/16, 45/32.
      A spike that reaches the membrane a step later has 0, 3/4 first.
    * delay, i = 7/8 and after two steps 7/8 more: 7/16, 21/32, 77/64, 7/8, 21/16, 7/8. After no
      step or one the first spike comes at the second, after three at the fourth.

    Args:
        dt: time step [s] of an executor that has its own.
    """
    lif = _Builder(dt)
    delay = nir.Delay(np.full(1, np.float32(2 * np.float64(np.float32(dt)))))
    third = [False, True, False, True, False, True]
    every = [True] * 6

    return [
        lif.probe(
            "tie",
            "a spike where v == v_threshold, or none where v is larger",
            {"fc": lif.affine(1), "lif": lif.lif()},
            2,
            {"lif": [False, True, False, True]},
        ),
        lif.probe(
            "reset value",
            "v_reset is not used",
            {"fc": lif.affine(1), "lif": lif.lif(v_reset=-1)},
            2.5,
            {"lif": [True, False, True, False]},
        ),
        lif.probe(
            "leak value",
            "v_leak is not used, or v does not start from it",
            {"fc": lif.affine(1), "lif": lif.lif(v_leak=0.5)},
            1.25,
            {"lif": [True, False, True, False]},
        ),
        lif.probe(
            "reset",
            "a spike takes the threshold off v instead of setting v_reset",
            {"fc": lif.affine(1), "lif": lif.lif()},
            1.75,
            {"lif": third},
        ),
        lif.probe(
            "gain and bias",
            "input does not count dt/tau times, v decays by another factor, or the bias is lost",
            {"fc": lif.affine(1, 0.25), "lif": lif.lif()},
            1,
            {"lif": [False, False, True, False, False, True]},
        ),
        lif.probe(
            "timing",
            "spikes do not reach the next layer in their own step",
            {"fc1": lif.affine(1), "lif1": lif.lif(), "fc2": lif.affine(1.75), "lif2": lif.lif()},
            3,
            {"lif1": every, "lif2": third},
        ),
        lif.probe(
            "IF",
            "input to an IF does not count dt r times, or it leaks",
            {"fc": lif.affine(1), "if": lif.integrator()},
            0.375,
            {"if": [False, False, True, False, False, True]},
        ),
        lif.probe(
            "current",
            "a spike does not reach the membrane through the synapse in its own step",
            {"fc": lif.affine(1), "cuba": lif.current_based()},
            3,
            {"cuba": [False, True, True, True]},
        ),
        lif.probe(
            "delay",
            "a Delay does not last as many steps as it states",
            {
                "fc1": lif.affine(1),
                "lif1": lif.lif(),
                "delay": delay,
                "fc2": lif.affine(0.875),
                "fc3": lif.affine(0.875),
                "lif2": lif.lif(),
            },
            3,
            {"lif1": every, "lif2": [False, False, True, False, True, False]},
            [
                ("input", "fc1"),
                ("fc1", "lif1"),
                ("lif1", "fc2"),
                ("fc2", "lif2"),
                ("lif1", "delay"),
                ("delay", "fc3"),
                ("fc3", "lif2"),
                ("lif2", "output"),
            ],
        ),
    ]


def _full(value: float) -> NDArray[np.float32]:
    return np.full(1, value, np.float32)


class _Builder:
    """Chains of layers of one neuron at one dt."""

    def __init__(self, dt: float) -> None:
        self._dt, self._step = dt, float(np.float32(dt))

    def affine(self, weight: float, bias: float = 0.0) -> nir.Affine:
        return nir.Affine(np.full((1, 1), weight, np.float32), _full(bias))

    def lif(self, v_leak: float = 0.0, v_reset: float = 0.0) -> nir.LIF:
        tau, one = _full(2 * self._step), _full(1)
        return nir.LIF(tau, one, _full(v_leak), one, _full(v_reset))

    def integrator(self) -> nir.IF:
        return nir.IF(_full(1 / self._dt), _full(1), _full(0))

    def current_based(self) -> nir.CubaLIF:
        tau, one, zero = _full(2 * self._step), _full(1), _full(0)
        return nir.CubaLIF(tau, tau, one, zero, one, v_reset=zero, w_in=one)

    def probe(
        self,
        name: str,
        wrong: str,
        nodes: dict[str, Any],
        x: float,
        spikes: dict[str, Sequence[bool]],
        edges: list[tuple[str, str]] | None = None,
    ) -> RuntimeProbe:
        """A network from "input" to "output", a chain unless it has ``edges``."""
        ends = (nir.Input({"input": np.array([1])}), nir.Output({"output": np.array([1])}))
        names = ["input", *nodes, "output"]
        expected = {key: np.array(fired).reshape(-1, 1, 1) for key, fired in spikes.items()}
        graph = nir.NIRGraph(
            {"input": ends[0], **nodes, "output": ends[1]},
            edges or list(itertools.pairwise(names)),
            metadata={"dt": self._dt, "timesteps": len(next(iter(expected.values())))},
            type_check=False,
        )
        return RuntimeProbe(name, wrong, graph, np.full((1, 1), x, np.float32), expected)
