"""Users' own models, with code in forward, against the graphs that they become: spike by spike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir
import norse.torch as norse
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from norse.torch.functional.lif_box import LIFBoxFeedForwardState
from torch import Tensor, nn

from tser.config import NeuronConfig
from tser.deploy.backends import NirBackend, TorchBackend
from tser.deploy.equivalence import compare
from tser.export.graph import Graph, resolve
from tser.export.lower import Lowered, lower
from tser.layers import Residual, Spiking
from tser.students import make_neuron
from tser.user_models import UserStudent

STEPS, BATCH, SHAPE, CLASSES = 5, 4, (2, 8, 8), 4


def box(v_th: float = 0.2) -> norse.LIFBoxCell:
    return norse.LIFBoxCell(
        norse.LIFBoxParameters(tau_mem_inv=torch.tensor(400.0), v_th=torch.tensor(v_th))
    )


def cuba(v_th: float = 0.4) -> norse.LIFParameters:
    return norse.LIFParameters(
        tau_mem_inv=torch.tensor(400.0), tau_syn_inv=torch.tensor(300.0), v_th=torch.tensor(v_th)
    )


def lived(norm: Any) -> Any:
    norm.running_mean.normal_(std=0.2)
    norm.running_var.uniform_(0.5, 1.5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, std=0.2)
    return norm


class Basic(nn.Module):
    """A residual block as in torchvision, with neurons for ReLU; in-place sum and all."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.lif1 = lived(nn.BatchNorm2d(outputs)), box()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2, self.lif2 = lived(nn.BatchNorm2d(outputs)), box()
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), lived(nn.BatchNorm2d(outputs))
            )

    def forward(self, x: Tensor, state: Any) -> Any:
        s1, s2 = (None, None) if state is None else state
        identity = x if self.downsample is None else self.downsample(x)
        out, s1 = self.lif1(self.bn1(self.conv1(x)), s1)
        out = self.bn2(self.conv2(out))
        out += identity
        out, s2 = self.lif2(out, s2)
        return out, (s1, s2)


