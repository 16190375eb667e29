"""How fast training images are prepared, and a teacher's logits looked up.

    python benchmarks/data_feeding.py run      # a few minutes; one line of results
    python benchmarks/data_feeding.py table    # puts the newest one into docs/training.md

Images 3x32x32, a random crop of the image padded by 4, flip, normalisation, batches of 64. All
variants take turns in one process, an epoch of 5,120 images each with the start of its workers; the
first round is not counted. Beside `tser.data.feed` they are what torchvision's own examples do: one
image at a time, in the workers of a DataLoader.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from document import append_row, machine, markdown, read_rows, spread, write_tables
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tser.augment import count_views
from tser.config import DataConfig
from tser.data import ArraySplit, ImageData
from tser.data.feed import TrainingFeed
from tser.data.images import make_image_data
from tser.data.resident import placed
from tser.logit_cache import LogitCache
from tser.torchvision_ops import ensure_torchvision

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "data_feeding.jsonl"
DOCUMENT = ROOT / "docs" / "training.md"
CONFIG = DataConfig(shift=4, flip=True)
COUNT, BATCH, CLASSES = 5120, 64, 10

LABELS = {
    "batched": "bytes in memory, a batch at a time, in the training process",
    "batched-worker": "the same in one worker",
    "tensors": "one tensor at a time (transforms v2), one worker",
    "pil": "one PIL image at a time, one worker",
    "logits": "logits of a teacher looked up (`teacher.cache`)",
}


class Single(Dataset[tuple[Tensor, int]]):
    """One image at a time, changed by torchvision."""

    def __init__(self, split: ArraySplit, *, pil: bool) -> None:
        ensure_torchvision()
        from torchvision.transforms import v2

        self._split, self._pil = split, pil
        self._pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        changes = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToImage()]
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.3] * 3)]
        self._change = v2.Compose([*changes, *scale])

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image = self._split.images[number]
        if self._pil:
            from PIL import Image

            image = Image.fromarray(self._pixels[number])
        return self._change(image), int(self._split.labels[number])


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure")
    run.add_argument("--rounds", type=int, default=7)
    table = commands.add_parser("table", help="put the table into the document")
    table.add_argument("--check", action="store_true", help="only say whether it is up to date")
    arguments = parser.parse_args()
    if arguments.command == "run":
        measure(arguments.rounds)
    else:
        write_tables(DOCUMENT, {"data-feeding": make_table}, check=arguments.check)


def measure(rounds: int) -> None:
    """Let the variants take turns and write down their images a second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        variants = make_variants(device, Path(folder))
        for number in range(rounds + 1):
            for name, batches in variants.items():
                started = time.perf_counter()
                seen = sum(len(images.to(device)) for images in batches())
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if number:
                    rate = seen / (time.perf_counter() - started)
                    found.setdefault(name, []).append(rate)
    row = {"device": device.type, "threads": torch.get_num_threads(), "images_per_s": found}
    append_row(RESULTS, row | {"machine": machine()})


def make_variants(device: torch.device, folder: Path) -> dict[str, Callable[[], Iterable[Tensor]]]:
    """Name -> the batches of an epoch."""
    train = random_images()
    names = tuple(map(str, range(CLASSES)))
    data = make_image_data("random", names, train=train, val=train, test=train, max_value=255)
    near = placed(data, CONFIG, device)

    def feed(shown: ImageData) -> Iterable[Tensor]:
        seed = int(torch.randint(1 << 30, ()))
        batches = TrainingFeed(shown, CONFIG, BATCH, seed, device=device)
        return (batch.images for batch in batches)

    def loaded(*, pil: bool) -> Iterable[Tensor]:
        pinned = device.type == "cuda"
        source = Single(train, pil=pil)
        loader = DataLoader(source, BATCH, shuffle=True, num_workers=1, pin_memory=pinned)
        return (images for images, _ in loader)

    return {
        "batched": lambda: feed(near),
        "batched-worker": lambda: feed(replace(data, workers=1)),
        "tensors": lambda: loaded(pil=False),
        "pil": lambda: loaded(pil=True),
        "logits": looking_up(device, folder),
    }


def looking_up(device: torch.device, folder: Path) -> Callable[[], Iterable[Tensor]]:
    """Batches of logits of which all are known."""
    views = count_views(CONFIG) or 0
    cache = LogitCache(folder / "logits", {}, COUNT * views, CLASSES, COUNT)
    numbers = views * torch.randperm(COUNT)
    images = torch.zeros(BATCH, 1, 1, 1, device=device)

    def ask(images: Tensor) -> Tensor:
        return torch.zeros(len(images), CLASSES)

    def batches() -> Iterable[Tensor]:
        return (cache.logits(some, images[: len(some)], ask) for some in numbers.split(BATCH))

    list(batches())
    return batches


def random_images() -> ArraySplit:
    """Images of random bytes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (COUNT, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ArraySplit(images, torch.arange(COUNT) % CLASSES)


def make_table() -> str:
    """The newest measurement."""
    row = read_rows(RESULTS)[-1]
    base = statistics.median(row["images_per_s"]["pil"])
    lines = [
        [
            LABELS[name],
            spread([rate / 1000 for rate in rates], 1),
            f"{statistics.median(rates) / base:.1f}",
        ]
        for name, rates in row["images_per_s"].items()
    ]
    threads = row["threads"]
    where = f"{threads} thread{'s' * (threads > 1)} of {row['machine']['processor']}"
    if row["device"] == "cuda":
        where = f"a GPU and {where}"
    about = f"On {where}, torch {row['machine']['packages']['torch']}; median [quartiles].\n"
    columns = [f"images 3x32x32, crop and flip, on {row['device']}", "1000 images/s", "ratio"]
    return markdown(columns, lines) + "\n" + about


if __name__ == "__main__":
    main()
