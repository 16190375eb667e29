"""energy.json and the command that writes it."""

import json
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.graphs import conv, flatten, full, lif, network, pool, view
from tser.cli.main import app
from tser.data import load_data
from tser.deploy.energy import Assumptions, load_target
from tser.deploy.measure import COLUMNS, SIZES, measure
from tser.deploy.memory_model import MemoryOptions
from tser.export.graph import Graph
from tser.export.nir_file import write_nir

CMOS, LOIHI = load_target("cmos45"), load_target("loihi")


def _nodes() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "stem": conv(rng.normal(size=(2, 1, 3, 3)), (8, 8), padding=1),
        "lif": lif((2, 8, 8), v_th=0.2),
        "pool": pool(nir.AvgPool2d, 8),
        "flatten": flatten(),
        "fc": nir.Affine(rng.normal(size=(10, 2)).astype(np.float32), full(10, 0.5)),
    }


@pytest.fixture(scope="module")
def graph() -> Graph:
    return view((1, 8, 8), _nodes(), timesteps=3, sha256="ab")


@pytest.fixture(scope="module")
def document(graph: Graph) -> dict[str, Any]:
    known = Assumptions(hops=2.0, latency=0.3)
    digits, targets = load_data("digits"), [CMOS, LOIHI]
    return measure(graph, digits, targets, origin="net.nir", samples=150, assumptions=known)


def test_the_document_says_what_was_measured(document: dict[str, Any]) -> None:
    stated = ("schema_version", "graph", "data", "split", "samples", "timesteps", "graph_digest")
    assert [document[key] for key in stated] == [2, "net.nir", "digits", "test", 150, 3, "ab"]
    known = [document[key] for key in ("first_layer", "hops", "latency_seconds")]
    assert known == ["charge", 2.0, 0.3]
    assert document["model"] == {"name": "plain", "options": {}}
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_document_is_per_inference(document: dict[str, Any]) -> None:
    layers = {layer["name"]: layer for layer in document["layers"]}
    assert list(layers) == ["stem", "lif", "fc"]
    stem, neurons, head = layers.values()
    assert (stem["kind"], stem["operation"], stem["macs"]) == ("conv", "MAC", 3 * 2 * 22**2)
    assert stem["macs_once"] == 2 * 22**2
    assert stem["dense_padded"] == 3 * 2 * 9 * 64
    assert (neurons["neurons"], neurons["neuron_updates"]) == (128, 3 * 128)
    assert neurons["firing_rate"] == pytest.approx(neurons["events"] / (3 * 128))
    assert neurons["state_bits"] == 128 * 32
    assert head["sop_structural"] == pytest.approx(10 * neurons["events"])
    assert (head["bias_adds"], head["parameter_bits"]) == (3 * 10, 32 * 30)
    for layer in layers.values():
        for column in ("events", "sop_structural", "sop_effective", "neuron_updates_driven"):
            assert len(layer[f"{column}_per_step"]) == 3
            assert sum(layer[f"{column}_per_step"]) == pytest.approx(layer[column])
    totals = document["totals"]
    for column in {*COLUMNS, *SIZES} - {"events"}:
        assert totals[column] == pytest.approx(sum(layer[column] for layer in layers.values()))
    assert totals["spikes"] == neurons["events"]
    assert totals["events"] == pytest.approx(stem["events"] + head["events"])
    assert totals["accumulates"] == head["sop_structural"]


def test_the_document_has_the_bills(document: dict[str, Any]) -> None:
    cmos, loihi = document["targets"]
    assert (cmos["name"], loihi["name"]) == ("cmos45", "loihi")
    assert cmos["energy_joules"] == pytest.approx(sum(i["joules"] for i in cmos["items"]))
    assert cmos["energy_joules"] == pytest.approx(sum(i["joules"] for i in cmos["layers"]))
    assert cmos["low_joules"] == cmos["high_joules"] == cmos["energy_joules"]
    assert loihi["energy_joules"] is None
    assert loihi["unpriced"]
    assert loihi["priced_joules"] is None  # a hop is a range
    assert 0 < loihi["priced_low_joules"] < loihi["priced_high_joules"]
    assert [layer["joules"] is None for layer in loihi["layers"]] == [True, True, False]
    assert loihi["layers"][1]["low_joules"] > 0
    static = {item["charge"]: item for item in loihi["items"]}["static"]
    assert (static["count"], static["joules"]) == (0.3, pytest.approx(0.0312))
    assert all(item["figure"]["source"] for item in cmos["items"])
    assert document["gaps"] == []


