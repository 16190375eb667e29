"""Does it fit: the rules of the chips, by hand."""

import math
from typing import Any, get_args

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import DT, TAU, conv, convolutions, flatten, full, lif, network, pool, view
from tser.deploy.fit import RULES, Fit, fit, report
from tser.deploy.fit_limits import Chip, Limits, Neuron, chip_names, load_chip
from tser.deploy.fit_network import network_of
from tser.deploy.fit_rows import Row
from tser.deploy.interpreter import run
from tser.deploy.placement import stored_bits
from tser.deploy.synapses import Uncounted, fan_out, find_synapses
from tser.export.graph import NEURONS, resolve

RNG = np.random.default_rng(0)


def iaf(shape: Any, threshold: float = 1.0) -> nir.IF:
    return nir.IF(full(shape, 1 / DT), full(shape, threshold), v_reset=full(shape, 0))


def cuba(size: int, tau_mem: float = TAU, tau_syn: float = TAU) -> nir.CubaLIF:
    values = {"tau_syn": tau_syn, "tau_mem": tau_mem, "r": 1, "v_leak": 0, "w_in": 1}
    ends = {"v_threshold": 1, "v_reset": 0}
    return nir.CubaLIF(**{key: full(size, v) for key, v in {**values, **ends}.items()})


def integers(*shape: int, most: int = 127) -> Any:
    weight = RNG.integers(-most, most + 1, shape).astype(np.float32)
    weight.reshape(-1)[0] = most
    return weight


