"""A vector as rows of ``bucket`` consecutive entries, each of which gets its own scale."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.errors import require


def check_bucket(bucket: int | None) -> None:
    """Raise ``InputError`` unless ``bucket`` is null or >= 1."""
    require(bucket is None or bucket >= 1, "bucket", "be >= 1, or null for the whole vector", bucket)


def width(d: int, bucket: int | None) -> int:
    """Entries of a full row, >= 1; None: all d."""
    return max(1, d if bucket is None else min(bucket, d))


def to_rows(v: Tensor, bucket: int | None) -> Tensor:
    """v [d] -> [rows, width], the last row filled up with zeros."""
    d = v.shape[0]
    w = width(d, bucket)
    return (pad(v, (0, -d % w)) if d % w else v).reshape(-1, w)


def from_rows(rows: Tensor, d: int) -> Tensor:
    """[rows, width] -> [d]."""
    return rows.reshape(-1)[:d]


def counts(d: int, bucket: int | None, like: Tensor) -> Tensor:
    """Entries of each row that are no filling: [rows], float64 on the device of ``like``."""
    w = width(d, bucket)
    return (d - torch.arange(0, d, w, dtype=torch.float64, device=like.device)).clamp(max=w)
