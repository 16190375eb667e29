"""`tser run` and the forms of `tser export --format onnx`, through the command line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import pytest

from tests.acceptance.conftest import Cli, load
from tests.graphs import dyadic, full, lif, network
from tser.deploy.interpreter import run
from tser.export.graph import resolve
from tser.export.nir_file import write_nir
from tser.export.onnx_external import data_files
from tser.export.onnx_file import model_metadata, read_onnx, write_onnx

STEPS = 3


def _network(**metadata: Any) -> nir.NIRGraph:
    rng = np.random.default_rng(0)
    nodes = {
        "fc": nir.Affine(dyadic(rng, (4, 2), most=2), dyadic(rng, 4)),
        "lif": lif(4, v_th=0.5),
        "back": nir.Linear(dyadic(rng, (4, 4))),
        "out": nir.Linear(dyadic(rng, (3, 4))),
    }
    edges = [("input", "fc"), ("fc", "lif"), ("lif", "back"), ("back", "lif")]
    edges += [("lif", "out"), ("out", "output")]
    return network((2,), nodes, edges, (3,), **metadata)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A graph, and inputs with and without a time axis."""
    write_nir(
        _network(timesteps=STEPS, class_names=json.dumps(["a", "b", "c"])), tmp_path / "m.nir"
    )
    rng = np.random.default_rng(1)
    np.save(tmp_path / "x.npy", dyadic(rng, (230, 2), most=2))
    np.save(tmp_path / "frames.npy", dyadic(rng, (STEPS, 5, 2), most=2).astype(np.float64))
    return tmp_path


def _expected(folder: Path, name: str) -> tuple[Any, Any]:
    logits, kept = run(resolve(_network()), np.load(folder / name), STEPS, record=["lif"])
    return logits, kept["lif"] > 0


