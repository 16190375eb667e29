"""Reading the pickles of CIFAR without unpickling: no name in them is imported or called.

The files are of pickle protocol 2 and hold a dictionary of strings, lists of integers or of
strings, and one numpy array. The opcodes that such a file consists of are carried out here on
stand-ins; a file with any other opcode, or that names anything but numpy's array and dtype, is
refused. So the worst a file can do is to hold other data than it should.
"""

import pickletools
import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES: Final = frozenset(
    ["BININT", "BININT1", "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE"]
)
_TUPLES: Final = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NAMES: Final = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",  # how Python 3 writes bytes in this protocol
}

_MOST_OPCODES: Final = 500_000
"""Of one file; CIFAR-100's has some 250,000. One byte of a pickle can stand for 60 of memory."""


class _Refused(ValueError):
    """Why a file is not of the kind that is read here."""


class _Name(str):
    """A name of `_NAMES` that stands on the stack."""

    __slots__ = ()


class _Built:
    """A numpy array or dtype: what it was made from and the state it was given."""

    def __init__(self, kind: str, arguments: tuple[Any, ...]) -> None:
        self.kind, self.arguments = kind, arguments
        self.state: Any = None


def read_dictionary(content: bytes) -> dict[str, Any]:
    """The dictionary in a pickle of protocol 2, its keys as text and its arrays unread.

    Args:
        content: the whole file; text of Python 2 is taken as Latin-1.

    Raises:
        ValueError: it is damaged or holds anything that CIFAR's files do not.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools may wonder about a damaged name
            value = _carry_out(content)
    except _Refused as refused:
        raise ValueError(str(refused)) from None
    except (ValueError, LookupError, TypeError, RuntimeError, MemoryError, OverflowError) as error:
        raise ValueError("its pickle is damaged") from error
    if not isinstance(value, dict):
        raise ValueError("its pickle is not a dictionary")
    return value


def as_uint8(value: Any, columns: int) -> NDArray[np.uint8]:
    """The array ``[N, columns]`` that `read_dictionary` left unread; a view, N at least 1.

    Raises:
        ValueError: ``value`` is no such array.
    """
    wanted = f"a uint8 array [N, {columns}]"
    if not isinstance(value, _Built) or value.kind != "array" or not _is_tuple(value.state, 5):
        raise ValueError(f"it lacks {wanted}")
    _, shape, dtype, by_columns, raw = value.state
    if not isinstance(dtype, _Built) or dtype.kind != "dtype" or dtype.arguments[:1] != ("u1",):
        raise ValueError(f"its array is not {wanted}")
    if not (_is_tuple(shape, 2) and all(type(size) is int for size in shape)):
        raise ValueError(f"its array is not {wanted}")
    if isinstance(raw, str):
        raw = raw.encode("latin-1")
    rows = int(shape[0])
    if rows < 1 or shape[1] != columns or not isinstance(raw, bytes):
        raise ValueError(f"its array is of shape {list(shape)}, not {wanted}")
    if len(raw) != rows * columns:
        raise ValueError(f"its array holds {len(raw):,} bytes, not {rows * columns:,}")
    flat = np.frombuffer(raw, dtype=np.uint8)
    return flat.reshape(columns, rows).T if by_columns else flat.reshape(rows, columns)


def _carry_out(content: bytes) -> Any:
    """The value of the pickle ``content``; raises what a damaged one makes of a stack."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    room = len(content)  # for bytes that are made from text: the same text can be used again
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if count == _MOST_OPCODES:
            raise _Refused("its pickle holds too many values")
        if name in _VALUES:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in _TUPLES:
            stack.append(tuple(_taken(stack, len(stack) - _TUPLES[name])))
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(_taken(stack, marks.pop())))
        elif name in ("APPENDS", "APPEND"):
            items = _taken(stack, marks.pop() if name == "APPENDS" else len(stack) - 1)
            _last(stack, list).extend(items)
        elif name in ("SETITEMS", "SETITEM"):
            items = _taken(stack, marks.pop() if name == "SETITEMS" else len(stack) - 2)
            # Checked first: to hash a tuple of tuples that share their parts takes for ever.
            keys = [_text(key) for key in items[::2]]
            _last(stack, dict).update(zip(keys, items[1::2], strict=True))
        elif name == "GLOBAL":
            if argument not in _NAMES:
                raise _Refused(f"its pickle asks for {str(argument)[:60]!r}, which it should not")
            stack.append(_Name(_NAMES[str(argument)]))
        elif name == "REDUCE":
            called, arguments = _taken(stack, len(stack) - 2)
            stack.append(_made(called, arguments))
            room -= len(stack[-1]) if isinstance(stack[-1], bytes) else 0
            if room < 0:
                raise _Refused("its pickle unpacks to more than it holds")
        elif name == "BUILD":
            (state,) = _taken(stack, len(stack) - 1)
            _last(stack, _Built).state = state
        elif name == "STOP":
            (value,) = stack
            return value
        elif name != "PROTO":
            raise _Refused(f"its pickle uses {name}, which it should not")
    raise _Refused("its pickle is cut short")


def _taken(stack: list[Any], start: int) -> list[Any]:
    """The values of the stack from ``start`` on, which are removed from it."""
    if not 0 <= start <= len(stack):
        raise _Refused("its pickle is damaged")
    items = stack[start:]
    del stack[start:]
    return items


def _last(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise _Refused("its pickle is damaged")
    return stack[-1]


def _made(called: Any, arguments: Any) -> Any:
    """What a call of one of `_NAMES` stands for."""
    if not isinstance(called, _Name) or not isinstance(arguments, tuple):
        raise _Refused("its pickle calls what it should not")
    if called != "encode":
        return _Built(str(called), arguments)
    text, encoding = arguments
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("its pickle is damaged")
    return text.encode("latin-1")


def _is_tuple(value: Any, length: int) -> bool:
    return isinstance(value, tuple) and len(value) == length


def _text(key: Any) -> str:
    if not isinstance(key, str | bytes):
        raise _Refused("its pickle has keys that are not text")
    return key.decode("latin-1") if isinstance(key, bytes) else key
