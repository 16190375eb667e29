"""The section on how to make all this again: environment, commands and configuration."""

from __future__ import annotations

import shlex
from dataclasses import asdict

from tser.deploy.memory_model import MemoryOptions
from tser.deploy.report_blocks import Block, Code, Facts, Note, Section, Table
from tser.deploy.report_energy_file import EnergyResult
from tser.deploy.report_fit import CHIPS
from tser.deploy.report_results import Commands, Results
from tser.deploy.report_validation_file import ValidationResult
from tser.deploy.target_files import target_names

DEFAULT_BACKENDS = ["nir-f32", "onnx"]


def reproduce(results: Results) -> Section:
    """Environment, commands and configuration."""
    blocks: list[Block] = []
    found = results.environment
    if found is None:
        blocks.append(Note("There is no record of the environment (environment.json)."))
    else:
        blocks.append(Code("This command made the run", shlex.join(_typed(found.command))))
    blocks.append(Code("These make what follows from it", "\n".join(_commands(results))))
    if results.digest is not None:
        blocks.append(Facts((("model.nir", f"sha256 {results.digest}"),)))
    if found is not None:
        cpus = "" if found.cpus is None else f", {found.cpus} CPUs"
        rows = [
            ("Python", found.python),
            ("platform", found.platform),
            ("processor", f"{found.processor}{cpus}"),
            *((name, version or "not installed") for name, version in found.packages.items()),
        ]
        blocks.append(Table("Environment of the training", ("", "version"), tuple(rows), "ll"))
    blocks.append(Code("config.toml: every value of the run", results.config_text))
    return Section("reproduce", "Reproduce", tuple(blocks))


def _typed(command: list[str]) -> list[str]:
    """The command line; ``python -m tser`` was started as ``__main__.py``."""
    return ["tser", *command[1:]] if command[:1] == ["__main__.py"] else command


def _commands(results: Results) -> list[str]:
    """What to type after the training, with the settings of the files that are there."""
    commands = Commands(results.run)
    validate, energy = commands.validate, commands.energy
    if results.validation is not None:
        validate += _options(results.validation)
    if results.energy is not None:
        energy += _priced(results.energy)
    return [
        commands.evaluate,
        commands.export_nir,
        commands.export_onnx,
        validate,
        energy,
        commands.fit(CHIPS),
        commands.report,
    ]


def _priced(found: EnergyResult) -> str:
    """The options of ``tser energy``; a target that tser does not ship came from a file."""
    own = target_names()
    options = f" --samples {found.samples}"
    for target in found.targets:
        name = shlex.quote(target.name)
        known = target.name in own
        options += f" --target {name}" if known else f" --target-file {name}.toml"
    if found.model.name == "memory":
        options += " --model memory"
        usual = asdict(MemoryOptions())
        for key, value in found.model.options.items():
            if value != usual.get(key):
                options += f" --memory {shlex.quote(f'{key}={value}')}"
    if found.first_layer != "charge":
        options += f" --first-layer {found.first_layer}"
    if found.choices:
        options += f" --max-drop {found.choices[0].max_drop:g}"
    elif found.settings:
        options += " --settings"
    options += " --split val" if found.split == "val" else ""
    options += "" if found.hops is None else f" --hops {found.hops:g}"
    return options + (
        "" if found.latency_seconds is None else f" --latency {found.latency_seconds:g}"
    )


def _options(found: ValidationResult) -> str:
    names = [backend.name for backend in found.backends]
    given = "" if names in ([], DEFAULT_BACKENDS) else names
    options = "".join(f" --backend {shlex.quote(name)}" for name in given)
    options += f" --samples {found.samples}" if found.samples else ""
    return options + (" --probes" if found.probes is not None else "")
