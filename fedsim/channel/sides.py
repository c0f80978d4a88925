"""What goes beside a vector, each kind with the fewest bytes that hold it: positions, signs, levels, trits, seeds.

A side holds one tensor and static ints. Its size is a function of the tensor's shape and those ints, never of its
values; ``len(side.header()) + side.payload_size() == len(side.header()) + len(side.payload())``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedsim.channel.packing import (
    Reader,
    bytes_for,
    pack_bits,
    pack_positions,
    pack_trits,
    pack_unsigned,
    positions_size,
    unpack_bits,
    unpack_positions,
    unpack_trits,
    unpack_unsigned,
    varint,
)
from fedsim.errors import require


@dataclass(frozen=True, eq=False)
class Positions:
    """Where k entries stand in a vector: Elias-Fano, or a bitmap from k / d = 1/4 on.

    Attributes:
        tensor: [k] int64, ascending, in [0, d).
        d: length of the vector.
    """

    tensor: Tensor
    d: int
    code: ClassVar[int] = 0

    def header(self) -> bytes:
        """k and d."""
        return _header(self.tensor.shape[-1], self.d)

    def payload_size(self) -> int:
        """About k (2 + log2(d / k)) bits, or d."""
        return positions_size(self.tensor.shape[-1], self.d)

    def payload(self) -> bytes:
        """The positions."""
        index = array(self.tensor).astype(np.int64)
        ok = not len(index) or bool((np.diff(index) > 0).all() and index[0] >= 0 and index[-1] < self.d)
        require(ok, "positions", f"ascend from >= 0 to < {self.d}", index)
        return pack_positions(index, self.d)

    @classmethod
    def read(cls, reader: Reader) -> Positions:
        """Read back what ``header`` and ``payload`` wrote."""
        k, d = reader.varint(), reader.varint()
        return cls(torch.from_numpy(unpack_positions(reader, k, d)), d)


@dataclass(frozen=True, eq=False)
class Signs:
    """One bit for each entry.

    Attributes:
        tensor: [d] bool, true for +1.
    """

    tensor: Tensor
    code: ClassVar[int] = 1

    def header(self) -> bytes:
        """The number of entries d."""
        return _header(self.tensor.shape[-1])

    def payload_size(self) -> int:
        """d bits."""
        return bytes_for(self.tensor.shape[-1])

    def payload(self) -> bytes:
        """The bits."""
        require(self.tensor.dtype == torch.bool, "signs", "be bool", self.tensor.dtype)
        return pack_bits(array(self.tensor))

    @classmethod
    def read(cls, reader: Reader) -> Signs:
        """Read back what ``header`` and ``payload`` wrote."""
        return cls(torch.from_numpy(unpack_bits(reader, reader.varint()).view(np.bool_)))


@dataclass(frozen=True, eq=False)
class Levels:
    """Integers of a known range, ceil(log2(high - low + 1)) bits each; read back in the narrowest dtype.

    Attributes:
        tensor: [d] any integer dtype, in [low, high].
        low: smallest value.
        high: largest value, > low.
    """

    tensor: Tensor
    low: int
    high: int
    code: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require(self.low < self.high, "high", f"be > low = {self.low}", self.high)
        require(self.high - self.low < 2**62, "high - low", "be < 2^62", self.high - self.low)

    @property
    def width(self) -> int:
        """Bits of one."""
        return (self.high - self.low).bit_length()

    def header(self) -> bytes:
        """d, low (zigzag) and high - low."""
        zigzag = 2 * self.low if self.low >= 0 else -2 * self.low - 1
        return _header(self.tensor.shape[-1], zigzag, self.high - self.low)

    def payload_size(self) -> int:
        """d times the width, in bytes."""
        return bytes_for(self.tensor.shape[-1] * self.width)

    def payload(self) -> bytes:
        """The distances from low."""
        above = array(self.tensor).astype(np.int64) - self.low
        ok = not len(above) or bool(above.min() >= 0 and above.max() <= self.high - self.low)
        require(ok, "levels", f"be in [{self.low}, {self.high}]", array(self.tensor))
        return pack_unsigned(above, self.width)

    @classmethod
    def read(cls, reader: Reader) -> Levels:
        """Read back what ``header`` and ``payload`` wrote."""
        d, zigzag, span = reader.varint(), reader.varint(), reader.varint()
        low = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
        reader.check(0 < span < 2**62 and low + span < 2**63, f"levels from {low} to {low + span}")
        above = unpack_unsigned(reader, d, span.bit_length())
        reader.check(not d or int(above.max()) <= span, f"a level above {low + span}")
        return cls(torch.from_numpy(above + low).to(narrowest(low, low + span)), low, low + span)


@dataclass(frozen=True, eq=False)
class Trits:
    """Numbers in {-1, 0, 1}, five in a byte; read back as int8.

    Attributes:
        tensor: [d] int8.
    """

    tensor: Tensor
    code: ClassVar[int] = 3

    def header(self) -> bytes:
        """The number of entries d."""
        return _header(self.tensor.shape[-1])

    def payload_size(self) -> int:
        """ceil(d / 5) bytes."""
        return -(-self.tensor.shape[-1] // 5)

    def payload(self) -> bytes:
        """The trits."""
        trits = array(self.tensor)
        ok = trits.dtype == np.int8 and (not len(trits) or bool(trits.min() >= -1 and trits.max() <= 1))
        require(ok, "trits", "be int8 in {-1, 0, 1}", trits)
        return pack_trits(trits)

    @classmethod
    def read(cls, reader: Reader) -> Trits:
        """Read back what ``header`` and ``payload`` wrote."""
        return cls(torch.from_numpy(unpack_trits(reader, reader.varint())))


@dataclass(frozen=True, eq=False)
class Seed:
    """The number from which both ends draw the same k of d positions.

    Attributes:
        tensor: scalar int64.
        k: how many positions.
        d: length of the vector.
    """

    tensor: Tensor
    k: int
    d: int
    code: ClassVar[int] = 4

    def header(self) -> bytes:
        """k and d."""
        return _header(self.k, self.d)

    def payload_size(self) -> int:
        """Eight bytes."""
        return 8

    def payload(self) -> bytes:
        """The number."""
        ok = self.tensor.dtype == torch.int64 and self.tensor.dim() == 0
        require(ok, "seed", "be a scalar int64", (self.tensor.dtype, tuple(self.tensor.shape)))
        return array(self.tensor).astype("<i8").tobytes()

    @classmethod
    def read(cls, reader: Reader) -> Seed:
        """Read back what ``header`` and ``payload`` wrote."""
        k, d = reader.varint(), reader.varint()
        return cls(torch.tensor(int.from_bytes(reader.take(8), "little", signed=True)), k, d)


Side: TypeAlias = Positions | Signs | Levels | Trits | Seed
"""What may go beside a vector; each holds its ``tensor``."""

KINDS: Sequence[type[Side]] = (Positions, Signs, Levels, Trits, Seed)
"""By ``code``, the byte that names the kind on the wire."""


def narrowest(low: int, high: int) -> torch.dtype:
    """The smallest signed integer dtype that holds [low, high]."""
    kinds = (torch.int8, torch.int16, torch.int32, torch.int64)
    return next(kind for kind in kinds if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max)


def array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor's values where numpy can read them."""
    return tensor.detach().cpu().contiguous().numpy()


def _header(*numbers: int) -> bytes:
    return b"".join(varint(n) for n in numbers)
