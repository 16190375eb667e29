"""What nir's own reader makes of a file: ``official_nir.py FILE`` prints the graph's digest."""

import resource
import sys

import nir

from tser.export.nir_file import digest


def main(source: str) -> int:
    """Print the digest of the graph in ``source``; raises what nir raises."""
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write(digest(nir.read(source)))
    return 0
