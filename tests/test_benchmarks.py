"""Numbers in the documents are those of the results that are kept beside the scripts."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


SCRIPTS = ["ablation", "training_step", "import_time", "interpreter"]


@pytest.mark.parametrize("script", [*SCRIPTS, "mutations", "reliability", "validation_examples"])
def test_the_tables_are_up_to_date(script: str) -> None:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", "table", "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
