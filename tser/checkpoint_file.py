"""Checkpoints are torch's archives; here they are checked before torch reads them.

An archive is a zip file with a pickle and one member for each storage of tensors. torch believes
the sizes that the pickle states, and checks no sum. So every member is read here first, held
against its CRC, and the sizes in the pickle are held against the members.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import torch

_PICKLE: Final = "/data.pkl"
_WIDTHS: Final = {
    f"{name}Storage": width
    for width, names in (
        (1, ("Char", "Byte", "Bool")),
        (2, ("Half", "BFloat16", "Short")),
        (4, ("Float", "Int")),
        (8, ("Double", "Long", "ComplexFloat")),
        (16, ("ComplexDouble",)),
    )
    for name in names
}
"""Bytes of one value."""
_LIMIT: Final = 64 * 2**20
"""Bytes that all tensors may state together beyond four times the file: views may overlap."""
_OPCODES: Final = frozenset(
    [
        *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    ]
)


def read_archive(path: Path) -> Any:
    """What a file of `torch.save` holds: plain values and tensors, on the CPU.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, states other sizes than it has, or holds anything else.
    """
    size = path.stat().st_size
    try:
        # From what was checked: torch has a zip reader of its own, which may see another file.
        with BytesIO() as copy:
            name, content, sizes = _copy_checked(path, size, copy)
            _check_pickle(content)
            _Sizes(content, name.removesuffix(_PICKLE), sizes, 4 * size + _LIMIT).load()
            copy.seek(0)
            return torch.load(copy, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise many types on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(reason[:160]) from error


def _copy_checked(path: Path, size: int, target: BytesIO) -> tuple[str, bytes, dict[str, int]]:
    """Copy every member, checked by its CRC.

    Returns:
        The name and the content of the pickle, and the size of every member [bytes].
    """
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as copy:
        found = archive.infolist()
        sizes = {one.filename: one.file_size for one in found}
        if len(sizes) != len(found):
            raise ValueError("two of its members have the same name")
        # torch stores its members as they are, so that more than the file is a bomb.
        packed = any(one.compress_type != zipfile.ZIP_STORED for one in found)
        if packed or sum(sizes.values()) > size:
            raise ValueError("its members are packed")
        (name,) = (name for name in sizes if name.endswith(_PICKLE))
        for one in found:
            copy.writestr(one.filename, archive.read(one))
        return name, archive.read(name), sizes


def _check_pickle(content: bytes) -> None:
    """Refuse a pickle with other operations than those that plain values and tensors take."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in _OPCODES:
            raise ValueError(f"its pickle uses {opcode.name}")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(content):
            raise ValueError("its pickle is damaged")  # it would need memory for that many


class _Sizes(pickle.Unpickler):
    """Reads a pickle for the sizes of its tensors; nothing that it names is imported or called.

    Args:
        content: the pickle.
        prefix: of the names of the members.
        sizes: of the members, in bytes.
        left: bytes that all tensors may have together.
    """

    def __init__(self, content: bytes, prefix: str, sizes: dict[str, int], left: int) -> None:
        super().__init__(BytesIO(content))
        self._prefix, self._sizes, self._left = prefix, sizes, left

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for the few names that a checkpoint has."""
        if (module, name) == ("collections", "OrderedDict"):
            return type("Ordered", (dict,), {})
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return self._tensor()
        if module == "torch" and name in _WIDTHS:
            return _WIDTHS[name]
        if module == "torch" and isinstance(kind := vars(torch).get(name), torch.dtype):
            return kind
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return 1
        raise ValueError(f"its pickle asks for {module}.{name}"[:120])

    def persistent_load(self, pid: Any) -> tuple[int, int]:
        """The bytes of a storage and of one of its values."""
        _, width, key, _, count = pid
        if self._sizes[f"{self._prefix}/data/{key}"] != width * count:
            raise ValueError(f"its storage {key!r} is not as long as stated")
        return width * count, width

    def _tensor(self) -> Callable[..., None]:
        def rebuild(storage: Any, start: int, shape: Any, steps: Any, *more: Any) -> None:
            total, width = storage
            kind = next((one for one in more if isinstance(one, torch.dtype)), None)
            width = width if kind is None else kind.itemsize
            if min([start, *shape, *steps], default=0) < 0 or len(shape) != len(steps):
                raise ValueError("a tensor has an impossible shape")
            last = start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
            count = math.prod(shape)
            if count and (last + 1) * width > total:
                raise ValueError("a tensor is larger than its storage")
            self._left -= count * width
            if self._left < 0:
                raise ValueError("its tensors are larger than the file")

        return rebuild
