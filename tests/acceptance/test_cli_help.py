"""What ``--help`` says, word for word, as it is kept in tests/data/help.

To rewrite the files on purpose: ``TSER_WRITE_SNAPSHOTS=1 python -m pytest
tests/acceptance/test_cli_help.py``, or ``make snapshots``; then read the difference.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.acceptance.conftest import ROOT
from tests.command_line import run
from tser.cli.main import app

FOLDER = ROOT / "tests" / "data" / "help"
ROOT_COMMAND: Any = typer.main.get_command(app)
COMMANDS = [""]
for _name, _command in ROOT_COMMAND.commands.items():
    COMMANDS += [_name, *(f"{_name} {inner}" for inner in getattr(_command, "commands", ()))]


def pinned(package: str) -> bool:
    """Whether this is the version of constraints.txt: another may lay out a help otherwise."""
    line = f"{package}=={importlib.metadata.version(package)}"
    return line in (ROOT / "constraints.txt").read_text().splitlines()


def command_of(name: str) -> Any:
    """The command called so."""
    found = ROOT_COMMAND
    for word in name.split():
        found = found.commands[word]
    return found


@pytest.fixture
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR", "TERMINAL_WIDTH", "_TYPER_FORCE_DISABLE_TERMINAL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(not pinned("typer"), reason="the snapshots are of the pinned typer")
@pytest.mark.usefixtures("_eighty_columns")
@pytest.mark.parametrize("name", COMMANDS)
def test_help(tmp_path: Path, name: str) -> None:
    file = FOLDER / f"{name.replace(' ', '-') or 'tser'}.txt"
    code, out, err = run(tmp_path, f"{name} --help")
    assert (code, err) == (0, "")
    if os.environ.get("TSER_WRITE_SNAPSHOTS"):
        file.write_text(out, encoding="utf-8")
    assert out == file.read_text(encoding="utf-8"), "see the head of this file"
    assert max(map(len, out.splitlines())) <= 80
    assert out.isascii()


@pytest.mark.skipif(not pinned("typer"), reason="the snapshots are of the pinned typer")
def test_there_is_no_help_of_a_command_that_is_gone() -> None:
    names = {f"{name.replace(' ', '-') or 'tser'}.txt" for name in COMMANDS}
    assert {file.name for file in FOLDER.iterdir()} == names


@pytest.mark.usefixtures("_eighty_columns")
def test_no_command_is_cut_short_in_the_list(tmp_path: Path) -> None:
    for name in COMMANDS:
        if hasattr(command_of(name), "commands"):
            assert "..." not in run(tmp_path, f"{name} --help")[1].partition("Commands:")[2]


@pytest.mark.usefixtures("_eighty_columns")
def test_the_exit_codes_are_in_the_root_help(tmp_path: Path) -> None:
    text = run(tmp_path, "--help")[1]
    assert re.findall(r"^ +(\d+)  ", text, re.M) == ["0", "1", "2", "3", "4", "130"]


def test_every_option_says_what_it_takes() -> None:
    for name in COMMANDS:
        for parameter in command_of(name).params:
            where = f"tser {name}: {parameter.name}"
            assert parameter.help, where
            takes_a_value = not getattr(parameter, "is_flag", False)
            choices = getattr(getattr(parameter, "type_descriptor", None), "is_choice", True)
            assert not takes_a_value or choices or parameter.metavar, where


def test_one_name_one_meaning() -> None:
    found: dict[str, set[str]] = {}
    for name in COMMANDS:
        for parameter in command_of(name).params:
            if parameter.param_type_name == "option":
                for option in parameter.opts:
                    found.setdefault(option, set()).add(str(parameter.metavar))
    # A teacher and a file are of different kinds where a command trains, or compares.
    allowed = {"--out", "--teacher", "--target", "--against", "--input", "--trace"}
    assert {option for option, kinds in found.items() if len(kinds) > 1} <= allowed


def test_every_result_can_be_had_as_json() -> None:
    without = {
        name for name in COMMANDS if not any("--json" in p.opts for p in command_of(name).params)
    }
    assert without == {"", "schema"}  # the schemas are JSON already


@pytest.mark.parametrize("option", ["--sample", "--sam", "--data-roo", "--js"])
def test_options_are_not_abbreviated(tmp_path: Path, option: str) -> None:
    code, out, err = run(tmp_path, f"energy {option} 3")
    assert (code, out) == (2, "")
    assert f"no such option: {option}; did you mean --" in err


def test_near_names_are_offered(tmp_path: Path) -> None:
    assert "did you mean --max-drop? see 'tser energy --help'" in run(
        tmp_path, "energy --max-dorp 1"
    )[2].replace("did you mean --max-drop?\n", "did you mean --max-drop? ")
    assert "did you mean 'energy'?" in run(tmp_path, "enrgy")[2]
    assert "did you mean 'show'?" in run(tmp_path, "presets shwo")[2]
