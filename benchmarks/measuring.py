"""Time, memory and profile of training steps."""

from __future__ import annotations

import gc
import os
import re
import time
import weakref
from collections import Counter
from pathlib import Path

import torch
from networks import Variant
from torch import Tensor
from torch.nn import functional

PAGE = os.sysconf("SC_PAGE_SIZE")

KINDS = (
    ("compiled kernels", r"cpp_fused|triton_|extern_kernels"),
    ("convolution, backward", r"convolution_backward|conv.*_backward"),
    ("convolution, forward", r"conv"),
    ("batch norm", r"batch_norm"),
    ("matrix product", r"addmm|aten::mm$|linear|bmm"),
    ("pooling", r"pool|aten::mean|aten::sum"),
    ("copies, casts and layout", r"copy_|aten::to$|_to_copy|clone|contiguous|stack|cat|repeat"),
    ("neuron and other elementwise", r"^aten::(add|sub|mul|div|gt|lt|where|relu|threshold|neg|abs|"
     r"clamp|sigmoid|rsub|pow|sign|sqrt|reciprocal|zeros|ones|fill|zero|heaviside|le|ge|eq|lerp|"
     r"addcmul|addcdiv|ne|logical|bitwise)"),
    ("optimizer", r"_foreach|Optimizer"),
)  # fmt: skip
"""Kind of an operation -> pattern of its name; the first that fits counts."""


class Trainer:
    """Trains a variant on the same batch over and over.

    Args:
        variant: to train; a teacher is only run forward.
        precision: float32, or bf16 for autocast.
    """

    def __init__(self, variant: Variant, precision: str) -> None:
        self.variant = variant
        self.device = variant.images.device
        self.autocast = precision == "bf16"
        self.optimizer = torch.optim.SGD(variant.module.parameters(), lr=0.01, momentum=0.9)

    def loss(self) -> Tensor:
        """Forward pass and cross-entropy."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.variant.logits(self.variant.images)
            return functional.cross_entropy(logits, self.variant.labels)

    def step(self) -> None:
        """One training step."""
        if not self.variant.trains:
            with torch.no_grad():
                self.loss()
            return
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self) -> float:
        """Of one step."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            self.step()
            end.record()
            torch.cuda.synchronize()
            return float(start.elapsed_time(end)) / 1000
        started = time.perf_counter()
        self.step()
        return time.perf_counter() - started


def interleave(trainers: dict[str, Trainer], rounds: int) -> dict[str, list[float]]:
    """Seconds of ``rounds`` steps of each, one step of every trainer after the other.

    Each round starts with another trainer, so that none always follows the same one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    names = list(trainers)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(trainers[name].seconds())
    return seconds


class _Saved:
    """A tensor in the hands of autograd; gone when the graph lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(trainer: Trainer) -> int:
    """What autograd keeps from forward to backward, weights and input left out.

    A graph that does not lead to the loss, as that of the last membranes, is gone by then.
    """
    module, variant = trainer.variant.module, trainer.variant
    known = [*module.parameters(), *module.buffers(), variant.images, variant.labels]
    own = {tensor.untyped_storage().data_ptr() for tensor in known}
    saved: list[weakref.ref[_Saved]] = []

    def pack(tensor: Tensor) -> _Saved:
        kept = _Saved(tensor)
        saved.append(weakref.ref(kept))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss = trainer.loss()
    storages = [kept.tensor.untyped_storage() for ref in saved if (kept := ref()) is not None]
    found = {storage.data_ptr(): storage.nbytes() for storage in storages}
    loss.backward()
    trainer.optimizer.zero_grad()
    return sum(size for place, size in found.items() if place not in own)


def occupied_bytes(trainer: Trainer) -> tuple[int, int]:
    """Growth of the process's memory by a forward pass, and at the peak of a whole step.

    It cross-checks `kept_bytes`. On the CPU every tensor has to be mapped on its own for this
    (``MALLOC_MMAP_THRESHOLD_`` in the environment), or the allocator keeps freed memory.
    """
    gc.collect()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        before = _resident()
    loss = trainer.loss()
    after = torch.cuda.memory_allocated() if trainer.device.type == "cuda" else _resident()
    loss.backward()
    del loss
    trainer.optimizer.step()
    peak = torch.cuda.max_memory_allocated() if trainer.device.type == "cuda" else _peak()
    trainer.optimizer.zero_grad()
    return after - before, peak - before


def profile(trainer: Trainer, steps: int = 3) -> tuple[dict[str, float], list[tuple[str, float]]]:
    """Share of the time by kind of operation, and the ten longest operations by name."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if trainer.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(steps):
            trainer.step()
    times: Counter[str] = Counter()
    for event in recorded.key_averages():
        on_device = trainer.device.type == "cuda"
        times[event.key] += event.self_device_time_total if on_device else event.self_cpu_time_total
    total = sum(times.values())
    kinds: Counter[str] = Counter()
    for name, value in times.items():
        kinds[kind_of(name)] += value / total
    return dict(kinds.most_common()), [(n, t / total) for n, t in times.most_common(10)]


def kind_of(name: str) -> str:
    """The kind of an operation, by its name in the profile."""
    for kind, pattern in KINDS:
        if re.search(pattern, name):
            return kind
    return "other"


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * PAGE


def _peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kilobytes) * 1024
