"""A forward pass may do nothing but compute: what clients share must stay, and random draws have no address here.

But dropout, which is answered before it draws (``fedsim.models.dropout``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.errors import ClientError, InputError
from fedsim.models.dropout import draws


class _Before:
    """The state of some models before forward passes, to see afterwards whether these drew numbers or wrote anything.

    Args:
        models: whose parameters may be exchanged meanwhile, not written into.
        buffers: copies of each model's buffers, as they must stay.
        owned: names of buffers that may change, for they have an owner.
    """

    def __init__(self, models: Sequence[nn.Module], buffers: Sequence[Mapping[str, Tensor]], owned: Sequence[str] = ()):
        self.models, self.buffers, self.drawn, self.owned = models, buffers, generators(), owned
        self.parameters = [
            {key: (p.requires_grad, p._version) for key, p in model.named_parameters()} for model in models
        ]

    def generator(self) -> str:
        """The first global generator that was drawn from, or ""."""
        after = generators()
        return next((name for name, state in self.drawn.items() if state != after[name]), "")

    def written(self) -> str:
        """What was written into, in words, or ""."""
        for model, parameters, buffers in zip(self.models, self.parameters, self.buffers, strict=True):
            name = type(model).__name__
            for key, value in model.named_buffers():
                if key in self.owned:
                    continue
                if key not in buffers or not identical(buffers[key], value):
                    return (
                        f"model {name} changes its buffer {key} in forward, but buffers are constants that all clients "
                        "share; model.batchnorm=local or average gives them an owner"
                    )
            for key, p in model.named_parameters():
                trained, version = parameters.get(key, (None, None))
                if trained != p.requires_grad:
                    return (
                        f"model {name} changes in forward whether its parameter {key} is trained; say it before "
                        "the run, with requires_grad or model.freeze"
                    )
                if version != p._version:
                    return (
                        f"model {name} writes into its parameter {key} in forward (as nn.Embedding does with "
                        "max_norm), but parameters belong to the algorithm; compute with a changed copy instead"
                    )
        return ""


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.named_buffers()}


@contextmanager
def pure(model: nn.Module, inputs: Tensor, name: str, owned: Sequence[str] = ()) -> Iterator[None]:
    """A ``with`` block around one forward pass of ``model`` on ``inputs`` that refuses side effects.

    Buffers that are ``owned`` may be written in training mode.

    Raises:
        InputError: it drew random numbers (torch's, numpy's or Python's), or wrote into its input, a buffer or a
            parameter.
    """
    before = _Before([model], [_buffers(model)], owned if model.training else ())
    version, given = inputs._version, inputs.clone()
    yield
    if inputs._version != version or not identical(inputs, given):
        raise InputError(f"model {name} writes into its input in forward, but the samples are shared; use x = x - ...")
    if generator := before.generator():
        do = "take them out, or draw them once in __init__ and keep them as a buffer"
        if not model.training and draws(model):
            do = "switch dropout off in evaluation mode, as in F.dropout(x, p, self.training)"
        raise InputError(
            f"model {name} draws random numbers in forward ({generator}), which have no address (seed, round, "
            f"client); {do}"
        )
    if written := before.written():
        raise InputError(written)


class Watch:
    """Refuses side effects of a worker's models during the whole run.

    Passes tried before a run are few and small; a model may draw or write only later, or only on larger minibatches.

    Args:
        models: that are run from now on; their parameters may be exchanged, not written into.
        owned: names of buffers that may be written.
    """

    def __init__(self, models: Sequence[nn.Module], owned: Sequence[str] = ()):
        self.models, self.buffers, self.owned = models, [_buffers(model) for model in models], owned

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A ``with`` block around some jobs.

        Raises:
            ClientError: a forward pass drew random numbers, or wrote into a buffer or a parameter.
        """
        before = _Before(self.models, self.buffers, self.owned)
        yield
        if generator := before.generator():
            raise ClientError(
                f"model {type(self.models[0]).__name__} or the algorithm draws random numbers ({generator}), which "
                "have no address (seed, round, client); take them out of forward, and use obj.noise in an algorithm"
            )
        if written := before.written():
            raise ClientError(written)


def identical(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN being NaN."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and (torch.equal(a, b) or (torch.equal(a != a, b != b) and bool(((a == b) | (a != a)).all())))
    )


def generators() -> dict[str, Any]:
    """The state of every global generator, comparable by ``==``."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - it is what a user's forward may draw from
    states = {
        "torch": torch.random.get_rng_state().numpy().tobytes(),
        "numpy.random": (kind, np.asarray(keys).tobytes(), *rest),
        "random": random.getstate(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["torch.cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return states