class ResidualNet(nn.Module):
    """Step by step, states in a dictionary, nested modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), lived(nn.BatchNorm2d(6)))
        self.lif = box()
        self.blocks = nn.ModuleList([Basic(6, 6, 1), Basic(6, 8, 2)])
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, state: dict[str, Any] | None = None) -> Any:
        state = {} if state is None else dict(state)
        y, state["stem"] = self.lif(self.stem(x), state.get("stem"))
        for number, block in enumerate(self.blocks):
            y, state[f"block{number}"] = block(y, state.get(f"block{number}"))
        return self.fc(y.mean((2, 3))), state


class Vgg(nn.Module):
    """A loop over T in forward; functional pools and dropout; max-pools of spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(2, 6, 3, padding=1, bias=False), lived(nn.BatchNorm2d(6))
        self.c2 = nn.Conv2d(6, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.drop = nn.Dropout(0.3)
        self.n1, self.n2, self.n3 = box(0.3), box(0.3), box(0.1)
        self.f1, self.f2 = nn.Linear(32, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        s1 = s2 = s3 = None
        outputs = []
        for _ in range(STEPS):
            y, s1 = self.n1(self.b1(self.c1(x)), s1)
            y = F.max_pool2d(y, 2)
            y, s2 = self.n2(self.c2(y), s2)
            y = self.drop(self.pool(y))
            y = F.dropout(torch.flatten(y, 1), 0.5, self.training)
            y, s3 = self.n3(self.f1(y), s3)
            outputs.append(self.f2(y))
        return torch.stack(outputs)


class OverTime(nn.Module):
    """A sequence [T, B, ...], T folded into the batch for layers without time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), lived(nn.BatchNorm2d(6))
        self.n1, self.n2 = norse.LIF(cuba(0.3)), norse.LIF(cuba(0.05))
        self.conv2 = nn.Conv2d(6, 4, 3, stride=2)
        self.read, self.membrane = nn.Linear(4, CLASSES), norse.LI()

    def forward(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[:2]
        y = self.norm(self.conv(x.flatten(0, 1)))
        z, _ = self.n1(y.view(steps, batch, *y.shape[1:]))
        z = F.avg_pool2d(z.reshape(-1, *z.shape[2:]), 2)
        y = self.conv2(z).unflatten(0, (steps, batch))
        z, _ = self.n2(y)
        out, _ = self.membrane(self.read(z.flatten(2)))
        return out


class Recurrent(nn.Module):
    """Recurrent current-based neurons; a loop over the steps of the input; explicit start."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = norse.LIFRecurrentCell(128, 20, cuba(0.5))
        self.second = norse.LIFBoxCell(box(0.2).p)
        self.between, self.out = nn.Linear(20, 10), norse.LILinearCell(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        start = LIFBoxFeedForwardState(v=torch.zeros(x.shape[1], 10))
        states: list[Any] = [None, start, None]
        outputs = []
        for frame in x:
            z, states[0] = self.cell(frame.flatten(1), states[0])
            z, states[1] = self.second(self.between(z), states[1])
            v, states[2] = self.out(z, states[2])
            outputs += [v]
        return torch.stack(outputs, 0)


class Shared(nn.Module):
    """One convolution in two places, and weights used as functions; states in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.n1, self.n2, self.n3 = box(0.1), box(0.05), box(0.1)
        self.weight = nn.Parameter(torch.randn(CLASSES, 64) / 4)
        self.bias = nn.Parameter(torch.randn(CLASSES))
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3) / 3)
        self.states: list[Any] = [None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        self.states = [None, None, None]
        outputs = []
        current = self.first(x)
        for _ in range(STEPS):
            z, self.states[0] = self.n1(current, self.states[0])
            z, self.states[1] = self.n2(self.conv(z), self.states[1])
            z, self.states[2] = self.n3(
                torch.add(self.conv(z), F.conv2d(z, self.kernel, padding="same")), self.states[2]
            )
            z = F.adaptive_avg_pool2d(z, (4, 4))
            outputs.append(F.linear(z.view(z.size(0), -1), self.weight, self.bias))
        return torch.stack(outputs)


class Ours(nn.Module):
    """Containers of tser inside a module of the user's, and a constant image over time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Spiking([("conv", nn.Conv2d(2, 4, 3, padding=1)), ("lif", lif())])
        main = Spiking([("conv", nn.Conv2d(4, 4, 3, padding=1)), ("bn", lived(nn.BatchNorm2d(4)))])
        self.block = Residual(main, Spiking([]), lif())
        self.head = Spiking([("flat", nn.Flatten()), ("fc", nn.Linear(256, CLASSES))])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x.unsqueeze(0), STEPS), STEPS), STEPS)


class Sequence(nn.Module):
    """A SequentialState with a lifted one, called by a module of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = norse.SequentialState(
            norse.Lift(nn.Conv2d(2, 4, 3)),
            norse.Lift(box()),
            norse.Lift(nn.MaxPool2d(2)),
            nn.Flatten(2),
            norse.LIFRecurrent(36, 12, cuba(0.2)),
            nn.Linear(12, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.net(x.repeat(STEPS, 1, 1, 1, 1))
        return out


class Integrators(nn.Module):
    """IAF cells and a box membrane at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.iaf = nn.Linear(128, 24), norse.IAFCell()
        self.out, self.li = nn.Linear(24, CLASSES), norse.LIBoxCell()

    def forward(self, x: Tensor, state: Any = None) -> Any:
        first, last = state or (None, None)
        z, first = self.iaf(self.fc(x.reshape(len(x), -1)), first)
        out, last = self.li(self.out(z), last)
        return out, (first, last)


class Scales(nn.Module):
    """One function with different arguments on one tensor; an input by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(2, 4, 3, padding=1), box(0.1)
        self.fine, self.coarse = nn.Linear(64, CLASSES), nn.Linear(16, CLASSES)
        self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.other = box(0.1)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        first, last = state or (None, None)
        z, first = self.lif(self.conv(x), first)
        current = F.conv2d(z, self.kernel, stride=4) + F.conv2d(
            input=F.avg_pool2d(z, (4, 4)), weight=self.kernel, bias=self.conv.bias
        )
        y, last = self.other(current, last)
        out = self.fine(F.avg_pool2d(z, 2).flatten(1))
        out += self.coarse(y.flatten(1))
        return out, (first, last)


class Factors(nn.Module):
    """Currents, spikes and logits times numbers, a learned one, and one for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(2, 4, 3, padding=1), box(0.1)
        self.fc, self.other = nn.Linear(256, 32), box(0.1)
        self.head = nn.Linear(32, CLASSES)
        self.gain = nn.Parameter(torch.tensor(1.3))
        self.register_buffer("each", torch.rand(4, 1, 1) + 0.5)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        first, last = state or (None, None)
        z, first = self.lif(0.7 * self.conv(x / 3) * self.gain / self.each, first)
        y, last = self.other(-self.fc((z * 0.9).flatten(1)).mul(3), last)
        return torch.div(self.head(y), 0.3), (first, last)


