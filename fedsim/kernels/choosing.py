"""The constants of the kernel rule from measured times: a pure function, apart from the measuring.

What is minimised is the geometric mean, over the models that were measured, of the time of a client's step that the
rule would take with these constants. A constant moves only where that gains ``LEAST`` or more: less is noise, and what
no model tells apart stays as it is built in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, NamedTuple

from fedsim.kernels.kernel import Kernel
from fedsim.kernels.tuning import MOST, Tuning

LEAST = 0.01
"""Part of the geometric mean that a change must gain."""


@dataclass(frozen=True)
class Shape:
    """What the rule sees of a model all of whose layers have stacked kernels.

    Attributes:
        d: parameters.
        largest: numbers per example in its largest activation.
        longest: the same of its sequences of rows.
        convolutions: of each two-dimensional one, its input channels per group and the numbers per example it gives.
    """

    d: int
    largest: int = 1
    longest: int = 1
    convolutions: tuple[tuple[int, int], ...] = ()

    def apart(self, wide: int) -> int:
        """How many of its convolutions are wide."""
        return sum(channels >= wide for channels, _ in self.convolutions)


class Way(NamedTuple):
    """One way to compute a model."""

    kernel: Kernel
    block: int
    apart: int = 0  # convolutions that run client by client inside the stack


@dataclass(frozen=True)
class Measured:
    """What was measured of one model.

    Attributes:
        name: for people.
        shape: for the rule.
        seconds: of one client and step, by the way.
    """

    name: str
    shape: Shape
    seconds: dict[Way, float]

    def at(self, way: Way) -> float:
        """Seconds of a way: between the blocks that were measured, interpolated by their logarithms."""
        known = sorted((w.block, s) for w, s in self.seconds.items() if w._replace(block=way.block) == way)
        if way.block <= known[0][0]:
            return known[0][1]
        for (before, first), (after, second) in pairwise(known):
            if way.block <= after:
                part = math.log(way.block / before) / math.log(after / before)
                return float(first ** (1 - part) * second**part)
        return known[-1][1]


def way_of(shape: Shape, tuning: Tuning) -> Way:
    """What the rule takes: ``kernel_rule`` on the CPU, of what it sees alone."""
    heavy = max((numbers for channels, numbers in shape.convolutions if channels >= tuning.wide), default=1)
    if heavy > tuning.alone:
        return Way("loop_last" if tuning.channels_last else "loop", 1)
    return Way("stacked", tuning.block(shape.d, shape.largest, shape.longest), shape.apart(tuning.wide))


def mean_seconds(measured: Sequence[Measured], tuning: Tuning) -> float:
    """The geometric mean over the models, of a client and step."""
    return math.exp(math.fsum(math.log(one.at(way_of(one.shape, tuning))) for one in measured) / len(measured))


def best(measured: Sequence[Measured], start: Tuning) -> Tuning:
    """The best constants that a search finds, one group of them after the other, from those to begin with."""
    chosen = start
    while True:
        before = chosen
        for group in _groups(measured, start):
            found = min((replace(chosen, **some) for some in group), key=lambda t: mean_seconds(measured, t))
            if mean_seconds(measured, found) <= (1 - LEAST) * mean_seconds(measured, chosen):
                chosen = found
        if chosen == before:
            return chosen


def _groups(measured: Sequence[Measured], start: Tuning) -> Iterator[list[dict[str, Any]]]:
    """Candidates: every value that tells the measured models apart, those near what is built in first."""
    widths = sorted({channels for one in measured for channels, _ in one.shape.convolutions})
    sizes = sorted({numbers for one in measured for _, numbers in one.shape.convolutions})
    wides = [start.wide, *widths, MOST]
    alone = [start.alone, 1, *sizes, MOST]  # one below the smallest, and each size itself, which it lets through
    each = product((start.channels_last, True), wides, alone)
    yield [{"wide": wide, "alone": most, "channels_last": last} for last, wide, most in each]
    for name in ("parameters", "numbers", "rows"):
        value: int = getattr(start, name)
        yield [{name: round(value * 2**step)} for step in (0, -1, 1, -2, 2, -3, 3, -4, 4)]
