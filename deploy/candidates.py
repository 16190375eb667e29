"""Graph files that can be judged, and everything that can execute them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import onnx

from tser.deploy.backends import Backend, CannotCompare, NirBackend, Trace
from tser.deploy.foreign import FOREIGN, ForeignBackend
from tser.deploy.graph_file import check_suffix, read_signed
from tser.deploy.model_trial import tried
from tser.deploy.onnx_backend import OnnxBackend, compile_for
from tser.deploy.onnx_view import onnx_view
from tser.deploy.openvino_backend import OpenVinoBackend
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph, resolve
from tser.export.onnx_file import model_metadata, options_of, read_onnx
from tser.export.shapes import Shape

INTERPRETERS = ("nir-f32", "nir-f64")
RUNTIMES = ("onnx", "onnx-noopt", "openvino")
BACKENDS = (*INTERPRETERS, *RUNTIMES, *FOREIGN)
"""Names that ``--backend`` takes."""


@dataclass(frozen=True)
class Subject:
    """A graph file, or a graph made from one.

    Attributes:
        path: the file.
        layers: names of the spiking layers, and their shapes without batch and time.
        view: the graph; of an ONNX model its input and layers, and no more.
        raw: the content of a ``.nir`` file, else None.
        graph: its resolved view, else None.
        model: the content of an ``.onnx`` file, or what was compiled from the graph before.
        model_source: where that comes from, for people.
        timesteps: T that the file states or is fixed to.
    """

    path: Path
    layers: dict[str, Shape]
    view: Graph
    raw: nir.NIRGraph | None = None
    graph: Graph | None = None
    model: onnx.ModelProto | None = None
    model_source: str = ""
    timesteps: int | None = None

    @property
    def default_backends(self) -> tuple[str, ...]:
        """What runs it unless something else is asked for."""
        return ("nir-f32", "onnx") if self.graph is not None else ("onnx",)


def open_subject(path: Path, dt: float | None = None) -> Subject:
    """A ``.nir`` file of any tool, or an ``.onnx`` file of ours.

    Raises:
        InputFileError: missing, damaged, or an ONNX model that is not ours.
        UsageError: dt is missing, or stated twice.
    """
    check_suffix(path, ".nir", ".onnx")
    if path.suffix == ".nir":
        raw = read_signed(path)
        graph = resolve(raw, dt, str(path))
        layers = {node.name: node.output_shape for node in graph.spiking}
        return Subject(path, layers, graph, raw, graph, timesteps=graph.timesteps)
    if dt is not None:
        raise UsageError(f"{path} was compiled for its dt; leave out --dt")
    model = read_onnx(path)
    view = onnx_view(model, path)
    return Subject(
        path,
        view.layers,
        view.graph,
        model=tried(model, path),
        model_source=str(path),
        timesteps=view.graph.timesteps,
    )


def executors(
    subject: Subject, names: Sequence[str], timesteps: int, frames: bool
) -> list[Backend]:
    """The backends ``names`` on ``subject``.

    Args:
        subject: what to execute.
        names: of `BACKENDS`; none: the subject's own.
        timesteps: T.
        frames: whether inputs have one frame a step.

    Raises:
        InputFileError: a runtime refuses the file.
        UsageError: an unknown name, one that does not take this kind of file, one twice, or a
            package that is not installed.
    """
    model = subject.model
    found: list[Backend] = []
    for name in dict.fromkeys(names or subject.default_backends):
        if name not in BACKENDS:
            raise UsageError(f"--backend {name} is not known; choose from {', '.join(BACKENDS)}")
        if name in RUNTIMES:
            if subject.graph is not None and not fits(model, timesteps, frames):
                model = compile_for(subject.graph, timesteps, frames)
            source = subject.model_source or f"compiled from {subject.path}"
            found.append(_runtime(name, model, subject, source, timesteps, frames))
            continue
        if subject.graph is None:
            raise UsageError(
                f"--backend {name} runs .nir files, {subject.path} is an ONNX model; choose from "
                f"{', '.join(RUNTIMES)}"
            )
        if name in INTERPRETERS:
            double = name == "nir-f64"
            found.append(NirBackend(subject.graph, timesteps, str(subject.path), double))
        else:
            found.append(Library(name, subject.path, subject.graph, timesteps))
    return found


class Library:
    """Another library on a ``.nir`` file; what it cannot run is a finding, not a bad file.

    Args:
        name: of `FOREIGN`.
        path: the file.
        graph: its resolved view.
        timesteps: T.

    Raises:
        UsageError: the library is not installed.
    """

    def __init__(self, name: str, path: Path, graph: Graph, timesteps: int) -> None:
        self.name, self.source, self.remark = name, f"{path} in {name}", ""
        self._failure = ""
        try:
            self._backend = ForeignBackend(name, path, graph, timesteps)
            self.source, self.remark = self._backend.source, self._backend.remark
        except InputFileError as error:
            self._failure = str(error)

    def __call__(self, x: Any) -> Trace:
        """Run a batch.

        Raises:
            CannotCompare: the library fails.
        """
        if self._failure:
            raise CannotCompare(self._failure)
        try:
            return self._backend(x)
        except InputFileError as error:
            raise CannotCompare(str(error)) from error

    def replay(
        self, x: Any, spikes: dict[str, Any], states: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """See ``Replayable``."""
        return self._backend.replay(x, spikes, states)


def fits(model: onnx.ModelProto | None, timesteps: int, frames: bool) -> bool:
    """Whether a model takes such inputs."""
    if model is None:
        return False
    stated, form = model_metadata(model), options_of(model).form
    if form == "sequence" and stated.get("timesteps") != str(timesteps):
        return False
    return not frames or form == "step" or stated.get("encoding") == "sequence"


def _runtime(
    name: str,
    model: onnx.ModelProto | None,
    subject: Subject,
    source: str,
    timesteps: int,
    frames: bool,
) -> Backend:
    if model is None:
        raise ValueError("a subject has a graph or a model")
    if name == "openvino":
        return OpenVinoBackend(model, subject.layers, source)
    loops = options_of(model).form != "sequence" and not frames
    steps = timesteps if loops else None
    return OnnxBackend(model, subject.layers, source, steps, optimised=name == "onnx")


class Renamed:
    """An executor whose layers have the reference's names.

    Args:
        inner: the executor.
        names: its name of a layer -> the reference's.
        more: whether it has layers that the reference does not have.
        title: another name for it; "": its own.

    Attributes:
        remark: what the executor is known to do otherwise than the file says, or "".
    """

    def __init__(
        self, inner: Backend, names: Mapping[str, str], more: bool = False, title: str = ""
    ) -> None:
        self.inner, self.names, self.more = inner, names, more
        self.name, self.source = title or inner.name, inner.source
        self.remark = str(getattr(inner, "remark", ""))

    def __call__(self, x: Any) -> Trace:
        """Run a batch."""
        trace = self.inner(x)
        spikes = {new: trace.spikes[old] for old, new in self.names.items()}
        return Trace(trace.logits, spikes)

    def replay(
        self, x: Any, spikes: dict[str, Any], states: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """See ``Replayable``."""
        run: Callable[..., dict[str, Any]] | None = getattr(self.inner, "replay", None)
        if run is None:
            raise NotImplementedError(f"{self.name} cannot be fed recorded spikes")
        if self.more:
            raise NotImplementedError("it has layers for which the reference recorded nothing")
        own = {old: spikes[new] for old, new in self.names.items()}
        forced = states and {old: states[new] for old, new in self.names.items()}
        found = run(x, own, forced)
        return {new: found[old] for old, new in self.names.items()}


def paired(
    backends: Sequence[Backend], subject: Subject, names: Mapping[str, str]
) -> list[Backend]:
    """Executors of ``subject`` under the reference's names, see `pair_layers`."""
    more = len(names) < len(subject.layers)
    return [Renamed(one, names, more) for one in backends]


def pair_layers(expected: dict[str, Shape], actual: dict[str, Shape]) -> dict[str, str] | None:
    """Which layer of one graph is which of another.

    Args:
        expected: layers of the reference in execution order.
        actual: layers of the candidate in execution order.

    Returns:
        The candidate's name -> the reference's: by name where the candidate has all of them, else
        by position where both have as many layers; None where neither is so.
    """
    if actual.keys() >= expected.keys():
        return {name: name for name in expected}
    if len(actual) == len(expected):
        return dict(zip(actual, expected, strict=True))
    return None
