"""What is said where a file could not be written: one sentence, whatever its writer raised.

Every writer has its own way to fail on a full disk: NumPy and ONNX raise OSError, h5py one of its
own making, safetensors puts the number into a text, and PyTorch says that a position was not the
expected one. So the cause is looked for in the chain of errors, and where they do not tell, the
disk itself is asked by writing some more to the same file.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from tser.errors import TserError, UsageError

_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What no other name would cure: the command was right, the disk was not."""
_PLACE = (
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
_NUMBER = re.compile(r"(?:os error |\[Errno |errno = )(\d+)")
SCRATCH = "tser-scratch"
"""In the name of what goes where temporary files go (``TMPDIR``)."""
_PROBE = 1 << 16
"""Bytes that are written to see whether the disk takes any."""


def disk_fault(error: BaseException, temporary: Path | None = None) -> int | None:
    """The number (errno) of the disk's fault that made a writer raise ``error``.

    Args:
        error: what the writer raised.
        temporary: the file that it wrote to; it may be written to once more, to find out.

    Returns:
        None: the disk is not at fault.
    """
    number = _number(error)
    if number is None and temporary is not None and not isinstance(error, OSError):
        number = _probe(temporary)
    return number


def disk_error(path: Path, number: int) -> TserError:
    """The sentence for ``path``, which the disk did not take.

    Args:
        path: what was to be written.
        number: from `disk_fault`.
    """
    return TserError(f"cannot write {path}: {_reason(path, number)}")


def place_error(
    path: Path, error: OSError, advice: str = "choose a folder you may write to"
) -> TserError:
    """The sentence for a file that cannot be made, or not be given its name."""
    number = disk_fault(error)
    if number is not None:
        return disk_error(path, number)
    return UsageError(f"cannot write {path}: {error.strerror}; {advice}")


def file_error(error: OSError) -> TserError | None:
    """The sentence for a file that a command failed on without saying more.

    Returns:
        None: it names no file, or nothing is wrong with the file's place or the disk.
    """
    if not isinstance(error.filename, str | bytes):
        return None
    path = Path(os.fsdecode(error.filename))
    if error.errno in _MACHINE:
        return TserError(f"cannot use {path}: {_reason(path, error.errno or 0)}")
    if error.errno in _PLACE:
        return UsageError(
            f"cannot use {path}: {error.strerror}; choose another name, or see to its permissions"
        )
    return None


def _number(error: BaseException) -> int | None:
    """The number of a fault of the disk, in ``error`` or in what led to it."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        told = [at.errno] if isinstance(at, OSError) else []
        told += [int(number) for number in _NUMBER.findall(str(at))]
        for number in told:
            if number in _MACHINE:
                return number
        at = at.__cause__ or at.__context__
    return None


def _probe(path: Path) -> int | None:
    try:
        with path.open("ab", buffering=0) as file:
            left = _PROBE
            while left:
                left -= file.write(bytes(left)) or 0
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno if error.errno in _MACHINE else None
    return None


def _reason(path: Path, number: int) -> str:
    folder = next((one for one in path.absolute().parents if one.is_dir()), Path("/"))
    again = "and run the command again (tser distill: with --resume)"
    if number == errno.EDQUOT:
        return f"your disk quota in {folder} is used up; delete something there {again}"
    if number == errno.EIO:
        return f"the disk failed (input/output error in {folder}); see to it {again}"
    if number == errno.EFBIG:
        return (
            f"it would be longer than a file may be here{_largest()}; raise that limit, or choose "
            f"another disk, {again}"
        )
    room = f"make room there {again}"
    if path.name == SCRATCH or any(SCRATCH in part for part in folder.parts):
        room = f"make room there or set TMPDIR to another folder, {again}"
    if _no_names_left(folder):
        return f"{folder} can hold no further file; {room}"
    return f"the disk is full ({_size(shutil.disk_usage(folder).free)} free in {folder}); {room}"


def _largest() -> str:
    try:
        import resource
    except ImportError:  # not on Windows
        return ""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return "" if limit == resource.RLIM_INFINITY else f" (ulimit -f allows {_size(limit)})"


def _no_names_left(folder: Path) -> bool:
    try:
        found = os.statvfs(folder)
    except (AttributeError, OSError):
        return False
    return found.f_files > 0 and found.f_favail == 0


def _size(count: int) -> str:
    for unit, bytes_ in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= bytes_:
            return f"{count / bytes_:.1f} {unit}"
    return f"{count} bytes"
