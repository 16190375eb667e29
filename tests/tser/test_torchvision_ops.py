"""Importing torchvision beside a torch its operators were not built for.

Each case runs in a fresh interpreter, because operators, once declared, stay.
"""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PREAMBLE = """
import importlib.util, sys
import torch
from tser import torchvision_ops
from tser.torchvision_ops import ensure_torchvision
declared = torchvision_ops._declared
"""


def run(code: str, *, path: Path | None = None) -> str:
    folders = [str(path)] if path else []
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        env={"PYTHONPATH": ":".join([*folders, str(REPOSITORY)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_works_after_the_call_and_a_second_call_changes_nothing() -> None:
    code = """
ensure_torchvision()
assert not any(name.startswith("torchvision.") for name in sys.modules)
assert "torchvision" not in sys.modules
count = len(declared)
ensure_torchvision()
from torchvision import datasets, models, transforms
ensure_torchvision()
assert len(declared) == count <= 1
assert count == (not __import__("torchvision").extension._has_ops())
image = torch.arange(3 * 64 * 64, dtype=torch.float32).view(1, 3, 64, 64) / 12288
image = transforms.Normalize([0.5] * 3, [0.5] * 3)(image)
print(models.squeezenet1_1(num_classes=3)(image).shape[1], len(datasets.FashionMNIST.classes))
"""
    assert run(code) == "3 10"


def test_it_helps_after_an_import_that_failed() -> None:
    code = """
try:
    import torchvision
except RuntimeError:
    pass
ensure_torchvision()
import torchvision
print(torchvision.datasets.FashionMNIST.__name__)
"""
    assert run(code) == "FashionMNIST"


def test_operators_that_are_there_already_are_left_alone() -> None:
    code = """
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
ensure_torchvision()
print(len(declared), hasattr(torch.ops.torchvision, "qnms"))
"""
    assert run(code) == "0 False"


def test_operators_that_load_are_left_alone() -> None:
    code = """
torch.ops.load_library = lambda path: print("loaded", path.rsplit("/", 1)[-1].split(".")[0])
ensure_torchvision()
print(len(declared), "torchvision" in sys.modules)
"""
    assert run(code).split("\n") == ["loaded _C", "0 False"]


def test_without_torchvision_there_is_nothing_to_do() -> None:
    code = """
importlib.util.find_spec = lambda name: None
ensure_torchvision()
print(len(declared))
"""
    assert run(code) == "0"


@pytest.mark.parametrize("library", [None, "_C.so"])
def test_no_operators_or_broken_ones(tmp_path: Path, library: str | None) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    if library:
        (package / library).write_bytes(b"not a library")
    code = """
ensure_torchvision()
print(len(declared), hasattr(torch.ops.torchvision, "nms"))
"""
    assert run(code, path=tmp_path) == "1 True"
