"""The digest that an ``.onnx`` file of ours carries, and what it says of one that is read.

It is taken over the parsed message, field by field, and not over the bytes of the file: protobuf
may write one message in several ways, and the weights of a model over 2 GB stand in another file.
What a runtime is given is that message, written anew.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from tser.export.nir_file import Manifest

KEY = "sha256"
_OURS = "nir_sha256"
_NUMBERS = {int: "q", bool: "q", float: "d"}


def digest(model: onnx.ModelProto) -> str:
    """sha256 over every field of a model but the digest in its metadata.

    Args:
        model: of any size, with the bytes of its tensors in it.
    """
    total = hashlib.sha256()
    _feed(total, model, top=True)
    return total.hexdigest()


def _feed(total: Any, message: Any, *, top: bool = False) -> None:
    for field, value in message.ListFields():
        many = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        parts = value if many else [value]
        if top and field.name == "metadata_props":
            parts = [part for part in parts if part.key != KEY]
            if not parts:
                continue  # as where there are no metadata yet
        total.update(b"%d*%d:" % (field.number, len(parts)))
        if field.message_type is not None:
            for part in parts:
                total.update(b"(")
                _feed(total, part)
                total.update(b")")
        elif isinstance(parts[0], str | bytes):
            for part in parts:
                content = part.encode() if isinstance(part, str) else part
                total.update(b"%d=" % len(content))
                total.update(content)
        else:
            total.update(struct.pack(f"<{len(parts)}{_NUMBERS[type(parts[0])]}", *parts))


def sign(model: onnx.ModelProto) -> None:
    """Put the digest of a model into its metadata, as their last entry."""
    kept = {one.key: one.value for one in model.metadata_props if one.key != KEY}
    onnx.helper.set_model_props(model, kept)  # the digest is of metadata without double keys
    onnx.helper.set_model_props(model, kept | {KEY: digest(model)})


def manifest(model: onnx.ModelProto) -> Manifest:
    """Whether a model as read is what its digest says: "absent" for those of other tools.

    Ours say so twice, as their producer and by the graph they were compiled from, so that losing
    one of the two does not make them another tool's.
    """
    stated = {one.key: one.value for one in model.metadata_props}
    if model.producer_name != "tser" and _OURS not in stated:
        return "absent"
    size = model.ByteSize()
    model.DiscardUnknownFields()
    # Fields that this version of ONNX does not know may mean something to a runtime.
    known = model.ByteSize() == size
    return "ok" if known and stated.get(KEY) == digest(model) else "wrong"


def damage(path: Path, model: onnx.ModelProto) -> str:
    """What to say of a file whose `Manifest` is wrong."""
    again = "export it again, or write an edited model with tser.export.onnx_file.write_onnx"
    if all(one.key != KEY for one in model.metadata_props):
        return (
            f"{path} is damaged, was edited or is of an earlier version: it has no digest; {again}"
        )
    return (
        f"{path} is damaged or was edited: its contents do not match the digest it carries; {again}"
    )
