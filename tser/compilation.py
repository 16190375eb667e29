"""Faster training through torch.compile: of the neurons, or of the whole network.

Run operator by operator, a spiking layer makes a dozen passes over its membranes; compiled it
makes one. Compiling takes from seconds to minutes, so by default it is done only where it saves
more than it takes. Fusing may reorder float32 arithmetic, so that a compiled neuron can differ
from the reference in the last bit of its membrane: it is for training only. What is measured,
saved and exported always runs the reference.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from tser.config import TrainConfig
from tser.data.places import user_cache
from tser.errors import UsageError
from tser.neurons import LIF, integrate_and_fire
from tser.recording import Recorder, spiking_layers

Mode = Literal["off", "neuron", "step"]

_SHAPES = 256
"""Layers of different shapes that one process may compile; torch stops at 8 by default."""

_BUDGET = 0.7
"""Share of the kept activations that PyTorch may keep with ``train.low_memory``; below 1 it
recomputes whatever is cheap, which is all but the convolutions' outputs and packs the spikes."""

_SAVED = {"cpu": {"neuron": 5e-9, "step": 8e-9}, "cuda": {"neuron": 3e-11, "step": 4e-11}}
"""Seconds that compiling saves for every neuron and time step; on a CPU on each of its threads.
The CPU's were measured (docs/performance.md), the GPU's follow from its memory bandwidth."""

_WAIT = 8.0
"""Seconds to compile one spiking layer with what surrounds it, for one size of batch and one T."""

_CACHE = "TORCHINDUCTOR_CACHE_DIR"

_WORTH = 4.0
"""Compile where it saves so many times what it takes; both are rough."""


@dataclass(frozen=True)
class Workload:
    """How much a phase of training computes, as far as it decides whether to compile.

    Attributes:
        layers: spiking layers.
        own: those of them that are `LIF`.
        neuron_steps: neurons times steps, summed over the layers, for one image.
        timesteps: T.
        images: in the whole phase.
    """

    layers: int
    own: int
    neuron_steps: int
    timesteps: int
    images: int


@dataclass(frozen=True)
class Compilation:
    """What is compiled for a phase.

    Attributes:
        mode: what of the network.
        sizes: images at a time for which it is.
        low_memory: keep less for the backward pass; "step" only.
        wait: seconds that it takes, roughly; later runs find most of it done.
    """

    mode: Mode = "off"
    sizes: frozenset[int] = frozenset()
    low_memory: bool = False
    wait: float = 0.0


def measure_workload(student: nn.Module, sample: Tensor, timesteps: int, images: int) -> Workload:
    """What training a student amounts to.

    Args:
        student: on its device; it is run once, without changing it.
        sample: two normalised images, ``[2, C, H, W]`` or ``[T, 2, C, H, W]``, on that device.
        timesteps: T.
        images: that it trains on in all epochs together.
    """
    training = student.training
    student.eval()
    with torch.no_grad(), Recorder(spiking_layers(student)) as recorder:
        student(sample)
    student.train(training)
    spikes = recorder.spikes.values()
    own = sum(isinstance(module, LIF) for module in student.modules())
    return Workload(len(spikes), own, sum(s[:, 0].numel() for s in spikes), timesteps, images)


def plan_compilation(
    train: TrainConfig, work: Workload, device: torch.device, sizes: frozenset[int]
) -> Compilation:
    """What ``train.compile`` stands for here: the same on every run of the same configuration.

    Args:
        train: what was asked for.
        work: of the phase.
        device: that it runs on.
        sizes: images at a time.

    Raises:
        UsageError: compilation was asked for and this machine has no compiler for the device, the
            student no neurons that are compiled alone, or PyTorch no compiler that saves memory.
    """
    missing = missing_compiler(device)
    if train.compile != "auto":
        if train.compile != "off" and missing:
            raise UsageError(
                f"train.compile = {train.compile!r} needs {missing}; use --compile auto or off"
            )
        mode: Mode = train.compile
        if mode == "neuron" and not work.own:
            raise UsageError(
                "train.compile = 'neuron' compiles the neurons of tser.neurons, and the student "
                "has none; use --compile step"
            )
        if mode == "step" and train.low_memory and not saves_memory():
            raise UsageError(
                "train.low_memory with train.compile = 'step' needs PyTorch 2.10 or newer, not "
                f"{torch.__version__}; use --compile auto"
            )
    elif missing or not work.layers:
        mode = "off"
    elif train.low_memory:
        mode = "step" if saves_memory() else "off"
    else:
        mode = _worth_it(work, device, len(sizes))
    low_memory = train.low_memory and mode == "step"
    if mode == "off":
        return Compilation()
    if train.curriculum_epochs:  # with T = 1 first
        wait = _wait(work, len(sizes)) + _wait(replace(work, timesteps=1), len(sizes))
    else:
        wait = _wait(work, len(sizes))
    return Compilation(mode, sizes, low_memory, wait)


def _wait(work: Workload, sizes: int) -> float:
    return _WAIT * work.layers * sizes * max(1.0, work.timesteps / 4)  # the steps are unrolled


