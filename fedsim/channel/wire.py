"""What a message weighs: its exact encoding in bytes, and that encoding itself.

Layout, little-endian: number of fields (u8); per field its name (u8 length, UTF-8), dtype code (u8), number of
dimensions (u8), each dimension (u32), then the raw values. ``size`` never encodes; ``len(encode(m)) == size(m)``.
"""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from fedsim.types import Message

_CODES: dict[torch.dtype, int] = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.int64: 3,
    torch.int32: 4,
    torch.uint8: 5,
    torch.bool: 6,
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


def _header(name: str, shape: torch.Size) -> int:
    return 1 + len(name.encode()) + 1 + 1 + 4 * len(shape)


def size(message: Message, stacked: bool = False) -> int:
    """Bytes of one encoded message; with ``stacked`` its tensors carry a leading client dimension [b]."""
    total = 1
    for name, value in message.items():
        shape = value.shape[1:] if stacked else value.shape
        total += _header(name, shape) + shape.numel() * value.element_size()
    return total


def encode(message: Message) -> bytes:
    """The message as bytes."""
    out = [struct.pack("<B", len(message))]
    for name, value in message.items():
        raw = name.encode()
        out.append(struct.pack("<B", len(raw)) + raw + struct.pack("<BB", _CODES[value.dtype], value.dim()))
        out.append(struct.pack(f"<{value.dim()}I", *value.shape))
        out.append(value.detach().cpu().contiguous().numpy().tobytes())
    return b"".join(out)


def decode(data: bytes) -> Message:
    """The exact inverse of ``encode``."""
    out: dict[str, Tensor] = {}
    at = 1
    for _ in range(data[0]):
        length = data[at]
        name = data[at + 1 : at + 1 + length].decode()
        at += 1 + length
        dtype, dims = _DTYPES[data[at]], data[at + 1]
        shape = struct.unpack_from(f"<{dims}I", data, at + 2)
        at += 2 + 4 * dims
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        count = int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(data, kind, count, at).reshape(shape)
        at += values.nbytes
        out[name] = torch.from_numpy(values.copy())
    return out
