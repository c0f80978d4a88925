"""Addressed random numbers: every draw is a function of (seed, purpose, address), never of execution order.

``stream(seed, addresses.BATCHES, round, client)`` gives the same numbers in every process, on every backend and in
every order of execution. Creating a stream costs a few microseconds and leaves no state behind. The purposes at which
fedsim draws, and how you name your own, are in ``fedsim.ground.addresses``.

Never split one draw into pieces: ``torch.randn(n)`` uses another algorithm for n < 16.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def key(seed: int, purpose: str, *address: int) -> int:
    """A 63-bit integer that names one stream (blake2b of the address)."""
    text = ":".join((str(seed), purpose, *map(str, address)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def stream(seed: int, purpose: str, *address: int) -> torch.Generator:
    """A torch generator (CPU) positioned at the start of its address."""
    return torch.Generator().manual_seed(key(seed, purpose, *address))


def streams(seed: int, purpose: str, *address: int, last: Iterable[int]) -> Iterator[torch.Generator]:
    """``stream(seed, purpose, *address, i)`` for each i of ``last``: one generator, put where one after another begins.

    What a stream gives is drawn before the next one is asked for. For ten thousand clients a generator each would cost
    as much as their shuffles.
    """
    begun = hashlib.blake2b(f"{':'.join((str(seed), purpose, *map(str, address)))}:".encode(), digest_size=8)
    generator = torch.Generator()
    for i in last:
        hashed = begun.copy()
        hashed.update(str(i).encode())
        yield generator.manual_seed(int.from_bytes(hashed.digest(), "little") >> 1)


def numpy_stream(seed: int, purpose: str, *address: int) -> np.random.Generator:
    """A numpy generator positioned at the start of its address (partitions, synthetic data, cohorts)."""
    return np.random.default_rng(key(seed, purpose, *address))


@contextmanager
def scoped(seed: int, purpose: str, *address: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python inside the block and restore them afterwards.

    Only for third-party code that draws from them, such as the constructors of ``torch.nn`` and users' own.
    """
    name = key(seed, purpose, *address)
    numpys, pythons = np.random.get_state(), random.getstate()  # noqa: NPY002 - users' constructors may draw there
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(name)
            np.random.seed(name % 2**32)  # noqa: NPY002
            random.seed(name)
            yield
    finally:
        np.random.set_state(numpys)  # noqa: NPY002
        random.setstate(pythons)
