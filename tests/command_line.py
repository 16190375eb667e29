"""``tser`` in this process, and the folder that docs/cli.md describes."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nir
import numpy as np
from typer.testing import CliRunner

from tests.graphs import full, lif, network
from tser.cli.main import app
from tser.export.nir_file import read_nir, write_nir

ROOT = Path(__file__).parents[1]


def run(folder: Path, command: str | Sequence[str | Path]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``tser COMMAND``, in this process where possible."""
    words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    if words[:1] == ["presets"]:
        return _alone(folder, words)
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, words, prog_name="tser")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def _alone(folder: Path, words: Sequence[str]) -> tuple[int, str, str]:
    """The same in a process of its own, where no annotation is checked.

    Typer gives a callback another object than the context that it has to be annotated with.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tser", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def small_graph() -> nir.NIRGraph:
    """Ten neurons for images ``[1, 8, 8]``."""
    weight = np.random.default_rng(0).normal(0, 0.3, (10, 64)).astype(np.float32)
    nodes = {
        "flat": nir.Flatten({"input": np.array((1, 8, 8))}, start_dim=-3, end_dim=-1),
        "fc": nir.Affine(weight, full(10, 0.1)),
        "lif": lif(10),
    }
    return network((1, 8, 8), nodes, timesteps=4)


def fill(folder: Path, runs: Path) -> None:
    """Put the files of docs/cli.md into ``folder``, given ``runs`` with the run ``digits``."""
    for name in ("digits", "again", "half", "broken"):
        shutil.copytree(runs / "digits", folder / "runs" / name)
    (folder / "runs" / "half" / "student.safetensors").unlink()
    (folder / "runs" / "broken" / "eval.json").write_text('{"schema_version": 1, ')
    write_nir(small_graph(), folder / "other.nir")
    changed = read_nir(folder / "runs" / "digits" / "model.nir")
    del changed.metadata["sha256"]
    for op in changed.nodes.values():
        if isinstance(op, nir.LIF):
            op.v_threshold = op.v_threshold * np.float32(0.5)
    write_nir(changed, folder / "changed.nir")
    for suffix in ("nir", "onnx"):
        data = (folder / "runs" / "digits" / f"model.{suffix}").read_bytes()
        (folder / f"damaged.{suffix}").write_bytes(data[: len(data) // 2])
    (folder / "damaged.npy").write_bytes(b"\x93NUMPY\x01\x00half")
    (folder / "damaged.safetensors").write_bytes(b"\xff" * 9)
    (folder / "damaged.toml").write_text("[train\n")
    # The newest run is what commands take where none is named.
    os.utime(folder / "runs" / "digits" / "config.toml", (4e9, 4e9))
