"""JSON Schemas of every JSON document, made from the models that describe them.

The committed files in ``schemas/`` are what users get; ``python -m tser.deploy.schemas`` writes
them anew, and a test holds them to the models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tser.deploy.documents import (
    CompareDocument,
    OutlookDocument,
    PresetsDocument,
    PrintedEvaluation,
    ReportDocument,
    ReportFile,
    TargetsDocument,
)
from tser.deploy.documents_fit import FitDocument
from tser.deploy.documents_graph import ExportDocument, InspectDocument, RunDocument
from tser.deploy.report_energy_file import EnergyResult
from tser.deploy.report_files import OMITTABLE, Environment, Epoch
from tser.deploy.report_validation_file import ValidationResult
from tser.deploy.schema_files import FOLDER, SUFFIX
from tser.files import to_json, write_text

DIALECT = "https://json-schema.org/draft/2020-12/schema"

MODELS: dict[str, type[BaseModel]] = {
    "compare": CompareDocument,
    "dry-run": OutlookDocument,
    "energy": EnergyResult,
    "environment": Environment,
    "eval": PrintedEvaluation,
    "export": ExportDocument,
    "fit": FitDocument,
    "inspect": InspectDocument,
    "metrics": Epoch,
    "presets": PresetsDocument,
    "report": ReportDocument,
    "report-file": ReportFile,
    "run": RunDocument,
    "targets": TargetsDocument,
    "validation": ValidationResult,
}
"""Name of a schema -> what it describes; docs/cli.md says which command gives what."""


def schema(name: str) -> dict[str, Any]:
    """The schema ``name``, of what this version writes: all of it, and nothing else.

    A model is lenient, as it also reads files of earlier versions; its schema is not.
    """
    made = MODELS[name].model_json_schema(mode="serialization")
    _close(made)
    return {"$schema": DIALECT, "$id": f"urn:tser:schema:{name}", **made}


def _close(part: Any) -> None:
    """Forbid keys that are not described, and require those that are, from here on."""
    if isinstance(part, list):
        for one in part:
            _close(one)
    if not isinstance(part, dict):
        return
    properties = part.get("properties")
    if isinstance(properties, dict):
        part["additionalProperties"] = False
        part["required"] = [
            key for key, value in properties.items() if not value.pop(OMITTABLE, False)
        ]
        for value in properties.values():
            value.pop("default", None)  # there is none: it is always written
            value.pop("title", None)
    for key, value in part.items():
        if key not in ("enum", "const", "required"):
            _close(value)


def write_all(folder: Path) -> list[Path]:
    """Write every schema to ``folder``; returns the files."""
    files = []
    for name in MODELS:
        files.append(folder / f"{name}{SUFFIX}")
        write_text(files[-1], to_json(schema(name)))
    return files


if __name__ == "__main__":
    write_all(Path(__file__).parent / FOLDER)
