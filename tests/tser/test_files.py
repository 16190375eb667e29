"""Files are written whole or not at all."""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tser.errors import UsageError
from tser.files import (
    atomic_path,
    check_json_target,
    to_json,
    write_json,
    write_text,
)
from tser.leftovers import remove_leftovers


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_at_the_end_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "model.nir"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent  # a rename never crosses file systems
        assert temporary.suffix == path.suffix
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"graph")
        assert not path.exists()
    assert path.read_bytes() == b"graph"
    assert names(path.parent) == ["model.nir"]


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old and longer")
    write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existed", [False, True])
def test_a_failure_leaves_the_old_file_and_no_temporary_one(
    error: type[BaseException], existed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    if existed:
        path.write_text("old", encoding="utf-8")
    with pytest.raises(error), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half of", encoding="utf-8")
        raise error
    assert names(tmp_path) == (["a.json"] if existed else [])
    assert not existed or path.read_text(encoding="utf-8") == "old"


def test_a_writer_that_removes_the_temporary_file_fails_without_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(FileNotFoundError), atomic_path(path) as temporary:
        temporary.unlink()
    assert path.read_text(encoding="utf-8") == "old"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with atomic_path(path) as first, atomic_path(path) as second:
        assert first != second
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "first"  # the last to finish
    assert names(tmp_path) == ["a.json"]


def test_the_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "text")
    (tmp_path / "b.json").write_text("text", encoding="utf-8")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "b.json")}
    assert len(modes) == 1


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        write_text(path, "text")
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert text.startswith(f"cannot write {path}: ")
    assert "\n" not in text
    return text


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    assert "choose a folder" in refusal(tmp_path / "file" / "a.json")
    assert "choose a folder" in refusal(tmp_path / "file" / "below" / "a.json")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    assert "choose another name" in refusal(tmp_path / "a.json")
    assert names(tmp_path) == ["a.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "choose a folder" in refusal(tmp_path / "a.json")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True]}, [], "Überschuß µJ", 0.1 + 0.2])
def test_json_is_read_back_as_it_was(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, value)
    text = path.read_bytes().decode("utf-8")
    assert json.loads(text) == value
    assert text == to_json(value)
    assert text.endswith("\n")


def test_json_is_readable() -> None:
    assert to_json({"unit": "µJ", "n": 1}) == '{\n  "unit": "µJ",\n  "n": 1\n}\n'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_json_is_refused_and_nothing_is_written(value: float, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": value})
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["a.json"]


def test_only_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    kept = [".a.tser-tmp", ".a-abcdefgh.tmp.txt", "b-abcdefgh.tser-tmp", "c", "metrics.jsonl"]
    for name in kept:
        (tmp_path / name).touch()
    with atomic_path(tmp_path / "metrics.jsonl") as temporary, atomic_path(tmp_path / "x") as other:
        left = [temporary.name, other.name]
        copies = [temporary.read_bytes(), other.read_bytes()]
    for name, content in zip(left, copies, strict=True):
        (tmp_path / name).write_bytes(content)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*kept, "x"])


def test_where_a_result_cannot_go_is_refused_beforehand(tmp_path: Path) -> None:
    check_json_target(tmp_path / "result.json")
    check_json_target(tmp_path / "new" / "folders" / "result.json")
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    for path, words in (
        (tmp_path / "config.toml", "name a .json file"),
        (tmp_path / "folder.json", "is a folder"),
        (tmp_path / "file" / "result.json", "is not a folder you may write to"),
    ):
        with pytest.raises(UsageError, match=words):
            check_json_target(path)
    assert names(tmp_path) == ["file", "folder.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="is not a folder you may write to"):
            check_json_target(tmp_path / "result.json")
    finally:
        tmp_path.chmod(0o700)
