"""The clients a data set comes with: writers, speakers, files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream
from fedsim.partition.population import Population, bundle, populate


@dataclass(frozen=True)
class Natural:
    """One client for each group of the data set, with that group's test samples.

    Groups with fewer than ``min_samples`` training samples are left out. Where the test set carries no groups, it is
    divided like the training samples (see ``populate``).

    Attributes:
        clients: number of groups to use, chosen at random by the seed, >= 1; None: all of them.
        min_samples: least training samples of a group, >= 1.
    """

    clients: int | None = None
    min_samples: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients is None or self.clients >= 1, "clients", "be >= 1, or null for every group", self.clients)
        require(self.min_samples >= 1, "min_samples", "be >= 1", self.min_samples)

    def split(self, data: Dataset, seed: int) -> Population:
        """Divide ``data`` over the clients."""
        if data.train.group is None:
            raise InputError(
                f"partition=natural needs data with natural clients, which {data.name} lacks; use partition=iid"
            )
        groups, sizes = np.unique(data.train.group, return_counts=True)
        groups = groups[sizes >= self.min_samples]
        most = int(sizes.max())
        require(
            len(groups) > 0, "partition.min_samples", f"be <= {most}, the size of the largest group", self.min_samples
        )
        rng = numpy_stream(seed, addresses.PARTITION)
        if self.clients is not None:
            must = f"be <= the {len(groups)} groups of data {data.name} with >= {self.min_samples} samples"
            require(self.clients <= len(groups), "partition.clients", must, self.clients)
            groups = np.sort(rng.choice(groups, size=self.clients, replace=False))
        train = _members(data.train.group, groups)
        if data.test is None or data.test.group is None:
            return populate(data, train, rng)
        return Population(train, _members(data.test.group, groups))


def _members(group: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, ...]:
    """The samples of each of the ascending ``groups`` [n], from the group of each sample [s]."""
    samples = np.flatnonzero(np.isin(group, groups))
    return bundle(samples, np.searchsorted(groups, group[samples]), len(groups))
