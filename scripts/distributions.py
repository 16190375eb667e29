"""Build the wheel and the source distribution of a copy of the checkout, twice, and compare.

Used by install_matrix.py.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EPOCH = "1767225600"
"""A fixed time, for builds that are compared byte by byte: 2026-01-01."""


class MatrixError(Exception):
    """Something is not as it should be, in one sentence."""


def call(
    *command: str | Path, cwd: Path, log: Path, env: Mapping[str, str], codes: Sequence[int] = (0,)
) -> str:
    """Run a command, its whole output kept in ``log``.

    Returns:
        What it wrote to stdout.

    Raises:
        MatrixError: another exit code than ``codes``.
    """
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(words)}\n{done.stdout}{done.stderr}[{done.returncode}]\n")
    if done.returncode not in codes:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise MatrixError(f"{shlex.join(words)[:200]} ended with {done.returncode}: {said}")
    return done.stdout


def bare(home: Path) -> dict[str, str]:
    """The environment variables of a user who has nothing of ours."""
    ours = ("PYTHON", "TSER_", "VIRTUAL_ENV", "PYTEST_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**kept, "HOME": str(home)}


def copy_of_checkout(target: Path) -> Path:
    """What git keeps or would add, links as links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, place = ROOT / name, target / name
        if source.is_symlink() or source.exists():  # a file may have been deleted
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place, follow_symlinks=False)
    return target


def members(path: Path) -> dict[str, bytes]:
    """The files of a wheel or source distribution, by name."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(path) as sdist:
        found = ((one.name, sdist.extractfile(one)) for one in sdist)
        return {name: file.read() for name, file in found if file is not None}


def unpack(sdist: Path, target: Path) -> Path:
    """The folder that a source distribution unpacks to."""
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    (folder,) = target.iterdir()
    return folder


def build(work: Path) -> tuple[Path, Path, list[str]]:
    """Build twice: the wheel once from the source distribution, once straight from the checkout.

    Returns:
        The wheel, the source distribution, and remarks.

    Raises:
        MatrixError: the two of a kind hold different things.
    """
    log, dist, again = work / "build.log", work / "dist", work / "again"
    env = {**bare(work), "SOURCE_DATE_EPOCH": EPOCH}
    first, second = (copy_of_checkout(work / name) for name in ("checkout", "checkout2"))
    command = (sys.executable, "-m", "build")
    call(*command, "--outdir", dist, first, cwd=work, log=log, env=env)
    call(*command, "--sdist", "--wheel", "--outdir", again, second, cwd=work, log=log, env=env)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    remarks = []
    for path in (wheel, sdist):
        twin = again / path.name
        one, two = members(path), members(twin)
        different = sorted(name for name in one | two if one.get(name) != two.get(name))
        if different:
            raise MatrixError(f"{path.name} was built twice and differs in {different[:5]}")
        equal = path.read_bytes() == twin.read_bytes()
        said = "the same bytes" if equal else "the same files, but not the same bytes"
        remarks.append(f"{path.name}, {path.stat().st_size / 1e6:.1f} MB: built twice, {said}")
    return wheel, sdist, remarks
