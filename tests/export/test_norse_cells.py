"""Norse's cells against the NIR nodes that they become: the same spikes and the same membranes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nir
import norse.torch as norse
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norse.torch.functional.reset import reset_subtract
from torch import Tensor, nn

from tests.graphs import Array
from tser.deploy.backends import NirBackend, TorchBackend, Trace
from tser.deploy.certificate import Audit, violations
from tser.deploy.equivalence import compare
from tser.deploy.interpreter import run
from tser.deploy.tally import Comparison
from tser.export.graph import Graph, decay, resolve
from tser.export.lower import ExportError, lower
from tser.export.norse_cells import time_constant
from tser.user_models import UserStudent

ANY = settings(deadline=None, derandomize=True, max_examples=40)
STEPS, BATCH, SHAPE, NEURONS = 7, 3, (2, 2, 3), 12


@dataclass(frozen=True)
class Kind:
    """A neuron of Norse: its cell, its form over time (if Norse has one) and its parameters."""

    cell: Any
    over_time: Any
    parameters: Any
    names: tuple[str, ...]
    node: type
    fires: bool


_MEMBRANE = ("tau_mem_inv", "v_leak")
_RESET = ("v_th", "v_reset")
KINDS = {
    "LIFBox": Kind(
        norse.LIFBoxCell, None, norse.LIFBoxParameters, (*_MEMBRANE, *_RESET), nir.LIF, True
    ),
    "LIF": Kind(
        norse.LIFCell, norse.LIF, norse.LIFParameters, ("tau_syn_inv", *_MEMBRANE, *_RESET),
        nir.CubaLIF, True,
    ),
    "LIBox": Kind(norse.LIBoxCell, None, norse.LIBoxParameters, _MEMBRANE, nir.LI, False),
    "LI": Kind(
        norse.LICell, norse.LI, norse.LIParameters, ("tau_syn_inv", *_MEMBRANE), nir.CubaLI, False
    ),
    "IAF": Kind(norse.IAFCell, norse.IAF, norse.IAFParameters, ("v_th",), nir.IF, True),
}  # fmt: skip
FIRING = [name for name, kind in KINDS.items() if kind.fires]


def float32s(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32)


VALUES = st.fixed_dictionaries(
    {
        "tau_mem_inv": float32s(1, 900),
        "tau_syn_inv": float32s(1, 900),
        "v_leak": float32s(-0.5, 0.5),
        "v_th": float32s(0.5625, 1.5),
        "v_reset": float32s(-1, 0.5),
    }
)
TIME_STEPS = st.one_of(st.sampled_from([1e-3, 1e-4, 2.0**-10]), st.floats(1e-5, 1e-3))
SEEDS = st.integers(0, 999)


def cell(name: str, values: dict[str, Any], dt: float = 1e-3, over_time: bool = False) -> Any:
    """A neuron of Norse with those of ``values`` that it has."""
    kind = KINDS[name]
    chosen = {key: torch.as_tensor(values[key]) for key in kind.names if key in values}
    return (kind.over_time if over_time else kind.cell)(kind.parameters(**chosen), dt=dt)


def student(*layers: nn.Module, outputs: int = NEURONS, flat: bool = True) -> UserStudent:
    """A SequentialState on flattened images."""
    model = norse.SequentialState(*[nn.Flatten()] * flat, *layers)
    return UserStudent(model, STEPS, SHAPE, outputs, "mine:make").eval()


def frames(seed: int, scale: float = 1.0) -> Array:
    """Another input at every step."""
    rng = np.random.default_rng(seed)
    return (rng.normal(0.3, 1, (STEPS, BATCH, *SHAPE)) * scale).astype(np.float32)


def drive(name: str, values: dict[str, Any], dt: float) -> float:
    """Inputs of this size move the membrane about as far as the threshold is away."""
    if name == "IAF":
        return 0.5
    slow = dt * float(np.mean(values["tau_mem_inv"]))
    return 1 / (2 * slow if name.endswith("Box") else slow * STEPS / 3)


def theirs(model: UserStudent, x: Array) -> Array:
    with torch.inference_mode():
        return np.asarray(model(torch.from_numpy(x)).numpy())


def exact(graph: Graph, neuron: Any, name: str) -> bool:
    """Whether the node multiplies by the very float32 that Norse multiplies by."""
    op: Any = graph.nodes["1"].op
    if name == "IAF":
        return bool(((graph.dt * op.r.astype(np.float64)).astype(np.float32) == 1).all())
    pairs = [("tau_mem" if hasattr(op, "tau_mem") else "tau", "tau_mem_inv")]
    if hasattr(op, "tau_syn"):
        gain = (decay(graph.dt, op.tau_syn) * op.w_in).astype(np.float32)
        if not (gain == 1).all():
            return False
        pairs.append(("tau_syn", "tau_syn_inv"))
    return all(
        (decay(graph.dt, getattr(op, ours)).astype(np.float32)
         == (neuron.dt * getattr(neuron.p, norses)).numpy()).all()
        for ours, norses in pairs
    )  # fmt: skip


def check_cell(name: str, neuron: Any, model: UserStudent, x: Array) -> tuple[bool, Array]:
    """The node's answer is Norse's: to the bit where the factors are, else within rounding."""
    lowered = lower(model)
    graph = resolve(lowered.graph)
    assert type(graph.nodes["1"].op) is KINDS[name].node
    norses, ours = theirs(model, x), run(graph, x)[0]
    # Norse's box integrator adds the leak after it has subtracted the membrane.
    same_order = name != "LIBox" or not np.any(neuron.p.v_leak.numpy())
    same = exact(graph, neuron, name) and same_order
    if same:
        np.testing.assert_array_equal(ours, norses)
    for answer in (ours, norses):
        if KINDS[name].fires:
            trace = Trace(answer, {"1": answer > 0})
            margins = Audit(graph, x, trace, {}).margins(graph.nodes["1"])
            assert not violations(margins, answer > 0).any()
        else:
            bounded = Audit(graph, x, Trace(answer, {}), {}).logits()
            assert (np.abs(answer - bounded.value) <= bounded.error).all()
            assert bounded.error.max() < 1e-4 * np.abs(bounded.value).max()
    return same, norses


# --- one cell ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@ANY
@given(values=VALUES, dt=TIME_STEPS, seed=SEEDS, over_time=st.booleans())
def test_a_cell_is_its_node(
    name: str, values: dict[str, float], dt: float, seed: int, over_time: bool
) -> None:
    forms = over_time and KINDS[name].over_time is not None
    neuron = cell(name, values, dt, forms)
    flatten = nn.Flatten(2) if forms else nn.Flatten()
    model = student(flatten, neuron, flat=False)
    assert model.form == ("sequence" if forms else "step")
    check_cell(name, neuron, model, frames(seed, drive(name, values, dt)))


@pytest.mark.parametrize("name", KINDS)
def test_the_cases_above_are_no_empty_promise(name: str) -> None:
    """Cells fire and stay silent, and most time constants are those of Norse to the bit."""
    rng = np.random.default_rng(0)
    equal, rates = 0, []
    for seed in range(20):
        values: dict[str, Any] = {
            "tau_mem_inv": np.float32(rng.uniform(50, 900)),
            "tau_syn_inv": np.float32(rng.uniform(50, 900)),
            "v_th": np.float32(0.75),
            "v_reset": np.float32(-0.25),
            "v_leak": np.float32(0),
        }
        neuron = cell(name, values)
        same, answer = check_cell(
            name, neuron, student(neuron), frames(seed, drive(name, values, 1e-3))
        )
        equal += same
        rates.append(float((answer > 0).mean()))
    # Of two time constants and a gain at once, fewer come out to the bit.
    assert equal >= (6 if name in ("LIF", "LI") else 14)
    assert 0.02 < np.mean(rates) < 0.9


@pytest.mark.parametrize("name", KINDS)
@ANY
@given(seed=SEEDS, last=st.booleans())
def test_parameters_of_every_neuron(name: str, seed: int, last: bool) -> None:
    """Arrays for all neurons, or along the last dimension, as torch broadcasts them."""
    rng = np.random.default_rng(seed)
    shape = (3,) if last else SHAPE
    drawn: dict[str, Any] = {
        "tau_mem_inv": rng.uniform(50, 900, shape),
        "tau_syn_inv": rng.uniform(50, 900, shape),
        "v_th": rng.uniform(0.5, 1.5, shape),
        "v_reset": rng.uniform(-1, 0.25, shape),
        "v_leak": rng.uniform(-0.5, 0.25, shape),
    }
    values = {key: value.astype(np.float32) for key, value in drawn.items()}
    neuron = cell(name, values)
    model = norse.SequentialState(neuron, nn.Flatten())
    wrapped = UserStudent(model, STEPS, SHAPE, NEURONS, "mine:make").eval()
    x = frames(seed, drive(name, values, 1e-3))
    graph = resolve(lower(wrapped).graph)
    ours, norses = run(graph, x)[0], theirs(wrapped, x)
    trace = Trace(norses, {"0": norses.reshape(STEPS, BATCH, *SHAPE) > 0})
    audit = Audit(graph, x, trace, {})
    if KINDS[name].fires:
        assert not violations(audit.margins(graph.nodes["0"]), trace.spikes["0"]).any()
        assert (ours != norses).mean() < 0.01
    else:
        assert (np.abs(norses - audit.logits().value) <= audit.logits().error).all()


@pytest.mark.parametrize("name", KINDS)
def test_powers_of_two_are_exact(name: str) -> None:
    """dt and the time constants of a power of two: no rounding anywhere, ties included."""
    values = {"tau_mem_inv": 512.0, "tau_syn_inv": 256.0, "v_th": 0.5, "v_leak": 0.0,
              "v_reset": -0.25}  # fmt: skip
    neuron = cell(name, values, 2.0**-10)
    x = (np.random.default_rng(0).integers(-8, 9, (STEPS, BATCH, *SHAPE)) / 8).astype(np.float32)
    same, answer = check_cell(name, neuron, student(neuron), x)
    assert same
    assert 0 < (answer > 0).mean() < 1


@pytest.mark.parametrize("dt", [1e-3, 5e-4, 2e-3])
def test_the_gain_of_an_input_is_one_wherever_float32_has_it(dt: float) -> None:
    exact_ones = 0
    for tau_syn_inv in np.linspace(20, 450, 200, dtype=np.float32):
        neuron = cell("LI", {"tau_syn_inv": tau_syn_inv}, dt)
        op = resolve(lower(student(neuron)).graph).nodes["1"].op
        rate, stored = decay(dt, op.tau_syn[0]), op.w_in[0]
        around = [np.nextafter(stored, np.float32(side)) for side in (0, np.inf)]
        gains = [np.float32(rate * np.float64(w)) for w in (stored, *around)]
        misses = np.abs(np.array(gains) - np.float32(1))
        assert misses[0] == misses.min()
        assert misses[0] <= 2.0**-23
        exact_ones += misses[0] == 0
    assert exact_ones > 150


def test_python_numbers_are_multiplied_in_float64() -> None:
    """Norse then rounds dt / tau once, not twice."""
    different = 0
    for inverse in np.linspace(100, 900, 50).tolist():
        neuron = norse.LIBoxCell(
            norse.LIBoxParameters(tau_mem_inv=inverse, v_leak=torch.tensor(0.0)), dt=7e-4
        )
        op = resolve(lower(student(neuron)).graph).nodes["1"].op
        expected = time_constant(np.float32(7e-4 * inverse), 7e-4)
        twice = time_constant((7e-4 * torch.tensor(inverse)).numpy(), 7e-4)
        assert (op.tau == expected).all()
        different += bool(expected != twice)
    assert different > 0


def test_defaults_of_norse_go_through() -> None:
    for name in KINDS:
        neuron = KINDS[name].cell()
        check_cell(name, neuron, student(neuron), frames(0, 5))


# --- networks ------------------------------------------------------------------------------


def network(name: str, readout: str, values: dict[str, Any], dt: float, seed: int) -> UserStudent:
    torch.manual_seed(seed)
    layers = [
        nn.Linear(12, 16), cell(name, values, dt), nn.Linear(16, 16), cell(name, values, dt),
        nn.Linear(16, 4),
    ]  # fmt: skip
    if readout:
        layers.append(cell(readout, values, dt))
    return student(*layers, outputs=4)


def judge(model: UserStudent, x: Array) -> Comparison:
    lowered = lower(model)
    graph = resolve(lowered.graph)
    reference = TorchBackend(model, lowered.modules, "Norse")
    (found,) = compare(graph, reference, [NirBackend(graph, STEPS, "NIR")], [(x, None)]).comparisons
    return found


@pytest.mark.parametrize("readout", ["", "LI", "LIBox"])
@pytest.mark.parametrize("name", FIRING)
@settings(parent=ANY, max_examples=15)
@given(values=VALUES, dt=TIME_STEPS, seed=SEEDS)
def test_networks_agree_but_for_rounding(
    name: str, readout: str, values: dict[str, float], dt: float, seed: int
) -> None:
    model = network(name, readout, values, dt, seed)
    comparison = judge(model, frames(seed, 2 * drive(name, values, dt)))
    assert comparison.uncertifiable == ""
    assert comparison.logits_outside_bound == 0
    assert not any(layer.violations for layer in comparison.layers.values())
    assert comparison.flips <= 0.005 * comparison.neuron_steps


@pytest.mark.parametrize("readout", ["", "LI", "LIBox"])
@pytest.mark.parametrize("name", FIRING)
def test_networks_of_usual_neurons_have_the_same_spikes(name: str, readout: str) -> None:
    values = {"tau_mem_inv": 500.0, "tau_syn_inv": 250.0, "v_th": 0.4, "v_leak": 0.0,
              "v_reset": 0.0}  # fmt: skip
    fired = np.zeros(2, int)
    for seed in range(5):
        comparison = judge(network(name, readout, values, 1e-3, seed), frames(seed, 2))
        assert (comparison.verdict, comparison.flips) == ("E0", 0)
        assert list(comparison.layers) == ["2", "4"]
        fired += [layer.reference.sum() for layer in comparison.layers.values()]
    assert (fired > 0).all()


class _Slow(norse.LIFCell):  # type: ignore[misc]
    """A cell that is no longer Norse's."""

    def forward(self, input_tensor: Tensor, state: Any = None) -> Any:
        return super().forward(input_tensor / 2, state)


