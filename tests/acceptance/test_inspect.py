"""``tser inspect`` on files of ours and of others."""

from __future__ import annotations

from pathlib import Path

import nir
import numpy as np
import pytest

from tests.acceptance.conftest import Cli, load
from tests.graphs import full, lif, network

PAPER = Path(__file__).parents[1] / "data" / "nir-paper" / "lif_norse.nir"


def test_an_exported_graph(here: Cli, tiny: Path) -> None:
    folder = tiny / "runs" / "digits"
    found = load(here("inspect", "model.nir", "--json", cwd=folder).stdout)
    assert (found["manifest"], found["dt_origin"]) == ("ok", "metadata")
    assert found["portable"]["conforms"]
    verdicts = {tool["name"]: tool["verdict"] for tool in found["importers"]}
    assert verdicts["nirtorch"] == verdicts["SpikingJelly"] == "correct"
    done = here("inspect", "model.nir", cwd=folder)
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(node["name"] in done.stdout for node in found["nodes"])
    assert f"{found['totals']['synapses']:,}" in done.stdout
    assert "✓ every rule is kept" in done.stdout
    model = load(here("inspect", "model.onnx", "--json", cwd=folder).stdout)
    assert model["ours"]
    assert model["neurons"] == found["totals"]["neurons"]
    assert model["metadata"]["nir_sha256"] == found["sha256"]
    assert "one of tser's: yes" in here("inspect", "model.onnx", cwd=folder).stdout


def test_a_published_graph_needs_dt_only_to_run(here: Cli, tmp_path: Path) -> None:
    done = here("inspect", PAPER, cwd=tmp_path)
    assert done.returncode == 0
    assert "dt: missing" in done.stdout
    assert "--dt SECONDS" in done.stderr
    with_dt = here("inspect", PAPER, "--dt", "1e-4", cwd=tmp_path)
    assert "dt: 0.0001 s (option)" in with_dt.stdout
    export = here("export", PAPER, "--format", "onnx", "--out", "x.onnx", cwd=tmp_path)
    assert export.returncode == 2
    assert "--dt SECONDS" in export.stderr


def test_a_repair_is_asked_for_and_told(here: Cli, tmp_path: Path) -> None:
    nodes = {"fc": nir.Affine(full((1, 1), 1), full(1, 0)), "lif": lif(1)}
    edges = [("input", "fc"), ("fc", "lif"), ("lif", "output")]
    nir.write(tmp_path / "their.nir", network((1,), nodes, edges, (1, 1, 1), dt=None))
    refused = here("inspect", "their.nir", cwd=tmp_path)
    assert refused.returncode == 4
    assert "tser inspect FILE --repair OUT.nir" in refused.stderr
    done = here("inspect", "their.nir", "--repair", "ours.nir", "--dt", "1e-4", cwd=tmp_path)
    assert done.returncode == 0
    said = [line for line in done.stderr.splitlines() if line.startswith("repaired: ")]
    assert said == [
        "repaired: the shape of node 'output': (1, 1, 1) is now (1,)",
        "repaired: the metadata state dt = 0.0001 s",
    ]
    assert "dt: 0.0001 s (metadata)" in done.stdout
    again = here("inspect", "ours.nir", "--repair", "third.nir", cwd=tmp_path)
    assert "nothing to repair" in again.stderr
    assert not (tmp_path / "third.nir").exists()


@pytest.mark.parametrize("option", [["--dt", "1"], ["--repair", "x.nir"]])
def test_options_of_nir_files_only(here: Cli, tiny: Path, option: list[str]) -> None:
    done = here("inspect", "model.onnx", *option, cwd=tiny / "runs" / "digits")
    assert done.returncode == 2
    assert "are for .nir files" in done.stderr


def test_names_steer_no_terminal(here: Cli, tmp_path: Path) -> None:
    nodes = {"a\x1b[2J": lif(1, v_leak=np.array([1.0]))}
    nir.write(tmp_path / "x.nir", network((1,), nodes))
    done = here("inspect", "x.nir", cwd=tmp_path)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
