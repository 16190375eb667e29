"""Students as NIR graphs: what is folded, what is kept, what is refused."""

import itertools
import json
import re
from typing import Any

import nir
import norse.torch as norse
import numpy as np
import pytest
import torch
from norse.torch.functional.lif_box import LIFBoxParameters
from norse.torch.module.sequential import RecurrentSequential
from torch import Tensor, nn

from tser import __version__
from tser.config import NeuronConfig, StudentConfig
from tser.data import load_data
from tser.deploy.interpreter import run
from tser.export.graph import decay, resolve
from tser.export.lower import ExportError, lower
from tser.layers import Residual, Spiking, Student
from tser.neurons import LIF
from tser.students import build_student, make_neuron
from tser.user_models import UserStudent

DATA = load_data("digits")


def _student(*layers: tuple[str, nn.Module], shape: tuple[int, int, int] = (2, 6, 5)) -> Student:
    return Student(Spiking(layers), 3, shape).eval()


def _lif(**values: float) -> LIF:
    return make_neuron(NeuronConfig(**values))


def _lived(norm: Any, seed: int = 0) -> Any:
    """``norm`` as if it had been trained."""
    rng = torch.Generator().manual_seed(seed)
    norm.running_mean.normal_(generator=rng)
    norm.running_var.uniform_(0.2, 3, generator=rng)
    if norm.affine:
        nn.init.normal_(norm.weight, generator=rng)
        nn.init.normal_(norm.bias, generator=rng)
    return norm


def _built(stages: int = 2) -> Student:
    torch.manual_seed(0)
    config = StudentConfig(timesteps=3, width=4, stages=stages)
    return build_student(config, NeuronConfig(v_reset=0.25), (1, 8, 8), 10).eval()


# --- values --------------------------------------------------------------------------------

FOLDED: dict[str, list[tuple[str, nn.Module]]] = {
    "no bias": [("conv", nn.Conv2d(2, 4, 3, bias=False)), ("bn", nn.BatchNorm2d(4))],
    "bias": [("conv", nn.Conv2d(2, 4, 3, 2, 1)), ("bn", nn.BatchNorm2d(4, eps=0.1))],
    "groups": [("conv", nn.Conv2d(2, 4, (3, 1), groups=2)), ("bn", nn.BatchNorm2d(4))],
    "not affine": [("conv", nn.Conv2d(2, 4, 3)), ("bn", nn.BatchNorm2d(4, affine=False))],
    "same": [("conv", nn.Conv2d(2, 3, 3, padding="same")), ("bn", nn.BatchNorm2d(3))],
    "linear": [
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(60, 7, bias=False)),
        ("bn", nn.BatchNorm1d(7)),
    ],
    "no norm": [("conv", nn.Conv2d(2, 4, 3, dilation=2, padding=2))],
}


@pytest.mark.parametrize("case", FOLDED)
def test_folding_equals_pytorch_in_float64(case: str) -> None:
    torch.manual_seed(0)
    layers = FOLDED[case]
    for name, layer in layers:
        if name == "bn":
            _lived(layer)
    student = _student(*layers)
    graph = resolve(lower(student).graph)
    x = np.random.default_rng(0).normal(size=(3, 2, 6, 5))
    ours, _ = run(graph, x, 1, dtype=np.float64)
    with torch.inference_mode():
        theirs = student.double()(torch.from_numpy(x))[:1].numpy()
    student.float()
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()
    assert "bn" not in graph.nodes


def test_the_magnitude_behind_a_folded_bias() -> None:
    conv, norm = nn.Conv2d(2, 3, 1), _lived(nn.BatchNorm2d(3))
    lowered = lower(_student(("conv", conv), ("bn", norm), ("lif", _lif())))
    mean, var, weight, shift, bias = (
        value.detach().double().numpy()
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias, conv.bias)
    )
    scale = weight / np.sqrt(var + norm.eps)
    expected = np.abs(bias * scale) + np.abs(mean * scale) + np.abs(shift)
    np.testing.assert_allclose(lowered.bias_magnitude["conv"], expected, rtol=1e-12)
    assert (expected >= np.abs(lowered.graph.nodes["conv"].bias)).all()


def test_the_graph_holds_copies() -> None:
    student = _student(("conv", nn.Conv2d(2, 3, 1)), ("lif", _lif()))
    graph = lower(student).graph
    before = graph.nodes["conv"].weight.copy()
    with torch.no_grad():
        for value in (*student.parameters(), *student.buffers()):
            value += 1
    np.testing.assert_array_equal(graph.nodes["conv"].weight, before)
    assert graph.nodes["lif"].v_threshold.max() == 1


