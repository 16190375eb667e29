"""No code from data: whatever lies where a command reads, it is data or it is refused.

Malicious pickles of CIFAR are in tests/tser/test_data_cifar.py, HDF5 links out of the file in
tests/export/test_nir_file.py, ONNX weights elsewhere in tests/export/test_onnx_external.py, and
factories named by a stranger's configuration in test_user_model.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from tests.acceptance.conftest import ROOT, TINY, Cli
from tests.acceptance.test_bad_input import check
from tests.processes import finish, start
from tser.cli.main import app
from tser.data.folder import load_folder
from tser.data.plain_pickle import read_dictionary
from tser.errors import InputFileError
from tser.export.nir_file import read_nir

MARK = "a_stranger_was_here"
RESUME = ["distill", "--out", "run", "--resume"]
EVAL = ["eval", "run"]
REPORT = ["report", "run"]
COMPARE = ["compare", "run", "good"]
NIR = [["inspect", "run/model.nir"], ["run", "run/model.nir", "--data", "digits", "--samples", "1"]]
ONNX = [
    ["inspect", "run/model.onnx"],
    ["run", "run/model.onnx", "--data", "digits", "--samples", "1"],
    ["validate", "run/model.onnx", "--samples", "1"],
]
VALIDATE = ["validate", "run/model.nir", "--samples", "1"]
ENERGY = ["energy", "run/model.nir", "--samples", "1"]
FIT = ["fit", "run/model.nir", "--target", "loihi"]
EXPORT = ["export", "run", "--format", "nir", "--out", "new.nir"]
COMPILE = ["export", "run", "--format", "onnx", "--out", "new.onnx"]

READERS: dict[str, list[list[str]]] = {
    "config.toml": [
        RESUME, EVAL, EXPORT, VALIDATE, ENERGY, REPORT, COMPARE, ["distill", "run/config.toml"],
    ],
    "student.safetensors": [EVAL, EXPORT, VALIDATE],
    "teacher.safetensors": [RESUME, EVAL, ["distill", "--teacher", "run/teacher.safetensors"]],
    "checkpoint.pt": [RESUME],
    "metrics.jsonl": [RESUME, REPORT, COMPARE],
    "eval.json": [REPORT, COMPARE],
    "environment.json": [REPORT, COMPARE],
    "validation.json": [REPORT, COMPARE],
    "energy.json": [REPORT, COMPARE],
    "model.nir": [*NIR, VALIDATE, ENERGY, FIT, COMPILE, REPORT, COMPARE],
    "model.onnx": [*ONNX, VALIDATE],
    "logits": [["distill", "--teacher-cache", "run/logits", *TINY]],
    "set.npz": [["distill", "--set", "data.name=run/set.npz"]],
    "input.npy": [["run", "run/model.nir", "--input", "run/input.npy"]],
    "chip.toml": [["fit", "run/model.nir", "--target-file", "run/chip.toml"]],
    "target.toml": [["energy", "run/model.nir", "--target-file", "run/target.toml"]],
}  # fmt: skip
"""Every file that a command reads, with the commands that read it."""


class Evil:
    """Unpickled, it makes the file ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}' # {MARK}",)


def _pickled(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(marker)))


def _pickled_torch(path: Path, marker: Path) -> None:
    torch.save({"phase": "teacher", "epoch": 1, "model": Evil(marker), "optimizer": {}}, path)


def _pickled_torch_of_old(path: Path, marker: Path) -> None:
    torch.save({"model": Evil(marker)}, path, _use_new_zipfile_serialization=False)


def _pickled_arrays(path: Path, marker: Path) -> None:
    objects = np.array([Evil(marker)], dtype=object)
    with path.open("wb") as file:
        np.savez(file, x=objects, y=np.zeros(1, np.int64)) if path.suffix == ".npz" else np.save(
            file, objects
        )


def _pipe(path: Path, marker: Path) -> None:
    del marker
    os.mkfifo(path)


def _endless(path: Path, marker: Path) -> None:
    del marker
    path.symlink_to("/dev/zero")


