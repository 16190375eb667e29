"""``tser export``: a run or a NIR file to NIR or ONNX files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch

from tser.checkpoints import load_run_data, load_student
from tser.data import ImageData
from tser.errors import CheckFailed, InputFileError, TserError, UsageError
from tser.export.graph import Graph, resolve
from tser.export.lower import Lowered, lower
from tser.export.nir_file import COMPRESSION, flatten, read_nir, write_nir
from tser.export.onnx_file import OnnxOptions, compile_onnx, write_onnx
from tser.export.onnx_forms import Encoding
from tser.export.variants import Variant, vary, without_reset
from tser.layers import Student
from tser.runs import Run
from tser.user_models import UserStudent

_PLAIN = Variant()
_ONNX = OnnxOptions()


@dataclass(frozen=True)
class Exported:
    """What a check of a new file is given.

    Attributes:
        graph: as re-read from the file.
        lowered: what the student became, before it was written another way.
        student: the model itself.
        data: that it was trained on.
    """

    graph: Graph
    lowered: Lowered
    student: Student | UserStudent
    data: ImageData


def export_nir(
    run: Run,
    out: Path,
    root: Path | None = None,
    *,
    variant: Variant = _PLAIN,
    compat: bool = False,
    compression: int = COMPRESSION,
    check: Callable[[Exported], str] | None = None,
) -> Graph:
    """Lower the student of ``run`` and write it as NIR.

    The file gets its name only after it was read again, every bit of every parameter is what was
    to be written, and ``check`` found nothing.

    Args:
        run: a finished run.
        out: the file to write; replaced only when everything succeeded.
        root: folder of the data set (its image shape and classes are needed).
        variant: units of time and convention of gain.
        compat: leave out the resets to zero, which readers of ``nir`` up to 1.0.5 do not know.
        compression: of gzip, 0 to 9.
        check: says what is wrong with the file, or nothing.

    Returns:
        The view of what was written.

    Raises:
        ExportError: a layer that cannot be expressed, by name.
        CheckFailed: the file is not what it should be, or does not do what the student does.
    """
    data = load_run_data(run, root)
    student = load_student(run, data)
    lowered = lower(student, data)
    graph = vary(lowered.graph, variant)

    def verify(path: Path) -> None:
        try:
            written = read_nir(path)
            found = changes(graph, written)
        except InputFileError as error:
            found = [str(error)]
        problem = found[0] if found else ""
        if not problem and check is not None:
            written_view = resolve(written, origin=str(out))
            problem = check(Exported(written_view, lowered, student, data))
        if problem:
            raise CheckFailed(
                f"{out} was not written: read again, it is not the student of {run.path}: {problem}"
            )

    left_out = without_reset(graph) if compat else ()
    write_nir(graph, out, compression=compression, without_reset=left_out, verify=verify)
    return resolve(graph, origin=str(out))


def why_not_exported(student: Student | UserStudent, data: ImageData) -> str:
    """What `export_nir` would refuse a student for once it is trained; empty if for nothing.

    The student, which may be fresh and on any device, stays as it is.

    Args:
        student: the model itself.
        data: that it is to be trained on.
    """
    try:
        with torch.random.fork_rng():
            lower(copy.deepcopy(student).cpu().eval(), data)
    except TserError as error:
        return str(error)
    except Exception:  # noqa: BLE001 - it is the user's code, and may not even be copied
        return ""
    return ""


def changes(wanted: nir.NIRGraph, found: nir.NIRGraph) -> list[str]:
    """How a file differs from what was to be written, a sentence for each node or edge.

    Every parameter is compared bit for bit.
    """
    result = [
        f"node {name!r} is {'missing' if name in wanted.nodes else 'new'}"
        for name in sorted(wanted.nodes.keys() ^ found.nodes.keys())
    ]
    if set(wanted.edges) != set(found.edges) or len(wanted.edges) != len(found.edges):
        result.append("it has other edges")
    for name in sorted(wanted.nodes.keys() & found.nodes.keys()):
        ours, theirs = (flatten(graph.nodes[name].to_dict()) for graph in (wanted, found))
        result += [f"{key} of node {name!r} has changed" for key in _changed(ours, theirs)]
    result += [f"{key} has changed" for key in _changed(wanted.metadata, found.metadata)]
    return result


def _changed(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [
        key
        for key in sorted(ours.keys() | theirs.keys())
        if key not in ours or key not in theirs or not _same_bits(ours[key], theirs[key])
    ]


def _same_bits(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind == "f":
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    return bool(a.shape == b.shape and (a.astype(str) == b.astype(str)).all())


def export_onnx(
    source: Path,
    out: Path,
    *,
    timesteps: int | None = None,
    encoding: Encoding | None = None,
    dt: float | None = None,
    options: OnnxOptions = _ONNX,
) -> Graph:
    """Compile a ``.nir`` file to ONNX.

    Args:
        source: the NIR file.
        out: the file to write.
        timesteps: T; default what the file states.
        encoding: see ``compile_onnx``.
        dt: time step [s] for files that state none.
        options: form, further outputs, and how weights are stored.

    Returns:
        The view of the NIR graph that was compiled.

    Raises:
        UsageError: ``out`` is the source itself, or dt is not known.
        ExportError: a node without ONNX form.
    """
    if out.resolve() == source.resolve():
        raise UsageError(f"{out} would overwrite its own source; choose another --out")
    graph = resolve(read_nir(source), dt, str(source))
    write_onnx(compile_onnx(graph, timesteps, encoding, options), out)
    return graph
