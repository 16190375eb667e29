"""The networks and libraries of benchmarks/interop.py."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from tser.deploy.foreign import quiet

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of benchmarks/, which is no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def exporting(load) -> ModuleType:
    return load("exporting")


@pytest.fixture
def runs(load) -> ModuleType:
    return load("interop_runs")


@pytest.fixture
def need():
    """Skips the test where a library is absent."""

    def check(library: str) -> None:
        with quiet():
            pytest.importorskip(library.lower(), reason=f"{library} is absent")

    return check
