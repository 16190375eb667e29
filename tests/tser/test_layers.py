"""Batch norm of every step against a network that is called step by step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState
from torch import Tensor, nn

from tser.config import NeuronConfig, StudentConfig
from tser.layers import Residual, Spiking, Student, sublayers
from tser.students import build_student, make_neuron

T, BATCH = 5, 6


def lif() -> nn.Module:
    return make_neuron(NeuronConfig(v_th=0.5))


def norse_lif() -> nn.Module:
    p = LIFBoxParameters(
        torch.tensor(500.0), v_th=torch.tensor(0.5), method="triangle", alpha=torch.tensor(1.0)
    )
    return LIFBoxCell(p)


def drawn(norm: Any) -> Any:
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias, 0.3)
    return norm


def spiking(per_step: bool) -> tuple[Spiking, Any]:
    """Layers that run over time, and the same weights as a Norse model of a single step."""
    torch.manual_seed(0)
    layers: list[tuple[str, Any]] = [
        ("conv1", nn.Conv2d(1, 3, 3)),
        ("bn1", drawn(nn.BatchNorm2d(3))),
        ("lif1", lif()),
        ("conv2", nn.Conv2d(3, 4, 3, bias=False)),
        ("bn2", drawn(nn.BatchNorm2d(4, momentum=0.3))),
        ("lif2", lif()),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(16, 6)),
        ("bn3", drawn(nn.BatchNorm1d(6))),
    ]
    plain = [
        norse_lif() if name.startswith("lif") else copy.deepcopy(layer) for name, layer in layers
    ]
    ours = Spiking(layers)
    ours.norm_per_step = per_step
    return ours, SequentialState(*plain)


def by_steps(model: Any, frames: Tensor) -> Tensor:
    state, out = None, []
    for frame in frames:
        y, state = model(frame, state)
        out.append(y)
    return torch.stack(out)


def frames(seed: int = 0) -> Tensor:
    return torch.randn(T, BATCH, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2


def buffers(model: nn.Module) -> list[Tensor]:
    return [value for name, value in model.named_buffers() if "running" in name]


def test_norms_of_every_step_are_those_of_a_loop_over_time() -> None:
    ours, theirs = spiking(per_step=True)
    for seed in range(3):  # statistics run on from batch to batch
        logits, wanted = ours(frames(seed), T), by_steps(theirs, frames(seed))
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    for mine, other in zip(buffers(ours), buffers(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    counts = [m.num_batches_tracked for m in ours.modules() if hasattr(m, "num_batches_tracked")]
    assert [int(count) for count in counts if count is not None] == [3 * T] * 3

    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))
    (logits * weight).sum().backward()
    (wanted * weight).sum().backward()
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert len(pairs) == 11
    for mine, other in pairs:
        assert mine.grad is not None
        assert other.grad is not None
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5 * scale + 1e-5)


def test_joint_norms_are_those_of_all_steps_at_once() -> None:
    ours, _ = spiking(per_step=False)
    first = Spiking([("conv1", ours.get_submodule("conv1")), ("bn1", ours.get_submodule("bn1"))])
    x = frames()
    conv = nn.functional.conv2d(
        x.flatten(0, 1), *(value for value in ours.get_submodule("conv1").parameters())
    )
    wanted = nn.functional.batch_norm(
        conv, None, None, *ours.get_submodule("bn1").parameters(), training=True
    )
    torch.testing.assert_close(first(x, T), wanted.unflatten(0, (T, BATCH)), rtol=1e-5, atol=1e-5)


def test_the_two_differ_in_training_only() -> None:
    joint, _ = spiking(per_step=False)
    single, _ = spiking(per_step=True)
    assert not torch.allclose(joint(frames(), T), single(frames(), T), atol=1e-2)
    for mine, other in zip(buffers(joint), buffers(single), strict=True):
        assert not torch.allclose(mine, other)
    single.load_state_dict(joint.state_dict())
    joint.eval()
    single.eval()
    torch.testing.assert_close(joint(frames(1), T), single(frames(1), T), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_step", [False, True])
def test_a_still_image_passes_the_first_norm_once(per_step: bool) -> None:
    ours, _ = spiking(per_step)
    ours(frames()[:1], T)
    counts = [int(ours.get_submodule(name).num_batches_tracked) for name in ("bn1", "bn2", "bn3")]
    assert counts == ([1, T, T] if per_step else [1, 1, 1])


def test_norms_inside_of_blocks_are_of_every_step_too() -> None:
    """Each container has its own setting: a block's two branches are containers."""
    torch.manual_seed(0)
    branch = Spiking([("conv", nn.Conv2d(1, 2, 1)), ("bn", nn.BatchNorm2d(2))])
    shortcut = Spiking([("conv", nn.Conv2d(1, 2, 1)), ("bn", nn.BatchNorm2d(2))])
    branch.norm_per_step = True
    Residual(branch, shortcut, make_neuron(NeuronConfig()))(frames(), T)
    tracked = [part.get_submodule("bn").num_batches_tracked for part in (branch, shortcut)]
    assert [int(count) for count in tracked] == [T, 1]


def test_a_layer_may_have_two_places() -> None:
    """``children`` would show it once."""
    pool = nn.AvgPool2d(2)
    layers: list[tuple[str, nn.Module]] = [("a", pool), ("b", pool), ("flatten", nn.Flatten())]
    student = Student(Spiking(layers), 2, (1, 8, 8))
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(student(x)[0], pool(pool(x)).flatten(1))
    assert [name for name, _ in sublayers(student.layers)] == ["a", "b", "flatten"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("arch", ["convnet", "vgg11"])
def test_recomputing_changes_nothing_but_the_work(arch: str, precision: str) -> None:
    """Logits, gradients and running statistics are the same bits, after two passes."""
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        values: dict[str, Any] = {"arch": arch, "width": 4, "stages": 2, "timesteps": 4}
        config = StudentConfig.model_validate(values)
        student = build_student(config, NeuronConfig(), (1, 32, 32), 10).train()
        student.layers.recompute = recompute
        passes: list[str] = []
        for name, module in student.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda *_, name=name, to=passes: to.append(name))
        x = torch.randn(3, 1, 32, 32)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = student(x)
        once = list(passes)
        logits.float().square().sum().backward()
        assert sorted(passes) == sorted(once * (2 if recompute else 1))
        grads = {name: p.grad for name, p in student.named_parameters()}
        found.append((logits.detach(), grads, student.state_dict()))
    assert torch.equal(found[0][0], found[1][0])
    for ours, wanted in ((found[1][1], found[0][1]), (found[1][2], found[0][2])):
        assert list(ours) == list(wanted)
        for name, value in wanted.items():
            assert value is not None
            assert torch.equal(ours[name], value), name


def test_nothing_is_recomputed_where_no_gradient_is_wanted() -> None:
    student = build_student(StudentConfig(width=4), NeuronConfig(), (1, 8, 8), 10)
    student.layers.recompute = True
    passes: list[int] = []
    student.layers.stem_conv.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        student.train()(torch.rand(2, 1, 8, 8))
    student.eval()(torch.rand(2, 1, 8, 8))
    assert passes == [1, 1]
