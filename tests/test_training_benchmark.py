"""The benchmark of a training step: that all variants train the same network, and its tables."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tser.layers import Spiking
from tser.neurons import LIF

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
EAGER = ["ann", "tser", "norse", "snntorch", "spikingjelly"]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of benchmarks/, which is no package."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.fixture
def networks(load) -> ModuleType:
    return load("networks")


def _job(**changes) -> dict:
    job = {"device": "cpu", "threads": torch.get_num_threads(), "precision": "float32"}
    return {**job, "width": 2, "batch": 2, "timesteps": 2, **changes}


def _counts(module: nn.Module, kind: type, counts: list[float]) -> None:
    """Add up the spikes of every layer of ``kind``; Norse's come beside a state."""

    def hook(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        counts.append(float((output if isinstance(output, Tensor) else output[0]).detach().sum()))

    for layer in module.modules():
        if isinstance(layer, kind):
            layer.register_forward_hook(hook)


def test_the_student_and_plain_norse_are_the_same_network(load, networks) -> None:
    from norse.torch import LIFBoxCell

    size = networks.Size(width=4, timesteps=3, batch=4)
    ours = networks.build_student(size, CPU, mode="off")
    theirs = load("peers").norse(size, CPU)
    for module in ours.module.modules():
        if isinstance(module, Spiking):
            module.norm_per_step = True  # as a network called step by step has it
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    _counts(ours.module, LIF, found["ours"])
    _counts(theirs.module, LIFBoxCell, found["theirs"])
    logits = []
    for variant in (ours, theirs):
        variant.module.double()  # so that no spike hangs on the order of a sum
        logits.append(variant.logits(variant.images.double()))
        nn.functional.cross_entropy(logits[-1], variant.labels).backward()
    torch.testing.assert_close(logits[0], logits[1])
    layers = len(found["ours"])
    steps = [sum(found["theirs"][layer::layers]) for layer in range(layers)]
    assert found["ours"] == steps
    assert all(count > 0 for count in steps)
    for mine, other in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("name", EAGER)
def test_every_variant_starts_alike_and_trains_all_its_weights(load, networks, name: str) -> None:
    if name not in ("ann", "tser"):
        pytest.importorskip(name)
    trainer = load("training_step").trainer(_job(width=4), name)
    parameters = list(trainer.variant.module.parameters())
    before = [value.detach().clone() for value in parameters]
    reference = list(networks.ann(4).parameters())
    for value, expected in zip(before, reference, strict=True):
        assert torch.equal(value, expected)
    trainer.loss().backward()
    for value in parameters:
        assert value.grad is not None
        assert value.grad.isfinite().all()
        assert value.grad.any()
    trainer.step()
    assert not torch.equal(parameters[-1], before[-1])


def test_the_neurons_are_counted_as_they_fire(networks) -> None:
    size = networks.Size(width=2, timesteps=3, batch=2)
    variant = networks.build_student(size, CPU, mode="off")
    outputs = []
    for layer in variant.module.modules():
        if isinstance(layer, LIF):
            layer.register_forward_hook(lambda _m, _i, spikes: outputs.append(spikes.numel()))
    variant.logits(variant.images)
    assert sum(outputs) == size.neuron_steps()


def test_what_backward_needs_is_counted_once(load, networks) -> None:
    linear = nn.Linear(8, 10)
    images, labels = torch.randn(4, 8), torch.zeros(4, dtype=torch.long)

    def logits(x: Tensor) -> Tensor:
        hidden = linear(x).exp()  # kept: the result of exp, both for exp and for the product
        hidden.sin().cos()  # leads nowhere
        return hidden * hidden

    measuring = load("measuring")
    variant = networks.Variant(linear, images, labels, logits)
    kept = measuring.kept_bytes(measuring.Trainer(variant, "float32"))
    log_softmax, total_weight = 4 * 10 * 4, 4
    assert kept == 4 * 10 * 4 + log_softmax + total_weight


def test_a_library_that_is_absent_is_left_out_with_the_reason(load, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "snntorch", None)
    script = load("training_step")
    row = script.time_steps(_job(variants=["tser", "snntorch"], rounds=2))
    assert set(row["seconds"]) == {"floor", "tser"}
    assert [len(seconds) for seconds in row["seconds"].values()] == [2, 2]
    assert "snntorch" in row["left_out"]["snntorch"]
    assert "[bench]" in row["left_out"]["snntorch"]
    assert "missing" in script.start(_job(variant="snntorch"))


def _row(**changes) -> dict:
    seconds = {"floor": [1.0, 2.0, 4.0], "tser": [1.5, 3.0, 8.0]}
    return {"part": "steps", "rounds": 3, "seconds": seconds, **_job(width=16), **changes}


def test_cells_are_ratios_within_a_round_and_the_newest_row_counts(load) -> None:
    tables = load("step_tables")
    slower = {"floor": [1.0], "tser": [9.0]}
    text = tables.make_tables([_row(seconds=slower), _row(), _row(timesteps=4)])["training-float32"]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text().splitlines()]
    assert lines[0][1:] == ["T = 2", "T = 4"]
    assert lines[2:] == [
        ["tser, eager", "1.50 [1.50, 1.75]", "1.50 [1.50, 1.75]"],
        ["the floor", "2000 ms", "2000 ms"],
    ]


@pytest.mark.parametrize(
    ("seconds", "met"),
    [([1.7, 1.7, 1.7], "yes"), ([1.71, 1.72, 1.73], "no"), ([1.5, 1.6, 2.0], "unclear")],
)
def test_a_goal_within_the_spread_is_not_called_met(load, seconds: list, met: str) -> None:
    tables = load("step_tables")
    row = _row(timesteps=4, threads=2, seconds={"floor": [1.0] * 3, "tser": seconds})
    assert tables.goal_table([row]).rstrip().endswith(f"| {met} |")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", "convolution, backward"),
        ("aten::mkldnn_convolution", "convolution, forward"),
        ("aten::native_batch_norm_backward", "batch norm"),
        ("graph_0_cpp_fused_native_batch_norm_3", "compiled kernels"),
        ("aten::mul", "neuron and other elementwise"),
        ("aten::stack", "copies, casts and layout"),
        ("unheard of", "other"),
    ],
)
def test_operations_are_sorted_by_kind(load, name: str, kind: str) -> None:
    assert load("measuring").kind_of(name) == kind