def lif() -> Any:
    return make_neuron(NeuronConfig(v_th=0.4))


ZOO: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "residual": (ResidualNet, "step", 5),
    "vgg": (Vgg, "static", 3),
    "over time": (OverTime, "sequence", 2),
    "recurrent": (Recurrent, "sequence", 2),
    "shared": (Shared, "static", 3),
    "ours": (Ours, "static", 2),
    "sequence": (Sequence, "static", 2),
    "integrators": (Integrators, "step", 1),
    "scales": (Scales, "step", 2),
    "factors": (Factors, "step", 2),
}


def student(model: nn.Module) -> UserStudent:
    return UserStudent(model, STEPS, SHAPE, CLASSES, "mine:make").eval()


def made(name: str) -> UserStudent:
    torch.manual_seed(0)
    return student(ZOO[name][0]())


def agrees(model: UserStudent, lowered: Lowered, x: np.ndarray[Any, Any]) -> Graph:
    """The resolved graph, once every spike of it is where the model has it."""
    graph = resolve(lowered.graph)
    reference = TorchBackend(model, lowered.modules, "the model")
    candidates: list[Any] = [NirBackend(graph, STEPS, "the graph")]
    evidence = compare(graph, reference, candidates, [(x, None)], lowered.bias_magnitude)
    (comparison,) = evidence.comparisons
    assert comparison.verdict in ("E0", "E1"), comparison.reason()
    for tally in comparison.layers.values():
        rate = tally.reference.sum() / (tally.neurons * STEPS * BATCH)
        assert 0.03 < rate < 0.7, (tally.name, rate)
    assert np.ptp(reference(x).logits) > 0.1
    return graph


