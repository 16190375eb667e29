"""Install what users install, in empty environments, and see that it works there.

    python scripts/install_matrix.py                      # everything: an hour or two, 12 GB
    python scripts/install_matrix.py wheel sdist          # only these environments
    python scripts/install_matrix.py lowest --pytest='-n 2 -k loss'
    python scripts/install_matrix.py --full-demo --no-tests

Wheel and source distribution are built from a copy of what git keeps, twice, and compared. Then:

| environment | installed                  | versions             | tried                      |
|-------------|----------------------------|----------------------|----------------------------|
| wheel       | the wheel                  | constraints.txt      | demo, then the tests       |
| sdist       | the source distribution    | constraints.txt      | demo                       |
| editable    | the unpacked sdist, linked | constraints.txt      | same ``tser env`` as wheel |
| lowest      | the wheel                  | each ``>=`` as ``==``| demo, then the tests       |
| newest      | (resolved, not installed)  | what pip chooses     | that there is an answer    |

The demo runs in a folder outside the repository, with no home folder and no ``PYTHONPATH``. The
tests run in the unpacked source distribution, so it has to hold all that they need. The last thing
in each environment is an uninstallation, which has to leave nothing.

It needs a package index, and the package ``build`` in the Python that runs it. Exit code 1 if
anything is not as it should be; what was found before that stands in the table all the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shlex
import shutil
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from distributions import ROOT, MatrixError, bare, build, call, unpack

SMALL = (
    "data.limit_train=200",
    "teacher.width=4",
    "teacher.epochs=2",
    "student.width=4",
    "train.epochs=2",
)
SHOWN = ("torch", "torchvision", "numpy", "onnx", "onnxruntime", "pydantic", "typer")
OLD_WARNINGS = "-W ignore::DeprecationWarning"
"""Libraries of some years ago call what newer libraries warn about; our code is not meant."""


@dataclass
class Row:
    """What one environment showed."""

    name: str
    versions: dict[str, str] = field(default_factory=dict)
    demo: str = "-"
    tests: str = "-"
    minutes: float = 0.0
    fault: str = ""


@dataclass(frozen=True)
class Line:
    """One command of the demo, the exit codes that are right, and files that it has to write."""

    args: str
    codes: tuple[int, ...] = (0,)
    writes: tuple[str, ...] = ()


def demo_lines(full: bool) -> list[Line]:
    """All commands, in a folder of their own; ``small`` networks unless the demo is full."""
    few = "" if full else " ".join(f"--set {one}" for one in SMALL)
    exported = ("run/model.nir", "run/model.onnx")
    return [
        Line("--version"),
        Line("env"),
        Line("presets"),
        Line("targets"),
        Line("targets loihi --json"),
        Line("distill digits --dry-run"),
        Line(f"distill digits --out run {few}", writes=("run/student.safetensors",)),
        Line("eval run", writes=("run/eval.json",)),
        Line("export run --format nir", writes=exported[:1]),
        Line("export run --format onnx", writes=exported[1:]),
        Line("inspect run/model.nir"),
        Line("run run/model.onnx --data digits"),
        Line("validate run/model.nir --against run", writes=("run/validation.json",)),
        Line("energy run/model.nir --against run --settings", writes=("run/energy.json",)),
        Line("fit run/model.nir --target loihi", codes=(0, 3)),
        Line("report run", writes=("run/report.html",)),
        Line(f"distill digits --seed 1 --out other {' '.join(f'--set {one}' for one in SMALL)}"),
        Line("compare run other"),
    ]


def lowest_versions() -> list[str]:
    """Each declared requirement at its lowest: a lower bound names a version that exists.

    Raises:
        MatrixError: a requirement without a lower bound.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for requirement in project["dependencies"]:
        bound = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
        if bound is None:
            raise MatrixError(f"{requirement!r} in pyproject.toml has no lower bound")
        found.append(f"{bound[1]}=={bound[2]}")
    return found


