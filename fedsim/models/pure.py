"""A forward pass may do nothing but compute: what clients share must stay, and random draws have no address here.

But dropout, which is answered before it draws (``fedsim.models.dropout``).
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand
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
        self.parameters = [_marks(model) for model in models]

    def generator(self) -> str:
        """The first global generator that was drawn from, or ""."""
        after = generators()
        return next((name for name, state in self.drawn.items() if state != after[name]), "")

    def written(self) -> str:
        """What was written into, in words, or ""."""
        for model, marks, buffers in zip(self.models, self.parameters, self.buffers, strict=True):
            name, named, parameters = type(model).__name__, model.named_parameters(), dict(marks)
            if marks == _marks(model):
                named = iter(())  # the usual case, for which no names are made
            for key, value in model.named_buffers() if any(module._buffers for module in model.modules()) else ():
                if key in self.owned:
                    continue
                if key not in buffers or not identical(buffers[key], value):
                    return (
                        f"model {name} changes its buffer {key} in forward, but buffers are constants that all clients "
                        "share; model.batchnorm=local or average gives them an owner"
                    )
            for key, p in named:
                trained, version = parameters.get(id(p), (None, None))
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


def _marks(model: nn.Module) -> list[tuple[int, tuple[bool, int]]]:
    """What shows whether a model's parameters are still its own, trained or not as before, and not written into."""
    held = (p for module in model.modules() for p in module._parameters.values() if p is not None)
    return [(id(p), (p.requires_grad, p._version)) for p in held]


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


def _numpys() -> Any:
    """The state of the generator that ``np.random`` draws from, as a user's forward may."""
    source: Any = mtrand.get_bit_generator()
    if isinstance(source, np.random.MT19937):  # 624 words and a place among them; ``get_state`` takes 60 us for them
        return ctypes.string_at(source.ctypes.state_address, 625 * 4)
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - of whatever somebody has put in its place
    return kind, np.asarray(keys).tobytes(), *rest


def generators() -> dict[str, Any]:
    """The state of every global generator, comparable by ``==``."""
    states = {
        "torch": torch.random.get_rng_state().numpy().tobytes(),
        "numpy.random": _numpys(),
        "random": random.getstate(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["torch.cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return states
