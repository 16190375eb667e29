"""Commands in poor surroundings: no terminal, no HOME, nothing writable, other encodings, names."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.acceptance.conftest import ROOT
from tests.command_line import fill, run
from tser.deploy.target_files import load_target, target_names

NAME = "a b ü µ [red] ✓"
CAPABILITIES = "-dac_override,-dac_read_search,-fowner"


@pytest.fixture(scope="module")
def folder(_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of docs/cli.md under a name of many kinds of signs."""
    folder = tmp_path_factory.mktemp("surroundings") / NAME
    folder.mkdir()
    fill(folder, _tiny / "runs")
    shutil.copy(folder / "other.nir", folder / f"-{NAME}.nir")
    return folder


def alone(
    folder: Path, *words: str, before: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """``tser WORDS`` in a process of its own that has nothing but ``environment``."""
    return subprocess.run(
        [*before, sys.executable, "-m", "tser", *words],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding(folder: Path, encoding: str) -> None:
    done = alone(folder, "targets", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert ("–" if encoding == "utf-8" else " - ") in text
    assert "?" not in text
    for name in target_names():
        assert name in text
    done = alone(folder, "inspect", f"-{NAME}.nir", PYTHONIOENCODING=encoding)
    assert done.returncode == 2  # a name with a dash is an option
    done.stderr.decode(encoding)


def test_json_is_unicode_in_any_locale(folder: Path) -> None:
    places = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = alone(folder, "targets", "--json", **places)
    assert done.stdout.isascii()
    names = [target["name"] for target in json.loads(done.stdout)["targets"]]
    assert names == target_names()
    assert json.loads(alone(folder, "targets", "--json").stdout) == json.loads(done.stdout)


@pytest.mark.parametrize("name", [f"'./-{NAME}.nir' --json", f"--json -- '-{NAME}.nir'"])
def test_a_name_with_a_dash_and_markup(folder: Path, name: str) -> None:
    code, out, err = run(folder, f"inspect {name}")
    assert (code, err) == (0, "")
    assert json.loads(out)["file"] == f"-{NAME}.nir"
    code, out, _ = run(folder, f"inspect {name.replace('--json', '')}")
    assert code == 0
    assert NAME in out


def in_a_terminal(folder: Path, *words: str, columns: int = 80, **environment: str) -> str:
    """What a terminal of so many columns is sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "tser", *words],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | environment,
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    got = b""
    with contextlib.suppress(OSError):  # so Linux ends a terminal
        while part := os.read(ours, 65536):
            got += part
    os.close(ours)
    assert process.wait() == 0
    return got.decode()


@pytest.mark.parametrize("quiet", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_eighty_columns(folder: Path, quiet: dict[str, str]) -> None:
    text = in_a_terminal(folder, "targets", **({"TERM": "xterm"} | quiet))
    assert not re.search(r"\x1b\[[0-9;]*3\dm", text)  # no colour
    if "TERM" in quiet:
        assert "\x1b" not in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    rows = plain.splitlines()
    assert max(map(len, rows)) <= 80
    assert "…" not in plain
    for name in target_names():  # names and figures are whole, long titles are folded
        (row,) = [
            line
            for line in rows
            if line.startswith(f"{name} ".ljust(13)[:13])
            or re.match(rf"{re.escape(name)}\s*│", line)
        ]
        figure = load_target(name).figure("accumulate")
        if figure is not None and len(figure.text) <= 12:
            assert figure.text in row


def test_nothing_but_data_on_stdout_in_a_process(folder: Path) -> None:
    """Libraries, too, are held to it: what they print goes to the descriptor, not to Python."""
    words = shlex.split("run other.nir --runtime onnx --data digits --samples 2 --json")
    done = alone(folder, *words)  # no HOME either
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 2
    assert done.stderr == b""


@pytest.mark.slow
def test_no_home_and_nothing_writable(folder: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and there is no setpriv to take that away")
    before = ("setpriv", f"--bounding-set={CAPABILITIES}") if os.geteuid() == 0 else ()
    package, home = tmp_path / "package", tmp_path / "home"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tser", package / "tser", ignore=ignored)
    home.mkdir()
    for path in [package, home, *package.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    data = shutil.copytree(folder, tmp_path / NAME)
    (data / "runs").chmod(0o555)
    data.chmod(0o555)
    places = {"PYTHONPATH": str(package), "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    try:
        touch = ["sh", "-c", 'touch "$0/x"', home]
        if not subprocess.run([*before, *touch], capture_output=True, check=False).returncode:
            pytest.skip("permissions are not heeded here")
        words = shlex.split("run other.nir --runtime onnx --data digits --samples 2 --json")
        done = alone(data, *words, before=before, TMPDIR="/nowhere", **places)
        assert (done.returncode, done.stderr) == (0, b"")
        done = alone(data, *shlex.split("report runs/again --format md"), before=before, **places)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(b"wrote runs/again/report.md")
        done = alone(data, "eval", "nowhere", before=before, **places)
        assert done.returncode == 2
        assert not list(home.iterdir())
        assert not list(package.rglob("__pycache__"))
    finally:
        for path in [package, home, data, data / "runs", *package.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'mkdir gone; cd gone; rmdir ../gone; exec "$0" -m tser env', sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the working directory is gone")


def test_onnx_runtime_does_not_report_its_use() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


EXAMPLES = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "cli.md").read_text("utf-8"), re.S)
LINES = [line for block in EXAMPLES for line in block.splitlines() if not line.startswith("#")]


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.parametrize("line", LINES)
def test_the_examples_of_the_document(folder: Path, line: str) -> None:
    command, _, rest = line.removeprefix("tser ").partition(" | ")
    if line.startswith("tser "):
        command, _, rest = command.partition(" >/dev/null && ") if not rest else (command, "", rest)
        code, out, err = run(folder, command)
        assert code in (0, 3), err
        if not rest:
            return
    else:
        out, rest = None, line
    done = subprocess.run(
        ["sh", "-c", rest],
        cwd=folder,
        input=out,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr == ""