def development_pins() -> list[str]:
    """The tools of the extra ``dev`` as constraints.txt has them, and nothing that they need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = project["optional-dependencies"]["dev"]
    tools = {re.split(r"[<>=\[ ]", requirement)[0] for requirement in named}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("==")[0] in tools]


class Environment:
    """An empty virtual environment, a home and a folder to work in, all new."""

    def __init__(self, work: Path, name: str, pip_args: str, constraints: Path) -> None:
        self.folder = work / name
        self.log = work / f"{name}.log"
        self._python = self.folder / "env" / "bin" / "python"
        self._pip_args = [*shlex.split(pip_args), "-c", str(constraints)]
        self.outside, home = self.folder / "outside", self.folder / "home"
        for one in (self.outside, home):
            one.mkdir(parents=True)
        venv.create(self.folder / "env", with_pip=True)
        self._variables = bare(home)

    def pip(self, *args: str | Path) -> str:
        """Run pip."""
        words: list[str | Path] = [self._python, "-m", "pip", "--disable-pip-version-check", *args]
        own = {**self._variables, "HOME": str(Path.home())}  # with the user's index and cache
        return call(*words, cwd=self.outside, log=self.log, env=own)

    def install(self, *what: str | Path) -> None:
        """Install, and have pip check that all requirements are met."""
        self.pip("install", *self._pip_args, *what)
        self.pip("check")

    def tser(self, line: Line) -> str:
        """Run one command of the demo."""
        words = [str(self._python.with_name("tser")), *shlex.split(line.args)]
        said = call(*words, cwd=self.outside, log=self.log, codes=line.codes, env=self._variables)
        missing = [name for name in line.writes if not (self.outside / name).is_file()]
        if missing:
            raise MatrixError(f"tser {line.args} wrote no {missing[0]}")
        return said

    def versions(self) -> dict[str, str]:
        """Installed packages."""
        listed = json.loads(self.pip("list", "--format=json"))
        return {one["name"].lower(): one["version"] for one in listed}

    def place(self) -> None:
        """See where tser is imported from.

        Raises:
            MatrixError: from anywhere but the environment.
        """
        code = "import sys, tser.cli.main, tser; print(tser.__file__, *sys.path, sep='\\n')"
        said = call(
            *(self._python, "-c", code), cwd=self.outside, log=self.log, env=self._variables
        )
        where, *path = said.splitlines()
        inside = Path(where).is_relative_to(self.folder / "env")
        if not inside or any(Path(one).is_relative_to(ROOT) for one in path if one):
            raise MatrixError(f"tser was imported from {where}")

    def tests(self, sdist: Path, args: str) -> str:
        """Run the suite in the unpacked source distribution.

        Returns:
            The closing line.

        Raises:
            MatrixError: the tests could not be run; those that fail are in the closing line.
        """
        words = [str(self._python), "-m", "pytest", "-q", *shlex.split(args)]
        variables = {**self._variables, "OMP_NUM_THREADS": "1"}
        folder = unpack(sdist, self.folder / "tests")
        said = call(*words, cwd=folder, log=self.log, codes=(0, 1), env=variables)
        closing = [line for line in said.splitlines() if re.search(r"\d+ (passed|failed)", line)]
        if not closing:
            raise MatrixError(f"pytest has no closing line; see {self.log}")
        return closing[-1].strip("= ")

    def uninstall(self) -> None:
        """Uninstall tser.

        Raises:
            MatrixError: something stays behind.
        """
        self.pip("uninstall", "-y", "tser")
        ours = re.compile(r"(.*[^a-z])?tser([^a-z].*)?")
        found = (self.folder / "env").rglob("*tser*")
        left = sorted(str(one) for one in found if ours.fullmatch(one.name))
        if left:
            raise MatrixError(f"uninstalled, and left {left[:3]}")


def try_one(
    row: Row, where: Environment, what: str | Path, options: argparse.Namespace, sdist: Path | None
) -> None:
    """Install, run the demo, run the tests if there is an sdist to run them from, uninstall."""
    where.install(what)
    row.versions = where.versions()
    where.place()
    started = time.monotonic()
    lines = demo_lines(options.full_demo)
    for line in lines:
        where.tser(line)
    row.demo = f"{len(lines)} commands, {(time.monotonic() - started) / 60:.1f} min"
    if sdist is not None:
        where.install(f"{what}[dev]")
        row.tests = where.tests(sdist, f"{options.pytest} {OLD_WARNINGS * (row.name == 'lowest')}")
    where.uninstall()
    if re.search(r"failed|error", row.tests):
        raise MatrixError(f"tests fail; see {where.log}")


def try_editable(row: Row, where: Environment, sdist: Path, wheel: Path) -> None:
    """An editable installation says the same of itself as the wheel."""
    where.install(wheel)
    where.place()
    row.versions = where.versions()
    as_wheel = where.tser(Line("env --json"))
    where.uninstall()
    where.install("-e", unpack(sdist, where.folder / "linked"))
    if where.tser(Line("env --json")) != as_wheel:
        raise MatrixError("tser env differs between the wheel and an editable installation")
    where.uninstall()


def try_newest(row: Row, where: Environment, wheel: Path) -> None:
    """What pip would install for somebody without constraints; nothing is downloaded whole."""
    report = where.folder / "resolved.json"
    where.pip("install", "--dry-run", "--quiet", "--report", report, wheel)
    items = json.loads(report.read_text(encoding="utf-8"))["install"]
    row.versions = {one["metadata"]["name"].lower(): one["metadata"]["version"] for one in items}


def keep(rows: Sequence[Row], remarks: Sequence[str], path: Path) -> None:
    """Write what was found; environments that were not tried keep what the file says of them."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tried = {row.name: asdict(row) for row in rows}
    document = {
        "python": platform.python_version(),
        "built": list(remarks),
        "environments": {**before.get("environments", {}), **tried},
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """For people, in Markdown."""
    head = ["environment", *SHOWN, "demo", "tests", "minutes", "fault"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        versions = [row.versions.get(name, "-") for name in SHOWN]
        lines.append(
            [row.name, *versions, row.demo, row.tests, f"{row.minutes:.1f}", row.fault or "none"]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def matrix(options: argparse.Namespace, work: Path) -> list[Row]:
    """Build, then try one environment after the other."""
    wheel, sdist, remarks = build(work)
    print(*remarks, sep="\n", flush=True)
    pins, lowest, none = ROOT / "constraints.txt", work / "lowest.txt", work / "none.txt"
    lowest.write_text("\n".join([*lowest_versions(), *development_pins()]) + "\n")
    none.write_text("")
    rows = []
    for name in options.environments:
        row = Row(name)
        rows.append(row)
        started = time.monotonic()
        chosen = {"lowest": lowest, "newest": none}.get(name, pins)
        try:
            where = Environment(work, name, options.pip_args, chosen)
            if name == "newest":
                try_newest(row, where, wheel)
            elif name == "editable":
                try_editable(row, where, sdist, wheel)
            else:
                tested = name != "sdist" and not options.no_tests
                what = sdist if name == "sdist" else wheel
                try_one(row, where, what, options, sdist if tested else None)
        except MatrixError as error:
            row.fault = str(error)
        row.minutes = (time.monotonic() - started) / 60
        print(f"{name}: {row.fault or 'as it should be'} ({row.minutes:.1f} min)", flush=True)
        if options.json:
            keep(rows, remarks, options.json)
        if not options.keep:
            shutil.rmtree(work / name, ignore_errors=True)
    return rows


def main() -> int:
    """The exit code."""
    names = ["wheel", "sdist", "editable", "lowest", "newest"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("environments", nargs="*", metavar="ENVIRONMENT", help=", ".join(names))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--work", type=Path, metavar="DIR", help="a new folder to work in, kept")
    parser.add_argument("--keep", action="store_true", help="keep the environments, too")
    parser.add_argument("--full-demo", action="store_true", help="the digits as in `make demo`")
    parser.add_argument("--no-tests", action="store_true", help="only the demo")
    parser.add_argument("--pytest", default="-n 2 --dist loadfile", help="arguments of pytest")
    parser.add_argument("--pip-args", default="", help="arguments of pip install")
    options = parser.parse_args()
    unknown = set(options.environments) - set(names)
    if unknown:
        parser.error(f"no environment {sorted(unknown)}; there are {', '.join(names)}")
    options.environments = options.environments or names
    with tempfile.TemporaryDirectory(prefix="matrix-") as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        rows = matrix(options, work.resolve())
    print(table(rows))
    return int(any(row.fault for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MatrixError as error:
        sys.exit(f"error: {error}")
