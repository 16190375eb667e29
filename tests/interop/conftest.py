"""The networks and libraries of benchmarks/interop.py."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of benchmarks/, which is no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def importing(load) -> ModuleType:
    return load("importing")


@pytest.fixture
def exporting(load) -> ModuleType:
    return load("exporting")


@pytest.fixture
def runs(load) -> ModuleType:
    return load("interop_runs")


@pytest.fixture
def need(importing):
    """Skips the test where a library is absent."""

    def check(library: str) -> None:
        with importing.quiet():
            pytest.importorskip(importing.TOOLS[library].module, reason=f"{library} is absent")

    return check
