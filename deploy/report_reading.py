"""Read the files of a run; what is wrong with one is said in one sentence that names it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from tser.deploy.report_files import Document, Epoch
from tser.errors import InputFileError
from tser.metrics_log import whole_lines
from tser.plain_files import read_results

D = TypeVar("D", bound=Document)


def read_document(path: Path, kind: type[D], remedy: str) -> D | None:
    """A JSON file as ``kind``, or None when there is no such file.

    Args:
        path: of the file.
        kind: its model.
        remedy: what to do when it cannot be used, for the message.

    Raises:
        InputFileError: damaged, or of another schema_version.
    """
    if not path.exists():
        return None
    try:
        return kind.model_validate_json(read_results(path))
    except OSError as error:
        raise InputFileError(f"cannot read {path} ({error.strerror}); {remedy}") from error
    except ValidationError as error:
        raise InputFileError(f"{path} {_fault(error)}; {remedy}") from error


def read_epochs(path: Path) -> list[Epoch]:
    """The lines of metrics.jsonl; empty when there is no such file.

    Raises:
        InputFileError: a line is damaged.
    """
    if not path.exists():
        return []
    try:
        lines = whole_lines(read_results(path))
    except OSError as error:
        raise InputFileError(
            f"cannot read {path} ({error.strerror}); delete it to report without learning curves"
        ) from error
    epochs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            epochs.append(Epoch.model_validate_json(line))
        except ValidationError as error:
            raise InputFileError(
                f"{path}, line {number}, {_fault(error)}; delete that line, or the file to report "
                "without learning curves"
            ) from error
    return epochs


def _fault(error: ValidationError) -> str:
    """What is wrong with a file, in words that follow its name."""
    problems = error.errors(include_url=False)
    for problem in problems:
        if problem["loc"] == ("schema_version",):
            given = problem["input"]
            if problem["type"] == "literal_error":
                wanted = problem["ctx"]["expected"]
                return f"has schema_version {given!r}, this version of tser reads {wanted}"
            return "states no schema_version"
    first = problems[0]
    if first["type"] == "json_invalid":
        return "is damaged: it is not JSON"
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"is damaged: {f'{where}: ' if where else ''}{message}"
