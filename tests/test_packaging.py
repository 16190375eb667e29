"""What a user installs: one top-level name, every module and data file, and nothing else."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "data.limit_train=100",
    "teacher.width=2",
    "teacher.epochs=1",
    "student.width=2",
    "train.epochs=1",
)
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
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout."""
    folder = tmp_path_factory.mktemp("checkout") / "tser"
    made = ("__pycache__", ".*", "*.egg-info", "build", "dist", "runs")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*made))
    return folder


@pytest.fixture(scope="module")
def files(copy: Path) -> set[str]:
    """The names of all files of the copy, before anything is built in it."""
    return {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}


def _build(*kinds: str, copy: Path, out: Path) -> None:
    command = (sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", out, copy)
    _run(*command, cwd=copy.parent, SOURCE_DATE_EPOCH="1767225600")


@pytest.fixture(scope="module")
def dist(copy: Path, files: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source distribution, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    _build(copy=copy, out=out)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    (built,) = dist.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds what pip makes of the source distribution."""
    site = tmp_path_factory.mktemp("site")
    flags = ("--no-deps", "--no-build-isolation", "--target", site)
    _run(sys.executable, "-m", "pip", "install", *flags, sdist, cwd=site.parent)
    return site


def test_the_source_distribution_holds_what_the_tests_need(sdist: Path, files: set[str]) -> None:
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = sorted(files - names)
    assert not missing, f"not in the source distribution (see MANIFEST.in): {missing}"
    assert {"tests/conftest.py", "constraints.txt", "tser/presets/digits.toml"} <= names
    # The links of the checkout are folders there.
    assert _sources() <= names


def test_sdist_and_checkout_make_the_same_wheel(wheel: Path, copy: Path, tmp_path: Path) -> None:
    _build("--wheel", copy=copy, out=tmp_path)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_pip_installs_from_sdist_what_the_wheel_holds(wheel: Path, installed: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    different = [
        name
        for name, content in packed.items()
        if not name.endswith("/RECORD")
        if (installed / name).read_bytes() != content
    ]
    assert not different


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
    assert "tser = tser.__main__:main" in scripts
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


DEMO = [
    f"distill digits --out run {' '.join(f'--set {one}' for one in TINY)}",
    "export run --format nir",
    "export run --format onnx",
    "validate run/model.nir --against run --samples 20",
    "energy run/model.nir --against run --samples 20",
    "fit run/model.nir --target loihi2",
    "report run",
    "targets",
    "presets",
    "env --json",
]
RUN_DEMO = """
import sys
import warnings
from pathlib import Path
import tser.__main__

for line in Path("demo.txt").read_text().splitlines():
    sys.argv = ["tser", *line.split()]
    try:
        tser.__main__.main()
    except SystemExit as done:
        assert done.code in (0, None), (line, done.code)
with warnings.catch_warnings(record=True) as shown:  # what Norse makes new versions of PyTorch say
    warnings.warn("`torch.jit.script` is deprecated. Please switch to", FutureWarning)
assert not shown
print(*{module.__file__ for name, module in sys.modules.items() if name.startswith("tser")})
"""


def test_the_demo_runs_without_the_repository(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "demo.txt").write_text("\n".join(DEMO))
    said = _run(sys.executable, "-c", RUN_DEMO, cwd=tmp_path, PYTHONPATH=str(installed))
    places = [Path(place) for place in said.splitlines()[-1].split()]
    assert len(places) > 50
    assert not [place for place in places if not place.is_relative_to(installed)]
    assert "</html>" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
