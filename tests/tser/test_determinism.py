"""Deterministic training: torch is told so, and what cannot be is named."""

import os

import pytest
import torch

from tser.determinism import deterministic
from tser.errors import TserError, UsageError


def settings() -> tuple[bool, bool, bool, str | None]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def test_it_holds_within_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    with deterministic(False):
        assert settings() == before
    with deterministic(True):
        assert settings() == (True, True, False, ":4096:8")
    assert settings() == before


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    def scatter() -> None:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))

    before = settings()
    with pytest.raises(TserError) as caught, deterministic(True):
        scatter()
    text = str(caught.value)
    assert text.startswith("the operation put_ has no deterministic form on this device; use")
    assert text.endswith("or train without --deterministic")
    assert settings() == before
    with deterministic(False):
        scatter()


def test_what_the_environment_asks_of_cublas_is_not_overruled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    words = "Deterministic behavior was enabled ... set CUBLAS_WORKSPACE_CONFIG=:4096:8"
    match = "CUBLAS_WORKSPACE_CONFIG = :0:0 is not deterministic; unset it"
    with pytest.raises(UsageError, match=match), deterministic(True):
        raise RuntimeError(words)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":0:0"


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), deterministic(True):
        raise RuntimeError("shapes differ")