def test_neurons_have_a_value_for_each_element() -> None:
    values = {"tau_mem": 4e-3, "v_th": 0.7, "v_leak": 0.1, "v_reset": -0.2}
    op = lower(_student(("conv", nn.Conv2d(2, 3, 3)), ("lif", _lif(**values)))).graph.nodes["lif"]
    expected = {"tau": 4e-3, "r": 1, "v_threshold": 0.7, "v_leak": 0.1, "v_reset": -0.2}
    for name, value in expected.items():
        array = getattr(op, name)
        assert array.shape == (3, 4, 3)
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, value, rtol=2e-7)


def _factor(neuron: LIF) -> np.float32:
    """What the student multiplies by at each step."""
    return np.float32((neuron.dt * neuron.tau_mem_inv).item())


def _taus() -> list[tuple[float, float]]:
    rng = np.random.default_rng(0)
    common = [(dt, k * dt) for dt in (1e-3, 1e-4, 2.0**-10) for k in (1, 1.25, 2, 2.5, 5, 8, 20)]
    return common + [(1e-3, float(tau)) for tau in rng.uniform(1e-3, 3e-2, 300)]


def test_tau_gives_the_decay_of_the_neuron_or_the_nearest() -> None:
    exact = 0
    for dt, tau in _taus():
        neuron = _lif(dt=dt, tau_mem=tau)
        op = lower(_student(("lif", neuron))).graph.nodes["lif"]
        stored, factor = op.tau.reshape(-1)[0], _factor(neuron)
        around = [stored]
        for direction in (np.float32(0), np.float32(9)):
            step = stored
            for _ in range(4):
                step = np.nextafter(step, direction)
                around.append(step)
        misses = np.abs(decay(dt, np.array(around)).astype(np.float32) - factor)
        assert misses[0] == misses.min()
        assert misses[0] <= np.spacing(factor)
        assert abs(stored - tau) <= 3e-7 * tau
        exact += misses[0] == 0
    assert exact > 0.8 * len(_taus())


def test_tau_is_exact_where_the_ratio_is() -> None:
    for shift, dt in itertools.product(range(6), (2.0**-10, 1e-3, 1e-4)):
        neuron = _lif(dt=dt, tau_mem=dt * 2.0**shift)
        op = lower(_student(("lif", neuron))).graph.nodes["lif"]
        assert (decay(neuron.dt, op.tau).astype(np.float32) == 2.0**-shift).all()


# --- structure -----------------------------------------------------------------------------


def test_a_residual_is_two_edges_into_the_neuron() -> None:
    lowered = lower(_built())
    edges = set(lowered.graph.edges)
    assert {source for source, target in edges if target == "block1_neuron"} == {
        "block1_main_conv2",
        "stem_lif",  # the identity shortcut is nothing but an edge
    }
    assert {source for source, target in edges if target == "block2_neuron"} == {
        "block2_main_conv2",
        "block2_shortcut_conv",
    }
    assert len(edges) == len(lowered.graph.edges) == 17
    assert len(resolve(lowered.graph).spiking) == 5


def test_the_module_of_every_spiking_layer_is_known() -> None:
    student = _built()
    lowered = lower(student)
    assert list(lowered.modules) == [node.name for node in resolve(lowered.graph).spiking]
    for path in lowered.modules.values():
        assert isinstance(student.get_submodule(path), LIF)


def test_a_residual_of_two_convolutions() -> None:
    block = Residual(
        Spiking([("a", nn.Conv2d(2, 2, 1))]), Spiking([("b", nn.Conv2d(2, 2, 1))]), _lif()
    )
    edges = lower(_student(("block", block))).graph.edges
    assert ("block_main_a", "block_neuron") in edges
    assert ("block_shortcut_b", "block_neuron") in edges


def test_layers_without_effect_in_eval_mode_leave_no_node() -> None:
    layers = [("skip", nn.Identity()), ("drop", nn.Dropout(0.5)), ("drop2", nn.Dropout2d(0.5))]
    graph = lower(_student(*layers, ("lif", _lif()))).graph
    assert sorted(graph.nodes) == ["input", "lif", "output"]


