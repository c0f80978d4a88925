"""How long standard models take on this processor, one client at a time and stacked: what ``fedsim tune`` measures.

One step of gradient descent on one core, in CPU seconds, the least of several that alternate between all ways: other
work on the machine then matters least.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.data.losses import cross_entropy, next_token
from fedsim.ground.layout import Layout
from fedsim.ground.process import keep_memory
from fedsim.kernels.choosing import Measured, Shape, Way
from fedsim.kernels.kernel import activations, layer_outputs
from fedsim.kernels.oracle import ModelOracle
from fedsim.kernels.stacked_ops import input_channels
from fedsim.kernels.tuning import MOST
from fedsim.models import build, cnn, linear, mlp, twin, zero_sample
from fedsim.models.recurrent import char_lstm
from fedsim.models.transformer import transformer
from fedsim.types import Batch

LR = 0.05
SHORT = 0.005
"""Seconds that one measurement takes at least: more calls of what is faster."""


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained.

    Attributes:
        factory: makes it.
        shape: of a sample.
        outputs: classes, or of tokens how many there are.
        examples: of a minibatch.
        blocks: numbers of clients to be tried.
        tokens: whether samples are tokens, and targets those that follow.
        options: of the factory.
    """

    factory: Callable[..., nn.Module]
    shape: tuple[int, ...]
    outputs: int
    examples: int
    blocks: tuple[int, ...]
    tokens: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


LEAF: Mapping[str, Any] = {"channels": (32, 64), "padding": 2, "hidden": (512,)}
IMAGE = (1, 28, 28)
CASES: Mapping[str, Case] = {
    "logistic": Case(linear, (300,), 2, 30, (2, 10, 50, 120, 250)),
    "mlp": Case(mlp, (784,), 10, 20, (2, 5, 12, 25, 60)),
    "cnn": Case(cnn, IMAGE, 10, 32, (2, 3, 5, 10)),
    "leaf_cnn": Case(cnn, IMAGE, 10, 32, (2, 3, 5), options=LEAF),
    "lstm": Case(char_lstm, (40,), 80, 10, (2, 5, 10, 20), tokens=True, options={"hidden": 64}),
    "transformer": Case(transformer, (32,), 1000, 10, (2, 5, 10), tokens=True),
}
"""The standard models, by name."""


def ways_of(shape: Shape, blocks: tuple[int, ...]) -> list[Way]:
    """All ways to be measured, for every choice of the convolutions that are wide."""
    loops: list[Way] = [Way("loop", 1), *([Way("loop_last", 1)] if shape.convolutions else [])]
    aparts = sorted({shape.apart(w) for w in (1, *(c + 1 for c, _ in shape.convolutions))})
    return loops + [Way("stacked", b, apart) for apart in aparts for b in blocks]


def rule_shape(model: nn.Module, sample: Tensor) -> Shape:
    """What the rule sees of a model."""
    given = layer_outputs(model, sample)
    found = ((input_channels(layer), prod(shape[1:])) for layer, shape in given if isinstance(layer, nn.Conv2d))
    return Shape(Layout.of(model).d, *activations(model, sample), tuple(sorted(found)))


def measure(name: str, repeats: int, told: Callable[[], None] = lambda: None) -> Measured:
    """What is measured of a standard model; ``told`` is called after every measurement.

    Args:
        name: of ``CASES``.
        repeats: how often each way is timed.
        told: of progress.
    """
    case = CASES[name]
    model = build(case.factory, case.shape, case.outputs, case.options, seed=0)
    shape = rule_shape(twin(model), zero_sample(model, case.shape, tokens=case.tokens))
    ways = ways_of(shape, case.blocks)
    with _one_thread(), torch.no_grad():
        steps = {way: _step(case, model, shape, way) for way in ways}
        calls = {way: max(1, round(SHORT / max(_seconds(step), _seconds(step), 1e-6))) for way, step in steps.items()}
        least = dict.fromkeys(ways, float("inf"))
        for _ in range(repeats):
            for way, step in steps.items():
                least[way] = min(least[way], _seconds(step, calls[way]) / way.block)
                told()
    return Measured(name, shape, least)


def _step(case: Case, model: nn.Module, shape: Shape, way: Way) -> Callable[[], Any]:
    """One step of all clients of a block."""
    wide = next(w for w in (MOST, *(c for c, _ in reversed(shape.convolutions))) if shape.apart(w) == way.apart)
    oracle = ModelOracle(twin(model), next_token if case.tokens else cross_entropy, way.kernel, wide=wide)
    random = torch.Generator().manual_seed(0)
    size = (way.block, case.examples)
    if case.tokens:
        text = torch.randint(case.outputs, (*size, case.shape[0] + 1), generator=random)
        inputs, y = text[..., :-1].contiguous(), text[..., 1:].contiguous()
    else:
        inputs = torch.randn(*size, *case.shape, generator=random)
        y = torch.randint(case.outputs, size, generator=random)
    x = oracle.layout.flatten(model).repeat(way.block, 1)
    if way.kernel != "stacked":
        return lambda: oracle.descend(x[0], Batch(inputs[0], y[0], None), LR)
    together = torch.func.vmap(lambda x, inputs, y: oracle.descend(x, Batch(inputs, y, None), LR))
    return lambda: together(x, inputs, y)


def _seconds(step: Callable[[], Any], calls: int = 1) -> float:
    """CPU seconds of a call."""
    begun = time.process_time()
    for _ in range(calls):
        step()
    return (time.process_time() - begun) / calls


@contextmanager
def _one_thread() -> Iterator[None]:
    """As a worker has it."""
    keep_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
