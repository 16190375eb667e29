"""The published JSON Schemas: as the models are, and kept by everything that is written."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from tests.acceptance.conftest import ROOT
from tests.acceptance.test_cli_help import pinned
from tests.command_line import fill, run
from tests.validation_files import backend, divergence, layer, probe, validation
from tser.cli.main import app
from tser.deploy.schema_files import schema_names, schema_text
from tser.deploy.schemas import MODELS, schema

WORDS = ROOT / "docs" / "cli.md"
DIGEST = "0" * 64
NAME = "Übung [red] µ ✓"


def complaints(name: str, document: Any) -> list[str]:
    """What a schema says against a document."""
    found = Draft202012Validator(json.loads(schema_text(name))).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


@pytest.fixture(scope="module")
def folder(_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of docs/cli.md, below a name with a space and letters beyond ASCII."""
    folder = tmp_path_factory.mktemp("schemas") / NAME
    folder.mkdir()
    fill(folder, _tiny / "runs")
    np.save(folder / "x.npy", np.ones((2, 1, 8, 8), np.float32))
    return folder


@pytest.mark.skipif(not pinned("pydantic"), reason="the schemas are made by the pinned pydantic")
@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_what_the_model_says(name: str) -> None:
    assert json.loads(schema_text(name)) == schema(name), "run python -m tser.deploy.schemas"


@pytest.mark.parametrize("name", MODELS)
def test_it_is_a_schema(name: str) -> None:
    found = json.loads(schema_text(name))
    Draft202012Validator.check_schema(found)
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    wholes = [found, *found.get("$defs", {}).values()]
    for part in wholes:
        for key, value in part.get("properties", {}).items():
            # a field that says no more than what it refers to is described there
            known = key == "schema_version" or "$ref" in value or value.get("description")
            assert known, (name, key)
    assert sum("properties" in part for part in wholes) == sum(
        part.get("additionalProperties") is False for part in wholes
    )


def test_there_is_no_other() -> None:
    assert schema_names() == sorted(MODELS)


COMMANDS = {
    "eval": "eval runs/digits --json",
    "eval val": "eval runs/digits --split val --json",
    "dry-run": "distill --dry-run --set data.limit_train=64 --set student.width=4 "
    "--set teacher.width=4 --set train.batch_size=8 --json",
    "export nir": "export runs/digits --out new.nir --json",
    "export onnx": "export other.nir --format onnx --out new.onnx --outputs spikes "
    "--weights float16 --json",
    "validation E0": "validate runs/digits/model.nir --samples 5 --json",
    "validation E3": "validate changed.nir --against runs/digits --samples 2 "
    "--backend nir-f32 --json",
    "energy": "energy runs/digits/model.nir --samples 5 --max-drop 1 --json",
    "energy memory": "energy other.nir --data digits --samples 5 --model memory --json",
    "fit": "fit runs/digits/model.nir --target loihi --target speck2f --json",
    "inspect nir": "inspect other.nir --json",
    "inspect onnx": "inspect runs/digits/model.onnx --json",
    "run": "run runs/digits/model.nir --data digits --samples 5 --trace t.npz --json",
    "run array": "run other.nir --input x.npy --runtime onnx --out l.npy --json",
    "report-file": "report runs/again --format md --json",
    "compare": "compare runs/digits runs/again --json",
    "presets": "presets --json",
    "presets show": "presets show digits --json",
    "targets": "targets --json",
    "environment": "env --json",
}


@pytest.mark.parametrize("title", COMMANDS)
def test_what_a_command_prints(folder: Path, title: str) -> None:
    name = title.partition(" ")[0]
    code, out, _ = run(folder, COMMANDS[title])
    assert code in (0, 3)
    document = json.loads(out)
    assert complaints(name, document) == []
    assert isinstance(document["schema_version"], int)
    if title == "energy":
        assert document["targets"][1]["energy_joules"] is None  # a total that is refused
    if title.startswith("validation"):
        assert document["verdict"] == title.partition(" ")[2]


def test_every_schema_is_tried() -> None:
    tried = {title.partition(" ")[0] for title in COMMANDS} | {"metrics", "report"}
    assert tried == set(MODELS)
    commands = {one.name for one in app.registered_commands if one.name != "schema"}
    assert commands <= {shlex.split(text)[0] for text in COMMANDS.values()}


def test_files_of_a_run(folder: Path) -> None:
    path = folder / "runs" / "digits"
    for command in ("validate --samples 2", "energy --samples 2 --settings"):
        assert run(folder, command)[0] == 0
    for file, name in (
        ("environment.json", "environment"),
        ("eval.json", "eval"),
        ("validation.json", "validation"),
        ("energy.json", "energy"),
    ):
        assert complaints(name, json.loads((path / file).read_text("utf-8"))) == [], file
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert {row["phase"] for row in rows} == {"teacher", "student"}
    assert [complaints("metrics", row) for row in rows] == [[]] * len(rows)
    assert run(folder, "report --format json --out report.json")[0] == 0
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert complaints("report", report) == []
    assert None not in (report["evaluation"], report["validation"], report["energy"])


@pytest.mark.parametrize(
    "document",
    [
        validation(DIGEST, backend("onnx", layer())),
        validation(DIGEST, backend("onnx", layer(flips=(2, 0), uncertified_seeds=1), verdict="E3")),
        validation(DIGEST, backend("onnx", first_divergence=divergence(bound=None))),
        validation(DIGEST, probes=[probe(), probe(verdict=None)]),
    ],
    ids=["E1", "E3", "no bound", "probes"],
)
def test_verdicts(document: dict[str, Any]) -> None:
    assert complaints("validation", document) == []


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another key": lambda d: d.update(extra=1),
    "a key inside": lambda d: d["layers"][0].update(extra=1),
    "a key that is missing": lambda d: d.pop("samples"),
    "another version": lambda d: d.update(schema_version=99),
    "a text for a number": lambda d: d.update(samples="5"),
    "a share above 1": lambda d: d["accuracy"].append(1.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_schema_is_strict(folder: Path, change: str) -> None:
    document = json.loads((folder / "runs" / "again" / "eval.json").read_text("utf-8"))
    assert complaints("eval", document) == []
    CHANGES[change](document)
    assert complaints("eval", document)


def test_every_schema_is_in_the_table_of_the_document() -> None:
    text = WORDS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \|([^|]*)\|([^|]*)\|$", text, re.M)
    assert sorted(name for name, *_ in rows) == sorted(MODELS)
    shown = {
        title.partition(" ")[0]: shlex.split(command)[0] for title, command in COMMANDS.items()
    }
    for name, commands, file in rows:
        if name in shown:
            assert f"tser {shown[name]}" in commands
        else:
            assert file.strip()
