"""A teacher's logits on disk, so that what it has said once is never computed again.

Shift and flip make finitely many images of one, its views. The logits of each view are computed
when a batch first needs them, kept in float32, and looked up from then on. A run that is repeated,
resumed, or trains another student from the same teacher on the same augmentation (which follows
from train.seed and the epoch) asks the teacher nothing.

What is used is always what is kept: with an empty file at the start, a run has the same bits
whether it is interrupted or not, and its repetition with the full file has them too. They are those
of a run without a cache as far as the teacher says the same of an image whatever else is in the
batch, which holds to rounding: the size of a batch can change the last bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tser.augment import count_views
from tser.config import RunConfig
from tser.data.images import ArraySplit, ImageData
from tser.distributed import current_share
from tser.errors import InputFileError, UsageError
from tser.files import atomic_path
from tser.integrity import tensor_bytes
from tser.plain_files import check_plain

_FORMAT = "tser teacher logits 1"
_SIZES = 4  # a teacher that is compiled for its input is asked for batches of so many sizes


class LogitCache:
    """The logits of a teacher for the views of the training images.

    Args:
        path: the file; it is read if it exists.
        origin: "teacher" and "images" that the logits are of, as their fingerprints.
        views: number of views of all images; they are counted from 0.
        classes: K.
        most: number of views that will be asked for at most.

    Attributes:
        looked_up: logits of images that were known.
        computed: those that the teacher was asked for.

    Raises:
        InputFileError: the file is damaged, or of another origin.
        UsageError: so many logits do not fit into memory.
    """

    def __init__(
        self, path: Path, origin: dict[str, str], views: int, classes: int, most: int
    ) -> None:
        self._path, self._origin = path, origin
        numbers, logits = torch.empty(0, dtype=torch.int64), torch.empty(0, classes)
        if path.exists():
            numbers, logits = _read(path, origin, views, classes)
        room = min(views, len(numbers) + most)
        # Twice: a file is put together in memory before it is written.
        needed, free = 8 * views + 2 * room * (8 + 4 * classes), _free_memory()
        if needed > free:
            raise UsageError(
                f"teacher.cache would hold up to {room:,} x {classes} logits, for which "
                f"{needed / 1e9:.1f} GB of memory are needed and {free / 1e9:.1f} GB are free; "
                "use a smaller data.shift or no teacher.cache"
            )
        self._slots = torch.full((views,), -1)  # of each view in the two below; -1: none yet
        self._numbers = torch.empty(room, dtype=torch.int64)
        self._logits = torch.empty(room, classes)
        self._filled = self._saved = 0
        self._keep(numbers, logits)
        self._saved = self._filled
        self.looked_up = self.computed = 0

    def logits(self, views: Tensor, images: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """The teacher's logits, float32 ``[B, K]`` on the device of ``images``.

        Args:
            views: which each image is, int64 ``[B]``, each once, on the CPU.
            images: ``[B, C, H, W]``.
            ask: the teacher, from images ``[M, C, H, W]`` to float32 logits ``[M, K]``.
        """
        missing = (self._slots[views] < 0).nonzero().flatten()
        if len(missing):
            rows = _rounded_up(missing, len(views))
            found = ask(images if len(rows) == len(views) else images[rows.to(images.device)])
            places = missing if len(rows) == len(views) else torch.arange(len(missing))
            self._keep(views[missing], found.detach().to("cpu", torch.float32)[places])
        self.looked_up += len(views) - len(missing)
        self.computed += len(missing)
        return self._logits[self._slots[views]].to(images.device)

    def save(self) -> None:
        """Write the file, whole or not at all, if there is anything new.

        Raises:
            UsageError: it cannot be written.
            TserError: the disk is full.
        """
        if self._filled == self._saved:
            return
        numbers, logits = self._numbers[: self._filled], self._logits[: self._filled]
        about = {"format": _FORMAT, **self._origin, "crc32": _checksum(numbers, logits)}
        with atomic_path(self._path) as temporary:
            save_file({"views": numbers, "logits": logits}, temporary, about)
        self._saved = self._filled

    def summary(self) -> str:
        """One line on what it was good for."""
        share = self.looked_up / max(1, self.looked_up + self.computed)
        return (
            f"{100 * share:.1f} % of the teacher's logits were looked up; "
            f"{self._path} holds those of {self._filled:,} of {len(self._slots):,} views"
        )

    def _keep(self, views: Tensor, logits: Tensor) -> None:
        end = self._filled + len(views)
        self._numbers[self._filled : end] = views
        self._logits[self._filled : end] = logits
        self._slots[views] = torch.arange(self._filled, end)
        self._filled = end


def check_cacheable(config: RunConfig, data: ImageData) -> None:
    """Refuse a run whose teacher's logits cannot be kept; nothing is refused without a cache.

    Raises:
        UsageError: naming the setting.
    """
    if not config.teacher.cache:
        return
    path = Path(config.teacher.cache)
    wrong = ""
    if current_share().world > 1:
        wrong = "works in a single process: leave out torchrun or teacher.cache"
    elif config.loss.kl == "none":
        wrong = "is of no use with loss.kl = 'none', which asks no teacher; leave it out"
    elif not isinstance(data.train, ArraySplit):
        wrong = f"needs images that stay the same, and {data.name} shows random parts; leave it out"
    elif count_views(config.data) is None:
        key = "cutout" if config.data.cutout else "auto_augment"
        none = "0" if config.data.cutout else "none"
        wrong = f"needs finitely many views of an image; leave it out, or --set data.{key}={none}"
    elif path.is_dir():
        wrong = f"is a file, and {path} is a folder; name a file in it"
    else:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            wrong = f"cannot be written to {path}: {folder} is not a folder you may write to"
    if wrong:
        raise UsageError(f"teacher.cache {wrong}")


def check_cache_file(config: RunConfig, data: ImageData) -> None:
    """Refuse, before a teacher is trained, a file that is not for the images of this run.

    Raises:
        InputFileError: it is damaged, or for other images or another augmentation.
    """
    path = Path(config.teacher.cache)
    if config.teacher.cache and path.exists():
        with _opened(path, {"images": images_fingerprint(config, data)}):
            pass


def open_cache(config: RunConfig, data: ImageData, teacher: nn.Module) -> LogitCache:
    """The cache that ``teacher.cache`` names.

    Args:
        config: of the run; `check_cacheable` has been called.
        data: of the run.
        teacher: as it teaches.

    Raises:
        InputFileError: the file is damaged, or of another teacher, other images or another
            augmentation.
        UsageError: its logits depend on what else is in the batch, or do not fit into memory.
    """
    for name, module in teacher.named_modules():
        if getattr(module, "running_mean", 0) is None and isinstance(
            module, nn.modules.batchnorm._BatchNorm
        ):
            raise UsageError(
                f"teacher.cache needs logits that depend on the image alone, and the teacher's "
                f"{name!r} uses the statistics of the batch; leave out teacher.cache"
            )
    views = len(data.train) * (count_views(config.data) or 0)
    most = len(data.train) * config.train.epochs
    origin = {
        "teacher": teacher_fingerprint(config, teacher),
        "images": images_fingerprint(config, data),
    }
    return LogitCache(Path(config.teacher.cache), origin, views, data.num_classes, most)


def teacher_fingerprint(config: RunConfig, teacher: nn.Module) -> str:
    """SHA-256 of what decides the logits of an image but the machine.

    Of a user's teacher these are its layers and weights; its code is not looked at.
    """
    own = config.teacher
    inner = getattr(teacher, "_orig_mod", teacher)  # behind torch.compile
    facts = {
        "made by": [own.factory] if own.factory else [own.arch, own.stem],
        "layers": [[name, type(module).__name__] for name, module in inner.named_modules()],
        "precision": config.train.precision if own.precision == "same" else own.precision,
    }
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, value in inner.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()


def images_fingerprint(config: RunConfig, data: ImageData) -> str:
    """SHA-256 of the training images, in their order, and of how they reach the teacher.

    Args:
        config: of the run.
        data: of the run; files that are decoded have no finite number of views.
    """
    images = data.train.images if isinstance(data.train, ArraySplit) else torch.empty(0)
    facts = {
        "images": [str(images.dtype), *images.shape],
        "normalisation": [data.max_value, data.mean, data.std],
        "augmentation": [config.data.shift, config.data.flip],
    }
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(tensor_bytes(images))
    return digest.hexdigest()


def _rounded_up(missing: Tensor, size: int) -> Tensor:
    """``missing`` and further rows of a batch of ``size``, up to a quarter of it or a multiple."""
    quarter = max(2, -(-size // _SIZES))
    count = min(size, -(-len(missing) // quarter) * quarter)
    others = torch.ones(size, dtype=torch.bool)
    others[missing] = False
    return torch.cat([missing, others.nonzero().flatten()[: count - len(missing)]])


@contextmanager
def _opened(path: Path, origin: dict[str, str]) -> Iterator[Any]:
    """A file of logits, read as far as its header, which is of ``origin``."""
    check_plain(path)
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != _FORMAT:
                raise InputFileError(
                    f"{path} is not a file of teacher logits; name another one with teacher.cache"
                )
            for name, value in origin.items():
                if about.get(name) != value:
                    whose = {
                        "teacher": "another teacher or another teacher.precision",
                        "images": "other images or another data.shift or data.flip",
                    }
                    raise InputFileError(
                        f"{path} holds the logits of {whose[name]}; move it away, or begin a "
                        "run with another teacher.cache"
                    )
            yield file
    except (SafetensorError, OSError) as error:
        raise InputFileError(
            f"{path} is not a readable file of teacher logits ({error}); name another one, "
            "or delete it to compute them again"
        ) from error


def _read(path: Path, origin: dict[str, str], views: int, classes: int) -> tuple[Tensor, Tensor]:
    """The numbers of the views in a file, int64 ``[M]``, and their logits, ``[M, classes]``."""
    with _opened(path, origin) as file:
        about = file.metadata()
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    numbers, logits = found.get("views"), found.get("logits")
    if (
        numbers is None
        or logits is None
        or about.get("crc32") != _checksum(numbers, logits)
        or (numbers.dtype, logits.dtype) != (torch.int64, torch.float32)
        or numbers.ndim != 1
        or logits.shape != (len(numbers), classes)
        or len(numbers.unique()) != len(numbers)
        or (len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < views)
    ):
        raise InputFileError(f"{path} is damaged; delete it to compute its logits again")
    return numbers, logits


def _checksum(*tensors: Tensor) -> str:
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor_bytes(tensor), value)
    return str(value)


def _free_memory() -> float:
    """Bytes that can still be taken on this machine, as far as it says so."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    return math.inf
