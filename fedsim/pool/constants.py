"""A model's constants, its frozen parameters, held once per node: a pretrained backbone may be most of a run's memory.

Copies of a model in one process share them. Ray's actors, and the driver while they live, read them where they lie in
the node's object store, as they read the data set: they travel as numpy arrays beside a module without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from fedsim.data.batches import as_tensor
from fedsim.ground.layout import aligned
from fedsim.models import copied


def frozen(model: nn.Module) -> dict[str, nn.Parameter]:
    """The frozen parameters of a model by name, tied ones once."""
    return {name: p for name, p in model.named_parameters() if not p.requires_grad}


def constants(model: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[int, nn.Parameter]:
    """What every copy of a model on one device gets in place of its frozen parameters, by their ids."""
    return {id(p): nn.Parameter(p.detach().to(device, dtype), False) for p in frozen(model).values()}


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """The memory of a model's frozen parameters, by name."""
    return {name: p.detach().numpy() for name, p in frozen(model).items()}


def without(model: nn.Module) -> nn.Module:
    """A model whose frozen parameters hold nothing: a copy, if there are any."""
    empty = {id(p): nn.Parameter(p.new_empty(0), False) for p in frozen(model).values()}
    return copied(model, empty) if empty else model


@contextmanager
def lent(model: nn.Module, held: Mapping[str, np.ndarray]) -> Iterator[None]:
    """A block in which a model's frozen parameters lie in this memory; afterwards in memory of its own again."""
    put_back(model, held)
    try:
        yield
    finally:
        for p in frozen(model).values():
            p.data = p.detach().clone()


def put_back(model: nn.Module, held: Mapping[str, np.ndarray]) -> None:
    """Let a model's frozen parameters lie in this memory, which stays as it is: it is only ever read."""
    for name, p in frozen(model).items():
        p.data = aligned(as_tensor(held[name]))
