"""The checker itself is tested: exports with one mistake each, of benchmarks/mutants.py.

Here the student has random weights and a quick way to the same comparisons; ``validate`` itself
judges two of the mutants. ``benchmarks/mutations.py`` does the whole with a trained student.
"""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import nir
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.graphs import Array
from tser.checkpoints import save_weights
from tser.config_file import dump_config, load_config
from tser.data import load_data
from tser.deploy.backends import Backend, NirBackend, TorchBackend
from tser.deploy.equivalence import compare
from tser.deploy.onnx_backend import OnnxBackend
from tser.deploy.probes import probe_inputs
from tser.deploy.tally import Comparison
from tser.deploy.twin import coarse, twin, twin_onnx
from tser.errors import InputFileError
from tser.export.export import export_nir, export_onnx
from tser.export.graph import Graph, resolve
from tser.export.lower import Lowered, lower
from tser.export.onnx_file import compile_onnx
from tser.layers import Student
from tser.runs import Run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DATA = load_data("digits")
STEPS, SAMPLES = 4, 20


def _load(name: str) -> ModuleType:
    """A module of benchmarks/, which is no package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


mutants, mutations = _load("mutants"), _load("mutations")


@dataclass
class Case:
    """An export, and all that it is held against.

    Attributes:
        student: with random weights and statistics of the digits, so that every layer fires.
        lowered: of the student.
        graph: its view.
        made: the faultless export.
        x: test images and probes.
    """

    student: Student
    lowered: Lowered
    graph: Graph
    made: Any
    x: Array


def _student() -> Student:
    torch.manual_seed(3)
    student = mutants.student(STEPS, DATA.image_shape, DATA.num_classes)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0.3, 0.3)
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        student.train()(DATA.normalise(DATA.train.images[:200]))
    return student.eval()


@pytest.fixture(scope="module")
def case() -> Case:
    student = _student()
    lowered = lower(student, DATA)
    graph = resolve(lowered.graph)
    weights = {path.replace(".", "_"): m for path, m in student.layers.named_modules()}
    raw = {
        name: weights[name].weight.detach().numpy()
        for name, op in lowered.graph.nodes.items()
        if isinstance(op, nir.Conv2d)
    }
    made = mutants.Made(lowered.graph, compile_onnx(graph, STEPS), raw)
    images = DATA.normalise(DATA.test.images[:SAMPLES]).numpy()
    probes = [one.x for one in probe_inputs(graph, STEPS, images[:4]) if one.timesteps == STEPS]
    return Case(student, lowered, graph, made, np.concatenate([images, *probes]))


def _comparisons(case: Case, changed: nir.NIRGraph | onnx.ModelProto) -> list[Comparison]:
    """On the inputs, and where nothing is found there, of the dyadic twins."""
    student = TorchBackend(case.student, case.lowered.modules, "the student")
    batches = [(case.x, None)]
    given = compare(
        case.graph, student, [_backend(case, changed)], batches, case.lowered.bias_magnitude
    )
    if given.verdict in ("E2", "E3"):
        return given.comparisons
    exact = resolve(twin(case.lowered.graph))
    other = twin(changed) if isinstance(changed, nir.NIRGraph) else twin_onnx(changed)
    reference = NirBackend(exact, STEPS, "the twin")
    doubled = compare(exact, reference, [_backend(case, other)], [(coarse(case.x), None)])
    return given.comparisons + doubled.comparisons


def _backend(case: Case, made: nir.NIRGraph | onnx.ModelProto) -> Backend:
    if isinstance(made, nir.NIRGraph):
        return NirBackend(resolve(made), STEPS, "the mutant")
    layers = {node.name: node.output_shape for node in case.graph.spiking}
    return OnnxBackend(made, layers, "the mutant")


def _document(found: list[Comparison]) -> dict[str, Any]:
    """What ``validate`` says of it, as far as ``mutations`` reads it."""

    def diagnosis(one: Comparison) -> list[dict[str, Any]]:
        return [
            {
                "layer": name,
                "rules": list(known.departures),
                "alternatives": [list(names) for names in known.alternatives],
                "text": known.text,
            }
            for name, known in one.diagnoses.items()
        ]

    given, *twins = found
    backend = {
        "name": given.name,
        "verdict": given.verdict,
        "flips": given.flips,
        "diagnosis": diagnosis(given),
        "argmax_differences": given.argmax_differences,
        "logits": {"outside_bound": given.logits_outside_bound},
        "layers": [
            {"name": name, "violations": tally.violations} for name, tally in given.layers.items()
        ],
    }
    probes = [
        {
            "network": mutations.GRAPHS[1],
            "backend": given.name,
            "verdict": doubled.verdict,
            "flips": doubled.flips,
            "diagnosis": diagnosis(doubled),
        }
        for doubled in twins
    ]
    return {
        "backends": [backend],
        "probes": probes,
        "static": {"differences": []},
        "contradictions": [],
    }


def _judge(case: Case, mutant: Any) -> dict[str, Any]:
    """As ``mutations.judge`` does, without files; the static check is left out."""
    row = {"name": mutant.name, "where": mutant.where, "rule": mutant.rule, "refused": ""}
    row["expected"] = list(mutant.layers)
    changed = mutant.change(case.made)
    try:
        document = _document(_comparisons(case, changed))
    except InputFileError as error:
        return row | {"refused": str(error)}
    return row | mutations._summary(document, mutant.rule)


def test_the_export_without_a_mistake_passes(case: Case) -> None:
    rewritten = mutants.rules.Program(case.made.model).done()
    for changed in (case.made.graph, case.made.model, rewritten):
        assert all(one.verdict in ("E0", "E1") for one in _comparisons(case, changed))


UNSEEN = {"one weight + 1000 ulp"}
"""Too small to show in few samples; the static check finds it."""
REFUSED = {"padding left out", "stride left out"}
IDS = [f"{one.name} in {one.where}" for one in mutants.MUTANTS]


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=IDS)
def test_a_mistake_is_found_blamed_on_its_layer_and_named(case: Case, mutant: Any) -> None:
    row = _judge(case, mutant)
    assert mutations.complaint(row) == "", row
    if mutant.name in REFUSED:
        assert row["refused"]
    elif mutant.name not in UNSEEN:
        assert row["verdict"] in ("E2", "E3"), row
        assert row["layers"][0] == mutant.layers[0], row
        assert row["named"] == row["told"] == bool(mutant.rule), row


def test_every_mistake_of_the_list_is_there() -> None:
    listed = (
        "tau × 1.01", "threshold + 1 %", "reset subtractive", "reset value", "one-step delay",
        "≥ for >", "missing gain", "dropped bias", "swapped channels", "padding", "stride",
        "pool kind", "flatten order", "lost residual edge", "BN not folded", "wrong dt",
        "one weight + 1000 ulp", "float16 weights",
    )  # fmt: skip
    for name in listed:
        assert any(one.name.startswith(name) for one in mutants.MUTANTS), name
    assert len({one.layers[0] for one in mutants.MUTANTS}) == len(mutants.LAYERS) + 1
    assert len(set(IDS)) == len(IDS)


@pytest.fixture(scope="module")
def run(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("run")
    config = load_config("digits", [f"student.factory={mutants.FACTORY}"])
    (path / "config.toml").write_text(dump_config(config))
    run = Run(path, (mutants.FACTORY,))
    save_weights(case.student, run.student)
    export_nir(run, run.nir)
    export_onnx(run.nir, run.onnx)
    return run


@pytest.mark.parametrize(
    "name", [pytest.param("reset value forgotten (0)", marks=pytest.mark.slow), "≥ for >"]
)
def test_validate_says_so_too(case: Case, run: Run, tmp_path: Path, name: str) -> None:
    mutant = next(one for one in mutants.MUTANTS if one.name == name)
    row = mutations.judge(mutant, case.made, run, tmp_path, SAMPLES)
    assert mutations.complaint(row) == "", row
    assert row["static"]
    assert row["named"]
    assert row["layers"] == list(mutant.layers)
    assert row["flips"][1] > 0


def test_a_complaint_says_what_is_wrong() -> None:
    good = {"refused": "", "flips": [1, 0], "verdict": "E3", "expected": ["a"], "layers": ["a"]}
    good |= {"static": [], "rule": "r", "named": True, "where": "a"}
    assert mutations.complaint(good) == ""
    assert mutations.complaint(good | {"layers": ["b"]}) == "blamed on b"
    assert mutations.complaint(good | {"layers": []}) == "blamed on no layer"
    assert mutations.complaint(good | {"verdict": "E1"}) == "spikes differ, and it is not found"
    assert mutations.complaint(good | {"named": False}) == "named as something else"
    assert mutations.complaint(good | {"refused": "no"}) == "refused without the layer"
    assert mutations.complaint(good | {"flips": [0, 0]}) == "no spike differs, and yet it is wrong"