def test_portable_profile() -> None:
    graph = lower(_built()).graph
    shapes = {node.name: node.input_shape for node in resolve(graph).nodes.values()}
    for name, op in graph.nodes.items():
        assert re.fullmatch("[A-Za-z0-9_]+", name)
        for key, value in op.to_dict().items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                assert value.dtype == np.float32, (name, key)
        if isinstance(op, nir.Conv2d):
            assert tuple(op.input_shape) == shapes[name][1:]
            assert op.groups == 1
            assert op.bias.shape == op.weight.shape[:1]
        if isinstance(op, nir.LIF):
            assert op.tau.shape == shapes[name]
            for value in (op.tau, op.r, op.v_leak, op.v_threshold, op.v_reset):
                assert np.unique(value).size == 1
    assert (graph.nodes["flatten"].start_dim, graph.nodes["flatten"].end_dim) == (-3, -1)
    assert graph.nodes["pool"].kernel_size.tolist() == [4, 4]
    assert isinstance(graph.nodes["readout"], nir.Affine)


def test_the_flatten_counts_from_the_end() -> None:
    layers = [("a", nn.Flatten()), ("fc", nn.Linear(60, 4)), ("lif", _lif()), ("b", nn.Flatten())]
    graph = lower(_student(*layers)).graph
    assert graph.nodes["a"].start_dim == -3
    assert graph.nodes["b"].start_dim == -1
    assert resolve(graph).nodes["b"].output_shape == (4,)


def test_metadata_say_how_to_run_it() -> None:
    graph = lower(_built(), DATA).graph
    stated = graph.metadata
    assert stated["producer"] == f"tser {__version__}"
    assert (stated["dt"], stated["timesteps"], stated["reset"]) == (1e-3, 3, "to_value")
    assert (stated["v_init"], stated["encoding"], stated["data"]) == ("v_leak", "direct", "digits")
    assert json.loads(stated["class_names"]) == list(DATA.class_names)
    assert stated["input_max_value"] == DATA.max_value
    assert json.loads(stated["input_mean"]) == list(DATA.mean)
    assert json.loads(stated["input_std"]) == list(DATA.std)
    view = resolve(graph)
    assert (view.dt, view.timesteps) == (1e-3, 3)
    assert view.class_names == list(DATA.class_names)
    assert "data" not in lower(_built()).graph.metadata


# --- refusals ------------------------------------------------------------------------------


def _vector() -> LIF:
    return LIF(LIFBoxParameters(torch.tensor(500.0), v_th=torch.tensor([1.0, 2.0])), 1e-3)


def _conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(2, 2, 3, padding=1, **options)


def _residual(main: list[Any], shortcut: list[Any]) -> Residual:
    return Residual(Spiking(main), Spiking(shortcut), _lif())