def test_energy_after_each_step(document: dict[str, Any]) -> None:
    cmos, loihi = document["targets"]
    after = [point["joules"] for point in cmos["after_step"]]
    assert len(after) == 3
    assert after == sorted(after)
    assert after[-1] == cmos["energy_joules"]
    assert [point["low_joules"] for point in loihi["after_step"]] == [None] * 3


def test_the_twin_stands_beside_the_process(document: dict[str, Any]) -> None:
    cmos, loihi = document["targets"]
    assert document["ann_twin"] == cmos["ann_twin"]
    assert loihi["ann_twin"] is None
    assert document["ann_twin"]["macs"] == 2 * 22**2 + 20
    assert [rule["name"] for rule in document["break_even"]] == [
        "spikes per synapse",
        "firing rate",
    ]


def test_the_document_with_memory(graph: Graph) -> None:
    options = MemoryOptions(ram="word64")
    found = measure(
        graph, load_data("digits"), [CMOS], origin="net.nir", samples=20, memory=options
    )
    assert found["model"]["name"] == "memory"
    assert found["model"]["options"]["ram"] == "word64"
    (cmos,) = found["targets"]
    assert cmos["energy_joules"] == pytest.approx(sum(i["joules"] for i in cmos["items"]))
    assert cmos["after_step"][-1]["joules"] == pytest.approx(cmos["energy_joules"])
    twin = {item["charge"] for item in found["ann_twin"]["items"]}
    assert "read_weight" in twin


# --- the command ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("energy") / "net.nir"
    flat = nir.Flatten(input_type={"input": np.array([2, 1, 1])}, start_dim=0, end_dim=-1)
    write_nir(network((1, 8, 8), _nodes() | {"flatten": flat}, timesteps=3), path)
    return path


def _run(file: Path, *args: str) -> Any:
    words = ["energy", str(file), "--data", "digits", "--samples", "20", *args]
    return CliRunner().invoke(app, words)


def test_the_command_prints_range_lines_and_rules(file: Path) -> None:
    done = _run(file, "--target", "spinnaker2", "--first-layer", "host")
    assert done.exit_code == 0, done.output
    assert ".." in next(line for line in done.stdout.splitlines() if "SpiNNaker2" in line)
    assert "10..450 pJ" in done.stdout
    assert "ANN twin on 45 nm CMOS, 0.9 V, fp32" in done.stdout
    assert "Published break-even rules" in done.stdout


def test_the_command_prices_memory(file: Path) -> None:
    done = _run(file, "--model", "memory", "--memory", "ram=word64", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["model"]["options"]["ram"] == "word64"
    assert [target["name"] for target in found["targets"]] == ["cmos45"]


def test_a_target_file_alone_is_enough(file: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    text = (Path(__file__).parents[2] / "deploy" / "targets" / "odin.toml").read_text("utf-8")
    own.write_text(text.replace('name = "odin"', 'name = "own"'), "utf-8")
    done = _run(file, "--target-file", str(own), "--first-layer", "host", "--json")
    (bill,) = json.loads(done.stdout)["targets"]
    assert bill["name"] == "own"
    assert bill["high_joules"] == pytest.approx(bill["low_joules"] * 54 / 12.7)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--memory", "ram=word64"], "--model memory"),
        (["--model", "memory", "--target", "odin"], "use --target cmos45"),
        (["--model", "memory", "--memory", "ram=disk"], "ram is one of"),
        (["--latency", "0"], "--latency"),
        (["--hops", "-1"], "hops"),
        (["--target-file", "none.toml"], "none.toml"),
    ],
)
def test_wrong_options_are_named(file: Path, args: list[str], words: str) -> None:
    done = _run(file, *args)
    assert done.exit_code in (2, 4)
    assert words in done.output
    assert "Traceback" not in done.output
