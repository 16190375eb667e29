"""Run by test_compilation.py in a process of its own, whose annotations nobody checks.

The checks of the test run are wrapped around every function, and torch.compile stumbles over
them. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tser.compilation import compiled_network
from tser.config import NeuronConfig, StudentConfig
from tser.neurons import integrate_and_fire
from tser.students import build_student

T, SHAPE = 3, (4, 6)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(T, *shape, generator=torch.Generator().manual_seed(seed)) * 3


def distances(
    current: Tensor, rate: Tensor, v_leak: Tensor, v_th: Tensor, v_reset: Tensor
) -> Tensor:
    """``v - v_th`` before each reset, in float64."""
    v, found = v_leak.double(), []
    for step in current:
        v = v + rate.double() * (step + v_leak.double() - v)
        found.append(v - v_th.double())
        v = torch.where(found[-1] > 0, v_reset.double(), v)
    return torch.stack(found)


def neuron(surrogate: str) -> dict[str, Any]:
    """Spikes and gradients of the compiled neuron, compiled once for all its parameters."""
    compiled = torch.compile(integrate_and_fire, dynamic=False)
    count = {"certain": 0, "all": 0, "fired": 0, "flips": 0, "gradients": 0}

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(
        rate=st.floats(0.05, 1.0),
        v_th=st.floats(0.3, 1.3),
        v_leak=st.floats(-0.2, 0.2),
        v_reset=st.floats(-1.0, 0.2),
        seed=st.integers(0, 2**31),
    )
    def check(rate: float, v_th: float, v_leak: float, v_reset: float, seed: int) -> None:
        values = [torch.tensor(value) for value in (rate, v_leak, v_th, v_reset)]
        results = []
        for function in (compiled, integrate_and_fire):
            x = noise(*SHAPE, seed=seed).requires_grad_()
            spikes = function(x, T, *values, surrogate, 1.5, False)
            (spikes * noise(*SHAPE, seed=seed + 1)).sum().backward()
            assert x.grad is not None
            results.append((spikes.detach(), x.grad))
        (ours, gradient), (wanted, reference) = results
        # A neuron may differ from where its reference is within rounding of the threshold.
        far = distances(noise(*SHAPE, seed=seed).double(), *values).abs() > 1e-5
        certain = far.cumprod(0).bool()
        assert torch.equal(ours[certain], wanted[certain])
        count["certain"] += int(certain.sum())
        count["all"] += certain.numel()
        count["fired"] += int(wanted.sum())
        count["flips"] += int((ours != wanted).sum())
        if certain.all():
            scale = float(reference.abs().max())
            torch.testing.assert_close(gradient, reference, rtol=1e-6, atol=1e-6 * scale + 1e-12)
            count["gradients"] += 1

    check()
    return count


def step(low_memory: bool) -> dict[str, Any]:
    """One step of a student, eager and compiled: largest differences and bytes kept."""
    config = StudentConfig(width=4, stages=1, timesteps=T)
    found = []
    for compile_it in (False, True):
        torch.manual_seed(0)
        student = build_student(config, NeuronConfig(v_reset=-0.2), (1, 8, 8), 10).train()
        run: Any = student
        if compile_it:
            run = compiled_network(student, frozenset({32}), low_memory=low_memory)
        own = {value.untyped_storage().data_ptr() for value in student.parameters()}
        kept: dict[int, int] = {}

        def pack(value: Tensor, kept: dict[int, int] = kept, own: set[int] = own) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            logits = run(torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
        logits.square().sum().backward()
        grads = [p.grad for p in student.parameters() if p.grad is not None]
        stats = [b for name, b in student.named_buffers() if "running" in name]
        found.append(([logits.detach(), *grads, *stats], sum(kept.values())))
    (wanted, plain), (ours, compiled) = found
    assert len(wanted) == len(ours) > 10
    errors = [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-6))
        for a, b in zip(ours, wanted, strict=True)
    ]
    return {"error": max(errors), "kept": compiled, "kept_eager": plain}


if __name__ == "__main__":
    what, argument = sys.argv[1:]
    result = neuron(argument) if what == "neuron" else step(argument == "low-memory")
    sys.stdout.write(json.dumps(result))