REFUSED: dict[str, tuple[list[tuple[str, nn.Module]], str]] = {
    "max-pool": ([("pool", nn.MaxPool2d(2))], "layer 'pool' (MaxPool2d) .* average pooling"),
    "ReLU": ([("act", nn.ReLU())], "layer 'act' (ReLU) .* not a spike; use LIF"),
    "unknown": ([("up", nn.Upsample(2))], "layer 'up' (Upsample) .* no such node"),
    "deep": (
        [("outer", Spiking([("inner", Spiking([("act", nn.Tanh())]))]))],
        "layer 'outer.inner.act' (Tanh)",
    ),
    "analog into a convolution": (
        [("conv1", _conv()), ("conv2", _conv())],
        "layer 'conv2' receives an analog value, not spikes; put a LIF layer before it",
    ),
    "analog into a linear layer": (
        [("conv1", _conv()), ("flatten", nn.Flatten()), ("fc", nn.Linear(60, 2))],
        "layer 'fc' receives an analog value",
    ),
    "pooled analog": (
        [("conv1", _conv()), ("pool", nn.AvgPool2d(2)), ("conv2", _conv())],
        "layer 'conv2' receives an analog value",
    ),
    "norm first": ([("bn", nn.BatchNorm2d(2))], "layer 'bn' (batch norm) does not follow"),
    "norm after neurons": (
        [("conv", _conv()), ("lif", _lif()), ("bn", nn.BatchNorm2d(2))],
        "layer 'bn' (batch norm) does not follow",
    ),
    "two norms": (
        [("conv", _conv()), ("bn1", nn.BatchNorm2d(2)), ("bn2", nn.BatchNorm2d(2))],
        "layer 'bn2' (batch norm) does not follow",
    ),
    "norm without statistics": (
        [("conv", _conv()), ("bn", nn.BatchNorm2d(2, track_running_stats=False))],
        "the batch norm after 'conv' has no running statistics",
    ),
    "x + x": ([("block", _residual([], []))], "layer 'block' adds a value to itself"),
    "shapes of a sum": (
        [("block", _residual([("conv", nn.Conv2d(2, 3, 1))], []))],
        "layer 'block' sums the shapes (3, 6, 5) and (2, 6, 5)",
    ),
    "padding_mode": (
        [("conv", _conv(padding_mode="reflect"))],
        "layer 'conv' pads with 'reflect'; NIR pads with zeros",
    ),
    "ceil_mode": (
        [("pool", nn.AvgPool2d(2, ceil_mode=True))],
        "layer 'pool' uses ceil_mode",
    ),
    "divisor": ([("pool", nn.AvgPool2d(2, divisor_override=3))], "layer 'pool' uses ceil_mode"),
    "uncounted padding": (
        [("pool", nn.AvgPool2d(2, padding=1, count_include_pad=False))],
        "layer 'pool' uses ceil_mode, divisor_override or uncounted padding",
    ),
    "windows of unequal size": (
        [("pool", nn.AdaptiveAvgPool2d(4))],
        "layer 'pool' pools maps of 6x5 to 4x4 with windows of unequal size",
    ),
    "mixed dt": (
        [("a", _lif()), ("conv", _conv()), ("b", _lif(dt=5e-4))],
        "layer 'b' has dt = 0.0005 s, earlier layers 0.001 s",
    ),
    "partial flatten": ([("flatten", nn.Flatten(2))], "layer 'flatten' must flatten all"),
    "a threshold each": ([("lif", _vector())], "layer 'lif' has a parameter for each neuron"),
    "a node called output": ([("output", _conv())], "cannot be called 'output'; rename"),
    "a name that is a path in HDF5": ([("a/b", _conv())], "cannot be called 'a/b'; rename"),
    "one name twice": (
        [("a_b", _lif()), ("a", Spiking([("b", _lif())]))],
        "two layers would be called 'a_b' in NIR; rename 'a.b'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(case: str) -> None:
    layers, message = REFUSED[case]
    pattern = re.escape(message).replace(r"\ \.\*\ ", " .* ")
    with pytest.raises(ExportError, match=pattern) as caught:
        lower(_student(*layers))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_spikes_may_be_pooled_before_a_synapse() -> None:
    layers = [("lif", _lif()), ("pool", nn.AvgPool2d(2)), ("conv", nn.Conv2d(2, 3, 1))]
    assert resolve(lower(_student(*layers)).graph).nodes["conv"].output_shape == (3, 3, 2)


# --- models that a user brings -------------------------------------------------------------


def _user(model: nn.Module, shape: tuple[int, int, int] = (2, 6, 6)) -> UserStudent:
    return UserStudent(model, 3, shape, 4, "mine:make").eval()


def _norse(*layers: nn.Module) -> Any:
    return norse.SequentialState(*layers)


def _by_cells() -> Any:
    """Nested containers, two uses of one pool, norms to fold, layers without effect."""
    pool = nn.AvgPool2d(2)
    return _norse(
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), _lived(nn.BatchNorm2d(3))),
        norse.LIFBoxCell(),
        pool,
        nn.Dropout(0.5),
        _norse(nn.Conv2d(3, 4, 2), norse.LIFCell(), pool),
        nn.Flatten(),
        nn.Linear(4, 4),
        norse.LICell(),
    )


def _over_time() -> Any:
    """The same layers with Norse's forms over time."""
    return _norse(
        norse.Lift(
            nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), _lived(nn.BatchNorm2d(3)))
        ),
        norse.Lift(norse.LIFBoxCell()),
        norse.Lift(nn.AvgPool2d(2)),
        norse.Lift(nn.Conv2d(3, 4, 2)),
        norse.LIF(),
        norse.Lift(nn.AvgPool2d(2)),
        nn.Flatten(2),
        nn.Linear(4, 4),
        norse.LI(),
    )