def _worth_it(work: Workload, device: torch.device, sizes: int) -> Mode:
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    steps = work.neuron_steps * work.images
    modes: tuple[Mode, ...] = ("step", "neuron")
    for mode in modes:
        possible = mode == "step" or work.own
        saved = _SAVED[device.type][mode] * steps / threads
        if possible and saved > _WORTH * _wait(work, sizes):
            return mode
    return "off"


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile would need on this machine and does not find; None if nothing."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton"
    if device.type != "cpu":
        return f"a CPU or a CUDA device, not {device.type}"
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    return None if shutil.which(command[0]) else f"the C++ compiler {command[0]!r}"


def batch_sizes(train: TrainConfig, samples: int, world: int) -> frozenset[int]:
    """Images that go through the network at a time: all but those of a smaller last batch.

    Args:
        train: batch size and parts.
        samples: of an epoch.
        world: number of processes.
    """
    held = min(train.batch_size, samples) // world
    parts = max(1, min(train.accumulate, held // 2))
    return frozenset({held // parts, -(-held // parts)})


def compile_neurons(model: nn.Module, sizes: frozenset[int]) -> None:
    """Compile every LIF layer of ``model`` for training on ``sizes`` images at a time.

    Other sizes (a smaller last batch) and evaluation run the reference: each new shape would cost
    seconds of compilation.
    """
    _prepare_torch()
    compiled = _Compiled(integrate_and_fire)
    for module in model.modules():
        if isinstance(module, LIF):
            module.integrate = _ForTraining(module, compiled, sizes)


class _ForTraining:
    """The compiled neuron in training on batches of certain sizes, else what it was before."""

    def __init__(self, layer: LIF, compiled: _Compiled, sizes: frozenset[int]) -> None:
        self._layer, self._compiled, self._sizes = layer, compiled, sizes
        self._eager = layer.integrate

    def __call__(self, current: Tensor, *arguments: Any) -> Tensor:
        if self._layer.training and current.shape[1] in self._sizes:
            return self._compiled(self._eager, current, *arguments)
        spikes: Tensor = self._eager(current, *arguments)
        return spikes


def compiled_network(
    network: Callable[[Tensor], Tensor], sizes: frozenset[int], *, low_memory: bool = False
) -> Callable[[Tensor], Tensor]:
    """``network`` for training, compiled for ``sizes`` images at a time; others run as before.

    Args:
        network: takes ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``.
        sizes: B.
        low_memory: keep less for the backward pass and recompute it there.
    """
    _prepare_torch()
    compiled = _Compiled(network, low_memory=low_memory)

    def run(images: Tensor) -> Tensor:
        batch = images.shape[1] if images.ndim == 5 else len(images)
        return compiled(network, images) if batch in sizes else network(images)

    return run


class _Compiled:
    """A compiled function that gives way to another one where PyTorch cannot compile it."""

    def __init__(self, function: Callable[..., Tensor], *, low_memory: bool = False) -> None:
        self._compiled: Any = torch.compile(function, dynamic=False)
        self._low_memory = low_memory

    def __call__(self, otherwise: Callable[..., Tensor], *arguments: Any) -> Tensor:
        from torch._dynamo.exc import TorchDynamoException

        if self._compiled is None:
            return otherwise(*arguments)
        try:
            with _activation_budget() if self._low_memory else nullcontext():
                result: Tensor = self._compiled(*arguments)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:160]
            sys.stderr.write(f"torch.compile failed, training goes on without it: {reason}\n")
            self._compiled = None
            return otherwise(*arguments)
        return result


def saves_memory() -> bool:
    """Whether PyTorch's compiler heeds a budget: before 2.10 it keeps nearly all activations."""
    return TorchVersion(torch.__version__) >= TorchVersion("2.10")


def _activation_budget() -> AbstractContextManager[Any]:
    import torch._functorch.config as functorch

    patched: AbstractContextManager[Any] = functorch.patch(activation_memory_budget=_BUDGET)
    return patched


def _prepare_torch() -> None:
    """Allow a network's number of shapes, and keep what is compiled for the next run.

    Raises:
        UsageError: the user's own folder for it cannot be written.
    """
    _place_cache()  # before the import below, which settles for a folder in /tmp
    import torch._dynamo  # seconds, which nobody else should wait for

    config, limit = torch._dynamo.config, shapes_setting()
    setattr(config, limit, max(_SHAPES, getattr(config, limit)))


def shapes_setting() -> str:
    """What PyTorch calls the most shapes it compiles a function for: 2.6 had another name."""
    import torch._dynamo

    newer = hasattr(torch._dynamo.config, "recompile_limit")
    return "recompile_limit" if newer else "cache_size_limit"


def _place_cache() -> None:
    """Choose where compiled code is kept: below the user's cache, which outlives a restart."""
    given, cache = os.environ.get(_CACHE), user_cache()
    folder = Path(given) if given else cache and cache / "inductor"
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if given:
            raise UsageError(
                f"{_CACHE} = {given} cannot be written ({error.strerror}); name another folder, or "
                "use --compile off"
            ) from error
    else:
        os.environ[_CACHE] = str(folder)
