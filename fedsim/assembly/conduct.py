"""Whether a model only computes, found out before a run starts: at the run's sizes, called again, at other weights.

A forward pass is a function of the model's parameters and its inputs. What it keeps from one call to the next, what it
draws, and what it writes would make numbers depend on who was computed before, on which worker; and a prediction that
depends on the samples beside it would depend on how many are evaluated at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.assembly.agreement import TOLERANCE, Trial, largest
from fedsim.data.batches import Feed
from fedsim.errors import InputError
from fedsim.ground.buffers import Buffers
from fedsim.ground.layout import Layout, trained
from fedsim.ground.own_code import said
from fedsim.kernels.kernel import numbers
from fedsim.models import pure, twin
from fedsim.models.dropout import Masks, draws
from fedsim.models.mask_dims import mask_dims, refuse_in_turn
from fedsim.models.pure import identical
from fedsim.models.reach import changed, refuse_generators, snapshot
from fedsim.pool.worker import CHUNK, Setup

_LARGE = 100.0
"""Times the parameters: what forward limits to a range or a norm is outside it then, though not yet at the start."""

_NUMBERS = 2**21
"""In the largest activation of a trial that no step of the run is as large as: some tens of milliseconds."""


def minibatch_sizes(setup: Setup) -> list[int]:
    """The numbers of examples in the run's minibatches, ascending; for Poisson sampling a span of likely ones."""
    local, found = setup.local, set()
    for n in np.unique(setup.train.sizes()).tolist():
        size = local.batch(n)
        if local.sampling == "poisson" and size < n:
            spread = 4 * isqrt(size) + 1  # four standard deviations of their number
            found |= {max(1, size - spread), size, min(n, size + spread)}
        else:
            found |= {size, n % size or size}
    return sorted(found)


