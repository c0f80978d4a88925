"""A forward pass may do nothing but compute: what clients share must stay, and random draws have no address here."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.errors import InputError


@contextmanager
def pure(model: nn.Module, inputs: Tensor, name: str) -> Iterator[None]:
    """Around a forward pass of ``model`` on ``inputs``.

    Raises:
        InputError: it drew random numbers (torch's, numpy's or Python's), or wrote into its input, a buffer or a
            parameter.
    """
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    written = {key: p._version for key, p in model.named_parameters()}
    version, before = inputs._version, _generators()
    yield
    if inputs._version != version:
        raise InputError(f"model {name} writes into its input in forward, but the samples are shared; use x = x - ...")
    after = _generators()
    for generator, state in before.items():
        if state != after[generator]:
            raise InputError(
                f"model {name} draws random numbers in forward ({generator}), which have no address (seed, round, "
                "client); take them out, or draw them once in __init__ and keep them as a buffer"
            )
    for key, value in model.named_buffers():
        if key not in buffers or not torch.equal(buffers[key], value):
            raise InputError(
                f"model {name} changes its buffer {key} in forward, but buffers are constants that all clients share"
            )
    for key, p in model.named_parameters():
        if written.get(key) != p._version:
            raise InputError(
                f"model {name} writes into its parameter {key} in forward (as nn.Embedding does with max_norm), but "
                "parameters belong to the algorithm; compute with a changed copy instead"
            )


def _generators() -> dict[str, Any]:
    """The state of every global generator, comparable by ``==``."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - it is what a user's forward may draw from
    return {
        "torch": torch.random.get_rng_state().numpy().tobytes(),
        "numpy.random": (kind, np.asarray(keys).tobytes(), *rest),
        "random": random.getstate(),
    }
