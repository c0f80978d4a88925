"""The constants of the kernel rule, by what the processor computes with: built in, or measured by ``fedsim tune``.

A run takes one table and keeps it: nothing is timed while it runs, so that equal configuration, table and processor
give equal bits. The built-in rows come from measurements of one gradient step (see ``kernels.kernel``) on one core with
AVX-512. That of AVX2 differs in what was measured on an AMD EPYC: a network with wide convolutions (LEAF's, 1.66
million parameters) took 1.09 times as long with two clients at once as one after the other, and 0.8 times as long one
after the other with its images channels last. On other processors the numbers of AVX-512 stand, unmeasured; nothing is
measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from fedsim.errors import require
from fedsim.fields import check_fields

MOST = 2**48
"""Of every constant: more than any model has of anything."""


@dataclass(frozen=True)
class Tuning:
    """What decides how a model is computed, and how many clients a block holds.

    >>> Tuning().wide, built_in_row("AVX2", "cpu").channels_last
    (32, True)

    Attributes:
        clients: most of a block.
        parameters: most of a block, of all its clients together.
        numbers: largest activation of a block, in numbers per place in the minibatch.
        rows: the same for sequences of rows, which are taken up in order: more clients share the cost of many small
            steps.
        wide: input channels per group from which one client's convolution fills the CPU better than a grouped one.
        alone: largest output of a wide convolution, in numbers per example, that is computed for several clients at
            once: where it is larger, one client fills the CPU.
        channels_last: whether images lie channels last in memory where a model is computed one client at a time.
    """

    clients: int = 250
    parameters: int = 4_000_000
    numbers: int = 50_000
    rows: int = 320_000
    wide: int = 32
    alone: int = 50_000
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients >= 2, "clients", "be >= 2", self.clients)
        for name in (field.name for field in fields(self) if field.name not in ("clients", "channels_last")):
            value = getattr(self, name)
            require(value >= 1, name, "be >= 1", value)
            require(value <= MOST, name, f"be <= {MOST}", value)
        require(self.clients <= MOST_CLIENTS, "clients", f"be <= {MOST_CLIENTS}", self.clients)

    def block(self, d: int, largest: int, longest: int) -> int:
        """Clients whose parameters and activations stay near the caches (CPU) or well inside the memory (GPU).

        Args:
            d: parameters of one client.
            largest: numbers per example in its largest activation.
            longest: the same of its sequences of rows.
        """
        return max(2, min(self.clients, self.parameters // d, self.numbers // largest, self.rows // longest))


MOST_CLIENTS = 2**20
"""Of a block, as of ``engine.block``."""

BUILT_IN = {
    "AVX512": Tuning(),
    "AVX2": Tuning(alone=12_000, channels_last=True),
    "cuda": Tuning(
        clients=1000, parameters=250_000_000, numbers=16_000_000, rows=16_000_000, wide=MOST, alone=MOST
    ),
}  # fmt: skip
"""{CPU capability, as torch names it, or cuda: its row}."""


def built_in_row(capability: str, device: str) -> Tuning:
    """The row of a device; of a CPU by its capability, that of AVX-512 where it has none of its own."""
    return BUILT_IN["cuda"] if device == "cuda" else BUILT_IN.get(capability, BUILT_IN["AVX512"])