def padded(setup: Setup, at: Trial) -> list[Trial]:
    """As ``at``, in the widest minibatch of the run, the second client having fewer examples, as some do; or []."""
    *fewer, width = minibatch_sizes(setup)
    if not fewer:
        return []
    inputs, y = _samples(setup, width, at.x.dtype)
    some = sorted({fewer[0], fewer[len(fewer) // 2], fewer[-1]})
    masks = [(torch.arange(width) < torch.tensor([[width], [n]])).to(at.x.dtype) for n in some]
    return [Trial(at.x, torch.stack([inputs, inputs]), torch.stack([y, y]), mask) for mask in masks]


def refuse_conduct(setup: Setup, model: nn.Module, at: Trial) -> None:
    """Refuse a model whose forward does more than compute.

    Args:
        setup: of the run.
        model: is left as it is.
        at: two clients.

    Raises:
        InputError: in one line, what it does.
    """
    name = type(model).__name__
    refuse_generators(model, name)
    few = at.inputs[0]
    width = minibatch_sizes(setup)[-1]
    one = few if setup.written else few[:1]  # of which alone BatchNorm has no statistics
    most = min(CHUNK, len(setup.train.x), max(32, _NUMBERS // numbers(twin(model), one)))
    called = partial(_Called, model, name, setup.written)
    if draws(model):
        refuse_in_turn(twin(model).train(), few[:2])
    with torch.no_grad():
        if setup.written:
            called(True)(at.x[0], _samples(setup, minibatch_sizes(setup)[0], at.x.dtype)[0], twice=False)
        for training, count in ((True, width), (False, most)):
            inputs, _ = _samples(setup, count, at.x.dtype)
            outputs = called(training)(at.x[0], inputs, twice=count <= most and training)
            if not torch.isfinite(outputs).all():
                raise InputError(
                    f"model {name} gives numbers that are not finite (NaN or infinity) on training samples, with its "
                    "initial parameters; look at its initialisation, its divisions and logarithms, and at the samples"
                )
            if not training:
                _refuse_mixing(model, name, at.x[0], inputs, outputs)
            used, other = called(training), called(True)
            used(_LARGE * at.x[0], few)
            other(at.x[0], few)
            want = called(training)(at.x[1], few)
            other.module.train(training)
            for got in (used(at.x[1], few), other(at.x[1], few)):
                if _far(got, want):
                    raise InputError(
                        f"model {name} remembers what it was called with before: with other parameters a used copy "
                        "gives other outputs than a new one; forward must keep nothing from one call to the next"
                    )


class _Called:
    """A copy of a model, called under watch."""

    def __init__(self, model: nn.Module, name: str, written: Sequence[str], training: bool):
        self.module, self.name, self.layout, self.written = twin(model), name, Layout.of(model), written
        self.buffers = Buffers.of(model, written)
        self.held = self.buffers.flatten(model, next(model.parameters()).dtype) if written else torch.empty(0)
        self.module.train(training)
        self.draws = training and draws(model)

    def __call__(self, x: Tensor, inputs: Tensor, *, twice: bool = True) -> Tensor:
        """Outputs at parameters x [d]; a second call must give the same, and leave everything as the first did."""
        x = x.clone()
        parameters = list(self.module.parameters())
        for p, view in zip(trained(self.module), self.layout.views(x).values(), strict=True):
            p.data = view
        where = [p.data_ptr() for p in parameters]
        given = x.clone()
        before: dict[str, Any] = {}
        first = torch.empty(0)
        for again in range(2 if twice else 1):
            if self.written:
                self.buffers.load(self.module, self.held)
            try:
                with pure(self.module, inputs, self.name, self.written), self._masks(inputs):
                    outputs = self.module(inputs)
            except InputError:
                raise
            except Exception as error:  # user code: any type
                how = "training" if self.module.training else "evaluation"
                few = "; choose local.batch_size so that no minibatch is so small" if self.written else ""
                raise InputError(
                    f"model {self.name} fails on {len(inputs)} training samples in {how} mode: {said(error)}{few}"
                ) from error
            if where != [p.data_ptr() for p in self.module.parameters()] or not identical(x, given):
                raise InputError(
                    f"model {self.name} changes its parameters in forward, which belong to the algorithm; compute with "
                    "a changed copy instead"
                )
            after = snapshot(self.module)
            if again and (found := changed(before, after)):
                raise InputError(
                    f"model {self.name} keeps {found}, which changes from one call to the next; forward must keep "
                    "nothing, for what it finds would depend on who was computed before"
                )
            if again and torch.isfinite(first).all() and _far(outputs, first):
                raise InputError(
                    f"model {self.name} gives other outputs for the same samples when it is called again: forward must "
                    "keep nothing from one call to the next and draw no random numbers, which depend on who was before"
                )
            before, first = (before, first) if again else (after, outputs)
        return first

    def _masks(self, inputs: Tensor) -> AbstractContextManager[Any]:
        if not self.draws:
            return nullcontext()
        return Masks(torch.arange(len(inputs)), mask_dims(self.module, inputs))


def _refuse_mixing(model: nn.Module, name: str, x: Tensor, inputs: Tensor, outputs: Tensor) -> None:
    """Samples must be predicted alone as they are beside others."""
    if not _mixes(model, name, x, inputs, outputs):
        return
    if x.dtype == torch.float32:  # a sign or a largest number may be decided by rounding, which has no part in float64
        model, x, inputs = twin(model).double(), x.double(), inputs.double() if inputs.is_floating_point() else inputs
        try:
            if not _mixes(model, name, x, inputs, _Called(model, name, (), training=False)(x, inputs, twice=False)):
                return
        except InputError:  # a model of float32 only
            pass
    raise InputError(
        f"model {name} predicts a sample differently when others are beside it, so that results would depend on how "
        "many are evaluated at once; let it mix samples in training mode only, if at all"
    )


def _mixes(model: nn.Module, name: str, x: Tensor, inputs: Tensor, outputs: Tensor) -> bool:
    call = _Called(model, name, (), training=False)
    some = (slice(0, 1), slice(len(inputs) - 1, None), slice(0, 3))
    return any(_far(call(x, inputs[few], twice=False), outputs[few]) for few in some)


def _far(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not largest(a - b) <= TOLERANCE.get(a.dtype, 1e-2) * largest(b)


def _samples(setup: Setup, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Training samples [count, ...] and targets, from all of them, and again from the first if there are fewer."""
    n = len(setup.train.x)
    rows = np.arange(count) * n // count if count <= n else np.arange(count) % n
    some = replace(setup.train, x=setup.train.x[rows], y=setup.train.y[rows])
    return Feed(some, torch.device("cpu"), dtype).take(torch.arange(count), None)
