"""Keys of dropout: a number for each example of each minibatch, of which its masks follow (``ground.masks``)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.ground import addresses, rng
from fedsim.ground.masks import derived

PASS = -1
"""The number, in place of a step's, under which a pass over all of a client's examples stands."""


def client_keys(clients: tuple[int, ...], index: int, seed: int) -> Tensor:
    """The keys [b] of these clients in round ``index``."""
    return torch.tensor([rng.key(seed, addresses.DROPOUT, index, i) for i in clients])


def step_keys(clients: Tensor, steps: int, width: int) -> Tensor:
    """Keys [b, K, m] of the examples of all minibatches, of clients with keys [b]: below the client's the step's."""
    count, place = (torch.arange(n, device=clients.device) for n in (steps, width))
    return derived(derived(clients[:, None], count)[..., None], place)


def pass_keys(client: Tensor, at: Tensor) -> Tensor:
    """Keys [w] of a client's examples in a pass over all of them, by their place [w] among the client's."""
    return derived(derived(client, PASS), at)
