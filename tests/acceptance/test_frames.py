"""The whole path on event frames: each time step has an input of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.acceptance.conftest import Cli, load

T = 3
TINY = [
    "--set=data.name=events.npz",
    f"--set=student.timesteps={T}",
    "--set=data.flip=true",
    "--set=data.cutout=2",
    "--set=teacher.width=4",
    "--set=teacher.epochs=1",
    "--set=student.width=4",
    "--set=train.epochs=1",
    "--set=train.warmup_epochs=0",
]


def write_events(path: Path, timesteps: int = T) -> None:
    """Two kinds of motion, to the right and to the left: only their order in time differs."""
    generator = np.random.default_rng(0)
    count = 60
    x = np.zeros((count, timesteps, 2, 8, 8), dtype=np.int16)
    y = np.arange(count) % 2
    for sample in range(count):
        row = generator.integers(1, 7)
        for t in range(timesteps):
            column = t + 2 if y[sample] else 5 - t
            x[sample, t, 0, row, column % 8] = generator.integers(1, 4)
            x[sample, t, 1, row, (column - 1) % 8] = 1
    np.savez(path, x=x, y=y, class_names=["left", "right"])


@pytest.fixture(scope="module")
def folder(here: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``events.npz`` and the finished, exported run ``runs/digits``."""
    folder = tmp_path_factory.mktemp("frames")
    write_events(folder / "events.npz")
    for args in (["distill", *TINY], ["export"], ["export", "--format", "onnx"]):
        done = here(*args, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def ask(here: Cli, folder: Path, *args: str) -> dict[str, Any]:
    done = here(*args, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return load(done.stdout)


def test_onnx_takes_a_frame_for_each_step(folder: Path) -> None:
    (value,) = onnx.load(folder / "runs/digits/model.onnx").graph.input
    dims = value.type.tensor_type.shape.dim
    assert [dim.dim_value or dim.dim_param for dim in dims] == [T, "B", 2, 8, 8]


def test_every_executor_gives_the_same_spikes(here: Cli, folder: Path) -> None:
    result = ask(here, folder, "validate", "runs/digits/model.nir")
    assert result["verdict"] in ("E0", "E1")
    assert [backend["name"] for backend in result["backends"]] == ["nir-f32", "onnx"]
    assert result["static"]["identical"]
    assert result["samples"] == 12
    assert all(layer["firing_rate_reference"][0] for layer in result["backends"][0]["layers"][:1])
    alone = ask(here, folder, "validate", "runs/digits/model.onnx")
    assert alone["verdict"] in ("E0", "E1")
    assert alone["accuracy"]["onnx"] == ask(here, folder, "eval")["accuracy"]


def test_without_a_file_onnx_is_compiled_for_frames(here: Cli, folder: Path) -> None:
    kept = (folder / "runs/digits/model.onnx").read_bytes()
    try:
        (folder / "runs/digits/model.onnx").unlink()
        result = ask(here, folder, "validate", "runs/digits/model.nir", "--samples", "5")
        assert result["verdict"] in ("E0", "E1")
    finally:
        (folder / "runs/digits/model.onnx").write_bytes(kept)


def test_energy_counts_the_events_of_every_frame(here: Cli, folder: Path) -> None:
    result = ask(here, folder, "energy", "runs/digits/model.nir")
    stem = result["layers"][0]
    # Two pixels of the two channels hold events in every frame, and nothing else is an input.
    assert stem["events_per_step"] == [2.0] * T
    assert result["timesteps"] == T
    assert {bill["name"]: bill["energy_joules"] for bill in result["targets"]}["cmos45"] > 0


def test_the_report_shows_the_frames(here: Cli, folder: Path) -> None:
    ask(here, folder, "eval")
    done = here("report", "runs/digits", cwd=folder)
    assert done.returncode == 0, done.stderr
    text = (folder / "runs/digits/report.html").read_text()
    assert f"Its {T} frames, averaged." in text


def test_the_parts_that_do_not_belong_together_are_refused(here: Cli, folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    write_events(other / "events.npz", timesteps=T + 2)
    for args, status, parts in (
        (
            ["distill", *TINY, "--data-root", "other"],
            2,
            ["student.timesteps is 3", "have 5 frames"],
        ),
        (
            ["distill", *TINY, "--set=data.auto_augment=cifar10"],
            2,
            ["data.auto_augment", "several frames"],
        ),
        (
            ["energy", "runs/digits/model.nir", "--data", "digits"],
            2,
            ["takes inputs of shape (2, 8, 8)"],
        ),
        (
            ["energy", "runs/digits/model.nir", "--data-root", "other"],
            2,
            ["runs for 3 time steps", "have 5 frames"],
        ),
        (["eval", "--data-root", "other"], 2, ["student.timesteps is 3", "5 frames"]),
        (
            ["export", "--format", "onnx", "--encoding", "direct", "--out", "d.onnx"],
            2,
            ["a frame for each step", "--encoding sequence"],
        ),
    ):
        done = here(*args, cwd=folder)
        assert done.returncode == status, (args, done.stderr)
        assert all(part in done.stderr for part in parts), done.stderr
        assert "Traceback" not in done.stderr
    assert not (folder / "d.onnx").exists()


def test_a_graph_for_still_images_is_not_run_on_frames(
    here: Cli, folder: Path, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (40, 2, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "events.npz", x=x, y=np.arange(40) % 2)
    for args in (["distill", *TINY], ["export"]):
        done = here(*args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    write_events(tmp_path / "events.npz")
    done = here("energy", "runs/digits/model.nir", cwd=tmp_path)
    assert done.returncode == 2
    assert "takes a still image, 'events.npz' has frames" in done.stderr
