"""Makes ``import torchvision`` work beside a torch its compiled operators were not built for.

The torchvision wheel of the Python Package Index is a CUDA build. Beside a CPU-only torch its
compiled operators do not load, and the import then dies in torchvision's own registrations
with ``operator torchvision::nms does not exist``. Data sets, transforms and models need none
of these operators: once the two schemas are declared, everything but ``torchvision.ops`` works.
"""

import importlib.util
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a Library withdraws its schemas when it is collected


def ensure_torchvision() -> None:
    """Declare the operators torchvision registers at import, where they cannot be loaded.

    Call it before every import of torchvision. It does nothing when torchvision is not
    installed, is imported already, or has operators that load. torchvision itself is not
    imported: the only thing tried is to load its operator library, which is what its own
    import would do first.
    """
    if "torchvision" in sys.modules or hasattr(torch.ops.torchvision, "nms"):
        return
    package = importlib.util.find_spec("torchvision")
    if package is None or any(map(_operators_load, package.submodule_search_locations or ())):
        return
    # A fragment, not a definition: it tolerates another program's declarations of other names.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)


def _operators_load(folder: str) -> bool:
    """Whether the operator library ``_C`` in torchvision's ``folder`` exists and loads."""
    spec = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES)).find_spec("_C")
    if spec is None or spec.origin is None:
        return False
    try:
        torch.ops.load_library(spec.origin)
    except (ImportError, OSError):
        return False
    return True