@pytest.mark.parametrize("runtime", ["nir", "onnx"])
@pytest.mark.parametrize("name", ["x.npy", "frames.npy"])
def test_logits_predictions_and_spikes(here: Cli, folder: Path, runtime: str, name: str) -> None:
    options = ["--runtime", runtime, "--out", "logits.npz", "--trace", "spikes.npz", "--json"]
    done = here("run", "m.nir", "--input", name, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    logits, spikes = _expected(folder, name)
    result = load(done.stdout)
    with np.load(folder / "logits.npz") as file:
        assert set(file) == {"logits", "predictions"}
        np.testing.assert_array_equal(file["logits"], logits)
        np.testing.assert_array_equal(file["predictions"], logits.mean(0).argmax(-1))
        assert result["predictions"] == file["predictions"].tolist()
    with np.load(folder / "spikes.npz") as file:
        assert set(file) == {"lif"}
        assert file["lif"].dtype == np.bool_
        np.testing.assert_array_equal(file["lif"], spikes)
    assert result["firing_rates"] == {"lif": pytest.approx(spikes.mean())}
    assert (result["samples"], result["timesteps"]) == (logits.shape[1], STEPS)
    assert (result["runtime"], result["class_names"]) == (runtime, ["a", "b", "c"])
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("form", ["sequence", "step", "scan"])
def test_every_form_of_onnx(here: Cli, folder: Path, form: str) -> None:
    for encoding, name in (("direct", "x.npy"), ("sequence", "frames.npy")):
        options = ["--form", form, "--encoding", encoding, "--outputs", "spikes,membranes"]
        done = here("export", "m.nir", "--format", "onnx", *options, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert f"ONNX: {form} form, opset 18, float32 weights" in done.stderr
        stated = load(done.stdout)
        assert (stated["opset"], stated["form"]) == (18, form)
        assert stated["outputs"] == ["logits", "spikes", "membranes"]
        options = ["--out", "logits.npy", "--trace", "spikes.npz"]
        done = here("run", "m.onnx", "--input", name, *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        logits, spikes = _expected(folder, name)
        np.testing.assert_array_equal(np.load(folder / "logits.npy"), logits)
        with np.load(folder / "spikes.npz") as file:
            np.testing.assert_array_equal(file["lif"], spikes)


def test_a_data_set(here: Cli, tiny: Path) -> None:
    folder = tiny / "runs" / "digits"
    accuracy = {}
    for form in ("nir", "sequence", "scan"):
        graph = "model.nir" if form == "nir" else f"{form}.onnx"
        if form != "nir":
            options = ["--format", "onnx", "--form", form, "--out", graph]
            done = here("export", "model.nir", *options, cwd=folder)
            assert done.returncode == 0, done.stderr
        options = ["--data", "digits", "--samples", "130", "--out", "logits.npz", "--json"]
        done = here("run", graph, *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        result = load(done.stdout)
        accuracy[form] = result["accuracy"]
        with np.load(folder / "logits.npz") as file:
            right = (file["predictions"] == file["labels"]).mean()
            assert file["logits"].shape == (result["timesteps"], 130, 10)
        assert result["accuracy"][-1] == pytest.approx(right)
    assert accuracy["nir"] == accuracy["sequence"] == accuracy["scan"]


@pytest.mark.parametrize("form", ["step", "scan"])
def test_validate_takes_every_form(here: Cli, tiny: Path, form: str) -> None:
    done = here("export", "runs/digits", "--format", "onnx", "--form", form, cwd=tiny)
    assert done.returncode == 0, done.stderr
    options = ["--against", "runs/digits", "--samples", "20", "--json"]
    done = here("validate", "runs/digits/model.onnx", *options, cwd=tiny)
    assert done.returncode == 0, done.stderr
    result = load(done.stdout)
    assert result["verdict"] in ("E0", "E1")
    assert result["static"]["identical"]
    done = here("validate", "runs/digits/model.nir", "--samples", "20", "--json", cwd=tiny)
    assert [one["name"] for one in load(done.stdout)["backends"]] == ["nir-f32", "onnx"]


def test_float16_weights_and_their_effect(here: Cli, tiny: Path) -> None:
    folder = tiny / "runs" / "digits"
    before = (folder / "model.onnx").stat().st_size
    options = ["--format", "onnx", "--weights", "float16", "--json"]
    done = here("export", "runs/digits", *options, cwd=tiny)
    assert done.returncode == 0, done.stderr
    effect = load(done.stdout)["float16_effect"]
    assert (effect["samples"], effect["inputs"]) == (16, "test images of digits")
    assert 0 <= effect["flips"] < effect["spikes"]
    assert f"float16 weights, on 16 test images of digits: {effect['flips']:,} flips" in done.stderr
    assert (folder / "model.onnx").stat().st_size < before
    assert model_metadata(read_onnx(folder / "model.onnx"))["weights"] == "float16"
    done = here("export", folder / "model.nir", *options, cwd=tiny)
    assert load(done.stdout)["float16_effect"]["inputs"] == "random inputs"


def test_people_see_classes_and_rates(here: Cli, folder: Path) -> None:
    done = here("run", "m.nir", "--input", "x.npy", "--trace", "s.npz", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "220 more" in done.stdout
    assert "Firing rates" in done.stdout
    assert "230 samples of x.npy, T = 3" in done.stderr


def _save(path: Path, value: Any) -> None:
    np.save(path, value, allow_pickle=True)


USAGE = {
    "no inputs": (["m.nir"], "give one of --input FILE.npy and --data NAME"),
    "both inputs": (["m.nir", "--input", "x.npy", "--data", "digits"], "leave out one of them"),
    "another suffix": (["m.nir", "--input", "x.npy", "--out", "l.txt"], "not named .npz or .npy"),
    "a trace in npy": (["m.nir", "--input", "x.npy", "--trace", "s.npy"], "is not named .npz"),
    "one file twice": (
        ["m.nir", "--input", "x.npy", "--trace", "s.npz", "--out", "s.npz"],
        "name the same file",
    ),
    "over the input": (
        ["m.nir", "--input", "x.npy", "--out", "x.npy"],
        "would overwrite the input",
    ),
    "a folder": (
        ["m.nir", "--input", "x.npy", "--out", "dir.npz"],
        "--out names the folder dir.npz; name a file in it",
    ),
    "an empty name": (["m.nir", "--input", "x.npy", "--out", ""], "--out names the folder"),
    "two times": (
        ["m.nir", "--input", "frames.npy", "--timesteps", "9"],
        "has 3 time steps; leave out --timesteps",
    ),
    "no dt": (["timeless.nir", "--input", "x.npy"], "pass --dt SECONDS"),
    "no T": (["endless.nir", "--input", "x.npy"], "pass --timesteps"),
    "dt of ONNX": (["m.onnx", "--input", "x.npy", "--dt", "1"], "leave out --dt"),
    "another T of ONNX": (["m.onnx", "--input", "x.npy", "--timesteps", "9"], "--form scan"),
    "ONNX as NIR": (["m.onnx", "--input", "x.npy", "--runtime", "nir"], "leave out --runtime nir"),
    "another data set": (["m.nir", "--data", "digits"], "name the data set it was trained on"),
}

FILES = {
    "no graph": (["none.nir", "--input", "x.npy"], "there is no file none.nir"),
    "another kind": (["x.npy", "--input", "x.npy"], "is not a .nir or .onnx file"),
    "no input": (["m.nir", "--input", "none.npy"], "there is no file none.npy"),
    "no npy": (["m.nir", "--input", "broken.npy"], "broken.npy is not a .npy file"),
    "objects": (["m.nir", "--input", "objects.npy"], "objects.npy holds Python objects"),
    "a pickle": (["m.nir", "--input", "pickle.npy"], "pickle.npy holds Python objects"),
    "an archive": (["m.nir", "--input", "many.npz"], "many.npz is an .npz archive; save its one"),
    "a renamed archive": (["m.nir", "--input", "many.npy"], "many.npy is an .npz archive"),
    "a folder for the graph": (["dir.npz", "--input", "x.npy"], "dir.npz is a folder; name a .nir"),
    "a folder as input": (["m.nir", "--input", "dir.npz"], "dir.npz is a folder; name a .npy file"),
    "words": (["m.nir", "--input", "words.npy"], "not numbers; save it as float32"),
    "another shape": (
        ["m.nir", "--input", "wide.npy"],
        "(230, 3); the graph takes [N, 2] or [T, N, 2]",
    ),
    "nothing": (["m.nir", "--input", "empty.npy"], "there is nothing to run"),
    "not finite": (["m.nir", "--input", "nan.npy"], "not finite in float32"),
    "too large": (["m.nir", "--input", "large.npy"], "not finite in float32"),
    "frames for an image": (["m.onnx", "--input", "frames.npy"], "--encoding sequence"),
    "another T": (["frames.onnx", "--input", "more.npy"], "unrolled for 3"),
    "foreign": (["foreign.onnx", "--input", "x.npy"], "was not compiled by tser"),
    "endless metadata": (["long.onnx", "--input", "x.npy"], "do not say how it is to be run"),
    "a layer of no size": (["flat.onnx", "--input", "x.npy"], "do not say how it is to be run"),
    "another T than it states": (["fewer.onnx", "--input", "x.npy"], "states 2 time steps"),
    "an edited model": (["edited.onnx", "--input", "x.npy"], "do not match the digest it carries"),
    "no metadata": (["bare.onnx", "--input", "x.npy"], "do not say how it is to be run"),
}


def _bad_files(here: Cli, folder: Path) -> None:
    write_nir(_network(dt=None), folder / "timeless.nir")
    write_nir(_network(), folder / "endless.nir")
    (folder / "dir.npz").mkdir()
    (folder / "broken.npy").write_bytes(b"\x93NUMPY nothing")
    _save(folder / "objects.npy", np.array([{}, None], object))
    (folder / "pickle.npy").write_bytes(pickle.dumps({}))
    np.savez(folder / "many.npz", x=np.zeros((3, 2)))
    (folder / "many.npy").write_bytes((folder / "many.npz").read_bytes())
    _save(folder / "words.npy", np.array([["a", "b"]]))
    _save(folder / "wide.npy", np.zeros((230, 3)))
    _save(folder / "empty.npy", np.zeros((0, 2)))
    _save(folder / "nan.npy", full((3, 2), np.nan))
    _save(folder / "large.npy", np.full((3, 2), 1e300))
    _save(folder / "more.npy", np.zeros((STEPS + 1, 2, 2)))
    for name, encoding in (("m", "direct"), ("frames", "sequence")):
        options = ["--encoding", encoding, "--out", f"{name}.onnx"]
        done = here("export", "m.nir", "--format", "onnx", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
    model = onnx.load(folder / "m.onnx")
    model.producer_name = "other"
    write_onnx(model, folder / "foreign.onnx")
    model.producer_name = "tser"
    stated = model_metadata(model)
    for name, wrong in (
        ("long", {"form": "step", "timesteps": "9" * 9}),
        ("flat", {"layers": '{"lif": [-4]}'}),
        ("fewer", {"timesteps": "2"}),
    ):
        onnx.helper.set_model_props(model, {**stated, **wrong})
        write_onnx(model, folder / f"{name}.onnx")
    onnx.helper.set_model_props(model, {**stated, "timesteps": "9"})
    onnx.save(model, folder / "edited.onnx")
    del model.metadata_props[:]
    write_onnx(model, folder / "bare.onnx")


def test_bad_usage_and_bad_files_are_told_in_one_sentence(here: Cli, folder: Path) -> None:
    _bad_files(here, folder)
    before = sorted(path.name for path in folder.iterdir())
    for code, cases in ((2, USAGE), (4, FILES)):
        for case, (args, message) in cases.items():
            done = here("run", *args, cwd=folder)
            assert done.returncode == code, f"{case}: {done.stderr}"
            assert message in done.stderr, f"{case}: {done.stderr}"
            assert done.stderr.count("error:") == 1
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_failure_half_way_leaves_no_files(here: Cli, folder: Path) -> None:
    x = np.load(folder / "x.npy")
    x[-1] = np.inf  # in the last batch
    np.save(folder / "x.npy", x)
    before = sorted(path.name for path in folder.iterdir())
    options = ["--trace", "s.npz", "--out", "l.npz"]
    done = here("run", "m.nir", "--input", "x.npy", *options, cwd=folder)
    assert done.returncode == 4
    assert sorted(path.name for path in folder.iterdir()) == before


def test_unknown_outputs_are_refused(here: Cli, folder: Path) -> None:
    options = ["--format", "onnx", "--outputs", "logits,weights"]
    done = here("export", "m.nir", *options, cwd=folder)
    assert done.returncode == 2
    assert "--outputs 'weights' is not known" in done.stderr
    done = here("export", "m.nir", "--form", "scan", cwd=folder)
    assert done.returncode == 2
    assert "--form is of --format onnx" in done.stderr


def test_options_of_export_that_do_nothing_are_told(here: Cli, folder: Path) -> None:
    (folder / "dir.nir").mkdir()
    to_onnx = ["--format", "onnx"]
    for code, args, message in (
        (2, ["m.nir", *to_onnx, "--no-check"], "--no-check is of an export to NIR, and m.nir is"),
        (2, ["m.nir", *to_onnx, "--out", ""], "--out names the folder .; name a .onnx file in it"),
        (4, ["dir.nir", *to_onnx], "dir.nir is a folder; name a .nir file in it"),
        (4, ["none.nir", *to_onnx], "there is no file none.nir"),
        (0, ["m.nir", *to_onnx, "--form", "step", "--timesteps", "7"], "T = 7 is only noted"),
    ):
        done = here("export", *args, cwd=folder)
        assert done.returncode == code, done.stderr
        assert message in done.stderr
    done = here("inspect", "dir.nir", cwd=folder)
    assert (done.returncode, "is a folder; name a" in done.stderr) == (4, True)


def test_weights_beside_a_model_are_run_and_told(
    here: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"fc": nir.Linear(dyadic(np.random.default_rng(0), (300, 2), most=2)), "lif": lif(300)}
    raw = network((2,), wide, timesteps=STEPS)
    write_nir(raw, folder / "w.nir")
    monkeypatch.setattr("tser.export.onnx_external.MOST_BYTES", 3000)
    for number in ("first", "again"):
        done = here("export", "w.nir", "--format", "onnx", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "its weights are in w.onnx." in done.stderr, number
    done = here("run", "w.onnx", "--input", "x.npy", "--out", "l.npy", cwd=folder)
    assert done.returncode == 0, done.stderr
    expected, _ = run(resolve(raw), np.load(folder / "x.npy"), STEPS)
    np.testing.assert_array_equal(np.load(folder / "l.npy"), expected)
    assert here("inspect", "w.onnx", cwd=folder).returncode == 0
    (data,) = data_files(folder / "w.onnx")
    data.unlink()
    done = here("run", "w.onnx", "--input", "x.npy", cwd=folder)
    assert done.returncode == 4
    assert "there is no such file" in done.stderr
