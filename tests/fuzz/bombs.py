"""Small files that announce, or unpack to, more than any machine has."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.graphs import full, lif, network

TERA = 1 << 40
Make = Callable[[Path], None]


def zeros(archive: zipfile.ZipFile, name: str, head: bytes, size: int) -> None:
    """A member of ``head`` and ``size`` zeros, packed to a thousandth."""
    with archive.open(name, "w", force_zip64=True) as file:
        file.write(head)
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))


def head(dtype: Any, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)  # type: ignore[arg-type]
    return file.getvalue()


def npz(path: Path, **members: bytes) -> None:
    """A ``.npz`` of given bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def _labels() -> bytes:
    return head("<i8", (20,)) + np.arange(20, dtype="<i8").tobytes()


def _claims(path: Path, size: int) -> None:
    """A ``.npz`` whose directory states ``size`` bytes for x."""
    npz(path, x=head("|u1", (20, size // 20)), y=_labels())
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    extra = struct.pack("<HHQ", 1, 8, size)
    names = struct.unpack_from("<H", data, at + 28)[0]
    data[at + 24 : at + 28] = b"\xff" * 4
    struct.pack_into("<H", data, at + 30, len(extra))
    data[at + 46 + names : at + 46 + names] = extra
    end = data.index(b"PK\x05\x06")
    struct.pack_into("<I", data, end + 12, struct.unpack_from("<I", data, end + 12)[0] + len(extra))
    path.write_bytes(data)


def _packed_zeros(path: Path) -> None:
    """256 MB of zeros in a few hundred kilobytes; the tests allow 64."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        zeros(archive, "x.npy", head("|u1", (1 << 12, 1, 1 << 8, 1 << 8)), 1 << 28)
        archive.writestr("y.npy", _labels())


ARRAYS: dict[str, tuple[Make, str]] = {
    "a terabyte stated in the directory": (lambda path: _claims(path, TERA), "1,099.5 GB"),
    "a terabyte stated in a header": (
        lambda path: npz(path, x=head("|u1", (TERA, 1, 1)) + bytes(64), y=_labels()),
        "announces 1,099,511,627,776 bytes and holds 64",
    ),
    "zeros packed to a thousandth": (_packed_zeros, "more than the 0.1 GB"),
    "sizes whose product overflows": (
        lambda path: npz(path, x=head("|u1", (1 << 62, 1 << 62, 4)), y=_labels()),
        "and holds 0",
    ),
    "negative sizes": (
        lambda path: npz(path, x=head("|u1", (-4, -4, 4)) + bytes(64), y=_labels()),
        "announces the shape (-4, -4, 4)",
    ),
    "one huge number": (
        lambda path: npz(path, x=head(f"|V{2**31 - 1}", (20,)), y=_labels()),
        "not plain numbers",
    ),
    "a record": (
        lambda path: npz(path, x=head([("a", "<f8", (2**20,))], (20,)) + bytes(64), y=_labels()),
        "not plain numbers",
    ),
    "Python objects": (
        lambda path: npz(path, x=head("|O", (20,)) + bytes(160), y=_labels()),
        "Python objects",
    ),
    "a header nested deeply": (
        lambda path: npz(
            path, x=b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000, y=_labels()
        ),
        "header",
    ),
}
"""Writers of ``.npz`` files that have to be refused."""


def idx_header(path: Path, *sizes: int, unpacked: int = 0) -> None:
    """An idx file of ``unpacked`` zeros behind its header, gzipped where it is named so."""
    head = bytes((0, 0, 8, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes)
    if path.suffix != ".gz":
        path.write_bytes(head)
        return
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(unpacked >> 20):
            file.write(bytes(1 << 20))


def doubled(keys: bool) -> bytes:
    """A pickle of a tuple of tuples that share their parts 60 deep, as key or as value."""
    tuples = b")" + b"q\x01h\x01\x86" * 60
    text = b"X\x01\x00\x00\x00a"
    return b"\x80\x02}" + (tuples + text if keys else text + tuples) + b"s."


def copied() -> bytes:
    """A pickle that makes a thousand copies of a megabyte of text."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x01"
    name = b"c_codecs\nencode\nq\x02"
    encoding = b"X\x06\x00\x00\x00latin1q\x03"
    call = b"h\x02h\x01h\x03\x86R"
    return b"\x80\x02]" + b"(" + text + name + encoding + call * 1000 + b"e."


def nested(count: int = 20_000) -> bytes:
    """A pickle of lists in lists."""
    return b"\x80\x02" + b"]" * count + b"a" * (count - 1) + b"."


def many(count: int = 600_000) -> bytes:
    """A pickle of one byte a list."""
    return b"\x80\x02](" + b"]" * count + b"e."


PICKLES: dict[str, Callable[[], bytes]] = {
    "a key that shares its parts": lambda: doubled(keys=True),
    "copies of one text": copied,
    "many empty lists": many,
    "lists in lists": nested,
    "a long name": lambda: pickle.dumps({"a" * 10_000: [1]}, protocol=2),
}


def png(path: Path, width: int, height: int) -> None:
    """A PNG of ``width`` x ``height`` zeros, 1 bit each, packed to a thousandth."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer, rows = zlib.compressobj(1), b""
    for _ in range(min(height, 1 << 12)):
        rows += packer.compress(bytes(1 + (min(width, 1 << 16) + 7) // 8))
    body = rows + packer.flush()
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def tar_of_holes(path: Path, names: list[str], size: int) -> None:
    """A .tar.gz whose files are said to be ``size`` bytes long, and hold none of them."""
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.pax_headers = {
                "GNU.sparse.major": "0",
                "GNU.sparse.minor": "1",
                "GNU.sparse.size": str(size),
                "GNU.sparse.numblocks": "1",
                "GNU.sparse.map": f"{size},0",
            }
            archive.addfile(member, io.BytesIO())


def checkpoint_zeros(path: Path) -> None:
    """A checkpoint whose one tensor is packed to a thousandth."""
    torch.save({"phase": "x", "epoch": 0, "model": torch.zeros(1 << 25), "optimizer": 0}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def safetensors(path: Path, head: bytes, length: int | None = None) -> None:
    """A safetensors file of a header alone."""
    path.write_bytes(struct.pack("<Q", len(head) if length is None else length) + head)


def tensor_header(shape: list[int], end: int) -> bytes:
    """A safetensors header of one tensor."""
    return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


def long_texts(path: Path) -> None:
    """A NIR file with a thousand texts of which one is long: letters for all are gigabytes."""
    nir_of(path)
    with h5py.File(path, "r+") as file:
        texts = file.create_dataset("node/metadata/t", (2000,), h5py.string_dtype())
        texts[0] = "a" * 1_000_000


def deep_groups(path: Path, depth: int = 10_000) -> None:
    """A NIR file with groups in groups."""
    nir_of(path)
    with h5py.File(path, "r+") as file:
        group = file["node/metadata"]
        for _ in range(depth):
            group = group.create_group("g")
        group["x"] = 1


def nir_of(path: Path) -> None:
    """A plain NIR file."""
    import nir

    nodes = {"fc": nir.Linear(full((2, 2), 1)), "lif": lif(2)}
    nir.write(path, network((2,), nodes))


def onnx_of(
    path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any], **metadata: str
) -> None:
    """A model that says it is ours, from input [B, 1, 8, 8] to logits [1, B, ...]."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["B", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "B", 10])],
        initializer=[numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="tser"
    )
    stated = {"dt": "0.001", "layers": "{}", "timesteps": "1", "form": "sequence"}
    helper.set_model_props(model, stated | {"encoding": "direct"} | metadata)
    from tser.export.onnx_digest import sign

    sign(model)
    path.write_bytes(model.SerializeToString())


def _loop(count: int) -> list[onnx.NodeProto]:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", "c", "d"]),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"]),
        ],
    )
    return [helper.make_node("Loop", ["count", "on", "input"], ["logits"], body=body)]