PLACED: list[tuple[str, Any, list[list[str]]]] = [
    *((name, _pickled, commands) for name, commands in READERS.items()),
    ("checkpoint.pt", _pickled_torch, [RESUME]),
    ("checkpoint.pt", _pickled_torch_of_old, [RESUME]),
    ("set.npz", _pickled_arrays, READERS["set.npz"]),
    ("input.npy", _pickled_arrays, READERS["input.npy"]),
    *((name, _pipe, commands[-1:]) for name, commands in READERS.items()),
    *((name, _endless, READERS[name][:1]) for name in ("checkpoint.pt", "model.nir", "set.npz")),
]
"""What lies where, and the commands that are run on it."""


class _Hung(BaseException):
    pass


def _watch(seen: list[str]) -> None:
    """Note in ``seen`` every start of a program, every connection and all code from elsewhere."""
    roots = tuple(map(os.path.realpath, {ROOT, sys.prefix, sys.base_prefix, *sys.path} - {""}))
    ours = (sys.executable, "-P")
    starts = ("os.system", "os.exec", "os.spawn", "os.posix_spawn", "pty.spawn", "os.startfile")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            words = [str(word) for word in args[1]]
            if tuple(words[:2]) != ours or not words[2].startswith(str(ROOT)):
                seen.append(f"{event} {words[:3]}")
        elif event in starts or event.startswith(("socket.connect", "socket.bind")):
            seen.append(f"{event} {args}")
        elif event == "exec" and not args[0].co_filename.startswith("<"):
            name = os.path.realpath(args[0].co_filename)
            if not name.startswith(roots):
                seen.append(f"{event} {name}")
        elif event == "compile" and MARK in str(args[0]):
            seen.append(f"{event} {args[0]!r}")

    sys.addaudithook(hook)


