"""``tser validate`` on the command line: two graphs, several executors, probes, the bar."""

from pathlib import Path

import nir
import numpy as np
import pytest

from tests.acceptance.conftest import Cli, load
from tser.export.nir_file import read_nir, write_nir

RUN = Path("runs/digits")


def test_several_executors_in_one_table(here: Cli, tiny: Path) -> None:
    backends = ["--backend", "nir-f64", "--backend", "onnx-noopt", "--backend", "nir-f32"]
    done = here("validate", RUN / "model.nir", *backends, "--samples", "20", cwd=tiny)
    assert done.returncode == 0, done.stderr
    for name in ("nir-f64", "onnx-noopt", "nir-f32", "torch (reference)", "✓ E"):
        assert name in done.stdout
    assert "verdict: E" in done.stderr


def test_two_files_on_a_data_set(here: Cli, tiny: Path) -> None:
    files = [RUN / "model.onnx", "--against", RUN / "model.nir"]
    done = here("validate", *files, "--data", "digits", "--samples", "10", "--json", cwd=tiny)
    assert done.returncode == 0, done.stderr
    found = load(done.stdout)
    assert (found["verdict"], found["static"]["identical"]) == ("E0", True)
    assert list(found["accuracy"]) == ["reference", "onnx"]


def test_a_wrong_file_is_explained_and_only_a_low_bar_lets_it_pass(here: Cli, tiny: Path) -> None:
    graph = read_nir(tiny / RUN / "model.nir")
    name = next(name for name, op in graph.nodes.items() if isinstance(op, nir.LIF))
    graph.nodes[name].v_reset = graph.nodes[name].v_reset + np.float32(-0.75)
    write_nir(graph, tiny / "wrong.nir")
    call = ["validate", "wrong.nir", "--against", RUN / "model.nir", "--data", "digits"]
    call += ["--samples", "30", "--out", "out.json", "--save-trace", "spikes.npz"]
    done = here(*call, cwd=tiny)
    assert done.returncode == 3
    assert f"layer '{name}'" in done.stderr
    assert f"{name}.v_reset differs from the reference in" in done.stderr
    found = load((tiny / "out.json").read_text())
    assert found["verdict"] in ("E2", "E3")
    assert found["backends"][0]["diagnosis"][0]["layer"] == name
    with np.load(tiny / "spikes.npz") as kept:
        assert f"reference/{name}" in kept
        assert f"nir-f32/{name}.shape" in kept
    if found["verdict"] == "E2":
        assert here(*call, "--require", "E2", cwd=tiny).returncode == 0


def test_the_bar_may_be_the_same_spikes(here: Cli, tiny: Path) -> None:
    call = ["validate", RUN / "model.nir", "--backend", "nir-f32", "--samples", "5", "--json"]
    verdict = load(here(*call, cwd=tiny).stdout)["verdict"]
    done = here(*call, "--require", "E0", cwd=tiny)
    assert done.returncode == (0 if verdict == "E0" else 3)


def test_probes_of_a_run(here: Cli, tiny: Path) -> None:
    call = ["validate", RUN / "model.nir", "--backend", "onnx", "--samples", "5", "--probes"]
    done = here(*call, cwd=tiny)
    assert done.returncode == 0, done.stderr
    for text in ("given: impulses", "dyadic twin, as_is: all inputs", "known by hand: tie"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["runs/digits/model.nir", "--backend", "tpu"], 2, "--backend tpu is not known"),
        (["runs/digits/model.nir", "--all", "--samples", "3"], 2, "contradict each other"),
        (["runs/digits/model.nir", "--save-trace", "x.json"], 2, "is not named .npz"),
        (["runs/digits/model.nir", "--data", "digits"], 2, "leave out --data"),
        (["--against", "runs/digits/model.nir"], 2, "name the graph that is to be compared"),
        (
            ["runs/digits/model.nir", "--against", "runs/digits/model.onnx"],
            2,
            "pass --data NAME, --input FILE.npy or --probes",
        ),
        (["runs/digits/model.nir", "--against", "missing.nir"], 4, "there is no file missing.nir"),
        (["runs/digits/model.onnx", "--backend", "nir-f32"], 2, "runs .nir files"),
        (["runs/digits/model.nir", "--require", "E9"], 2, "E9"),
    ],
)
def test_what_cannot_be_asked(
    here: Cli, tiny: Path, args: list[str], code: int, words: str
) -> None:
    done = here("validate", *args, cwd=tiny)
    assert done.returncode == code
    assert words in " ".join(done.stderr.split())
    assert not (tiny / RUN / "validation.json").exists()