def test_a_sequential_state_of_cells() -> None:
    student = _user(_by_cells())
    assert student.form == "step"
    lowered = lower(student, DATA)
    assert lowered.graph.edges == [
        ("input", "0_0"), ("0_0", "1"), ("1", "2"), ("2", "4_0"), ("4_0", "4_1"), ("4_1", "4_2"),
        ("4_2", "5"), ("5", "6"), ("6", "7"), ("7", "output"),
    ]  # fmt: skip
    kinds = [type(lowered.graph.nodes[name]) for name in ("1", "4_1", "7")]
    assert kinds == [nir.LIF, nir.CubaLIF, nir.CubaLI]
    assert lowered.modules == {"1": "model.1", "4_1": "model.4.1"}
    for path in lowered.modules.values():
        assert isinstance(student.get_submodule(path), norse.LIFBoxCell | norse.LIFCell)
    assert list(lowered.bias_magnitude) == ["0_0"]
    assert lowered.graph.metadata["timesteps"] == 3
    assert (resolve(lowered.graph).dt, lowered.graph.metadata["data"]) == (1e-3, "digits")


def test_a_sequential_state_over_time() -> None:
    student = _user(_over_time())
    assert student.form == "sequence"
    lowered = lower(student)
    assert lowered.modules == {"1_lifted_module": "model.1.lifted_module", "4": "model.4"}
    assert list(resolve(lowered.graph).nodes) == [
        "input", "0_lifted_module_0", "1_lifted_module", "2_lifted_module", "3_lifted_module", "4",
        "5_lifted_module", "6", "7", "8", "output",
    ]  # fmt: skip


@pytest.mark.parametrize("model", [_by_cells, _over_time])
def test_the_graph_does_what_the_users_model_does(model: Any) -> None:
    torch.manual_seed(0)
    student = _user(model())
    graph = resolve(lower(student).graph)
    images = np.random.default_rng(0).normal(size=(5, 2, 6, 6)).astype(np.float32) * 30
    for x in (images, np.stack([images, -images, images])):
        with torch.inference_mode():
            wanted = student(torch.from_numpy(x)).numpy()
        # Logits of rounding alone are of the size 1e-7.
        np.testing.assert_allclose(run(graph, x, 3)[0], wanted, rtol=1e-3, atol=1e-5)
        assert np.abs(wanted).max() > 0.02


@pytest.mark.parametrize("flatten", [nn.Flatten(2), nn.Flatten(-3), norse.Lift(nn.Flatten())])
def test_ways_to_flatten_over_time(flatten: nn.Module) -> None:
    graph = lower(_user(_norse(norse.LIF(), flatten, nn.Linear(72, 4)))).graph
    assert resolve(graph).nodes["2"].input_shape == (72,)


@pytest.mark.parametrize("flatten", [nn.Flatten(), nn.Flatten(1, 3), nn.Flatten(-3, -1)])
def test_ways_to_flatten_a_step(flatten: nn.Module) -> None:
    graph = lower(_user(_norse(norse.LIFCell(), flatten, nn.Linear(72, 4)))).graph
    assert resolve(graph).nodes["2"].input_shape == (72,)


class _Raised(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward(x.exp())
        return result


class _RaisedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.exp())


