"""Sums of clipped gradients over clients' Poisson minibatches, to which every client adds its share of the noise.

All clients take part in every round and weigh the same. A client's message is the mean over its K minibatches of
(sum + noise) / B_i, B_i being the expected size. One sample more or less moves such a sum by at most its bound c, so
the mean over P clients of one minibatch each by c / (B_i P). With B = min B_i each client's noise, divided by B_i, has
standard deviation z c / (B sqrt(P)): that of the mean is z c / (B P), z times the sensitivity of the clients with the
smallest minibatches, and z B_i / B times it of the others'. All clients must have the same K: one with fewer would
count more in the mean than the noise is made for (``equal_steps``, which ``fedsim.privacy.ledger`` checks).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from fedsim.objective import Objective
from fedsim.types import Batch, Round

DRAWS_AT_ONCE = 256
"""Random numbers drawn for each batch of a sweep; as many as the largest has examples."""


def share(multiplier: float, bound: Tensor | float, smallest: Tensor, rnd: Round) -> Tensor:
    """Standard deviation of a client's noise on its mean over a minibatch: z c / (B sqrt(P)), 0 for z = 0.

    Args:
        multiplier: z.
        bound: c; not used when z is 0.
        smallest: B.
        rnd: for P, everyone taking part.
    """
    if not multiplier:
        return torch.zeros_like(smallest)
    # the mean of P independent shares has 1 / sqrt(P) of one share's deviation: z c / (B P), z times its sensitivity
    return multiplier * bound / (smallest * math.sqrt(rnd.population))


def minibatch_mean(
    obj: Objective,
    summed: Callable[[Batch], Tensor],
    like: Tensor,
    multiplier: float,
    bound: Tensor | float,
    rnd: Round,
) -> Tensor:
    """The mean [d] over the client's K minibatches of (summed(batch) + noise) / B_i."""
    smallest = torch.minimum(obj.batch_size, torch.full_like(obj.batch_size, rnd.smallest)).to(like.dtype)
    std = share(multiplier, bound, smallest, rnd)
    steps = count()

    def add(total: Tensor, batch: Batch) -> Tensor:
        total = total + summed(batch) / obj.batch_size  # the expected size: the drawn one would be let out
        return total + std * obj.noise.at(next(steps)).normal(like) if multiplier else total

    return obj.run(add, torch.zeros_like(like)) / obj.steps


def sampled_mean(
    obj: Objective,
    summed: Callable[[Batch], Tensor],
    like: Tensor,
    rate: float,
    multiplier: float,
    bound: Tensor | float,
    rnd: Round,
) -> Tensor:
    """(sum [d] over a Poisson sample of all the client's examples at this rate + noise) / (rate n_i)."""
    chunks = count()

    def add(total: Tensor, batch: Batch) -> Tensor:
        m = batch.y.shape[0]
        if rate < 1:
            drawn = obj.noise.at(next(chunks)).uniform(batch.y.new_empty(DRAWS_AT_ONCE, dtype=torch.float64))[:m]
            # each example comes with probability ``rate`` by a draw of its own: Poisson sampling
            taken = (drawn + 2.0**-24 <= rate).to(like.dtype)  # multiples of 2^-24: never likelier than the rate
            batch = batch._replace(mask=taken if batch.mask is None else batch.mask * taken)
        return total + summed(batch)

    mean = obj.sweep(add, torch.zeros_like(like)) / (rate * obj.examples.to(like.dtype))
    if not multiplier:
        return mean
    smallest = torch.full_like(obj.examples, rnd.smallest).to(like.dtype) * rate  # B: the smallest client's sample
    return mean + share(multiplier, bound, smallest, rnd) * obj.noise.normal(like)


def multiplier_of(multiplier: float, expected: int, rnd: Round) -> float:
    """z B_i / B, noise over sensitivity for a client with ``expected`` examples in a minibatch."""
    return multiplier * expected / min(expected, rnd.smallest)
