"""Synthetic(alpha, beta): a softmax model and inputs that differ from client to client.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, arXiv 1812.06127, section 5.1 and appendix C.1. Details the paper leaves open follow the authors' program
(https://github.com/litian96/FedProx, data/synthetic_*): alpha and beta are standard deviations of u_k and B_k, not
variances (alike for the paper's 0 and 1, not for 0.5); sizes are lognormal(4, 2) + 50, of which the last tenth of each
client is for testing; with ``iid`` the inputs have mean 0 and all clients share one model.

``alpha`` changes no label: as in the authors' program u_k is one number for all of W_k and b_k, so it adds the same to
every class's logit, u_k (1 + sum of the inputs), which the argmax does not see. Clients' models differ all the same, by
the N(0, 1) part of W_k, which alpha does not scale; for one model on all clients there is ``iid``.

Deviations: numbers come from addressed streams, so client k's data do not depend on how many clients there are; a
client's size is bounded by ``max_size`` (0.5% of clients exceed 10,000); features are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.data.arrays import check_memory, check_share, with_digest
from fedsim.data.dataset import Dataset, Split
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream

FEATURES, CLASSES = 60, 10
MIN_SIZE = 50
SPREAD = np.arange(1, FEATURES + 1) ** -0.6  # [60] standard deviations: Sigma_jj = j^-1.2


@dataclass(frozen=True)
class Synthetic:
    """Classification: float32 features [n, 60], 10 classes, the client of each sample as its group.

    Client k has y = argmax softmax(W_k x + b_k) with W_k, b_k ~ N(u_k, 1), u_k ~ N(0, alpha), and
    x ~ N(v_k, Sigma), v_k ~ N(B_k, 1), B_k ~ N(0, beta), Sigma_jj = j^-1.2.

    Attributes:
        clients: number of clients n >= 1 (30 in the paper).
        alpha: standard deviation of u_k, >= 0; it has no effect on the data (see above).
        beta: how much the clients' inputs differ, >= 0.
        iid: one model and one input distribution for all; alpha and beta play no part.
        max_size: bound of a client's number of samples, >= 50.
        test_share: share of each client's samples held out for testing, in [0, 1).
    """

    clients: int = 30
    alpha: float = 1.0
    beta: float = 1.0
    iid: bool = False
    max_size: int = 10_000
    test_share: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients >= 1, "clients", "be >= 1", self.clients)
        require(0 <= self.alpha < float("inf"), "alpha", "be >= 0 and finite", self.alpha)
        require(0 <= self.beta < float("inf"), "beta", "be >= 0 and finite", self.beta)
        require(self.max_size >= MIN_SIZE, "max_size", f"be >= {MIN_SIZE}", self.max_size)
        check_memory("clients", (self.clients, MIN_SIZE, FEATURES), 4, "lower clients")  # if all have the least
        check_share(self.test_share)

    def load(self, seed: int) -> Dataset:
        """Generate; everything follows from the seed."""
        drawn = numpy_stream(seed, addresses.DATA_SYNTHETIC_SIZE).lognormal(4, 2, self.clients)
        sizes = np.minimum(drawn.astype(np.int64) + MIN_SIZE, self.max_size).tolist()
        check_memory("clients", (sum(sizes), FEATURES), 4, "lower clients or max_size")
        x, y = (
            np.concatenate(arrays)
            for arrays in zip(*(self._client(seed, k, sizes[k]) for k in range(self.clients)), strict=True)
        )
        group = np.repeat(np.arange(self.clients), sizes)
        place = np.concatenate([np.arange(size) for size in sizes])  # within its client
        train_sizes = [int((1 - self.test_share) * size) for size in sizes]
        train = place < np.repeat(train_sizes, sizes)
        test = None if train.all() else Split(x[~train], y[~train], group[~train])
        splits = Split(x[train], y[train], group[train]), test
        return with_digest(Dataset("synthetic", *splits, "classification", outputs=CLASSES))

    def _client(self, seed: int, k: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """x [size, 60] and y [size] of client k."""
        rng = numpy_stream(seed, addresses.DATA_SYNTHETIC, k)
        u, centre = rng.normal(0, self.alpha), rng.normal(0, self.beta)
        v = np.zeros(FEATURES) if self.iid else rng.normal(centre, 1, FEATURES)
        model = numpy_stream(seed, addresses.DATA_SYNTHETIC_MODEL) if self.iid else rng
        mean = 0.0 if self.iid else u
        weights, bias = model.normal(mean, 1, (FEATURES, CLASSES)), model.normal(mean, 1, CLASSES)
        x = v + SPREAD * rng.standard_normal((size, FEATURES))
        return x.astype(np.float32), (x @ weights + bias).argmax(1)
