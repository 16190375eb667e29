"""An export is read again and checked before it gets its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch

from tser.checkpoints import save_weights
from tser.config import RunConfig, StudentConfig
from tser.config_file import dump_config
from tser.data import load_data
from tser.deploy.export_check import QuickCheck
from tser.errors import CheckFailed
from tser.export.export import Exported, changes, export_nir
from tser.export.nir_file import read_nir
from tser.export.variants import Variant
from tser.runs import Run
from tser.students import build_student

DATA = load_data("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "run"
    config = RunConfig(student=StudentConfig(timesteps=3, width=4))
    torch.manual_seed(0)
    net = build_student(config.student, config.neuron, DATA.image_shape, DATA.num_classes)
    path.mkdir()
    (path / "config.toml").write_text(dump_config(config))
    save_weights(net, path / "student.safetensors")
    return Run(path)


def test_the_check_is_given_what_was_written(run: Run, tmp_path: Path) -> None:
    given: list[Exported] = []

    def check(exported: Exported) -> str:
        given.append(exported)
        assert not (tmp_path / "a.nir").exists()
        return ""

    view = export_nir(run, tmp_path / "a.nir", check=check)
    (exported,) = given
    assert exported.graph.metadata["sha256"] == view.metadata["sha256"]
    assert (tmp_path / "a.nir").exists()


def test_a_file_that_the_check_refuses_gets_no_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.nir").write_bytes(b"before")
    with pytest.raises(CheckFailed, match="a.nir was not written: .*: it is odd") as caught:
        export_nir(run, tmp_path / "a.nir", check=lambda _: "it is odd")
    assert caught.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.nir"]
    assert (tmp_path / "a.nir").read_bytes() == b"before"


def _spoil(graph: Any) -> None:
    weight = graph.nodes["readout"].weight.copy()
    weight.view(np.uint32)[0, 0] ^= 1
    graph.nodes["readout"].weight = weight


@pytest.mark.parametrize("checked", [True, False])
def test_one_bit_that_changes_on_the_way_is_found(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    write = nir.write

    def spoiling(path: Path, graph: Any, **options: Any) -> None:
        _spoil(graph)
        write(path, graph, **options)

    monkeypatch.setattr(nir, "write", spoiling)
    with pytest.raises(CheckFailed, match="do not match the digest"):
        export_nir(run, tmp_path / "a.nir", check=QuickCheck() if checked else None)
    assert not list(tmp_path.iterdir())


def test_what_has_changed_is_named(run: Run, tmp_path: Path) -> None:
    export_nir(run, tmp_path / "a.nir")
    wanted = read_nir(tmp_path / "a.nir")
    assert changes(wanted, read_nir(tmp_path / "a.nir")) == []
    found = read_nir(tmp_path / "a.nir")
    _spoil(found)
    assert changes(wanted, found) == ["weight of node 'readout' has changed"]
    found = read_nir(tmp_path / "a.nir")
    found.nodes["new"] = found.nodes.pop("readout")
    found.edges = [edge for edge in found.edges if "readout" not in edge]
    assert changes(wanted, found) == [
        "node 'new' is new", "node 'readout' is missing", "it has other edges",
    ]  # fmt: skip
    found = read_nir(tmp_path / "a.nir")
    found.metadata["timesteps"] = 4
    assert changes(wanted, found) == ["timesteps has changed"]


@pytest.mark.parametrize("variant", [Variant(), Variant("unit"), Variant("unit", 1e-4)])
def test_the_quick_check_holds_for_every_variant(
    run: Run, tmp_path: Path, variant: Variant
) -> None:
    check = QuickCheck()
    export_nir(run, tmp_path / "a.nir", variant=variant, compat=True, check=check)
    assert check.verdict in ("E0", "E1")
    assert check.evidence is not None
    assert check.evidence.samples == check.samples
    assert check.spikes > 0


def test_the_quick_check_sees_another_rule(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tser.export.layer_rules.time_constant", lambda factor, dt: 3 * dt)
    with pytest.raises(CheckFailed, match="E[23], .* rounding cannot explain"):
        export_nir(run, tmp_path / "a.nir", check=QuickCheck())
    assert not list(tmp_path.iterdir())