def _attack(sound: Path, folder: Path, results: Path) -> None:
    """Run every command of `PLACED` and write what it did."""
    torch.set_num_threads(1)
    commands = typer.Typer()
    commands.registered_commands += app.registered_commands
    seen: list[str] = []
    _watch(seen)

    def hang(*_: Any) -> None:
        raise _Hung

    signal.signal(signal.SIGALRM, hang)
    found = []
    for number, (name, place, lines) in enumerate(PLACED):
        for line in lines:
            here = folder / str(number)
            shutil.copytree(sound, here / "run")
            shutil.copytree(sound, here / "good")
            (here / "run" / name).unlink(missing_ok=True)
            place(here / "run" / name, here / "marker")
            if line is RESUME:
                (here / "run" / "student.safetensors").unlink()
            before = sorted(map(str, here.rglob("*")))
            seen.clear()
            signal.alarm(30)
            try:
                with contextlib.chdir(here):
                    done = CliRunner().invoke(commands, line)
                code, said = done.exit_code, done.stderr
            except _Hung:
                code, said = -1, "it hangs"
            signal.alarm(0)
            new = sorted(set(map(str, here.rglob("*"))) - set(before))
            found.append(
                {
                    "case": f"{place.__name__} for {name}: {' '.join(line)}",
                    "code": code,
                    "said": said,
                    "seen": list(seen),
                    "new": [path for path in new if not path.endswith((".lock", "/lock"))],
                }
            )
            shutil.rmtree(here)
    results.write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def sound(_tiny: Path, here: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has every file."""
    folder = tmp_path_factory.mktemp("sound")
    run = shutil.copytree(_tiny / "runs" / "digits", folder / "run")
    for line in (VALIDATE, ENERGY):
        done = here(*line, cwd=folder)
        assert done.returncode == 0, done.stderr
    return Path(run)


def test_whatever_lies_where_a_command_reads_is_refused(sound: Path, tmp_path: Path) -> None:
    """In one sentence, without running it, starting anything, or leaving a file."""
    results = tmp_path / "results.json"
    assert finish(start(_attack, sound, tmp_path / "attacks", results)) == [0]
    found = json.loads(results.read_text(encoding="utf-8"))
    assert len(found) == sum(len(lines) for _, _, lines in PLACED)
    for one in found:
        assert one["code"] in (2, 4), one
        errors = [line for line in one["said"].splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, one
        assert "unexpected failure" not in errors[0], one
        assert "Traceback" not in one["said"], one
        assert one["seen"] == [], one
        assert one["new"] == [], one  # neither the marker nor anything else


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    results = tmp_path / "seen.json"
    assert finish(start(_misbehave, tmp_path, results)) == [0]
    seen = json.loads(results.read_text(encoding="utf-8"))
    assert [line.split()[0] for line in seen] == [
        "compile", "exec", "os.system", "subprocess.Popen", "socket.bind",
    ]  # fmt: skip


def _misbehave(folder: Path, results: Path) -> None:
    import socket
    import subprocess

    (folder / "stranger.py").write_text(f"x = '{MARK}'")
    seen: list[str] = []
    _watch(seen)
    sys.path.append(str(folder))
    __import__("stranger")
    pickle.loads(pickle.dumps(Evil(folder / "marker")))  # noqa: S301 - that is the point
    subprocess.run(["true"], check=True)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
    sys.path.remove(str(folder))
    results.write_text(json.dumps(seen), encoding="utf-8")


# --- modules -------------------------------------------------------------------------------


def test_no_module_of_a_folder_one_stands_in_is_imported(
    cli: Cli, sound: Path, tmp_path: Path
) -> None:
    """Neither with ``python -m tser``, which Python would begin in the current folder."""
    run = shutil.copytree(sound, tmp_path / "run")
    names = "torch nir numpy tomllib signal json typer rich h5py onnx sitecustomize conftest site"
    for name in names.split():
        (Path(run) / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    done = cli("validate", Path(run) / "model.nir", "--samples", "1", cwd=Path(run))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "marker").exists()


# --- what a stranger's run folder can have written or read --------------------------------


WRITERS = {
    "eval.json": EVAL,
    "energy.json": ENERGY,
    "validation.json": VALIDATE,
    "report.html": REPORT,
    "model.nir": ["export", "run", "--format", "nir"],
    "model.onnx": ["export", "run", "--format", "onnx"],
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_in_a_run_folder_is_replaced_not_followed(
    here: Cli, sound: Path, tmp_path: Path, name: str
) -> None:
    run = Path(shutil.copytree(sound, tmp_path / "run"))
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    done = here(*WRITERS[name], cwd=tmp_path)
    assert victim.read_text() == "mine"
    if done.returncode == 0:
        assert not (run / name).is_symlink()
    else:
        check(done, 2, name)


@pytest.mark.parametrize("there", [True, False])
def test_a_log_that_is_a_link_is_not_written_through(
    here: Cli, sound: Path, tmp_path: Path, there: bool
) -> None:
    run = Path(shutil.copytree(sound, tmp_path / "run"))
    victim = tmp_path / "victim"
    (run / "student.safetensors").unlink()
    if there:
        (run / "metrics.jsonl").rename(victim)
    (run / "metrics.jsonl").unlink(missing_ok=True)
    (run / "metrics.jsonl").symlink_to(victim)
    before = victim.read_bytes() if there else None
    check(here(*RESUME, cwd=tmp_path), 4, "metrics.jsonl is a link")
    assert (victim.read_bytes() if there else None) == before
    assert victim.exists() == there


def test_a_configuration_has_no_file_written_by_who_looks_at_the_run(
    here: Cli, sound: Path, tmp_path: Path
) -> None:
    """Only distill uses teacher.path and teacher.cache; nothing in a value is expanded."""
    run = Path(shutil.copytree(sound, tmp_path / "run"))
    text = (run / "config.toml").read_text()
    planted = tmp_path / "planted"
    for key, value in (("path", planted), ("cache", "$HOME/${USER}-$(touch planted)")):
        text = text.replace(f'{key} = ""', f'{key} = "{value}"')
    (run / "config.toml").write_text(text)
    for line in (EVAL, EXPORT, ENERGY, REPORT):
        done = here(*line, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.nir", "run"]


def test_a_cache_takes_no_other_files_place(here: Cli, tmp_path: Path) -> None:
    mine = tmp_path / ".profile"
    mine.write_text("mine")
    (tmp_path / "theirs.toml").write_text(f'preset = "digits"\n[teacher]\ncache = "{mine}"\n')
    check(here("distill", "theirs.toml", cwd=tmp_path), 4, str(mine), "teacher logits")
    assert mine.read_text() == "mine"
    assert not (tmp_path / "runs").exists()


# --- formats that can do more than hold data -----------------------------------------------


def test_an_image_is_read_by_its_kind_not_by_any_reader(tmp_path: Path) -> None:
    """Pillow would hand PostScript to Ghostscript, whatever the file is called."""
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for number in range(3):
                file = tmp_path / "set" / part / name / f"{number}.png"
                Image.new("RGB", (8, 8)).save(file)
    for file in (tmp_path / "set").rglob("0.png"):
        Image.new("RGB", (8, 8)).save(file, format="EPS")
    data = load_folder("set", tmp_path / "set", 8)
    with pytest.raises(InputFileError, match=r"0\.png is damaged or not an image"):
        data.test.images_at(torch.arange(len(data.test)))


def test_a_filter_that_hdf5_would_load_a_library_for(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.nir"
    shutil.copy(sound / "model.nir", file)
    with h5py.File(file, "r+") as graph:
        path = next(
            f"node/nodes/{name}/weight"
            for name, node in graph["node/nodes"].items()
            if "weight" in node
        )
        values = graph[path][()]
        del graph[path]
        graph.create_dataset(path, data=values, chunks=values.shape, compression="gzip")
    content = file.read_bytes()
    gzip = b"deflate\0"
    assert gzip in content
    at = content.rindex(gzip)
    (tmp_path / "libfilter.so").write_bytes(b"\x7fELF")
    monkeypatch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
    changed = bytearray(content)
    changed[at - 8 : at - 6] = (32015).to_bytes(2, "little")  # the filter's number
    file.write_bytes(bytes(changed))
    with pytest.raises(InputFileError, match="not a readable NIR file"):
        read_nir(file)


def test_a_reference_to_an_object_is_no_weight(sound: Path, tmp_path: Path, here: Cli) -> None:
    file = tmp_path / "model.nir"
    shutil.copy(sound / "model.nir", file)
    with h5py.File(file, "r+") as graph:
        name = next(name for name, node in graph["node/nodes"].items() if "weight" in node)
        del graph[f"node/nodes/{name}/weight"]
        graph[f"node/nodes/{name}/weight"] = graph["node"].ref
    check(here("inspect", file, cwd=tmp_path), 4, str(file))


def _protocol_2(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


SYSTEM = b"cos\nsystem\n"
PICKLES = {
    "a call": _protocol_2(SYSTEM + b"U\x04true\x85R"),
    "a call by instance": _protocol_2(b"(U\x04trueios\nsystem\n"),
    "a call by object": _protocol_2(b"(" + SYSTEM + b"U\x04trueo"),
    "a new object": _protocol_2(SYSTEM + b"U\x04true\x85\x81"),
    "a name from the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93U\x04true\x85R.",
    "an extension": _protocol_2(b"\x82\x01U\x04true\x85R"),
    "a persistent id": _protocol_2(b"Pevil\n"),
    "a persistent id from the stack": _protocol_2(b"U\x04evilQ"),
    "a state for what was called": _protocol_2(SYSTEM + b"}b"),
    "numpy's own loader": _protocol_2(b"cnumpy\nload\nU\x04evil\x85R"),
    "an array of a called type": _protocol_2(
        b"cnumpy.core.multiarray\n_reconstruct\n" + SYSTEM + b"K\x00\x85U\x01b\x87R"
    ),
    "a codec that is none": _protocol_2(
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00evil\x86R"
    ),
    "a memo that is not there": _protocol_2(b"j\xff\xff\xff\x7f"),
    "a frame of any length": b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
    "a buffer out of band": b"\x80\x05\x97.",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_no_opcode_of_a_pickle_runs_anything(name: str) -> None:
    seen: list[tuple[Any, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "system", lambda *args: seen.append(args))
        patch.setattr(np, "load", lambda *args: seen.append(args))
        with pytest.raises(ValueError, match="pickle"):
            read_dictionary(PICKLES[name])
    assert seen == []


# --- what is shown -------------------------------------------------------------------------

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></svg><script>alert(2)</script>",
    "[a](javascript:alert(3)) | `x`",
    "=cmd|' /C calc'!A0",
    "a\x1b[2J\x1b]0;owned\x07\u202egnp",
    "{{ 7 * 7 }}{% raw %}",
    "[red]red[/red]",
]


@pytest.fixture(scope="module")
def evil_run(here: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on classes with such names, in a folder with such a name, all the way."""
    folder = tmp_path_factory.mktemp("evil")
    rng = np.random.default_rng(0)
    labels = np.arange(160) % len(EVIL)
    images = rng.integers(0, 256, (160, 1, 8, 8), dtype=np.uint8)
    np.savez(folder / "set.npz", x=images, y=labels, class_names=np.array(EVIL))
    run = "<b onclick=alert(4)>&amp; [red]"
    graph = f"{run}/model.nir"
    for line in (
        ["distill", *TINY[1:], "--set", "data.name=set.npz", "--out", run],
        ["export", run, "--format", "nir"],
        ["validate", graph, "--samples", "4"],
        ["energy", graph, "--samples", "4", "--settings"],
        *(["report", run, "--format", form] for form in ("html", "md", "csv", "json")),
    ):
        done = here(*line, cwd=folder)
        assert done.returncode in (0, 3), done.stderr
        assert not set(done.stdout + done.stderr) & set("\x1b\x07\u202e")
    return folder / run


class _Page(HTMLParser):
    """The elements and attributes of a page, and its text."""

    KNOWN: ClassVar[tuple[str, ...]] = (
        *("html", "head", "meta", "title", "style", "body", "a", "header", "nav", "main"),
        *("section", "div", "p", "h1", "h2", "h3", "ul", "ol", "li", "dl", "dt", "dd", "pre"),
        *("table", "thead", "tbody", "tfoot", "tr", "th", "td", "details", "summary", "code"),
        *("figure", "figcaption", "img", "svg", "g", "path", "text", "defs", "use", "clippath"),
        *("rect", "image"),
    )

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= set(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_text_in_the_report(evil_run: Path) -> None:
    source = (evil_run / "report.html").read_text(encoding="utf-8")
    page = _Page(source)
    assert page.tags <= set(page.KNOWN), page.tags - set(page.KNOWN)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    addresses = {value or "" for name, value in page.attributes if name in ("href", "src")}
    assert all(one.startswith(("#", "data:image/png;base64,", "https://")) for one in addresses)
    assert "Content-Security-Policy" in source
    assert not set(source) & set("\x1b\x07\u202e")
    for name in (EVIL[0], EVIL[1], EVIL[2], EVIL[6], evil_run.name):
        assert name in page.text, name


def test_names_are_text_in_the_other_formats(evil_run: Path) -> None:
    words = (evil_run / "report.md").read_text(encoding="utf-8")
    fenced = words.split("```")
    outside = "".join(fenced[::2])
    assert r"\<script\>alert(1)\</script\>" in outside
    bare = re.sub(r"\\.", "", outside)  # without every escaped sign
    for sign in ("<script", "<img", "<b", "[a", "`x"):
        assert sign not in bare
    table = (evil_run / "report.csv").read_text(encoding="utf-8")
    assert "=cmd" in table
    for cell in table.replace("\n", ",").split(","):
        assert not cell.startswith(("=", "@", "＝"))  # noqa: RUF001
    document = json.loads((evil_run / "report.json").read_text(encoding="utf-8"))
    assert document["evaluation"]["class_names"] == EVIL  # JSON holds what there is
    for form in ("md", "csv", "json"):
        text = (evil_run / f"report.{form}").read_text(encoding="utf-8")
        assert not set(text) & set("\x1b\x07\u202e")


def test_names_steer_no_terminal(here: Cli, evil_run: Path) -> None:
    folder = evil_run.parent
    for line in (
        ["run", evil_run / "model.nir", "--data", "set.npz"],
        ["run", evil_run / "model.nir", "--data", "set.npz", "--json"],
        ["inspect", evil_run / "model.nir"],
        ["eval", evil_run],
        ["compare", evil_run, folder / "none\x1b[2J\nerror: other"],
        ["distill", "a\x1b[2J\nerror: b.toml"],
    ):
        done = here(*line, cwd=folder)
        assert not set(done.stdout + done.stderr) & set("\x1b\x07\u202e")
        errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
        assert len(errors) == (done.returncode != 0)
    done = here("run", evil_run / "model.nir", "--data", "set.npz", cwd=folder)
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert any(name[:9] in row for name in EVIL if name[0] != "a" for row in rows)  # as text