def chain(
    inputs: tuple[int, int, int], *layers: tuple[int, int, int, int], most: int = 127
) -> dict[str, Any]:
    """Convolutions (channels, kernel, stride, padding) with IF neurons after each."""
    nodes: dict[str, Any] = {}
    channels, height, width = inputs
    for number, (out, kernel, stride, padding) in enumerate(layers):
        weight = integers(out, channels, kernel, kernel, most=most)
        nodes[f"conv{number}"] = conv(weight, (height, width), stride=stride, padding=padding)
        height, width = ((n - kernel + 2 * padding) // stride + 1 for n in (height, width))
        nodes[f"iaf{number}"] = iaf((out, height, width))
        channels = out
    return nodes


def spiking(shape: Any, nodes: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return view(shape, nodes, *args, encoding="frames", **kwargs)


def row(result: Fit, kind: str) -> Row:
    return next(r for r in result.rows if r.constraint == kind)


def failing(result: Fit) -> set[str]:
    return {r.constraint for r in result.rows if r.verdict == "does not fit"}


# --- what a graph needs ----------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=60)
@given(convolutions(), st.sampled_from([None, 1, 2]))
def test_connections_are_those_that_are_counted(
    drawn: tuple[Any, tuple[int, ...]], pooled: int | None
) -> None:
    op, shape = drawn
    nodes: dict[str, Any] = {"conv": op}
    if pooled is not None and len(shape) == 3:
        nodes = {"pool": pool(nir.AvgPool2d, pooled), **nodes}
        shape = (shape[0], shape[1] * pooled, shape[2] * pooled)
    graph = view(shape, nodes)
    neurons = iaf(graph.output.output_shape)
    graph = view(shape, {**nodes, "iaf": neurons})
    (synapse,) = find_synapses(graph)
    try:
        targets = fan_out(synapse, effective=False)
    except Uncounted:
        return
    (population,) = network_of(graph).populations
    assert population.synapses == targets.sum()
    assert population.incoming[0].fan_out(population.size) == targets.max()
    # The other way round: what an output gets from inputs and weights of 1.
    assert population.fan_in == _brute_fan_in(op, graph)


def _brute_fan_in(op: Any, graph: Any) -> int:
    ones = {name: n.op for name, n in graph.nodes.items() if name in ("pool", "conv")}
    weight, bias = op.weight, op.bias
    try:
        op.weight, op.bias = np.ones_like(weight), np.zeros_like(bias)
        shape = graph.input.output_shape
        plain = view(shape, ones, timesteps=1)
        out, _ = run(plain, np.ones((1, *shape), np.float32))
    finally:
        op.weight, op.bias = weight, bias
    # A pool that averages k inputs gives 1: each of its outputs stands for k inputs.
    scale = math.prod(graph.nodes["pool"].op.kernel_size) if "pool" in ones else 1
    return round(float(out.max())) * scale


def test_residual_shortcuts_and_the_readout_are_groups_of_their_own() -> None:
    nodes = {
        "a": lif((2, 4, 4)),
        "conv": conv(integers(2, 2, 3, 3), (4, 4), padding=1),
        "b": lif((2, 4, 4)),
        "pool": pool(nir.AvgPool2d, 4),
        "flat": flatten(),
        "fc": nir.Affine(full((3, 2), 0.5), full(3, 0)),
    }
    edges = [("input", "a"), ("a", "conv"), ("conv", "b"), ("a", "b")]
    edges += [("b", "pool"), ("pool", "flat"), ("flat", "fc"), ("fc", "output")]
    found = network_of(view((2, 4, 4), nodes, edges, (3,)))
    b = found.populations[1]
    assert [p.name for p in found.populations] == ["a", "b", "fc"]
    assert sorted((c.kind, c.source) for c in b.incoming) == [("conv", "a"), ("identity", "a")]
    assert b.fan_in == 2 * 9 + 1
    assert b.synapses == 2 * 2 * 10 * 10 + 32
    readout = found.populations[2]
    assert (readout.kind, readout.fan_in) == ("readout", 32)
    assert len(found.targets("a")) == 2


@pytest.mark.parametrize(
    ("weight", "bits", "values"),
    [
        ([[0.5, -0.5], [0.5, 0.0]], 2, 2),
        ([[3.0, 1.0], [-2.0, 0.0]], 3, 2),
        ([[127 / 127, 1 / 127], [-64 / 127, 5 / 127]], 8, 2),
        ([[1.0, 1 / np.pi], [0.1234567, 0.9]], None, 2),
        ([[0.0, 0.0], [0.0, 0.0]], 1, 0),
    ],
)
def test_bits_of_weights(weight: Any, bits: int | None, values: int) -> None:
    nodes = {"fc": nir.Linear(np.array(weight, np.float32)), "iaf": iaf(2)}
    (population,) = network_of(view((2,), nodes)).populations
    assert population.incoming[0].weights.bits == bits
    assert population.incoming[0].weights.values == values


# --- Speck -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "layer", "kernel", "neuron"),
    [
        # 16 * 2^(ceil(log2 9) + 5) = 16 * 2^9; 32 * 2^(6 + 6): the example of the manual.
        ((16, 64, 64), (32, 3, 1, 1), 8 * 1024, 128 * 1024),
        # 2 * 2^(0 + 3); 8 * 2^(4 + 4): a 1 x 1 kernel on 9 x 9 takes as much as on 16 x 16.
        ((2, 9, 9), (8, 1, 1, 0), 16, 2048),
        # 5 x 5 as 32, 20 channels as 32; (34 - 5) // 2 + 1 = 15 is floored, then 16.
        ((3, 34, 34), (20, 5, 2, 0), 3 * 2**5 * 2**5, 20 * 2**4 * 2**4),
    ],
)
def test_speck_memory(inputs: Any, layer: Any, kernel: int, neuron: int) -> None:
    result = fit(spiking(inputs, chain(inputs, layer)), load_chip("speck2f"))
    assert row(result, "kernel_memory").used == kernel
    assert row(result, "neuron_memory").used == neuron
    assert ("neuron_memory" in failing(result)) == (neuron > 64 * 1024)


def test_speck_has_no_core_with_much_of_both() -> None:
    # 64 Ki weights are on cores 5 and 6, 64 Ki neurons on 0 to 2.
    inputs = (64, 32, 32)
    result = fit(spiking(inputs, chain(inputs, (64, 3, 1, 1))), load_chip("speck2f"))
    assert row(result, "kernel_memory").used == 64 * 1024
    assert row(result, "neuron_memory").used == 64 * 1024
    assert failing(result) == {"cores"}


def test_speck_matches_layers_to_cores() -> None:
    # Greedy first fit would give the small layer a core that a large one needs.
    inputs = (1, 32, 32)
    layers = [(2, 3, 1, 1), (32, 3, 2, 1), (64, 3, 2, 1), (64, 3, 1, 1)]
    result = fit(spiking(inputs, chain(inputs, *layers)), load_chip("speck2e"))
    assert result.verdict == "fits"
    assert result.placement is not None
    assert len(set(result.placement.assigned.values())) == 4
    assert result.placement.assigned["iaf3"] in (5, 6)


def test_speck_has_nine_cores() -> None:
    inputs = (1, 8, 8)
    ten = fit(spiking(inputs, chain(inputs, *[(2, 3, 1, 1)] * 10)), load_chip("speck2f"))
    assert (row(ten, "cores").used, row(ten, "cores").excess) == (10, 1)
    nine = fit(spiking(inputs, chain(inputs, *[(2, 3, 1, 1)] * 9)), load_chip("speck2f"))
    assert nine.verdict == "fits"


@pytest.mark.parametrize(
    ("layer", "kind", "advice"),
    [
        ((2, 17, 1, 0), "kernels", "16 is the nearest"),
        ((2, 3, 3, 0), "strides", "2 is the nearest"),
        ((2, 3, 1, 8), "paddings", "7 is the nearest"),
    ],
)
def test_speck_walls(layer: Any, kind: str, advice: str) -> None:
    inputs = (1, 18, 18)
    result = fit(spiking(inputs, chain(inputs, layer)), load_chip("speck2f"))
    assert failing(result) == {kind}
    assert advice in row(result, kind).change
    assert row(result, kind).layers == ("conv0",)


def test_speck_joins_a_shortcut_to_the_kernel_beside_it() -> None:
    first = {"conv0": conv(integers(4, 1, 3, 3), (8, 8), padding=1), "a": iaf((4, 8, 8))}
    nodes = {**first, "conv1": conv(integers(4, 4, 3, 3), (8, 8), padding=1), "b": iaf((4, 8, 8))}
    edges = [("input", "conv0"), ("conv0", "a"), ("a", "conv1"), ("conv1", "b"), ("a", "b")]
    graph = spiking((1, 8, 8), nodes, [*edges, ("b", "output")], (4, 8, 8))
    result = fit(graph, load_chip("speck2f"))
    assert result.verdict == "fits"
    assert row(result, "kernel_memory").used == (4 + 4) * 2**4 * 2**2
    nodes["conv1"] = conv(integers(4, 4, 3, 3), (8, 8), padding=1, stride=2)
    nodes["b"] = iaf((4, 4, 4))
    nodes["down"] = conv(integers(4, 4, 1, 1), (8, 8), stride=2)
    strided = [e for e in edges if e != ("a", "b")] + [("a", "down"), ("down", "b")]
    graph = spiking((1, 8, 8), nodes, [*strided, ("b", "output")], (4, 4, 4))
    assert fit(graph, load_chip("speck2f")).verdict == "fits"
    nodes["down"] = conv(integers(4, 4, 2, 2), (8, 8), stride=2)
    nodes["conv1"] = conv(integers(4, 4, 3, 3), (8, 8), padding=(1, 1), stride=(2, 2))
    graph = spiking((1, 8, 8), nodes, [*strided, ("b", "output")], (4, 4, 4))
    assert fit(graph, load_chip("speck2f")).verdict == "fits"  # 2 x 2 at the corner of 3 x 3
    pooled = {**nodes, "down": pool(nir.AvgPool2d, 2), "id": conv(integers(4, 4, 1, 1), (4, 4))}
    away = [("a", "down"), ("down", "id"), ("id", "b")]
    edges = [e for e in strided if "down" not in e] + away
    graph = spiking((1, 8, 8), pooled, [*edges, ("b", "output")], (4, 4, 4))
    assert failing(fit(graph, load_chip("speck2f"))) == {"connections"}


def test_more_than_two_destinations() -> None:
    nodes: dict[str, Any] = {"fc": nir.Linear(integers(4, 4)), "a": iaf(4)}
    edges = [("input", "fc"), ("fc", "a")]
    for name in "bcd":
        nodes |= {f"fc{name}": nir.Linear(integers(4, 4)), name: iaf(4)}
        edges += [("a", f"fc{name}"), (f"fc{name}", name), (name, "end")]
    nodes |= {"end": nir.Linear(integers(4, 4)), "last": iaf(4)}
    graph = spiking((4,), nodes, [*edges, ("end", "last"), ("last", "output")], (4,))
    result = fit(graph, load_chip("speck2f"))
    assert (row(result, "destinations").used, row(result, "destinations").layers) == (3, ("a",))


# --- Loihi -----------------------------------------------------------------------------------


def test_memory_of_a_list_of_synapses() -> None:
    # 64 of 8 bits and 10 more: 522 bits, 9 words; one more synapse: 18 bits, 1 word.
    assert stored_bits(64, 8) == 9 * 64
    assert stored_bits(65, 8) == 10 * 64
    assert stored_bits(0, 8) == 0


def test_loihi_core_of_a_small_convolution() -> None:
    """2 channels of 8 x 8 to 8 channels, 3 x 3: 512 neurons, one core.

    Along each axis an input reaches two outputs at either end and three between, by different
    taps: three kinds of inputs with 2, 2 and 3, nine in the plane. Each stores 2 * 8 * a * b
    weights of 8 bits with an index of 8 (targets lie within (2 * 8 + 3) * 8 = 152).
    """
    inputs = (2, 8, 8)
    result = fit(spiking(inputs, chain(inputs, (8, 3, 1, 1))), load_chip("loihi"))
    assert result.placement is not None
    (tiling,) = result.placement.tilings
    assert (result.placement.cores, result.placement.lower_bound) == (1, 1)
    assert tiling.load.neurons == 512
    assert tiling.load.axons_in == 64  # one a position
    lists = 4 * (2 * 8 * 4,) + 4 * (2 * 8 * 6,) + (2 * 8 * 9,)
    words = {64: 17, 96: 17 + 9, 144: 2 * 17 + 5}  # 64 * 16 + 10, 32 * 16 + 10, 16 * 16 + 10 bits
    assert tiling.load.synaptic_memory == 64 * sum(words[n] for n in lists)
    assert result.verdict == "fits as far as checked"


def test_loihi_cuts_a_layer_over_cores() -> None:
    inputs = (1, 32, 32)
    result = fit(spiking(inputs, chain(inputs, (32, 3, 1, 1))), load_chip("loihi"))
    assert result.placement is not None
    assert result.placement.lower_bound == 32  # 32 * 32 * 32 neurons, 1024 a core
    assert result.placement.cores == 32
    wide = fit(spiking((1, 64, 64), chain((1, 64, 64), (64, 3, 1, 1))), load_chip("loihi"))
    assert row(wide, "cores").used == row(wide, "cores").limit + row(wide, "cores").excess
    assert failing(wide) == {"cores"}


def test_loihi_linear_layers_by_their_axons() -> None:
    def dense(inputs: int) -> Fit:
        nodes = {"fc": nir.Linear(integers(10, inputs)), "iaf": iaf(10)}
        return fit(spiking((inputs,), nodes), load_chip("loihi"))

    most = dense(4096)
    assert row(most, "axons_in").used == 4096
    assert not failing(most)
    over = dense(4097)
    assert {"axons_in", "cores"} <= failing(over)
    assert (row(over, "axons_in").excess, row(over, "axons_in").layers) == (1, ("iaf",))


def test_small_layers_share_a_core() -> None:
    nodes: dict[str, Any] = {}
    for number in range(4):
        nodes |= {f"fc{number}": nir.Linear(integers(8, 8)), f"iaf{number}": iaf(8)}
    result = fit(spiking((8,), nodes), load_chip("loihi"))
    assert result.placement is not None
    assert result.placement.cores == 1


def test_loihi_resets_to_rest_and_decays_in_steps_of_2_to_the_minus_12() -> None:
    def alone(**options: Any) -> Fit:
        nodes = {"fc": nir.Linear(integers(2, 2)), "lif": lif(2, **options)}
        return fit(spiking((2,), nodes), load_chip("loihi"))

    assert not failing(alone())
    assert not failing(alone(v_leak=0.25, v_reset=0.25))  # rest is rest wherever it lies
    assert failing(alone(v_reset=0.25)) == {"resets"}
    assert not failing(alone(tau=4096 * DT))
    assert failing(alone(tau=8192 * DT)) == {"decay_bits"}


# --- TrueNorth -------------------------------------------------------------------------------


def test_truenorth_fan_in() -> None:
    inputs = (32, 4, 4)
    result = fit(spiking(inputs, chain(inputs, (8, 3, 1, 1), most=1)), load_chip("truenorth"))
    found = row(result, "fan_in")
    assert (found.used, found.limit, found.excess) == (288, 256, 32)
    assert found.group == "wall"
    narrow = (14, 4, 4)  # 126 inputs with weights of both signs take 252 axons
    result = fit(spiking(narrow, chain(narrow, (8, 3, 1, 1), most=1)), load_chip("truenorth"))
    assert result.verdict == "fits"
    assert row(result, "axons_in").used == 2 * 14 * 9
    wider = (15, 4, 4)  # 135 inputs are fewer than 256, but not in pairs
    result = fit(spiking(wider, chain(wider, (8, 3, 1, 1), most=1)), load_chip("truenorth"))
    assert "fan_in" not in failing(result)
    assert {"axons_in", "cores"} <= failing(result)


def test_truenorth_copies_neurons_for_every_further_core() -> None:
    one, many = (
        nir.Linear(np.ones((200, 100), np.float32)),
        nir.Linear(np.ones((300, 200), np.float32)),
    )
    nodes = {"fc0": one, "a": iaf(200), "fc1": many, "b": iaf(300)}
    result = fit(spiking((100,), nodes), load_chip("truenorth"))
    assert result.placement is not None
    first, second = result.placement.tilings
    assert second.tiles == 2  # 300 neurons, 256 a core
    assert first.tile[0] * 2 <= 256  # each of the first is there twice
    assert first.load.neurons == 2 * first.tile[0]
    assert first.tiles == 2


def test_truenorth_has_four_weights_a_neuron() -> None:
    five = nir.Linear(np.array([[1, 2, 3, 4, 5]], np.float32))
    result = fit(spiking((5,), {"fc": five, "iaf": iaf(1)}), load_chip("truenorth"))
    assert (row(result, "weight_values").used, failing(result)) == (5, {"weight_values"})


# --- Xylo and others -------------------------------------------------------------------------


def xylo_net(hidden: int = 20, inputs: int = 16, outputs: int = 8, **options: Any) -> Any:
    nodes = {
        "fc0": nir.Linear(integers(hidden, inputs)),
        "a": cuba(hidden, **options),
        "fc1": nir.Linear(integers(outputs, hidden)),
        "b": cuba(outputs),
    }
    return spiking((inputs,), nodes)


def test_xylo() -> None:
    # NIR resets to a value; Xylo takes the threshold off.
    assert failing(fit(xylo_net(), load_chip("xylo_a2"))) == {"resets"}
    assert failing(fit(xylo_net(inputs=17), load_chip("xylo_a2"))) == {"resets", "inputs"}
    assert failing(fit(xylo_net(outputs=9), load_chip("xylo_a2"))) == {"resets", "outputs"}
    assert failing(fit(xylo_net(outputs=9), load_chip("xylo_imu"))) == {"resets"}
    assert "neurons" in failing(fit(xylo_net(hidden=1001), load_chip("xylo_a2")))
    over = fit(xylo_net(hidden=129), load_chip("xylo_a3"))
    assert failing(over) == {"resets", "input_projection", "output_projection"}


def test_xylo_decays_by_shifts() -> None:
    result = fit(xylo_net(tau_mem=3 * DT), load_chip("xylo_a2"))
    assert failing(result) == {"resets", "leaks"}
    assert f"tau = 4 dt = {4 * DT:g} s" in row(result, "leaks").change


def test_xylo_refuses_convolutions() -> None:
    inputs = (1, 4, 4)
    result = fit(spiking(inputs, chain(inputs, (2, 3, 1, 1))), load_chip("xylo_a3"))
    found = row(result, "connections")
    assert (found.verdict, found.used, found.change) == (
        "does not fit",
        "conv",
        "use a linear layer",
    )


def test_akida_computes_no_membranes() -> None:
    result = fit(xylo_net(), load_chip("akida"))
    assert "neuron_models" in failing(result)
    assert "teacher" in row(result, "neuron_models").reason


def test_what_is_not_published_is_unchecked() -> None:
    result = fit(xylo_net(), load_chip("seneca"))
    assert result.verdict == "fits as far as checked"
    assert row(result, "weight_bits").verdict == "unchecked"
    assert row(result, "cores").verdict == "unchecked"


def test_recurrence() -> None:
    nodes = {"fc": nir.Linear(integers(4, 4)), "a": iaf(4), "rec": nir.Linear(integers(4, 4))}
    edges = [("input", "fc"), ("fc", "a"), ("a", "rec"), ("rec", "a"), ("a", "output")]
    graph = spiking((4,), nodes, edges, (4,))
    assert "recurrence" in failing(fit(graph, load_chip("speck2f")))
    assert "recurrence" in failing(fit(graph, load_chip("xylo_a2")))  # of its outputs
    assert not failing(fit(graph, load_chip("loihi")))


# --- the file as it is -----------------------------------------------------------------------


def test_floats_have_to_be_quantised() -> None:
    weight = RNG.normal(size=(2, 2)).astype(np.float32)
    graph = spiking((2,), {"fc": nir.Linear(weight), "iaf": iaf(2)})
    result = fit(graph, load_chip("speck2f"))
    assert failing(result) == {"weight_bits"}
    assert row(result, "weight_bits").change.startswith("quantise to 8 bits")
    assert fit(graph, load_chip("speck2f"), weight_bits=8).verdict == "fits"
    assert failing(fit(graph, load_chip("speck2f"), weight_bits=9)) == {"weight_bits"}


@pytest.mark.parametrize(
    ("encoding", "verdict"),
    [("direct", "does not fit"), ("frames", "fits"), (None, "unchecked")],
)
def test_an_analog_first_layer(encoding: str | None, verdict: str) -> None:
    inputs = (1, 8, 8)
    graph = view(inputs, chain(inputs, (2, 3, 1, 1), (2, 3, 1, 1)), encoding=encoding)
    found = row(fit(graph, load_chip("speck2f")), "analog_input")
    assert (found.verdict, found.layers) == (verdict, () if verdict == "fits" else ("iaf0",))
    hosted = fit(graph, load_chip("speck2f"), first_on_host=True)
    assert hosted.verdict == "fits"
    assert row(hosted, "cores").used == 1


def test_a_readout_without_neurons() -> None:
    nodes = {"fc0": nir.Linear(integers(4, 4)), "a": iaf(4), "fc1": nir.Linear(integers(3, 4))}
    graph = spiking((4,), nodes)
    assert failing(fit(graph, load_chip("speck2f"))) == {"readout"}
    assert fit(graph, load_chip("speck2f"), readout_on_host=True).verdict == "fits"
    assert not failing(fit(graph, load_chip("loihi")))


def test_state_bits() -> None:
    # Weights of at most 1 in steps of 1/127: a threshold of 250 takes 31750 of 32767 steps.
    def alone(threshold: float) -> Fit:
        nodes = {"fc": nir.Linear(integers(2, 2) / 127), "iaf": iaf(2, threshold)}
        return fit(spiking((2,), nodes), load_chip("speck2f"))

    assert row(alone(250), "state_bits").used == 16
    assert failing(alone(260)) == {"state_bits"}


def test_without_a_time_step_only_decays_stay_unchecked() -> None:
    raw = network((2,), {"fc": nir.Linear(integers(2, 2)), "a": cuba(2)}, dt=None)
    result = fit(resolve(raw, timeless=True), load_chip("xylo_a2"))
    assert row(result, "leaks").verdict == "unchecked"
    assert "--dt" in row(result, "leaks").reason


def test_nodes_that_no_rule_looks_at_are_named() -> None:
    nodes = {"fc": nir.Linear(integers(2, 2)), "wait": nir.Delay(full(2, DT)), "iaf": iaf(2)}
    result = fit(spiking((2,), nodes), load_chip("loihi"))
    assert [r.layers for r in result.rows if r.constraint == "nodes"] == [("wait",)]
    twice = {"a": nir.Linear(integers(2, 2)), "b": nir.Linear(integers(2, 2)), "iaf": iaf(2)}
    result = fit(spiking((2,), twice), load_chip("loihi"))
    assert ("b",) in [r.layers for r in result.rows if r.constraint == "nodes"]


# --- advice ----------------------------------------------------------------------------------


def vgg(width: float, base: tuple[int, ...] = (32, 32, 64), size: int = 16) -> Any:
    """A small VGG, its channels times ``width``, with an IF layer of 10 at the end."""
    nodes: dict[str, Any] = {}
    before, side = 2, size
    for number, channels in enumerate(base):
        now = max(1, round(channels * width))
        nodes[f"conv{number}"] = conv(integers(now, before, 3, 3), (side, side), padding=1)
        nodes[f"iaf{number}"] = iaf((now, side, side))
        nodes[f"pool{number}"] = pool(nir.AvgPool2d, 2)
        before, side = now, side // 2
    nodes |= {"flat": flatten(), "fc": nir.Linear(integers(10, before * side**2)), "out": iaf(10)}
    return spiking((2, size, size), nodes)


@pytest.mark.parametrize(
    ("chip", "build"),
    [
        ("speck2f", lambda w: vgg(w, (64, 128, 256))),
        ("loihi", lambda w: vgg(w, (64, 128), size=64)),
        ("truenorth", lambda w: vgg(w, (16, 32))),
        ("odin", lambda w: vgg(w, (16, 16, 32), size=8)),
    ],
)
def test_the_advised_width_fits_and_the_next_does_not(chip: str, build: Any) -> None:
    def by_width(factor: float) -> bool:
        return fit(build(factor), load_chip(chip)).width_helps

    found = fit(build(1.0), load_chip(chip))
    assert found.width_helps
    assert found.width is not None
    assert not by_width(found.width)
    assert by_width(found.width + 1 / 32)
    advised = [r.change for r in found.rows if r.verdict == "does not fit" and r.by_width]
    assert advised
    assert all(f"width factor {found.width:g} fits" in change for change in advised)


def test_no_width_is_narrow_enough_where_the_ends_are_too_wide() -> None:
    nodes = {"fc": nir.Linear(integers(300, 4)), "iaf": iaf(300)}
    result = fit(spiking((4,), nodes), load_chip("odin"))
    assert (result.width_helps, result.width) == (True, None)
    assert "no width" in row(result, "neurons").change


# --- the data --------------------------------------------------------------------------------


def test_every_kind_of_limit_has_a_rule() -> None:
    assert RULES.keys() == Limits.model_fields.keys()


@pytest.mark.parametrize("name", chip_names())
def test_every_chip_gives_a_verdict_on_every_row(name: str) -> None:
    chip = load_chip(name)
    assert chip.name == name
    result = fit(vgg(0.25), chip)
    assert result.verdict in ("fits", "fits as far as checked", "does not fit")
    for one in result.rows:
        assert one.verdict in ("fits", "does not fit", "unchecked")
        assert one.change or one.verdict != "does not fit"
        assert one.source or one.reason
        if one.excess is not None:
            assert one.used - one.limit == one.excess > 0
    found = report(vgg(0.25), [result], origin="x")
    assert found["schema_version"] == 1
    assert len(found["targets"][0]["rows"]) == len(result.rows)


@pytest.mark.parametrize(
    "name", ["speck2e", "speck2f", "xylo_a2", "xylo_a3", "xylo_imu", "loihi", "truenorth"]
)
def test_exact_chips_leave_nothing_unpublished(name: str) -> None:
    chip = load_chip(name)
    assert chip.exact
    result = fit(vgg(0.25), chip)
    assert not [r.constraint for r in result.rows if r.reason == "not published"]


@pytest.mark.parametrize("name", chip_names())
def test_cores_are_never_fewer_than_the_bound(name: str) -> None:
    for width, size in ((0.25, 16), (1.0, 8)):
        placement = fit(vgg(width, size=size), load_chip(name)).placement
        if placement is not None and not placement.stuck:
            assert placement.cores >= placement.lower_bound >= 1


def test_classes_of_neurons_are_known() -> None:
    assert set(get_args(Neuron)) == {kind.__name__ for kind in (*NEURONS, nir.Threshold)}


def test_a_chip_cannot_contradict_itself() -> None:
    values = load_chip("loihi").model_dump()
    values["unlimited"] = {"cores": "many"}
    with pytest.raises(ValueError, match="both in limits and in unlimited"):
        Chip.model_validate(values)