class _Renormed(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class _FlattenedEarly(nn.Module):
    """Hands its model images that are flat over channels; the layers are the user's."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2)


_HEAD = (nn.Flatten(), nn.Linear(72, 4))
USERS_REFUSED: dict[str, tuple[Any, str]] = {
    "code in a container": (
        lambda: _norse(norse.LIFCell(), _Raised(*_HEAD)),
        "layer '1' (_Raised), line {line} of test_lower.py, cannot be exported: there is no",
    ),
    "code in a layer": (
        lambda: _norse(norse.LIFCell(), nn.Flatten(), _RaisedLinear(72, 4)),
        "layer '2' (_RaisedLinear), line {line} of test_lower.py, cannot be exported: there is no",
    ),
    "code in a norm": (
        lambda: _norse(nn.Conv2d(2, 2, 1), _Renormed(2), norse.LIFCell(), *_HEAD),
        "layer '1' (_Renormed), line {line} of test_lower.py, cannot be exported",
    ),
    "a layer without children": (
        lambda: _norse(_FlattenedEarly(), nn.Flatten(), nn.Linear(72, 4), norse.LIFCell()),
        "layer '0' (_FlattenedEarly), line {line} of test_lower.py, cannot be exported: it moves",
    ),
    "recurrence over the whole": (
        lambda: RecurrentSequential(nn.Flatten(), norse.LIFCell(), nn.Linear(72, 72)),
        "(RecurrentSequential) cannot be exported",
    ),
    "max-pool": (
        lambda: _norse(nn.MaxPool2d(2), norse.LIFCell(), nn.Flatten(), nn.Linear(18, 4)),
        "layer '0' (MaxPool2d) takes the largest of values that are no spikes, which NIR cannot",
    ),
    "another max-pool": (
        lambda: _norse(norse.LIFCell(), nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(18, 4)),
        "layer '1' (AdaptiveMaxPool2d) cannot be exported: NIR has no such max-pool; use MaxPool2d",
    ),
    "two time steps": (
        lambda: _norse(norse.LIFCell(), nn.Flatten(), nn.Linear(72, 4), norse.LICell(dt=5e-4)),
        "layer '3' has dt = 0.0005 s, earlier layers 0.001 s; a NIR graph has one dt",
    ),
    "a membrane into a synapse": (
        lambda: _norse(norse.LICell(), *_HEAD),
        "layer '2' receives an analog value, not spikes; put a LIF layer before it",
    ),
    "an analog value through a pool": (
        lambda: _norse(norse.LIBoxCell(), nn.AvgPool2d(1), *_HEAD),
        "layer '3' receives an analog value",
    ),
    "norm in another container": (
        lambda: _norse(
            nn.Conv2d(2, 2, 1), nn.Sequential(nn.BatchNorm2d(2)), norse.LIFCell(), *_HEAD
        ),
        "layer '1.0' (batch norm) does not follow a convolution",
    ),
    "other neurons": (
        lambda: _norse(nn.Flatten(), norse.LIFAdExRecurrentCell(72, 4)),
        "layer '1' (LIFAdExRecurrentCell) cannot be exported: of Norse's neurons there are rules",
    ),
    "a layer that nothing reaches": (
        lambda: _with_spare(_norse(norse.LIFCell(), *_HEAD)),
        "layer 'spare' fires but is not on a way from the input to the output",
    ),
}


def _with_spare(model: nn.Module) -> nn.Module:
    """A neuron that sits beside the layers that are called."""
    holder = _user(model)
    holder.add_module("spare", norse.LIFCell())
    return holder


@pytest.mark.parametrize("case", USERS_REFUSED)
def test_what_a_users_model_may_not_do_is_refused_by_name(case: str) -> None:
    make, message = USERS_REFUSED[case]
    model = make()
    wrapped = isinstance(model, UserStudent) or case.startswith("recurrence")
    student = _unprobed(model) if case.startswith("recurrence") else model
    pattern = re.escape(message).replace(re.escape("{line}"), r"\d+")
    with pytest.raises(ExportError, match=pattern) as caught:
        lower(student if wrapped else _user(model))
    assert "\n" not in str(caught.value)


def _unprobed(model: nn.Module) -> UserStudent:
    """A student of a model of other shapes than a student has."""
    student = _user(_norse(norse.LIFCell(), nn.Flatten(), nn.Linear(72, 4)))
    student.model = model
    return student


def test_flattening_time_is_refused() -> None:
    """Where T = 1, ``Flatten(1)`` of [T, B, ...] gives nothing that is [T, B, K]; a step does."""
    model = _norse(norse.LIF(), nn.Flatten(2), nn.Linear(72, 4))
    student = _user(model)
    model[1] = nn.Flatten(1)
    with pytest.raises(ExportError, match="layer '1' must flatten all of"):
        lower(student)
    model[1] = norse.Lift(nn.Flatten(2))
    with pytest.raises(ExportError, match=r"layer '1.lifted_module' must flatten all of"):
        lower(student)


def test_one_neuron_layer_in_two_places_is_refused() -> None:
    """Its spikes could not be told apart."""
    cell = norse.LIFCell()
    student = _unprobed(_norse(cell, nn.Flatten(), nn.Linear(72, 4), cell))
    with pytest.raises(ExportError, match=r"layer 'model.3' is in two places; make one layer for"):
        lower(student)


@pytest.mark.parametrize(
    ("wanted", "window"),
    [(1, (6, 5)), ((3, 1), (2, 5)), ((None, 1), (1, 5)), ((6, 5), (1, 1))],
)
def test_an_adaptive_pool_with_equal_windows_is_a_plain_one(
    wanted: Any, window: tuple[int, int]
) -> None:
    layers = [("lif", _lif()), ("pool", nn.AdaptiveAvgPool2d(wanted)), ("conv", nn.Conv2d(2, 3, 1))]
    student = _student(*layers)
    graph = resolve(lower(student).graph)
    assert tuple(graph.nodes["pool"].op.kernel_size) == window
    x = torch.rand(4, 2, 6, 5) * 3
    with torch.no_grad():
        expected = student(x).numpy()
    found, _ = run(graph, x.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
