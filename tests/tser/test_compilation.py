"""Neurons and steps through torch.compile: the same spikes but for rounding, where they train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tser import compilation
from tser.compilation import (
    Compilation,
    Workload,
    batch_sizes,
    compile_neurons,
    compiled_network,
    measure_workload,
    missing_compiler,
    plan_compilation,
)
from tser.config import NeuronConfig, StudentConfig, TrainConfig
from tser.errors import UsageError
from tser.neurons import LIF
from tser.students import build_student, make_neuron

T, SHAPE = 3, (4, 6)
NEURON = NeuronConfig(v_leak=0.1, v_reset=-0.2, tau_mem=3e-3)
CPU = torch.device("cpu")
SMALL = Workload(layers=3, own=3, neuron_steps=1000, timesteps=4, images=1000)
LARGE = Workload(layers=3, own=3, neuron_steps=1_000_000, timesteps=4, images=1_000_000)
needs_compiler = pytest.mark.skipif(
    missing_compiler(CPU) is not None, reason="torch.compile needs a C++ compiler"
)


class Spy:
    """Stands in for torch.compile: notes the shapes that it is given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.error: Exception | None = None

    def compile(self, function: Any, **options: Any) -> Any:
        assert options == {"dynamic": False}

        def run(x: Tensor, *arguments: Any) -> Tensor:
            if self.error is not None:
                raise self.error
            self.shapes.append(tuple(x.shape))
            return function(x, *arguments)

        return run


@pytest.fixture(autouse=True)
def _torch_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    with torch._dynamo.config.patch({compilation.shapes_setting(): 8}):
        yield


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy()
    monkeypatch.setattr(compilation.torch, "compile", spy.compile)
    return spy


def currents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(T, *shape, generator=torch.Generator().manual_seed(seed)) * 3


# --- which sizes -----------------------------------------------------------------------------


def test_neurons_are_compiled_for_full_batches_in_training(spy: Spy) -> None:
    layer = make_neuron(NEURON)
    compile_neurons(layer, frozenset({4}))
    layer.eval()(currents(*SHAPE), T)
    assert spy.shapes == []
    layer.train()
    for batch, timesteps in ((2, T), (4, T), (4, 1), (9, T)):
        layer(currents(batch, 6)[:timesteps], timesteps)
    assert spy.shapes == [(T, *SHAPE), (1, *SHAPE)]


def test_a_network_is_compiled_for_full_batches(spy: Spy) -> None:
    run = compiled_network(nn.Flatten(), frozenset({4, 5}))
    for shape in ((4, 1, 2, 2), (3, 1, 2, 2), (5, 1, 2, 2), (2, 4, 1, 2, 2), (4, 2, 1, 2, 2)):
        run(torch.zeros(shape))
    assert spy.shapes == [(4, 1, 2, 2), (5, 1, 2, 2), (2, 4, 1, 2, 2)]


@pytest.mark.parametrize(
    ("batch", "accumulate", "samples", "world", "wanted"),
    [
        (64, 1, 1000, 1, {64}),
        (64, 3, 1000, 1, {21, 22}),
        (64, 2, 1000, 4, {8}),
        (64, 1, 40, 1, {40}),
        (64, 32, 40, 1, {2}),
    ],
)
def test_the_sizes_of_full_batches(
    batch: int, accumulate: int, samples: int, world: int, wanted: set[int]
) -> None:
    train = TrainConfig(batch_size=batch, accumulate=accumulate)
    assert batch_sizes(train, samples, world) == wanted


def test_more_shapes_than_torch_allows_by_default(spy: Spy) -> None:
    compile_neurons(make_neuron(NEURON), frozenset({4}))
    assert getattr(torch._dynamo.config, compilation.shapes_setting()) >= 256


def test_all_arguments_are_handed_on(spy: Spy) -> None:
    config = NeuronConfig(surrogate="arctan", alpha=2.0, detach_reset=True, learn_tau=True)
    plain, compiled = make_neuron(config), make_neuron(config)
    compile_neurons(compiled, frozenset({4}))
    grads = []
    for layer in (plain, compiled):
        x = currents(*SHAPE).requires_grad_()
        layer(x, T).square().sum().backward()
        assert x.grad is not None
        grads.append((x.grad, layer.tau_logit.grad))
    assert spy.shapes == [(T, *SHAPE)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)


# --- whether ---------------------------------------------------------------------------------


def test_auto_compiles_what_pays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    train, sizes = TrainConfig(), frozenset({64})
    assert plan_compilation(train, SMALL, CPU, sizes) == Compilation()
    assert plan_compilation(train, LARGE, CPU, sizes).mode == "step"
    assert plan_compilation(train, LARGE, CPU, sizes).sizes == sizes
    # A hundred steps take a hundred times as long to compile, and as long in one go.
    long = Workload(layers=3, own=3, neuron_steps=1_000_000, timesteps=400, images=100_000)
    assert plan_compilation(train, long, CPU, sizes).mode == "off"
    assert plan_compilation(train, Workload(0, 0, 0, 4, 10**9), CPU, sizes).mode == "off"


def test_auto_does_without_a_compiler_and_a_demand_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert plan_compilation(TrainConfig(), LARGE, CPU, frozenset()) == Compilation()
    for mode in ("neuron", "step"):
        train = TrainConfig.model_validate({"compile": mode})
        with pytest.raises(UsageError, match=r"needs the C\+\+ compiler 'no-such-compiler'"):
            plan_compilation(train, LARGE, CPU, frozenset())
    off = TrainConfig(compile="off")
    assert plan_compilation(off, LARGE, CPU, frozenset()).mode == "off"
    assert "mps" in (missing_compiler(torch.device("mps")) or "")


