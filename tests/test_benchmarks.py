"""Numbers in the documents are those of the results that are kept beside the scripts."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tables_of_the_ablation_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/ablation.py", "table", "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
