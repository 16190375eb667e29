"""``tser fit`` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import nir
import numpy as np
import pytest

from tests.acceptance.conftest import ROOT, Cli, load
from tests.graphs import DT, conv, full, network
from tser.deploy.fit_docs import with_chips
from tser.deploy.fit_limits import chip_names


def small(path: Path, *, scale: float = 1.0, encoding: str = "frames") -> Path:
    """A convolution of integer weights (times ``scale``) with IF neurons."""
    weight = np.arange(-9, 9, dtype=np.float32).reshape(2, 1, 3, 3) * scale
    neurons = nir.IF(full((2, 8, 8), 1 / DT), full((2, 8, 8), 1), v_reset=full((2, 8, 8), 0))
    nodes = {"conv": conv(weight, (8, 8), padding=1), "iaf": neurons}
    nir.write(path, network((1, 8, 8), nodes, encoding=encoding))
    return path


def test_a_run_against_several_chips(here: Cli, tiny: Path) -> None:
    folder = tiny / "runs" / "digits"
    args = ["fit", "model.nir", "--target", "speck2f", "--target", "loihi", "--json"]
    done = here(*args, cwd=folder)
    assert done.returncode == 3
    found = load(done.stdout)
    assert found["schema_version"] == 1
    assert [t["name"] for t in found["targets"]] == ["speck2f", "loihi"]
    rows = {row["constraint"]: row for row in found["targets"][1]["rows"]}
    assert rows["weight_bits"]["verdict"] == rows["analog_input"]["verdict"] == "does not fit"
    assert "quantise" in rows["weight_bits"]["change"]
    assert "--first-layer host" in rows["analog_input"]["change"]
    assert rows["cores"]["verdict"] == "fits"
    assert 0 < rows["cores"]["used_fraction"] < 1
    fixed = here(*args[:2], *args[4:], "--weight-bits", "8", "--first-layer", "host", cwd=folder)
    assert fixed.returncode == 0, fixed.stdout
    (target,) = load(fixed.stdout)["targets"]
    assert target["verdict"] == "fits as far as checked"


def test_the_table(here: Cli, tmp_path: Path) -> None:
    small(tmp_path / "x.nir")
    done = here("fit", "x.nir", "--target", "speck2f", "--target", "xylo_a2", cwd=tmp_path)
    assert done.returncode == 3
    for text in ("SynSense Speck 2f", "kernel memory", "✓ fits", "✗ does not fit"):
        assert text in done.stdout
    assert "speck2f: fits (0 of" in done.stdout
    assert "xylo_a2: does not fit (" in done.stdout
    one = here("fit", "x.nir", "--target", "speck2f", cwd=tmp_path)
    assert one.returncode == 0


def test_a_chip_of_the_users_own(here: Cli, tmp_path: Path) -> None:
    small(tmp_path / "x.nir")
    text = (ROOT / "deploy" / "limits" / "speck2f.toml").read_text(encoding="utf-8")
    mine = text.replace('"speck2f"', '"mine"').replace("value = 2, unit", "value = 0, unit")
    (tmp_path / "mine.toml").write_text(mine, encoding="utf-8")
    done = here("fit", "x.nir", "--target-file", "mine.toml", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert load(done.stdout)["targets"][0]["name"] == "mine"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("value = 9,", "valve = 9,", "limits.cores.value: Field required"),
        ('source = "overview"', 'source = "hearsay"', "which is not there"),
        ("cores = {", "cores = [", "not valid TOML"),
        ("exact = true", "exact = true\ncolour = 1", "colour: Extra inputs"),
        ("value = 9,", "value = 8,", "one size for every core"),
        ('placement = "layer_a_core"', 'placement = "tiles"', "needs limits.neurons_per_core"),
    ],
)
def test_a_bad_chip_file(here: Cli, tmp_path: Path, old: str, new: str, complaint: str) -> None:
    small(tmp_path / "x.nir")
    text = (ROOT / "deploy" / "limits" / "speck2f.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text.replace(old, new), encoding="utf-8")
    done = here("fit", "x.nir", "--target-file", "mine.toml", cwd=tmp_path)
    assert done.returncode == 4
    assert "mine.toml" in done.stderr
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "code", "complaint"),
    [
        (["x.nir"], 2, "name a chip with --target"),
        (["x.nir", "--target", "speck"], 2, "did you mean 'speck2"),
        (["x.nir", "--target-file", "none.toml"], 4, "there is no chip file none.toml"),
        (["y.nir", "--target", "loihi"], 4, "there is no file y.nir"),
        (["x.nir", "--target", "loihi", "--dt", "5"], 2, "states dt"),
        (["x.nir", "--target", "loihi", "--weight-bits", "0"], 2, ""),
    ],
)
def test_mistakes(here: Cli, tmp_path: Path, args: list[str], code: int, complaint: str) -> None:
    small(tmp_path / "x.nir")
    done = here("fit", *args, cwd=tmp_path)
    assert done.returncode == code
    assert complaint in done.stderr


def test_the_page_shows_the_data() -> None:
    text = (ROOT / "docs" / "fit.md").read_text(encoding="utf-8")
    assert with_chips(text) == text, "python -m tser.deploy.fit_docs writes the table anew"
    assert all(f"`{name}`" in text for name in chip_names())
