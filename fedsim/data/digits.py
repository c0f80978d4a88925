"""Handwritten digits, 1,797 images of 8x8, as they come with scikit-learn: nothing to download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository 1998; the copy
in ``sklearn.datasets.load_digits`` is the test set of the original.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.data.arrays import check_share, divide, holdout, with_digest
from fedsim.data.base import Dataset
from fedsim.rng import numpy_stream


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: float32 images [n, 1, 8, 8] in 0..1 (the file's 0..16 divided by 16), 10 classes.

    Attributes:
        test_share: share held out for testing, stratified by class, chosen by the run's seed; in [0, 1).
    """

    test_share: float = 0.2

    def __post_init__(self) -> None:
        check_share(self.test_share)

    def load(self, seed: int) -> Dataset:
        """Read and split; the seed decides which images are held out."""
        from sklearn.datasets import load_digits  # 2 s to import: only for runs that need it

        images, y = load_digits(return_X_y=True)
        x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
        y = y.astype(np.int64)
        train, test = divide(holdout(y, self.test_share, numpy_stream(seed, "data.split")), x, y)
        return with_digest(Dataset("digits", train, test, "classification", outputs=10))
