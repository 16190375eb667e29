"""Choosing samples so that every class keeps its share, by rules that need no random numbers."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def stratified_take(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    r"""Positions of ``count`` samples with the class shares of ``labels``, first come first taken.

    The k-th sample (k = 0, 1, ...) of a class of N_c samples has the key (k + 1/2) / N_c; the
    ``count`` smallest keys are taken, the lower label first among equals. Every class so gets
    its share ``count * N_c / N`` to about one sample, and a larger count only adds samples.

    Args:
        labels: class of each sample, ``[N]``, from 0.
        count: how many to take, 0..N.

    Returns:
        Their positions in ``labels``, ascending, ``[count]``.

    Raises:
        ValueError: ``count`` is out of its range.

    >>> stratified_take(np.array([0, 0, 0, 0, 1, 1]), 3).tolist()
    [0, 1, 4]
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"count must be from 0 to {len(labels)}, got {count}")
    sizes = np.bincount(labels)
    by_class = np.argsort(labels, kind="stable")
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[labels[by_class]]
    key = (rank + 0.5) / sizes[labels]
    return np.sort(np.lexsort((labels, key))[:count]).astype(np.int64)


def hashed_order(count: int, salt: str) -> NDArray[np.int64]:
    """The numbers 0..count-1 in the order of SHA-256("salt:number"): a shuffle fixed for ever.

    Unlike a seeded generator's, this order does not depend on a library or its version.
    """
    digests = [hashlib.sha256(f"{salt}:{number}".encode()).digest() for number in range(count)]
    return np.array(sorted(range(count), key=digests.__getitem__), dtype=np.int64)