MODELS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "ConstantOfShape": (
        [helper.make_node("ConstantOfShape", ["s"], ["logits"])],
        {"s": np.array([1, 1 << 20, 1 << 14])},
    ),
    "Expand": (
        [helper.make_node("Expand", ["input", "s"], ["logits"])],
        {"s": np.array([1 << 28, 1, 1, 8, 8])},
    ),
    "Pad": (
        [helper.make_node("Pad", ["input", "s"], ["logits"])],
        {"s": np.array([0, 0, 0, 0, 0, 1 << 28, 0, 0])},
    ),
    "Conv": (
        [helper.make_node("Conv", ["input", "w"], ["logits"], pads=[1 << 18] * 4)],
        {"w": np.ones((1, 1, 1, 1), np.float32)},
    ),
    "Range": (
        [
            helper.make_node("Range", ["a", "b", "c"], ["r"]),
            helper.make_node("Cast", ["r"], ["logits"], to=TensorProto.FLOAT),
        ],
        {"a": np.array(0), "b": np.array(1 << 40), "c": np.array(1)},
    ),
}
"""Models that are valid and would take all memory when they run."""


def endless(path: Path) -> None:
    """A model whose loop does not end."""
    onnx_of(path, _loop(1 << 62), {"count": np.array(1 << 62), "on": np.array(True)})


TOML: dict[str, str] = {
    "arrays": "x = " + "[" * 100_000 + "]" * 100_000,
    "tables": "x = " + "{a=" * 40_000,
    "a key": "a" + ".a" * 50_000 + " = 1",
    "a quoted key": '"a"' + " . 'a'" * 20_000 + " = 1",
    "a table's name": "[" + "a." * 50_000 + "a]",
    "a number": "x = " + "9" * 100_000,
    "a long text": 'x = "' + "a" * 10**6 + '"',
    "a year": "x = 0000-13-41",
}
"""Texts that are short and take endless memory or stack."""
