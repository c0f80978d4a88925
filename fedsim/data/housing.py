"""California housing: the median house value of 20,640 districts from eight numbers.

R. K. Pace and R. Barry, "Sparse Spatial Autoregressions", Statistics & Probability Letters 1997, in the variant of
https://github.com/ageron/handson-ml: 207 blanks in ``total_bedrooms`` and a column ``ocean_proximity``. Deviations from
the StatLib file: blanks take the median of the training samples, ``ocean_proximity`` is dropped. The preparation is the
one of DIFF2's experiments: inputs standardised with the training samples' statistics, y divided by the largest |y|
(of the training samples).
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass

import numpy as np

from fedsim.data.arrays import check_share, divide, holdout, standardise, with_digest
from fedsim.data.dataset import Dataset, Split
from fedsim.data.published import DataFile, data_root, read_file
from fedsim.errors import InputError
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream

HOUSING_FILE = DataFile("california-housing/housing.csv", {"": "d1c47305887e2252bf1ccbd74ff159a6"})
INPUTS = (
    "longitude",
    "latitude",
    "housing_median_age",
    "total_rooms",
    "total_bedrooms",
    "population",
    "households",
    "median_income",
)
TARGET, MAY_BE_BLANK = "median_house_value", "total_bedrooms"


@dataclass(frozen=True)
class CaliforniaHousing:
    """Regression: float32 features [n, 8] with mean 0 and variance 1, float32 targets in (0, 1].

    Attributes:
        test_share: share held out for testing, chosen by the run's seed; in [0, 1).
        root: folder that holds ``california-housing/``; None: FEDSIM_DATA or the user's cache folder.
    """

    test_share: float = 0.2
    root: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_share(self.test_share)

    def load(self, seed: int) -> Dataset:
        """Read the file; the seed decides which samples are held out."""
        table = parse_housing(read_file(data_root(self.root), HOUSING_FILE, "california_housing"), HOUSING_FILE.path)
        return prepare_housing(table, self.test_share, seed)


def parse_housing(content: bytes, where: str) -> np.ndarray:
    """[n, 9] float64: the eight inputs, then the target; NaN where ``total_bedrooms`` is blank.

    Raises:
        InputError: a column is missing, or ``FILE:LINE`` of the first cell that is not a finite number.
    """
    lines = csv.reader(content.decode("utf-8", errors="replace").splitlines())
    header = next(lines, [])
    wanted = (*INPUTS, TARGET)
    missing = [name for name in wanted if name not in header]
    if missing:
        raise InputError(f"{where}:1: must name the columns {', '.join(wanted)}, got no {', '.join(missing)}")
    places = [(name, header.index(name)) for name in wanted]
    rows = [[_cell(line, name, at, f"{where}:{lines.line_num}") for name, at in places] for line in lines]
    if not rows:
        raise InputError(f"{where}: must hold one line per district, got only the header")
    return np.array(rows)


def prepare_housing(table: np.ndarray, test_share: float, seed: int) -> Dataset:
    """Split, fill blanks, standardise and scale; every statistic is of the training samples.

    Args:
        table: [n, 9] from ``parse_housing``.
        test_share: share held out, in [0, 1).
        seed: of the run.
    """
    parts = holdout(np.zeros(len(table), np.int64), test_share, numpy_stream(seed, addresses.DATA_SPLIT))
    inputs, target = table[:, :-1], table[:, -1]
    inputs = np.where(np.isnan(inputs), np.nanmedian(inputs[parts.train], axis=0), inputs)
    y = (target / np.abs(target[parts.train]).max()).astype(np.float32)
    train, test = divide(parts, inputs, y)
    scaled = standardise(train.x, *([] if test is None else [test.x]))
    held = None if test is None else Split(scaled[1], test.y)
    return with_digest(Dataset("california_housing", Split(scaled[0], train.y), held, "regression", outputs=1))


def _cell(line: list[str], name: str, at: int, where: str) -> float:
    text = line[at] if at < len(line) else "no such column"
    if name == MAY_BE_BLANK and not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {name} must be a number, got {text[:40]!r}; get the file again")
    return value
