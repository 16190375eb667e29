"""Reading plain, gzip and tar.gz files without trusting them or writing beside them."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tser.errors import InputFileError, UsageError
from tser.plain_files import check_plain

REMEDY = "replace it with a fresh copy"
_CHUNK = 1 << 20
_LARGEST = 1 << 30  # bytes: five times CIFAR's archives, unpacked
_MOST_MEMBERS = 1000


def unpack(path: Path, target: Path, limit: int) -> int:
    """Unpack ``path`` into ``target``; stop after ``limit`` bytes, return how many there were.

    Raises:
        InputFileError: ``path`` cannot be read, is damaged or cut short.
        UsageError: ``target`` cannot be written.
    """
    written = 0
    try:
        with target.open("wb") as file:
            for chunk in chunks(path, _CHUNK):
                written += file.write(chunk)
                if written > limit:
                    break
    except OSError as error:
        raise UsageError(
            f"cannot unpack {path} into {target.parent}: {error.strerror}; "
            "make room there or set TMPDIR to a folder with 200 MB free"
        ) from error
    return written


def chunks(path: Path, size: int) -> Iterator[bytes]:
    """The content of ``path``, unpacked if it ends in ``.gz``, ``size`` bytes at a time.

    Raises:
        InputFileError: ``path`` cannot be read, is damaged or cut short.
    """
    check_plain(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while chunk := file.read(size):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputFileError(f"{path} is damaged or cut short ({error}); {REMEDY}") from error
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}; {REMEDY}") from error


def read_whole(path: Path) -> bytes:
    """The content of ``path``, which is not packed.

    Raises:
        InputFileError: it cannot be read, or is far larger than a file of these sets.
    """
    check_plain(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise InputFileError(f"{path} is too long to be what it is called; {REMEDY}")
        return path.read_bytes()
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}; {REMEDY}") from error


def read_tar(path: Path, wanted: Sequence[str], scratch: Path) -> Iterator[tuple[str, bytes]]:
    """The files ``wanted`` of a .tar.gz, in this order, each with words for where it is.

    No member is written under its own name, so an archive cannot reach beyond ``scratch``.

    Args:
        path: the archive.
        wanted: names in it, with their folder; a leading ``./`` is passed over.
        scratch: an existing folder to unpack to.

    Raises:
        InputFileError: the archive is damaged, too large or lacks one of the files.
        UsageError: ``scratch`` cannot be written.
    """
    plain = scratch / "archive.tar"
    if unpack(path, plain, limit=_LARGEST) > _LARGEST:
        raise InputFileError(f"{path} unpacks to more than such an archive holds; {REMEDY}")
    try:
        with tarfile.open(plain, "r:") as archive:
            members = {}
            for count, member in enumerate(archive):
                if count == _MOST_MEMBERS:
                    raise InputFileError(f"{path} holds too many files; {REMEDY}")
                if member.isreg() and member.size <= _LARGEST:
                    members[member.name.removeprefix("./")] = member
            if sum(members[name].size for name in wanted if name in members) > _LARGEST:
                raise InputFileError(f"{path} unpacks to more than such an archive holds; {REMEDY}")
            for name in wanted:
                file = archive.extractfile(members[name]) if name in members else None
                if file is None:
                    raise InputFileError(f"{path} does not hold {name}; {REMEDY}")
                yield f"{name} in {path}", file.read()
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        raise InputFileError(
            f"{path} is damaged or not a tar archive ({error}); {REMEDY}"
        ) from error
