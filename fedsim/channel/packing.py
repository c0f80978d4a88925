"""Numbers of few bits as bytes, and back: bits, integers of any width, trits, sorted positions. Plain numpy.

Sorted positions (P. Elias, Efficient storage and retrieval by content and address of static files, JACM 1974;
R. Fano 1971): each is cut into ``low_bits`` low bits, stored as they are, and a high part, stored in unary. That is at
most 2 + log2(d / k) bits for each of k positions among d. From k / d = 1/4 on a bitmap of d bits is no larger.

Bits and bytes are little-endian; unused bits of a last byte are 0. ``unpack_*`` accept nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import InputError

Bits: TypeAlias = NDArray[np.bool_] | NDArray[np.uint8]
_TRITS = (np.arange(243)[:, None] // 3 ** np.arange(5) % 3 - 1).astype(np.int8)


@dataclass
class Reader:
    """Encoded bytes and how far they have been read.

    Attributes:
        data: the whole message.
        at: the next byte.
    """

    data: bytes
    at: int = 0

    def check(self, ok: bool, what: str) -> None:
        """Raise ``InputError`` that names the place unless ``ok``; ``what`` is what was found instead."""
        if not ok:
            raise InputError(f"message must be bytes of wire.encode, got {what} before byte {self.at}")

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        left = len(self.data) - self.at
        self.check(count <= left, f"an end {count - left} bytes too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        """The next byte as a number."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next non-negative number that ``varint`` wrote."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                self.check((byte > 0 or shift == 7) and value < 2**63, "a malformed number")
                return value
            self.check(shift < 63, "a malformed number")


def varint(value: int) -> bytes:
    """A number in [0, 2^63) as bytes of seven bits, the lowest first; the top bit says that another byte follows."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def bytes_for(bits: int) -> int:
    """The least number of bytes that hold so many bits."""
    return -(-bits // 8)


def pack_bits(bits: Bits) -> bytes:
    """Bits [n] (bool or 0/1) -> ceil(n / 8) bytes."""
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_bits(reader: Reader, n: int) -> NDArray[np.uint8]:
    """The inverse of ``pack_bits``."""
    data = reader.take(bytes_for(n))
    reader.check(n % 8 == 0 or data[-1] >> n % 8 == 0, "padding that is not 0")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=n, bitorder="little")


def pack_unsigned(numbers: NDArray[np.int64], width: int) -> bytes:
    """Numbers [n] in [0, 2^width) -> ceil(n * width / 8) bytes."""
    if width in (8, 16, 32):
        return numbers.astype(f"<u{width // 8}").tobytes()
    if width in (2, 4):
        in_a_byte = 8 // width
        padded = np.zeros(-(-len(numbers) // in_a_byte) * in_a_byte, np.uint8)
        padded[: len(numbers)] = numbers
        out = np.zeros(len(padded) // in_a_byte, np.uint8)
        for place in range(in_a_byte):
            out |= padded[place::in_a_byte] << np.uint8(place * width)
        return out.tobytes()
    bits = np.empty((len(numbers), width), np.uint8)
    for bit in range(width):
        bits[:, bit] = (numbers >> bit) & 1
    return pack_bits(bits.reshape(-1))


def unpack_unsigned(reader: Reader, n: int, width: int) -> NDArray[np.int64]:
    """The inverse of ``pack_unsigned``."""
    if width in (8, 16, 32):
        return np.frombuffer(reader.take(n * width // 8), f"<u{width // 8}").astype(np.int64)
    bits = unpack_bits(reader, n * width).reshape(n, width)
    numbers = np.zeros(n, np.int64)
    for bit in range(width):
        numbers |= bits[:, bit].astype(np.int64) << bit
    return numbers


def pack_trits(trits: NDArray[np.int8]) -> bytes:
    """Numbers [n] in {-1, 0, 1} -> ceil(n / 5) bytes: five base-3 digits each, as 3^5 = 243 <= 256."""
    digits = np.zeros(-(-len(trits) // 5) * 5, np.uint8)
    digits[: len(trits)] = trits + 1
    out = np.zeros(len(digits) // 5, np.uint8)
    for place in range(5):
        out += digits[place::5] * np.uint8(3**place)
    return out.tobytes()


def unpack_trits(reader: Reader, n: int) -> NDArray[np.int8]:
    """The inverse of ``pack_trits``."""
    data = np.frombuffer(reader.take(-(-n // 5)), np.uint8)
    reader.check(not len(data) or int(data.max()) < 243, "a byte that is no five trits")
    trits = _TRITS[data].reshape(-1)
    reader.check(bool((trits[n:] == -1).all()), "padding that is not 0")
    return trits[:n]


def positions_size(k: int, d: int) -> int:
    """Bytes of k sorted positions among d."""
    if 4 * k >= d:
        return bytes_for(d)
    if k == 0:
        return 0
    low = _low_bits(k, d)
    return bytes_for(k * low) + bytes_for(_upper_bits(k, d, low))


def pack_positions(index: NDArray[np.int64], d: int) -> bytes:
    """Ascending positions [k] in [0, d) -> ``positions_size(k, d)`` bytes."""
    k = len(index)
    if 4 * k >= d:
        bitmap = np.zeros(d, np.uint8)
        bitmap[index] = 1
        return pack_bits(bitmap)
    if k == 0:
        return b""
    low = _low_bits(k, d)
    # High part h of the i-th position: a one at place h + i. High parts ascend and i counts up, so no two ones meet,
    # and the i-th one, less i, gives h back.
    upper = np.zeros(_upper_bits(k, d, low), np.uint8)
    upper[(index >> low) + np.arange(k)] = 1
    return pack_unsigned(index & ((1 << low) - 1), low) + pack_bits(upper)


def unpack_positions(reader: Reader, k: int, d: int) -> NDArray[np.int64]:
    """The inverse of ``pack_positions``."""
    reader.check(k <= d, f"{k} positions among {d}")
    if 4 * k >= d:
        index = np.flatnonzero(unpack_bits(reader, d))
        reader.check(len(index) == k, f"a bitmap of {len(index)} instead of {k} positions")
        return index
    if k == 0:
        return np.zeros(0, np.int64)
    low = _low_bits(k, d)
    lower = unpack_unsigned(reader, k, low)
    ones = np.flatnonzero(unpack_bits(reader, _upper_bits(k, d, low)))
    reader.check(len(ones) == k, f"{len(ones)} instead of {k} positions")
    found: NDArray[np.int64] = ((ones - np.arange(k)) << low) | lower
    reader.check(bool((np.diff(found) > 0).all()) and int(found[-1]) < d, "positions that do not ascend below d")
    return found


def _low_bits(k: int, d: int) -> int:
    """floor(log2(d / k)), for 0 < k < d / 4."""
    return (d // k).bit_length() - 1


def _upper_bits(k: int, d: int, low: int) -> int:
    """A one for each position, and a zero for each step of the high part."""
    return k + ((d - 1) >> low)
