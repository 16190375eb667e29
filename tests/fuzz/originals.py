"""The undamaged files: one tiny run with its exports, and data sets in every format."""

from __future__ import annotations

import gzip
import os
import struct
import traceback
from pathlib import Path

import h5py
import numpy as np
import typer
from typer.testing import CliRunner

from tser.cli.main import app

SETTINGS = [
    "--set=data.limit_train=100",
    "--set=teacher.width=1",
    "--set=teacher.epochs=1",
    "--set=student.width=2",
    "--set=student.stages=1",
    "--set=student.timesteps=2",
    "--set=train.epochs=2",
]
FASHION = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def _data_sets(folder: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = []
    for count in (40, 10):
        arrays += [rng.integers(0, 256, (count, 28, 28)), np.arange(count) % 10]
    for name in ("idx", "idx-gz"):
        (folder / name).mkdir()
    for name, array in zip(FASHION, arrays, strict=True):
        (folder / "idx" / name).write_bytes(_idx(array))
        (folder / "idx-gz" / f"{name}.gz").write_bytes(gzip.compress(_idx(array), mtime=0))
    x = rng.integers(0, 256, (40, 2, 6, 5)).astype(np.uint8)
    names = np.array(["cat", "dog", "tree"])
    np.savez(folder / "stored.npz", x=x, y=np.arange(40) % 3, class_names=names)
    np.savez_compressed(folder / "packed.npz", x=x, y=np.arange(40) % 3, class_names=names)
    np.save(folder / "input.npy", rng.standard_normal((3, 1, 8, 8)).astype(np.float32))


def _plain_nir(source: Path, target: Path) -> None:
    """A copy that carries neither digest nor producer, as the files of other tools."""
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        for key in ("sha256", "producer"):
            del file[f"node/metadata/{key}"]


def _make(folder: Path) -> None:
    os.chdir(folder)
    commands = typer.Typer()  # without the options of `tser` itself
    commands.registered_commands += app.registered_commands
    for args in (
        ["distill", *SETTINGS, "--out", "run"],
        ["export", "run", "--format", "nir"],
        ["export", "run", "--format", "onnx"],
    ):
        done = CliRunner().invoke(commands, args, catch_exceptions=False)
        if done.exit_code:
            raise RuntimeError(done.output)
    _data_sets(folder)
    _plain_nir(folder / "run" / "model.nir", folder / "plain.nir")


def make_originals(folder: Path) -> None:
    """Write all of them into ``folder``, from a process of its own.

    So this one has computed nothing, and can be forked.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _make(folder)
            status = 0
        except BaseException:  # noqa: BLE001 - the parent gets the status
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the undamaged files could not be made")
