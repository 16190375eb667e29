"""The report of a run: one file that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from tser.deploy.report_answers import answers
from tser.deploy.report_blocks import Section
from tser.deploy.report_confidence import calibration, early_exit
from tser.deploy.report_costs import operations
from tser.deploy.report_energy import energy
from tser.deploy.report_fit import fitting
from tser.deploy.report_formats import to_csv, to_document, to_markdown
from tser.deploy.report_network import network
from tser.deploy.report_raster import raster
from tser.deploy.report_reproduce import reproduce
from tser.deploy.report_results import Results, read_results
from tser.deploy.report_summary import summary
from tser.deploy.report_time import over_time
from tser.deploy.report_tradeoff import tradeoff
from tser.deploy.report_training import accuracy, firing, learning
from tser.deploy.report_validation import validation
from tser.determinism import cpu_threads
from tser.errors import UsageError
from tser.files import to_json, write_text
from tser.printable import harmless
from tser.runs import Run

Format = Literal["html", "md", "json", "csv"]


def write_report(
    run: Run, out: Path | None = None, root: Path | None = None, form: Format = "html"
) -> Path:
    """Write all that is known of a run as one self-contained file.

    The same files give the same bytes. What has not been made yet is said in its section,
    together with the command that makes it.

    Args:
        run: a finished run.
        out: the file to write; default ``report.html`` (or ``.md`` and so on) in the run folder.
        root: folder of the data set, for its pictures; None: where the configuration says.
        form: a page, Markdown, all that was measured as JSON, or the numbers of all tables as CSV.

    Returns:
        The path of the report.

    Raises:
        UsageError: not a finished run, or the file cannot be written.
        InputFileError: a file of the run is damaged or of another version.
    """
    path = out or run.report.with_suffix(f".{form}")
    check_target(path, run, form)
    results = read_results(run)
    name = results.run.path.resolve().name
    with cpu_threads(1):  # a graph is run for its pictures
        if form == "json":
            text = to_json(to_document(results))
        elif form == "csv":
            text = to_csv(sections(results, root))
        elif form == "md":
            text = to_markdown(name, sections(results, root))
        else:
            text = to_html(name, sections(results, root))
    write_text(path, text)
    return path


def check_target(path: Path, run: Run, form: str) -> None:
    """Refuse a place where a report could replace a file of the run.

    Args:
        path: to write to.
        run: one of those that the report is on.
        form: suffix of its kind, without the dot.

    Raises:
        UsageError: such a place, or a folder.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the file to write the report to")
    kept = (run.evaluation, run.validation, run.energy, run.environment, run.config_file)
    inside = path.resolve().parent == run.path.resolve()
    other = path.exists() and path.suffix != f".{form}"
    if inside and (other or path.name in {file.name for file in kept}):
        raise UsageError(f"{path} is a file of the run, not a report; choose another --out")


def sections(results: Results, root: Path | None = None) -> list[Section]:
    """The report apart from how it looks, in reading order."""
    return [
        summary(results),
        accuracy(results),
        early_exit(results),
        calibration(results),
        answers(results, root),
        learning(results),
        network(results),
        firing(results),
        raster(results, root),
        operations(results),
        over_time(results),
        energy(results),
        tradeoff(results),
        fitting(results),
        validation(results),
        reproduce(results),
    ]


def to_html(name: str, parts: list[Section], kind: str = "tser report") -> str:
    """The page.

    Args:
        name: of the run.
        parts: from `sections`.
        kind: what the page is.
    """
    pages = Environment(
        loader=PackageLoader("tser.deploy", "templates"),
        autoescape=True,  # names come from files
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = pages.get_template("report.html.j2").render(name=name, sections=parts, kind=kind)
    return harmless(text)
