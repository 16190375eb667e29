"""Deterministic computing: torch is told so, and what cannot be is named."""

import os

import onnx
import onnxruntime
import pytest
import torch
from threadpoolctl import threadpool_info

from tser.deploy.onnx_backend import session
from tser.determinism import cpu_threads, deterministic, is_deterministic
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
    assert text.endswith("or leave out --deterministic")
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


def test_the_number_of_threads_is_fixed_within_the_block_only() -> None:
    def blas() -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    before, of_blas = torch.get_num_threads(), blas()
    other = before + 1
    with cpu_threads(other):
        with deterministic(True):
            assert torch.get_num_threads() == 1
            assert blas() == {1}
            assert is_deterministic()
            with deterministic(True, threads=other):
                assert torch.get_num_threads() == other
        with deterministic(False):
            assert torch.get_num_threads() == other
            assert not is_deterministic()
        with deterministic(False, threads=before):
            assert torch.get_num_threads() == before
    assert (torch.get_num_threads(), blas()) == (before, of_blas)


def test_a_sum_does_not_depend_on_the_threads_that_there_are() -> None:
    values = torch.rand(3_000_000, generator=torch.Generator().manual_seed(0)) - 0.5
    sums = []
    for threads in (1, 2, 3):
        with cpu_threads(threads), deterministic(True):
            sums.append(float(values.sum()))
    assert len(set(sums)) == 1


def test_onnx_runtime_is_asked_for_deterministic_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, content: object, options: onnxruntime.SessionOptions, **_: object):
            asked.append((options.use_deterministic_compute, options.intra_op_num_threads))

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    for enabled in (False, True):
        with deterministic(enabled):
            session(onnx.ModelProto(), "model.onnx")
    assert asked == [(False, 0), (True, 1)]
