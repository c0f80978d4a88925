"""Handwritten digits, 1,797 images of 8x8, as they come with scikit-learn: nothing to download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository 1998; the copy
in scikit-learn is the test set of the original. The file is read where scikit-learn lies, since importing
``sklearn.datasets`` takes longer (1.5 s) than many a run; its md5 was computed from scikit-learn 1.9's.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedsim.data.arrays import check_share, divide, holdout, with_digest
from fedsim.data.dataset import Dataset
from fedsim.data.published import read_path
from fedsim.errors import InputError
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream

_CSV = "datasets/data/digits.csv.gz"  # 64 pixels in 0..16 and the class on each line
_MD5 = {"": "a0339c30a8a5312a1b6f9e5c719dcce5"}


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: float32 images [n, 1, 8, 8] in 0..1 (the file's 0..16 divided by 16), 10 classes.

    Attributes:
        test_share: share held out for testing, stratified by class, chosen by the run's seed; in [0, 1).
    """

    test_share: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self)
        check_share(self.test_share)

    def load(self, seed: int) -> Dataset:
        """Read and split; the seed decides which images are held out."""
        scikit_learn = find_spec("sklearn")
        if scikit_learn is None or scikit_learn.origin is None:
            raise InputError(
                "data=digits needs scikit-learn's copy of them, got no scikit-learn; pip install scikit-learn"
            )
        path = Path(scikit_learn.origin).parent / _CSV
        table = np.loadtxt(io.BytesIO(read_path(path, _MD5, "install scikit-learn again")), delimiter=",")
        x = (table[:, :-1] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
        y = table[:, -1].astype(np.int64)
        train, test = divide(holdout(y, self.test_share, numpy_stream(seed, addresses.DATA_SPLIT)), x, y)
        return with_digest(Dataset("digits", train, test, "classification", outputs=10))
