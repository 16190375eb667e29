"""``tser export``: a run or a NIR file to NIR or ONNX files."""

from __future__ import annotations

from pathlib import Path

from tser.checkpoints import load_run_data, load_student
from tser.errors import UsageError
from tser.export.graph import Graph, resolve
from tser.export.lower import lower
from tser.export.nir_file import read_nir, write_nir
from tser.export.onnx_file import Encoding, compile_onnx, write_onnx
from tser.runs import Run


def export_nir(run: Run, out: Path, root: Path | None = None) -> Graph:
    """Lower the student of ``run`` and write it as NIR.

    Args:
        run: a finished run.
        out: the file to write; replaced only when everything succeeded.
        root: folder of the data set (its image shape and classes are needed).

    Returns:
        The view of what was written.

    Raises:
        ExportError: a layer that cannot be expressed, by name.
    """
    data = load_run_data(run, root)
    graph = lower(load_student(run, data), data).graph
    view = resolve(graph, origin=str(run.path))
    write_nir(graph, out)
    return view


def export_onnx(
    source: Path,
    out: Path,
    *,
    timesteps: int | None = None,
    encoding: Encoding | None = None,
    dt: float | None = None,
) -> Graph:
    """Compile a ``.nir`` file to ONNX.

    Args:
        source: the NIR file.
        out: the file to write.
        timesteps: T; default what the file states.
        encoding: see ``compile_onnx``.
        dt: time step [s] for files that state none.

    Returns:
        The view of the NIR graph that was compiled.

    Raises:
        UsageError: ``out`` is the source itself, or dt is not known.
        ExportError: a node without ONNX form.
    """
    if out.resolve() == source.resolve():
        raise UsageError(f"{out} would overwrite its own source; choose another --out")
    graph = resolve(read_nir(source), dt, str(source))
    write_onnx(compile_onnx(graph, timesteps, encoding), out)
    return graph