REFUSED: dict[str, tuple[Any, str]] = {
    "recurrent": (
        lambda: norse.LIFRefracRecurrentCell(12, 12),
        r"'1' \(LIFRefracRecurrentCell\) .* LIFRecurrentCell",
    ),
    "another neuron": (norse.LIFExCell, r"'1' \(LIFExCell\) .* LIFBoxCell, LIFCell"),
    "a cell with its own forward": (_Slow, r"'1' \(_Slow\) cannot be exported"),
    "reset by subtraction": (
        lambda: norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=reset_subtract)),
        r"'1' \(LIFBoxCell\) does not reset to a value.* use reset_value",
    ),
    "IAF from elsewhere": (
        lambda: norse.IAFCell(norse.IAFParameters(v_reset=torch.tensor(0.1))),
        r"'1' \(IAFCell\) starts from its v_reset.* set v_reset to 0",
    ),
    "no leak": (
        lambda: norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=torch.tensor(0.0))),
        r"'1' \(LIBoxCell\) has an inverse time constant of 0",
    ),
    "no decay of one current": (
        lambda: cell("LI", {"tau_syn_inv": np.array([0] + [9] * 11, np.float32)}),
        r"'1' \(LICell\) has an inverse time constant of 0",
    ),
    "a parameter for each of a batch": (
        lambda: cell("LIBox", {"v_leak": np.zeros((1, 12), np.float32)}),
        r"'1' \(LIBoxCell\) has a parameter of shape \(1, 12\) that does not fit .* \(12,\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_nir_cannot_express_is_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ExportError, match=message) as caught:
        lower(student(make()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dts", [(5e-4, 1e-3), (1e-3, 5e-4)])
def test_two_time_steps_are_refused(dts: tuple[float, float]) -> None:
    layers = [cell("LIFBox", {}, dts[0]), nn.Linear(12, 12), cell("LI", {}, dts[1])]
    with pytest.raises(ExportError, match=r"layer '3' has dt = \S+ s, earlier layers \S+ s"):
        lower(student(*layers))


@pytest.mark.parametrize("readout", ["LI", "LIBox"])
def test_a_membrane_does_not_cross_a_synapse(readout: str) -> None:
    model = student(cell(readout, {}), nn.Linear(12, 12))
    with pytest.raises(ExportError, match="layer '2' receives an analog value, not spikes"):
        lower(model)


def test_a_membrane_may_drive_neurons() -> None:
    values = {"tau_mem_inv": 500.0, "tau_syn_inv": 250.0, "v_th": 0.3, "v_leak": 0.0,
              "v_reset": 0.0}  # fmt: skip
    comparison = judge(student(cell("LI", values), cell("LIFBox", values)), frames(0, 4))
    assert comparison.verdict in ("E0", "E1")
    assert comparison.layers["2"].reference.any()
