"""``tser distill --dry-run`` on the command line."""

from pathlib import Path

from tests.acceptance.conftest import Cli, load


def test_a_dry_run_prints_what_a_run_would_be_and_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    tiny = ["distill", "digits", "--dry-run", "--set", "student.width=4"]
    done = cli(*tiny, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("layers.readout", "random images", "an epoch"):
        assert text in done.stdout
    assert "nothing was written" in done.stderr
    document = load(cli(*tiny, "--json", cwd=tmp_path).stdout)
    assert document["schema_version"] == 1
    assert document["student"]["parameters"] == sum(
        layer["parameters"] for layer in document["layers"]
    )
    refused = cli(*tiny, "--resume", cwd=tmp_path)
    assert refused.returncode == 2
    assert "leave out --resume" in refused.stderr
    assert list(tmp_path.iterdir()) == []
