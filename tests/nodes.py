"""One NIR node of every class and kind, with numbers whose sums are exact."""

from typing import Any

import nir
import numpy as np

from tests.graphs import DT, TAU, Array, conv, dyadic, flatten, full, lif, pool
from tser.export.shapes import Shape

_RNG = np.random.default_rng(0)


def varied(*values: float) -> Array:
    return np.array(values, np.float32)


def cuba(kind: type, **values: Any) -> Any:
    known = {"tau_syn": TAU, "tau_mem": 2 * TAU, "r": 2, "v_leak": 0, "w_in": 1}
    if kind is nir.CubaLIF:
        known |= {"v_threshold": 0.5, "v_reset": 0}
    return kind(**{name: full(3, values.get(name, value)) for name, value in known.items()})


CASES: dict[str, tuple[Any, Shape]] = {
    "Affine": (nir.Affine(dyadic(_RNG, (4, 3)), dyadic(_RNG, 4)), (3,)),
    "Affine on maps": (nir.Affine(dyadic(_RNG, (4, 3)), dyadic(_RNG, 4)), (2, 5, 3)),
    "Linear": (nir.Linear(dyadic(_RNG, (4, 3))), (3,)),
    "Linear on maps": (nir.Linear(dyadic(_RNG, (4, 3))), (2, 3)),
    "Scale": (nir.Scale(dyadic(_RNG, (2, 3))), (2, 3)),
    "Scale by one number": (nir.Scale(full((), 0.5)), (2, 3)),
    "Conv1d": (
        nir.Conv1d(8, dyadic(_RNG, (4, 1, 3)), 2, 1, 1, 2, dyadic(_RNG, 4)),
        (2, 8),
    ),
    "Conv2d": (
        conv(
            dyadic(_RNG, (4, 2, 3, 2)),
            (7, 6),
            stride=(2, 1),
            padding=(1, 0),
            dilation=(1, 2),
            groups=2,
            bias=dyadic(_RNG, 4),
        ),
        (4, 7, 6),
    ),
    "Conv2d same": (conv(dyadic(_RNG, (2, 1, 4, 3)), (5, 6), padding="same"), (1, 5, 6)),
    "SumPool2d": (pool(nir.SumPool2d, (3, 2), (1, 2), (1, 1)), (2, 6, 6)),
    "SumPool2d of wide padding": (pool(nir.SumPool2d, 2, 2, 2), (2, 4, 4)),
    "AvgPool2d": (pool(nir.AvgPool2d, (2, 4), (2, 1), (1, 2)), (2, 6, 6)),
    "Flatten": (flatten(), (2, 3, 4)),
    "Flatten in part": (nir.Flatten({"input": None}, start_dim=0, end_dim=1), (2, 3, 4)),
    "Threshold": (nir.Threshold(varied(0, 0.5, -0.5)), (3,)),
    "I": (nir.I(varied(1, 2, 3) / DT), (3,)),
    "I without gain": (nir.I(full(3, 0)), (3,)),
    "IF": (nir.IF(full(3, 0.5 / DT), full(3, 1), full(3, -0.25)), (3,)),
    "IF without gain": (nir.IF(full(3, 0), full(3, 1), full(3, 0)), (3,)),
    "LI": (nir.LI(full(3, TAU), full(3, 1), full(3, 0.25)), (3,)),
    "LI of each its own": (nir.LI(varied(1, 2, 4) * DT, full(3, 2), varied(0, 1, -1)), (3,)),
    "LIF": (lif((2, 3)), (2, 3)),
    "LIF with everything": (
        lif(
            (2, 3), tau=4 * DT, r=2, v_leak=0.25, v_th=0.75, v_reset=[[0.5, -0.5, 0], [0, 0.25, 1]]
        ),
        (2, 3),
    ),
    "LIF of each its own": (
        lif(3, tau=varied(1, 2, 4) * DT, v_leak=varied(0, 0.5, -0.5), v_th=varied(0, 1, 0.5)),
        (3,),
    ),
    "LIF with a reset": (lif(3, v_reset=0.25), (3,)),
    "LIF with a negative threshold": (lif(3, v_th=-0.5, v_leak=-1), (3,)),
    "LIF that never fires": (lif(3, v_th=np.inf), (3,)),
    "LIF without input": (lif(3, r=0, v_leak=1.5), (3,)),
    "LIF of one number": (lif((), v_leak=0.5), (2, 3)),
    "CubaLI": (cuba(nir.CubaLI), (3,)),
    "CubaLI with leak": (cuba(nir.CubaLI, v_leak=[0.5, 0.25, -1], w_in=[1, 2, 4]), (3,)),
    "CubaLIF": (cuba(nir.CubaLIF), (3,)),
    "CubaLIF with leak": (cuba(nir.CubaLIF, v_leak=0.25, v_reset=-0.5), (3,)),
    "CubaLIF that forgets at once": (cuba(nir.CubaLIF, tau_syn=DT), (3,)),
    "CubaLIF without input": (cuba(nir.CubaLIF, w_in=0, v_leak=1), (3,)),
    "Delay": (nir.Delay(full(3, 2 * DT)), (3,)),
    "Delay of nothing": (nir.Delay(full(3, 0)), (3,)),
    "Delay of everything": (nir.Delay(full(3, 9 * DT)), (3,)),
    "Delay of each its own": (nir.Delay(varied(0, 1, 3) * DT), (3,)),
    "Delay of maps": (nir.Delay(varied(*range(12)).reshape(2, 2, 3) % 5 * DT), (2, 2, 3)),
}
