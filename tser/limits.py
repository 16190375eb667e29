"""What a file may cost before it is refused, however small it is itself.

Damaged and hostile files announce sizes that no machine has, or unpack to them. Each reader stops
at a limit; those that more than one uses are here, the others beside their reader:

* ``.nir``: parsed in a process of its own, 8 s (and one for every 20 MB of file), 2 GiB of address
  space and four times the file, 512 MiB of values and eight times the file, groups nested 50 deep
  (`tser.export.nir_file`).
* ``.onnx``: run first on one sample in a process of its own, 30 s (and one for every 5 MB), 4 GiB
  of address space and eight times the model (`tser.deploy.model_trial`).
* Both times are of computing; on a busy machine they may take four times as long (`tser.child`).
* ``.npz`` data sets: the arrays together half of the memory of this machine (`memory_limit`).
* idx files and archives of CIFAR: 1 GiB unpacked (`tser.data.idx`, `tser.data.packed`); pickles of
  CIFAR: half a million operations (`tser.data.plain_pickle`).
* images: `MOST_PIXELS`, and one side at most `MOST_ASPECT` times the other.
* TOML: `MOST_TEXT` letters, keys of `MOST_PARTS` parts.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MOST_PIXELS = 1 << 26
"""Of one image in a folder; decoded it takes up to half a gigabyte."""
MOST_ASPECT = 100
"""Longer side of an image over its shorter one, which is what is scaled."""
MOST_TEXT = 1 << 18
"""Letters of a TOML file; what tser writes has some thousand."""
MOST_PARTS = 16
"""Parts of a dotted key in TOML: its reader needs memory in the square of them."""

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int:
    """Bytes that this process may have: the machine's, or fewer in a container or under a limit."""
    found = [1 << 40]
    with suppress(AttributeError, ValueError, OSError):  # not on Windows
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in map(Path, _CGROUPS):
        with suppress(OSError, ValueError):  # "max" is no number
            found.append(int(file.read_text(encoding="ascii")))
    with suppress(ImportError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(limit)
    return min(size for size in found if size > 0)


def memory_limit() -> int:
    """Bytes that the arrays of one file may take together: half of `machine_memory`."""
    return machine_memory() // 2
