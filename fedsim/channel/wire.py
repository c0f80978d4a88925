"""What a message weighs: its exact encoding in bytes, and that encoding itself.

A message holds for each field a dense tensor, or (dense tensor, sides), the sides being positions, signs, levels, trits
and seeds (``fedsim.channel.sides``). Layout, little-endian: number of fields (u8); per field its name (u8 length,
UTF-8), dtype (u8), number of dimensions (low four bits) and of sides (high four bits), each dimension (u32), the raw
values; per side its kind (u8), its counts and ranges (seven bits a byte) and its packed tensor.

``encoded_size`` never encodes a value: it is a function of shapes, dtypes and static ints, inside vmap too, and
``len(encode(m)) == encoded_size(m)``. ``decode`` accepts exactly what ``encode`` writes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from fedsim.channel.packing import Reader
from fedsim.channel.sides import KINDS, Levels, Positions, Seed, Side, Signs, Trits, array, narrowest
from fedsim.errors import require

__all__ = [
    "Content",
    "Levels",
    "Positions",
    "Seed",
    "Side",
    "Signs",
    "Trits",
    "decode",
    "encode",
    "encoded_size",
    "narrowest",
]

Content: TypeAlias = Tensor | tuple[Tensor, tuple[Side, ...]]
"""One field on the wire: a dense tensor, alone or with what goes beside it."""

_DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.int8,
    torch.int16,
    torch.bfloat16,
)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}


def encoded_size(message: Mapping[str, Content], stacked: bool = False) -> int:
    """Bytes of one encoded message; with ``stacked`` its tensors carry a leading client dimension [b]."""
    total = len(_count(message))
    for name, content in message.items():
        dense, sides = _parts(content)
        shape = dense.shape[1:] if stacked else dense.shape
        total += len(_header(name, dense.dtype, shape, sides)) + shape.numel() * dense.dtype.itemsize
        total += sum(1 + len(side.header()) + side.payload_size() for side in sides)
    return total


def encode(message: Mapping[str, Content]) -> bytes:
    """The message as bytes.

    Raises:
        InputError: a tensor does not hold what its kind says, such as positions out of order.
    """
    out = [_count(message)]
    for name, content in message.items():
        dense, sides = _parts(content)
        out.append(_header(name, dense.dtype, dense.shape, sides))
        plain = dense.view(torch.int16) if dense.dtype == torch.bfloat16 else dense  # numpy has no bfloat16
        out.append(array(plain).tobytes())
        for side in sides:
            out += [bytes([side.code]), side.header(), side.payload()]
    return b"".join(out)


def decode(data: bytes) -> dict[str, Content]:
    """The exact inverse of ``encode``; a field without sides is a plain tensor.

    Raises:
        InputError: the bytes are not those of a message.
    """
    reader = Reader(data)
    out: dict[str, Content] = {}
    for _ in range(reader.byte()):
        name = _read_name(reader)
        reader.check(name not in out, f"a second field {name!r}")
        code, counts = reader.byte(), reader.byte()
        reader.check(code < len(_DTYPES), f"dtype {code}")
        shape = struct.unpack(f"<{counts % 16}I", reader.take(4 * (counts % 16)))
        dense = _read_dense(reader, _DTYPES[code], shape)
        sides = tuple(_read_side(reader) for _ in range(counts // 16))
        out[name] = (dense, sides) if sides else dense
    reader.check(reader.at == len(data), f"{len(data) - reader.at} more bytes")
    return out


def _parts(content: Content) -> tuple[Tensor, tuple[Side, ...]]:
    return (content, ()) if isinstance(content, Tensor) else content


def _count(message: Mapping[str, Content]) -> bytes:
    require(len(message) < 256, "message", "have at most 255 fields", len(message))
    return bytes([len(message)])


def _header(name: str, dtype: torch.dtype, shape: torch.Size, sides: tuple[Side, ...]) -> bytes:
    raw = name.encode()
    require(len(raw) < 256, "name of a field", "take at most 255 bytes", name)
    require(dtype in _CODES, f"field {name!r}", f"have one of the dtypes {_DTYPES}", dtype)
    require(len(shape) < 16 and len(sides) < 16, f"field {name!r}", "have at most 15 dimensions and sides", shape)
    require(max(shape, default=0) < 2**32, f"field {name!r}", "have dimensions below 2^32", shape)
    # Both counts are below 16 and share a byte: a header is sent with every field of every message.
    counts = bytes([_CODES[dtype], len(shape) | len(sides) << 4])
    return bytes([len(raw)]) + raw + counts + struct.pack(f"<{len(shape)}I", *shape)


def _read_name(reader: Reader) -> str:
    raw = reader.take(reader.byte())
    try:
        return raw.decode()
    except UnicodeDecodeError:
        reader.check(False, f"the name {raw!r}")
        raise


def _read_dense(reader: Reader, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    raw = bytearray(reader.take(math.prod(shape) * dtype.itemsize))
    reader.check(math.prod(s for s in shape if s) < 2**60, f"the shape {shape}")
    reader.check(dtype is not torch.bool or max(raw, default=0) < 2, "a bool that is neither 0 nor 1")
    values = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.zeros(0, dtype=torch.uint8)
    return values.view(dtype).reshape(shape)


def _read_side(reader: Reader) -> Side:
    code = reader.byte()
    reader.check(code < len(KINDS), f"a side of kind {code}")
    return KINDS[code].read(reader)
