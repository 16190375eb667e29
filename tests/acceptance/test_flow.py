"""The whole path through the command line on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.acceptance.conftest import Cli, load
from tser.checkpoints import weights_digest
from tser.export.onnx_file import write_onnx


def test_run_folder_is_complete(tiny: Path) -> None:
    names = {path.name for path in (tiny / "runs" / "digits").iterdir()}
    assert names == {
        "config.toml",
        "metrics.jsonl",
        "teacher.safetensors",
        "student.safetensors",
        "checkpoint.pt",
        "environment.json",
        "eval.json",
        "model.nir",
        "model.onnx",
    }


def test_validate_says_equivalent(cli: Cli, tiny: Path) -> None:
    run = tiny / "runs" / "digits"
    done = cli("validate", run / "model.nir", "--against", run, "--json", cwd=tiny)
    assert done.returncode == 0, done.stderr
    result = load(done.stdout)
    assert result["schema_version"] == 2
    assert result["verdict"] in ("E0", "E1")
    assert [backend["name"] for backend in result["backends"]] == ["nir-f32", "onnx"]
    for backend in result["backends"]:
        assert {"verdict", "flips", "neuron_steps", "first_divergence"} <= set(backend)
        assert backend["neuron_steps"] > 0
    assert set(result["accuracy"]) == {"torch", "nir-f32", "onnx"}
    assert result["samples"] == 500
    assert result["static"]["identical"]
    assert json.loads((run / "validation.json").read_text()) == result


def test_validate_judges_the_onnx_file_alone(cli: Cli, tiny: Path) -> None:
    done = cli("validate", "runs/digits/model.onnx", "--samples", "20", "--json", cwd=tiny)
    assert done.returncode == 0, done.stderr
    assert [backend["name"] for backend in load(done.stdout)["backends"]] == ["onnx"]


def test_a_wrong_export_is_refused(cli: Cli, tiny: Path) -> None:
    run = tiny / "runs" / "digits"
    model = onnx.load(run / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "stem_lif.v_threshold":
            tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, 1, tensor.dims, [1.02]))
    write_onnx(model, run / "model.onnx")
    done = cli("validate", run / "model.onnx", "--json", cwd=tiny)
    assert done.returncode == 3, done.stderr
    (backend,) = load(done.stdout)["backends"]
    assert backend["first_divergence"]["layer"] == "stem_lif"
    assert backend["layers"][0]["violations"] > 0
    assert not (run / "validation.json").exists()


def test_energy(cli: Cli, tiny: Path) -> None:
    run = tiny / "runs" / "digits"
    done = cli("energy", run / "model.nir", "--against", run, "--json", cwd=tiny)
    assert done.returncode == 0, done.stderr
    result = load(done.stdout)
    counts = ["events", "sop_structural", "sop_effective", "dense", "macs", "neuron_updates"]
    assert all({"name", "kind", *counts} <= set(layer) for layer in result["layers"])
    assert set(counts) <= set(result["totals"])
    bills = {target["name"]: target for target in result["targets"]}
    assert bills["cmos45"]["energy_joules"] > 0
    assert bills["cmos45"]["unpriced"] == []
    # An analog first layer has no published figure on Loihi: no total is made up.
    assert bills["loihi"]["energy_joules"] is None
    assert bills["loihi"]["unpriced"]
    stem = result["layers"][0]
    assert stem["macs"] == stem["macs_once"] * result["timesteps"] > 0
    assert json.loads((run / "energy.json").read_text()) == result


def test_energy_with_a_data_set_by_name(cli: Cli, tiny: Path) -> None:
    args = ["energy", "runs/digits/model.nir", "--data", "digits", "--target", "loihi"]
    done = cli(*args, "--first-layer", "host", "--hops", "0", "--samples", "50", "--json", cwd=tiny)
    assert done.returncode == 0, done.stderr
    (bill,) = load(done.stdout)["targets"]
    assert bill["energy_joules"] > 0
    assert any("host" in line for line in bill["left_out"])


def test_eval(cli: Cli, tiny: Path) -> None:
    done = cli("eval", "runs/digits", "--json", cwd=tiny)
    assert done.returncode == 0, done.stderr
    result = load(done.stdout)
    assert len(result["accuracy"]) == 4
    assert all(0 <= accuracy <= 1 for accuracy in result["accuracy"])
    weights = weights_digest(tiny / "runs" / "digits" / "student.safetensors")
    assert result["student_weights"] == weights is not None


def test_report_is_one_file(cli: Cli, tiny: Path) -> None:
    done = cli("report", "runs/digits", "--out", "my report.html", cwd=tiny)
    assert done.returncode == 0, done.stderr
    assert "<svg" in (tiny / "my report.html").read_text()


def test_onnx_from_a_nir_file_with_other_steps(cli: Cli, tiny: Path) -> None:
    out = tiny / "six.onnx"
    done = cli(
        "export", "runs/digits/model.nir", "--format", "onnx", "--timesteps", "6", "--out", out,
        "--encoding", "sequence", cwd=tiny,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (value,) = onnx.load(out).graph.input
    dims = value.type.tensor_type.shape.dim
    assert [dim.dim_value or dim.dim_param for dim in dims] == [6, "B", 1, 8, 8]


def test_runs_are_never_overwritten(cli: Cli, tiny: Path) -> None:
    before = {path: path.read_bytes() for path in (tiny / "runs" / "digits").glob("*.safetensors")}
    done = cli("distill", "--out", "runs/digits", cwd=tiny)
    assert done.returncode == 2
    assert "nothing is overwritten" in done.stderr
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.slow
def test_the_users_own_line_in_an_empty_folder(cli: Cli, tmp_path: Path) -> None:
    """The full digits preset: it says what it does, and reaches 98 % at T = 4."""
    done = cli("distill", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "embedded digits" in done.stderr
    accuracy = load(done.stdout)["accuracy"]
    assert len(accuracy) == 4
    assert accuracy[-1] >= 0.98
    done = cli("export", "--format", "nir", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(Path("runs/digits")) in done.stderr
    assert (tmp_path / "runs" / "digits" / "model.nir").is_file()
    done = cli("validate", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load(done.stdout)["verdict"] in ("E0", "E1")


@pytest.mark.parametrize("command", ["eval", "export", "validate", "energy", "report"])
def test_without_a_run_the_commands_say_how_to_make_one(
    cli: Cli, tmp_path: Path, command: str
) -> None:
    done = cli(command, cwd=tmp_path)
    assert done.returncode == 2
    assert "tser distill" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
