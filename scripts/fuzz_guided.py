"""Coverage-guided fuzzing: ``python scripts/fuzz_guided.py READER SECONDS`` (needs atheris).

atheris mutates bytes so that they reach new lines of the Python code of a reader. What is not a
refusal in one sentence ends the run, and its input is kept as crash-… in the working folder; the
last lines say how many were tried and what was reached. Not part of the test suite, since atheris
has wheels for few versions of Python.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-not-found]
import nir
import numpy as np

with atheris.instrument_imports(
    include=[
        "tser.data.arrays_in_zip",
        "tser.data.array_file",
        "tser.data.idx",
        "tser.data.packed",
        "tser.data.plain_pickle",
        "tser.config_file",
        "tser.toml_text",
        "tser.export.nir_file",
        "tser.export.graph",
        "tser.export.graph_checks",
        "tser.export.shapes",
        "tser.export.cycles",
        "tser.export.layer_rules",
        "tser.export.onnx_file",
        "tser.export.onnx_digest",
        "tser.export.onnx_external",
        "tser.deploy.onnx_view",
        "tser.deploy.onnx_model",
        "tser.deploy.named_inputs",
        "tomllib",
        "tomllib._parser",
        "pickletools",
        "zipfile",
    ]
):
    import tser.export.nir_file
    from tser.config_file import load_config
    from tser.data.array_file import load_array_file
    from tser.data.idx import read_images, read_labels
    from tser.data.plain_pickle import as_uint8, read_dictionary
    from tser.deploy.named_inputs import file_inputs
    from tser.deploy.onnx_model import OnnxModel
    from tser.deploy.onnx_view import onnx_view
    from tser.export.graph import resolve
    from tser.export.nir_file import flatten, read_unverified
    from tser.export.onnx_file import read_unverified as read_any_onnx

from tests.fuzz.bombs import doubled, many, nested
from tests.fuzz.originals import make_originals
from tests.random_graphs import random_graph
from tser.errors import TserError

Read = Callable[[Path], object]


def _nir(path: Path) -> None:
    """The tree of a graph, as the child hands it over: names and small arrays in JSON."""
    try:
        tree = json.loads(path.read_bytes())
        flat = {str(key): _value(value)[()] for key, value in tree.items()}
    except (ValueError, AttributeError, RecursionError, TypeError, OverflowError):
        return
    tser.export.nir_file._parse_in_child = lambda _: flat
    graph, _ = read_unverified(path)
    resolve(graph, 1e-3, "a file")


def _value(value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype == object or array.size > 10_000:
        raise ValueError("no array")
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _tree(graph: nir.NIRGraph) -> bytes:
    """What `_nir` reads, of a graph."""
    flat = flatten(graph.to_dict())
    kept = {key: np.asarray(value).tolist() for key, value in flat.items()}
    return json.dumps(kept).encode()


def _onnx(path: Path) -> None:
    model, _ = read_any_onnx(path)
    view = onnx_view(model, path)
    OnnxModel(model, view.layers, "a model", view.graph.timesteps)


def _pickle(path: Path) -> None:
    with contextlib.suppress(ValueError):
        for value in read_dictionary(path.read_bytes()).values():
            with contextlib.suppress(ValueError):
                as_uint8(value, 4)


def _idx(path: Path) -> None:
    for read in (read_images, read_labels):
        with contextlib.suppress(TserError):
            read(path, path.parent)


def _npy(path: Path) -> None:
    for x, _ in file_inputs(path, (1, 8, 8)).batches(2):
        x.sum()


def _rezipped(content: bytes) -> bytes:
    """Three arrays whose bytes are parts of ``content``, so that checksums agree."""
    parts, file = content.split(b"|=|"), io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in zip(("x", "y", "class_names"), parts, strict=False):
            archive.writestr(f"{name}.npy", part)
    return file.getvalue()


def _npz(path: Path) -> None:
    content = path.read_bytes()
    for given in (content, _rezipped(content)):
        path.write_bytes(given)
        with contextlib.suppress(TserError):
            load_array_file("a file", path)


READERS: dict[str, tuple[str, Read]] = {
    "toml": (".toml", lambda path: load_config(str(path))),
    "idx": ("", _idx),
    "idx.gz": (".gz", _idx),
    "npz": (".npz", _npz),
    "npy": (".npy", _npy),
    "pickle": ("", _pickle),
    "onnx": (".onnx", _onnx),
    "nir": (".nir", _nir),
}


def _npy_bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _seeds(reader: str, folder: Path) -> list[bytes]:
    make_originals(folder)
    if reader == "nir":
        return [_tree(random_graph(seed)[0]) for seed in range(12)]
    if reader == "pickle":
        batch = {"data": np.zeros((2, 4), np.uint8), "labels": [1, 2], "label_names": ["a"]}
        return [pickle.dumps(batch, 2), doubled(keys=True), nested(50), many(50)]
    if reader == "npz":
        labels = np.arange(10) % 2
        names = np.array(["a", "b"])
        several = [
            (np.zeros((10, 2, 2), np.uint8), labels, names),
            (np.zeros((10, 2, 1, 2, 2), np.float32), labels.astype(np.uint8), names),
            (np.asfortranarray(np.ones((10, 2, 1, 2, 2), np.int64)), labels, names),
        ]
        parts = [b"|=|".join(map(_npy_bytes, arrays)) for arrays in several]
        return [(folder / "stored.npz").read_bytes(), *parts]
    files = {
        "toml": ["run/config.toml"],
        "idx": ["idx/t10k-images-idx3-ubyte", "idx/t10k-labels-idx1-ubyte"],
        "idx.gz": ["idx-gz/t10k-images-idx3-ubyte.gz", "idx-gz/t10k-labels-idx1-ubyte.gz"],
        "npy": ["input.npy"],
        "onnx": ["run/model.onnx"],
    }
    return [(folder / name).read_bytes() for name in files[reader]]


def main() -> None:
    """Fuzz one reader."""
    reader, seconds = sys.argv[1], int(sys.argv[2])
    suffix, read = READERS[reader]
    place = Path(tempfile.mkdtemp(prefix="tser-guided-"))
    corpus = place / "corpus"
    corpus.mkdir()
    (place / "originals").mkdir()
    for number, content in enumerate(_seeds(reader, place / "originals")):
        (corpus / str(number)).write_bytes(content)
    path = place / f"file{suffix}"

    def one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read(path)
        except TserError as error:
            if "\n" in str(error) or not str(error):
                raise ValueError(f"not one sentence: {error}") from error

    arguments = [sys.argv[0], f"-max_total_time={seconds}", "-seed=8", "-timeout=10"]
    arguments += ["-rss_limit_mb=3072", "-max_len=65536", "-print_final_stats=1", str(corpus)]
    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
