"""The report of a run: one HTML file that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from tser.deploy.report_blocks import Section
from tser.deploy.report_checks import reproduce, validation
from tser.deploy.report_confidence import calibration, early_exit
from tser.deploy.report_costs import energy, operations
from tser.deploy.report_raster import raster
from tser.deploy.report_results import Results, read_results
from tser.deploy.report_summary import summary
from tser.deploy.report_training import accuracy, firing, learning
from tser.errors import UsageError
from tser.files import write_text
from tser.runs import Run


def write_report(run: Run, out: Path | None = None, root: Path | None = None) -> Path:
    """Write all that is known of a run as one self-contained HTML file.

    The same files give the same bytes. What has not been made yet is said in its section,
    together with the command that makes it.

    Args:
        run: a finished run.
        out: the file to write; default ``report.html`` in the run folder.
        root: folder of the data set, for the spike raster; None: where the configuration says.

    Returns:
        The path of the report.

    Raises:
        UsageError: not a finished run, or the file cannot be written.
        InputFileError: a file of the run is damaged or of another version.
    """
    path = out or run.report
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the file to write the report to")
    inside = path.resolve().parent == run.path.resolve()
    if inside and path.exists() and path.suffix != ".html":
        raise UsageError(f"{path} is a file of the run, not a report; choose another --out")
    results = read_results(run)
    text = to_html(results.run.path.resolve().name, sections(results, root))
    write_text(path, text)
    return path


def sections(results: Results, root: Path | None = None) -> list[Section]:
    """The report apart from how it looks, in reading order."""
    return [
        summary(results),
        accuracy(results),
        early_exit(results),
        calibration(results),
        learning(results),
        firing(results),
        raster(results, root),
        operations(results),
        energy(results),
        validation(results),
        reproduce(results),
    ]


def to_html(name: str, parts: list[Section]) -> str:
    """The page.

    Args:
        name: of the run.
        parts: from `sections`.
    """
    pages = Environment(
        loader=PackageLoader("tser.deploy", "templates"),
        autoescape=True,  # names come from files
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = pages.get_template("report.html.j2").render(name=name, sections=parts)
    return text.encode("utf-8", "replace").decode("utf-8")  # a path may hold undecodable bytes