def test_neurons_that_are_not_ours_are_not_compiled_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: None)
    norse = replace(LARGE, own=0)
    with pytest.raises(UsageError, match="the student has none; use --compile step"):
        plan_compilation(TrainConfig(compile="neuron"), norse, CPU, frozenset({8}))
    assert plan_compilation(TrainConfig(), norse, CPU, frozenset({8})).mode == "step"


def test_the_wait_counts_sizes_and_numbers_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: None)
    once = plan_compilation(TrainConfig(compile="step"), SMALL, CPU, frozenset({8})).wait
    sizes = frozenset({8, 9})
    assert plan_compilation(TrainConfig(compile="step"), SMALL, CPU, sizes).wait == 2 * once
    train = TrainConfig(compile="step", epochs=3, curriculum_epochs=1)
    assert plan_compilation(train, SMALL, CPU, frozenset({8})).wait == 2 * once


def test_less_memory_means_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: None)
    monkeypatch.setattr(compilation, "saves_memory", lambda: True)
    plan = plan_compilation(TrainConfig(low_memory=True), SMALL, CPU, frozenset({8}))
    assert (plan.mode, plan.low_memory) == ("step", True)
    train = TrainConfig(low_memory=True, compile="neuron")
    assert not plan_compilation(train, SMALL, CPU, frozenset({8})).low_memory


def test_a_compiler_that_saves_no_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: None)
    monkeypatch.setattr(compilation.torch, "__version__", "2.9.1+cu128")
    plan = plan_compilation(TrainConfig(low_memory=True), SMALL, CPU, frozenset({8}))
    assert (plan.mode, plan.low_memory) == ("off", False)
    train = TrainConfig(low_memory=True, compile="step")
    with pytest.raises(UsageError, match=r"PyTorch 2\.10 or newer, not 2\.9\.1"):
        plan_compilation(train, SMALL, CPU, frozenset({8}))
    monkeypatch.setattr(compilation.torch, "__version__", "2.10.0")
    assert plan_compilation(train, SMALL, CPU, frozenset({8})).low_memory


def test_the_workload_is_counted_and_nothing_changes() -> None:
    student = build_student(StudentConfig(width=4, stages=1, timesteps=3), NEURON, (1, 8, 8), 10)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    work = measure_workload(student.train(), torch.rand(2, 1, 8, 8), 3, 70)
    assert work == Workload(layers=3, own=3, neuron_steps=3 * 3 * 4 * 64, timesteps=3, images=70)
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


# --- what comes of it ------------------------------------------------------------------------


def test_what_cannot_be_compiled_runs_as_it_is(
    spy: Spy, capsys: pytest.CaptureFixture[str]
) -> None:
    spy.error = torch._dynamo.exc.Unsupported("no such\noperator")
    layer = make_neuron(NEURON)
    compile_neurons(layer, frozenset({4}))
    wanted = make_neuron(NEURON)(currents(*SHAPE), T)
    assert torch.equal(layer(currents(*SHAPE), T), wanted)
    assert torch.equal(layer(currents(*SHAPE), T), wanted)
    said = capsys.readouterr().err
    assert said == "torch.compile failed, training goes on without it: no such operator\n"


def test_an_error_that_is_not_the_compilers_is_raised(spy: Spy) -> None:
    spy.error = RuntimeError("out of memory")
    layer = make_neuron(NEURON)
    compile_neurons(layer, frozenset({4}))
    with pytest.raises(RuntimeError, match="out of memory"):
        layer(currents(*SHAPE), T)


def test_what_was_compiled_is_kept_for_the_next_run(tmp_path: Path) -> None:
    """In a process of its own: torch settles for a folder once and for all."""
    code = """
import os
from tser.compilation import compile_neurons
from tser.config import NeuronConfig
from tser.students import make_neuron
compile_neurons(make_neuron(NeuronConfig()), frozenset({4}))
print(os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""
    env = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    assert done.stdout.strip() == str(tmp_path / "cache/tser/inductor")
    assert (tmp_path / "cache/tser/inductor").is_dir()


def test_the_users_own_folder_is_used_or_refused(
    spy: Spy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compile_neurons(make_neuron(NEURON), frozenset({4}))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"TORCHINDUCTOR_CACHE_DIR = .*file cannot be written"):
        compile_neurons(make_neuron(NEURON), frozenset({4}))


def test_a_cache_that_cannot_be_made_is_left_to_torch(
    spy: Spy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compile_neurons(make_neuron(NEURON), frozenset({4}))
    assert str(tmp_path) not in os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")


def compiled(*arguments: str) -> dict[str, float]:
    """The result of compiled.py."""
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(script.parents[2])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, float] = json.loads(done.stdout)
    return result


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["triangle", "arctan"])
def test_a_compiled_neuron_fires_as_the_reference(surrogate: str) -> None:
    count = compiled("neuron", surrogate)
    assert count["certain"] > 0.99 * count["all"]
    assert 0.05 < count["fired"] / count["all"] < 0.95
    assert count["gradients"] > 250


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("memory", ["all-memory", "low-memory"])
def test_a_compiled_step_has_the_students_gradients(memory: str) -> None:
    result = compiled("step", memory)
    assert result["error"] < 1e-4
    saving = memory == "low-memory" and compilation.saves_memory()
    assert result["kept"] < (0.4 if saving else 1.01) * result["kept_eager"]


def test_a_layer_of_neurons_is_found_anywhere(spy: Spy) -> None:
    layers = nn.ModuleList([make_neuron(NEURON), nn.Sequential(make_neuron(NEURON))])
    compile_neurons(layers, frozenset({4}))
    neurons = [module for module in layers.modules() if isinstance(module, LIF)]
    for neuron in neurons:
        neuron(currents(*SHAPE), T)
    assert len(spy.shapes) == len(neurons) == 2