def images(seed: int, *lead: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.3, 1, (*lead, BATCH, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("name", ZOO)
def test_every_spike_is_where_the_model_has_it(name: str) -> None:
    model = made(name)
    _, form, layers = ZOO[name]
    assert model.form == form
    lowered = lower(model)
    graph = agrees(model, lowered, images(0))
    assert len(graph.spiking) == layers
    for node, path in lowered.modules.items():
        assert node == path.removeprefix("model.").replace(".", "_")
        assert model.get_submodule(path)


@pytest.mark.parametrize("name", [name for name, (_, form, _) in ZOO.items() if form != "static"])
def test_with_another_input_at_every_step(name: str) -> None:
    model = made(name)
    agrees(model, lower(model), images(1, STEPS))


def test_nodes_and_edges_of_a_residual_net() -> None:
    lowered = lower(made("residual"))
    assert set(lowered.graph.edges) == {
        ("input", "stem_0"), ("stem_0", "lif"),
        ("lif", "blocks_0_conv1"), ("blocks_0_conv1", "blocks_0_lif1"),
        ("blocks_0_lif1", "blocks_0_conv2"),
        ("blocks_0_conv2", "blocks_0_lif2"), ("lif", "blocks_0_lif2"),
        ("blocks_0_lif2", "blocks_1_conv1"), ("blocks_1_conv1", "blocks_1_lif1"),
        ("blocks_1_lif1", "blocks_1_conv2"), ("blocks_0_lif2", "blocks_1_downsample_0"),
        ("blocks_1_conv2", "blocks_1_lif2"), ("blocks_1_downsample_0", "blocks_1_lif2"),
        ("blocks_1_lif2", "mean"), ("mean", "mean_flatten"), ("mean_flatten", "fc"),
        ("fc", "output"),
    }  # fmt: skip
    assert set(lowered.bias_magnitude) == {
        "stem_0", "blocks_0_conv1", "blocks_0_conv2", "blocks_1_conv1", "blocks_1_conv2",
        "blocks_1_downsample_0",
    }  # fmt: skip


def test_a_max_pool_of_spikes_is_a_sum_and_a_threshold() -> None:
    graph = lower(made("vgg")).graph
    for name, window in (("max_pool2d", (2, 2)), ("pool", (3, 3))):
        assert isinstance(graph.nodes[name], nir.SumPool2d)
        assert tuple(graph.nodes[name].kernel_size) == window
        threshold = graph.nodes[f"{name}_threshold"]
        assert isinstance(threshold, nir.Threshold)
        assert (threshold.threshold == 0.5).all()
    assert tuple(graph.nodes["pool"].stride) == (2, 2)
    assert tuple(graph.nodes["pool"].padding) == (1, 1)


def test_recurrent_weights_are_a_cycle_with_a_delay() -> None:
    model = made("recurrent")
    lowered = lower(model)
    cell: Any = model.get_submodule("model.cell")
    back = lowered.graph.nodes["cell_recurrent"]
    assert isinstance(back, nir.Linear)
    np.testing.assert_array_equal(back.weight, cell.recurrent_weights.detach().numpy())
    assert {("cell", "cell_recurrent"), ("cell_recurrent", "cell")} <= set(lowered.graph.edges)
    graph = resolve(lowered.graph)
    delayed = {(e.source, n.name) for n in graph.nodes.values() for e in n.inputs if e.delayed}
    assert delayed == {("cell", "cell_recurrent")}
    assert isinstance(lowered.graph.nodes["cell"], nir.CubaLIF)
    assert isinstance(lowered.graph.nodes["out"], nir.CubaLI)
    np.testing.assert_array_equal(
        lowered.graph.nodes["cell_input"].weight, cell.input_weights.detach().numpy()
    )


def test_the_recurrence_matters() -> None:
    """Otherwise the test above would not see it drop out."""
    model = made("recurrent")
    lowered = lower(model)
    lowered.graph.nodes["cell_recurrent"].weight[:] = 0
    with pytest.raises(AssertionError, match="rounding cannot explain"):
        agrees(model, lowered, images(0))


def test_a_shared_layer_is_a_node_for_each_use() -> None:
    graph = lower(made("shared")).graph
    assert {("n1", "conv"), ("conv", "n2"), ("n2", "conv_2"), ("conv_2", "n3")} <= set(graph.edges)
    np.testing.assert_array_equal(graph.nodes["conv"].weight, graph.nodes["conv_2"].weight)
    assert {("n2", "kernel"), ("kernel", "n3")} <= set(graph.edges)


def test_following_a_model_leaves_it_as_it_was() -> None:
    model = made("shared")
    shared: Any = model.model
    x = torch.from_numpy(images(0))
    with torch.no_grad():
        before = model(x)
        states = shared.states
        lower(model)
        assert [s is t for s, t in zip(shared.states, states, strict=True)] == [True] * 3
        assert torch.equal(model(x), before)
    assert {type(state).__name__ for state in shared.states} == {"LIFBoxFeedForwardState"}


def test_many_steps_are_not_followed_one_by_one() -> None:
    """A model that is called step by step is the same after some steps."""
    torch.manual_seed(0)
    model = UserStudent(Integrators(), 40, SHAPE, CLASSES, "mine:make").eval()
    calls = []
    model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert lower(model).graph.metadata["timesteps"] == 40
    assert len(calls) < 20


def test_uses_of_a_function_are_told_apart_by_their_arguments() -> None:
    graph = lower(made("scales")).graph
    pools = {name: op for name, op in graph.nodes.items() if isinstance(op, nir.AvgPool2d)}
    assert {name: tuple(op.kernel_size) for name, op in pools.items()} == {
        "avg_pool2d": (4, 4), "avg_pool2d_2": (2, 2),
    }  # fmt: skip
    strides = [tuple(graph.nodes[name].stride) for name in ("kernel", "kernel_2")]
    assert strides == [(4, 4), (1, 1)]
    assert not graph.nodes["kernel"].bias.any()
    assert graph.nodes["kernel_2"].bias.all()
