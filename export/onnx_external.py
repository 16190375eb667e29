"""Weights of ONNX models in a file beside them: needed over 2 GB, and not to be trusted.

One protobuf message holds 2 GB. Beyond, ONNX keeps the bytes of tensors in another file, which the
model names; readers that followed any such name were made to read files of others.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tser.errors import InputFileError
from tser.files import atomic_path

MOST_BYTES = 2**31 - 2**20
"""Of one protobuf message, less room for the metadata."""
INLINE = 1024
"""Bytes of a tensor up to which it stays where it is."""
_DIGITS = 12
"""Of a digest, in the name of a file of weights."""
_PAGE = 4096
"""Tensors start at multiples of it, so that a runtime can map them."""


def tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor anywhere in a protobuf message: initialisers, attributes, subgraphs."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Sequence) else [value]:
                yield from tensors(part)


def too_large(message: Any) -> bool:
    """Whether a model or graph does not fit into one protobuf message."""
    total = sum(
        math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in tensors(message)
    )
    return total > MOST_BYTES or int(message.ByteSize()) > MOST_BYTES


def check_sizes(model: onnx.ModelProto) -> None:
    """See that tensors have the bytes of their shapes, as ONNX's own checker does from 1.23 on.

    Raises:
        ValueError: one has more or fewer.
    """
    for tensor in tensors(model):
        if tensor.HasField("raw_data"):
            numpy_helper.to_array(tensor)


def data_files(path: Path) -> list[Path]:
    """Files beside a model at ``path`` that are named as its weights, of whichever version."""
    named = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{{_DIGITS}}}\.data", re.DOTALL)
    with suppress(OSError):
        return sorted(one for one in path.parent.iterdir() if named.fullmatch(one.name))
    return []


def remove_weights(path: Path, keep: str = "") -> None:
    """Delete the weights of models that stood at ``path`` before, but for the file ``keep``."""
    for one in data_files(path):
        if one.name != keep:
            one.unlink(missing_ok=True)


def write_external(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model`` to ``path`` and its weights beside it, each whole or not at all.

    The file of weights, ``<name>.onnx.<digest>.data``, is called by what it holds. So a model never
    stands beside weights that are not its own, and one that stood here before has its own until
    the new one takes its name; they are deleted then.

    Raises:
        UsageError: the folder cannot be written, or one of the names is a folder's.
        TserError: the disk is full.
        onnx.checker.ValidationError: it is not valid ONNX.
    """
    data = path.with_name(f"{path.name}.{_digest(model)}.data")
    with atomic_path(path) as temporary:
        with atomic_path(data) as temporary_data:
            with temporary_data.open("wb") as file:
                apart = _apart(model, file, temporary_data.name)
            onnx.save_model(apart, temporary)
            onnx.checker.check_model(str(temporary), full_check=True)
        for tensor in external(apart):
            tensor.external_data[0].value = data.name
        onnx.save_model(apart, temporary)
    remove_weights(path, keep=data.name)


def _digest(model: onnx.ModelProto) -> str:
    """Of the bytes that go into the file of weights."""
    total = hashlib.sha256()

    def put(tensor: onnx.TensorProto, content: bytes) -> None:
        total.update(len(content).to_bytes(8, "little"))
        total.update(content)

    _copy(model, onnx.ModelProto(), put)
    return total.hexdigest()[:_DIGITS]


def _apart(model: onnx.ModelProto, file: BinaryIO, name: str) -> onnx.ModelProto:
    """A copy of ``model`` with large tensors in ``file``, which is called ``name``."""

    def put(tensor: onnx.TensorProto, content: bytes) -> None:
        file.write(bytes(-file.tell() % _PAGE))
        stated = {"location": name, "offset": file.tell(), "length": len(content)}
        file.write(content)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in stated.items():
            tensor.external_data.add(key=key, value=str(value))

    apart = onnx.ModelProto()
    _copy(model, apart, put)
    return apart


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model of any size; protobuf itself cannot copy what is over 2 GB."""

    def put(tensor: onnx.TensorProto, content: bytes) -> None:
        tensor.raw_data = content

    copy = onnx.ModelProto()
    if too_large(model):
        _copy(model, copy, put)
    else:
        copy.CopyFrom(model)
    return copy


def _copy(source: Any, target: Any, put: Callable[[onnx.TensorProto, bytes], None]) -> None:
    """Copy a message field by field; large tensors are given their bytes by ``put``."""
    for field, value in source.ListFields():
        key = field.name
        if field.message_type is None:
            if key == "raw_data" and len(value) > INLINE:
                put(target, value)
            elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
                getattr(target, key).extend(value)
            else:
                setattr(target, key, value)
        elif isinstance(value, Sequence):
            for part in value:
                _copy(part, getattr(target, key).add(), put)
        else:
            getattr(target, key).SetInParent()
            _copy(value, getattr(target, key), put)


def fill(model: onnx.ModelProto, contents: Mapping[str, NDArray[Any]]) -> None:
    """Give initialisers their ``contents``, by name."""
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.name in contents:
                tensor.raw_data = _bytes(contents[tensor.name])


def _bytes(array: NDArray[Any]) -> bytes:
    """As ONNX stores them, little end first."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """``graph`` and the bodies of its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def external(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors whose bytes stand in another file."""
    return [one for one in tensors(model) if one.data_location == TensorProto.EXTERNAL]


def embed(model: onnx.ModelProto, path: Path) -> None:
    """Fetch the bytes that the model at ``path`` keeps in files beside it.

    Raises:
        InputFileError: another place than its own folder, or bytes that are not there.
    """
    room: dict[str, int] = {}
    for tensor in external(model):
        stated = {entry.key: entry.value for entry in tensor.external_data}
        name = stated.get("location", "")
        with _open_beside(path, name) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                offset = int(stated.get("offset", 0))
                length = int(stated.get("length", size - offset))
            except ValueError:
                offset = length = -1
            # Many tensors over the same bytes would need any amount of memory.
            left = room.get(name, size) - length
            if not (offset >= 0 and 0 <= length <= size - offset and left >= 0):
                raise InputFileError(
                    f"{path} names bytes that {name!r} beside it does not have; it is cut off or "
                    "of another model, so export it again"
                )
            room[name] = left
            file.seek(offset)
            content = file.read(length)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = content


def _open_beside(path: Path, name: str) -> BinaryIO:
    """A plain file in the folder of ``path``.

    Raises:
        InputFileError: the name is a path, or leads elsewhere, or nowhere.
    """
    if name in ("", ".", "..") or any(sign in name for sign in "/\\:\0"):
        raise InputFileError(
            f"{path} keeps its weights in {name[:80]!r}; only a file beside it, named without a "
            "path, is read"
        )
    data = path.parent / name
    with suppress(OSError, ValueError):
        real = data.resolve(strict=True)
        if real.parent != path.parent.resolve():
            raise InputFileError(
                f"{path} keeps its weights in {name!r}, which links to another folder; put the "
                "file itself beside it"
            )
        # Neither a link that comes now nor a pipe, which would never end, is opened.
        flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        file = os.fdopen(os.open(real, os.O_RDONLY | flags | getattr(os, "O_BINARY", 0)), "rb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    raise InputFileError(
        f"{path} keeps its weights in {name!r}, and beside it there is no such file; put it there"
    )
