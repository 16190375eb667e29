"""Write ``tser/assets/digits.npz`` from scikit-learn's copy of the UCI digits.

Needs scikit-learn, which nothing else in this repository does:
``python scripts/make_digits_asset.py``. The same input gives the same bytes.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).resolve().parent.parent / "tser" / "assets" / "digits.npz"


def main() -> None:
    """Check scikit-learn's arrays and store them as bytes."""
    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)
    if images.shape != (1797, 8, 8) or images.max() != 16 or (images != bunch.images).any():
        raise ValueError(f"not the 1,797 digits of values 0..16: {images.shape}, {images.max()}")
    np.savez_compressed(TARGET, images=images, labels=labels)
    print(f"{TARGET.name}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
