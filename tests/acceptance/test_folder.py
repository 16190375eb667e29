"""The whole path on a folder of images, which are read while the network trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.acceptance.conftest import Cli, load

TINY = [
    "--set=data.name=pets",
    "--set=data.size=12",
    "--set=data.flip=true",
    "--set=data.auto_augment=imagenet",
    "--set=data.cutout=4",
    "--set=data.workers=2",
    "--set=teacher.width=4",
    "--set=teacher.epochs=1",
    "--set=student.width=4",
    "--set=student.timesteps=2",
    "--set=train.epochs=1",
    "--set=train.batch_size=16",
    "--set=train.warmup_epochs=0",
]


@pytest.fixture(scope="module")
def folder(here: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``pets/`` and the finished, exported run ``runs/digits``; not to be changed."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 5)):
        for name in ("cat", "dog"):
            (folder / "pets" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "pets" / part / name / f"{number}.jpg")
    for args in (["distill", *TINY], ["export"]):
        done = here(*args, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_the_run_goes_all_the_way(here: Cli, folder: Path) -> None:
    for args in (["validate", "runs/digits/model.nir"], ["energy", "runs/digits/model.nir"]):
        done = here(*args, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        result = load(done.stdout)
        assert result["samples"] == 10
        assert result.get("verdict", "E0") in ("E0", "E1")
    done = here("report", "runs/digits", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "of class cat" in (folder / "runs/digits/report.html").read_text()


def test_a_damaged_image_ends_training_in_one_sentence(
    here: Cli, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "pets", tmp_path / "pets")
    broken = tmp_path / "pets" / "train" / "dog" / "7.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    done = here("distill", *TINY, cwd=tmp_path)
    assert done.returncode == 4
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "pets/train/dog/7.jpg is damaged or not an image" in line
    assert "Traceback" not in done.stderr
