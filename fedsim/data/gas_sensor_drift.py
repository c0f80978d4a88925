"""Gas sensor array drift: six gases, 16 sensors, ten batches over 36 months, in LIBSVM text format.

A. Vergara et al., "Chemical gas sensor drift compensation using classifier ensembles", Sensors and Actuators B 2012;
UCI Machine Learning Repository 224, doi:10.24432/C5RP6W. No digests are published: those below were computed from
copies that agree value by value; batches 7 and 10 have none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedsim.data.arrays import check_share, divide, holdout, standardise, with_digest
from fedsim.data.dataset import Dataset
from fedsim.data.published import DataFile, data_root, locate, read_files
from fedsim.data.svmlight import dense, parse
from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream

FEATURES, CLASSES = 128, 6
_MD5 = {
    1: "3a3df3f961e7f42ceb136cd569fa41f5",
    2: "48570fd8b2c0f60e28428e863ce32e9f",
    3: "f54ff21b8705faf3a328c5c66046878a",
    4: "85fd1944db695fdb168095f75ef4dd3c",
    5: "24996020b06451900e0797f0fd5af815",
    6: "a2050ad2709f7ea1d0751ec98d733bc7",
    8: "a224cf79d54217f8c8e992b101f832fe",
    9: "4be4c76f11bad0ab7a46ee79ad64e6f8",
}
GAS_FILES = {i: DataFile(f"gas-sensor-drift/batch{i}.dat", {"": _MD5[i]} if i in _MD5 else {}) for i in range(1, 11)}


@dataclass(frozen=True)
class GasSensorDrift:
    """Which gas is it: float32 features [n, 128], standardised with the training samples' statistics, 6 classes.

    The natural client of a sample is its batch: drift makes them differ. Groups are 0, 1, ... in the order of the
    batches that are read.

    Attributes:
        batches: which batches (1..10) to read; None: all that are present.
        test_share: share held out for testing, stratified by batch and class, chosen by the run's seed; in [0, 1).
        root: folder that holds ``gas-sensor-drift/``; None: FEDSIM_DATA or the user's cache folder.
    """

    batches: tuple[int, ...] | None = None
    test_share: float = 0.2
    root: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.batches is not None:
            ok = (
                bool(self.batches)
                and set(self.batches) <= GAS_FILES.keys()
                and len({*self.batches}) == len(self.batches)
            )
            require(ok, "batches", "be different numbers in 1..10", self.batches)
        check_share(self.test_share)

    def load(self, seed: int) -> Dataset:
        """Read the batches; the seed decides which samples are held out."""
        root = data_root(self.root)
        present = [i for i, file in GAS_FILES.items() if locate(root, file) is not None]
        chosen = self.batches or tuple(present) or (1,)  # with none at all, batch 1 is reported missing
        files = [GAS_FILES[i] for i in chosen]
        contents = read_files(root, files, "gas_sensor_drift")
        read_batches = [_batch(content, file.path) for content, file in zip(contents, files, strict=True)]
        x, y = (np.concatenate(arrays) for arrays in zip(*read_batches, strict=True))
        group = np.repeat(np.arange(len(chosen)), [len(labels) for _, labels in read_batches])
        parts = holdout(group * CLASSES + y, self.test_share, numpy_stream(seed, addresses.DATA_SPLIT))
        train, test = divide(parts, x, y, group)
        scaled = standardise(train.x, *([] if test is None else [test.x]))
        train = replace(train, x=scaled[0])
        test = None if test is None else replace(test, x=scaled[1])
        return with_digest(Dataset("gas_sensor_drift", train, test, "classification", outputs=CLASSES))


def _batch(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, 128] and classes [n] of one batch."""
    sparse = parse(content, where)
    if not np.isin(sparse.labels, range(1, CLASSES + 1)).all():
        raise InputError(f"{where}: labels must be 1..{CLASSES}, got {np.unique(sparse.labels).tolist()}")
    if sparse.features != FEATURES:
        raise InputError(f"{where}: must have {FEATURES} features, got {sparse.features}; get the file again")
    return dense(sparse, FEATURES, where), sparse.labels.astype(np.int64) - 1
