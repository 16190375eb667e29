"""What a user installs: one top-level name, every module and data file, and nothing else."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"tser": "tser", "export": "tser/export", "deploy": "tser/deploy", "cli": "tser/cli"}


def _run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Standard output of a command that has to succeed; no index is asked for anything."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PIP_NO_INDEX": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _sources() -> set[str]:
    """The files of the four folders, by the name each has in the wheel."""
    return {
        str(PurePosixPath(inside, path.relative_to(ROOT / folder).as_posix()))
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")  # does not enter the three links
        if path.is_file()
        if not any(part.startswith(".") or part == "__pycache__" for part in path.parts[-2:])
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a source distribution, itself built from a copy of the checkout."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder,
            copy / folder,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", ".*"),
        )
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the wheel."""
    site = tmp_path_factory.mktemp("site")
    _run(
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, wheel),
        cwd=site.parent,
    )
    return site


def test_the_wheel_holds_the_four_folders_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packed = {name for name in names if not name.startswith("tser-")}
    missing, extra = sorted(_sources() - packed), sorted(packed - _sources())
    assert not missing, f"not in the wheel (see [tool.setuptools] in pyproject.toml): {missing}"
    assert not extra, f"in the wheel, but not in the four folders: {extra}"
    assert {PurePosixPath(name).parts[0] for name in packed} == {"tser"}


def test_the_wheel_holds_what_it_cannot_do_without(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {PurePosixPath(name).parts[0] for name in names if name.startswith("tser-")}
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert {f"tser/{name}.py" for name in ("__init__", "__main__")} <= names
    assert {f"tser/{name}/__init__.py" for name in ("export", "deploy", "cli")} <= names
    assert {"tser/py.typed", f"{info}/licenses/LICENSE"} <= names
    assert any(name.startswith("tser/presets/") for name in names)
    assert any(name.startswith("tser/deploy/targets/") for name in names)
    assert "tser = tser.cli.main:main" in scripts
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


def test_a_users_own_files_shadow_nothing(installed: Path, tmp_path: Path) -> None:
    for name in ("export", "deploy", "cli"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    code = (
        "import cli, deploy, export\n"
        "assert cli.mine and deploy.mine and export.mine\n"
        "import tser.cli, tser.deploy, tser.export\n"
        "print(tser.__file__, tser.cli.__file__, tser.deploy.__file__, tser.export.__file__)\n"
    )
    places = _run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    assert [Path(place).parent for place in places] == [
        installed / inside for inside in ("tser", "tser/cli", "tser/deploy", "tser/export")
    ]


def test_nothing_but_the_declared_requirements_is_imported(installed: Path, tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    development = [
        requirement.partition(">")[0] for requirement in project["optional-dependencies"]["dev"]
    ]
    blocked = sorted({*development, "sklearn", "tests"} - {"setuptools"})
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in _sources()
        if name.endswith(".py") and not name.endswith("__main__.py")
    )
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({blocked}))\n"
        f"for name in {modules}: importlib.import_module(name)\n"
    )
    _run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
