"""What commands do with each kind of file, and when two files are the same thing to them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import tser.deploy.model_trial
import tser.export.nir_file
from tests.fuzz.preforked import Children
from tser.checkpoints import load_checkpoint, load_student
from tser.data import ImageData, load_configured, load_data
from tser.deploy.graph_file import read_signed
from tser.deploy.named_inputs import file_inputs
from tser.deploy.run_graph import open_program
from tser.export.graph import resolve
from tser.export.nir_file import digest, read_nir
from tser.export.onnx_digest import sign
from tser.export.onnx_file import read_onnx
from tser.runs import Run

OFFICIAL = Path(__file__).with_name("official_nir.py")
CHILDREN = Children()


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        name: for people.
        files: below the folder of originals; every mutant is one of them, in turn.
        use: folder -> a fingerprint of what the files in it were taken for.
        same: what the fingerprint covers, in words.
        undetectable: folder -> a fingerprint of what stays when only values changed that no
            reader could tell from others; None: nothing may change.
        agrees: file, its fingerprint -> whether the format's own reader takes it for the same;
            of files without a digest.
        finish: what is done to a mutant before it is read.
    """

    name: str
    files: tuple[str, ...]
    use: Callable[[Path], str]
    same: str
    undetectable: Callable[[Path], str] | None = None
    agrees: Callable[[Path, str], bool] | None = None
    finish: Callable[[bytes], bytes] | None = None


def fingerprint(value: Any) -> str:
    """sha256 over nested dictionaries, lists, arrays, tensors and plain values."""
    total = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            item = item.detach().numpy()
        if isinstance(item, dict):
            total.update(f"dict {len(item)}".encode())
            for key in sorted(item, key=repr):
                total.update(repr(key).encode())
                add(item[key])
        elif isinstance(item, list | tuple):
            total.update(f"list {len(item)}".encode())
            for part in item:
                add(part)
        elif isinstance(item, np.ndarray):
            total.update(f"{item.dtype} {item.shape}".encode() + item.tobytes())
        else:
            total.update(repr(item).encode())

    add(value)
    return total.hexdigest()


def _nir(folder: Path) -> str:
    path = folder / "run/model.nir"
    raw = read_signed(path)
    resolve(raw, None, str(path))
    return digest(raw)


def _plain_nir(folder: Path) -> str:
    return digest(read_nir(folder / "plain.nir"))


def _official(path: Path, found: str) -> bool:
    done = CHILDREN(OFFICIAL, [str(path)], 10.0)
    return done.returncode != 0 or done.stdout == found


def _signed(content: bytes) -> bytes:
    """A model with the digest of what it is now, as an attacker would write it."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        sign(model)
    except Exception:  # noqa: BLE001 - protobuf raises many types; it stays as it is
        return content
    return model.SerializeToString()


def _onnx(folder: Path) -> str:
    path = folder / "run/model.onnx"
    program = open_program(path)
    x = np.load(folder / "input.npy")
    trace = program.start(program.graph.timesteps or 1, False, program.layers)(x)
    model = read_onnx(path)
    model.DiscardUnknownFields()
    return fingerprint(
        [model.SerializeToString(deterministic=True), trace.logits, dict(trace.spikes)]
    )


@functools.cache
def _trained_on(folder: Path) -> ImageData:
    return load_configured(Run(folder / "run").config().data)


def _weights(folder: Path) -> str:
    return fingerprint(dict(load_student(Run(folder / "run"), _trained_on(folder)).state_dict()))


def _model(folder: Path) -> str:
    run = Run(folder / "run")
    config = run.config()
    data = load_configured(config.data)
    student = load_student(run, data)
    scale = [data.class_names, data.image_shape, data.max_value, data.mean, data.std]
    return fingerprint([repr(student), config.student.timesteps, dict(student.state_dict()), scale])


def _checkpoint(folder: Path) -> str:
    return fingerprint(load_checkpoint(folder / "run/checkpoint.pt"))


def _splits(data: ImageData) -> list[Any]:
    """All images and labels."""
    splits: list[Any] = [data.train, data.val, data.test]
    return [[split.images, split.labels] for split in splits]


def _data(folder: Path, name: str, root: str | None = None) -> str:
    data = load_data(name if root else str(folder / name), None if root is None else folder / root)
    return fingerprint([data.class_names, data.max_value, _splits(data)])


def _shapes(folder: Path) -> str:
    data: Any = load_data("fashion-mnist", folder / "idx")
    return fingerprint([part.images.shape for part in (data.train, data.val, data.test)])


def _input(folder: Path) -> str:
    inputs = file_inputs(folder / "input.npy", (1, 8, 8))
    return fingerprint([x for x, _ in inputs.batches(2)])


def _input_rank(folder: Path) -> str:
    inputs = file_inputs(folder / "input.npy", (1, 8, 8))
    return fingerprint(next(x.shape[-3:] for x, _ in inputs.batches(2)))


_FASHION = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

KINDS = (
    Kind("nir", ("run/model.nir",), _nir, "every parameter, edge and word of metadata"),
    Kind(
        "nir without digest",
        ("plain.nir",),
        _plain_nir,
        "the graph that nir.read gives for the same bytes, where it gives one",
        agrees=_official,
    ),
    Kind("onnx", ("run/model.onnx",), _onnx, "every known field, and all logits and spikes"),
    Kind(
        "onnx, signed again",
        ("run/model.onnx",),
        _onnx,
        "nothing: whoever signs a model anew may write any",
        undetectable=lambda folder: "",
        finish=_signed,
    ),
    Kind("safetensors", ("run/student.safetensors",), _weights, "every value of every tensor"),
    Kind(
        "config.toml",
        ("run/config.toml",),
        _model,
        "with the run's weights: layers, time steps, weights, scaling of the images, classes",
    ),
    Kind("checkpoint.pt", ("run/checkpoint.pt",), _checkpoint, "every value and tensor"),
    Kind(
        "idx",
        tuple(f"idx/{name}" for name in _FASHION),
        lambda folder: _data(folder, "fashion-mnist", "idx"),
        "every pixel and label, but those that are other valid pixels and labels",
        undetectable=_shapes,
    ),
    Kind(
        "idx.gz",
        tuple(f"idx-gz/{name}.gz" for name in _FASHION),
        lambda folder: _data(folder, "fashion-mnist", "idx-gz"),
        "every pixel and label",
    ),
    Kind(
        "npz",
        ("stored.npz",),
        lambda folder: _data(folder, "stored.npz"),
        "every pixel, label and class name",
    ),
    Kind(
        "npz, packed",
        ("packed.npz",),
        lambda folder: _data(folder, "packed.npz"),
        "every pixel, label and class name",
    ),
    Kind(
        "npy input",
        ("input.npy",),
        _input,
        "every number, but those that are other valid numbers",
        undetectable=_input_rank,
    ),
)


def isolate() -> None:
    """Let files that are parsed or tried in a child of its own be so by a forked one."""
    tser.export.nir_file.run_child = CHILDREN  # type: ignore[assignment]
    tser.deploy.model_trial.run_child = CHILDREN  # type: ignore[assignment]
