"""The test images that a report shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from tser.data import ImageData, load_configured
from tser.data.places import no_download
from tser.deploy.inputs import data_for_graph
from tser.deploy.report_blocks import Note
from tser.deploy.report_results import Results
from tser.deploy.report_svg import picture
from tser.errors import InputFileError, UsageError


def images_of(results: Results, root: Path | None = None) -> ImageData | Note:
    """The data set of a run, or why it cannot be shown.

    Args:
        results: of the run.
        root: folder of the data set; None: where the configuration says.
    """
    configured, graph = results.config.data, results.graph
    folder = root or (Path(configured.root) if configured.root else None)
    try:
        with no_download():
            if graph is None:
                return load_configured(configured, root)
            return data_for_graph(graph, configured.name, folder, str(results.run.nir))
    except (UsageError, InputFileError) as error:
        return Note(f"Not drawn: {error}")


def picture_of(data: ImageData, position: Tensor) -> str:
    """A test image as a ``data:`` address; of frames, the size of their mean, the largest white.

    Args:
        data: the set.
        position: one index, int64 ``[1]``.
    """
    image = data.test.images_at(position)[0].numpy()
    if data.frames is None:
        return picture(image, data.max_value)
    mean = np.abs(image.astype(np.float64).mean(0))
    return picture((255 * mean / (mean.max() or 1)).astype(np.uint8), 255)
