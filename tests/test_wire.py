"""The wire: counted bytes are the encoded bytes, and decoding gives back the same bits."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.channel import wire

DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool]


@st.composite
def messages(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    names = draw(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=4))
    out = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        dtype = draw(st.sampled_from(DTYPES))
        raw = draw(st.binary(min_size=8 * 125, max_size=8 * 125))
        count = int(np.prod(shape, dtype=int))
        values = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        if dtype is torch.bool:
            out[name] = (values[:count] > 127).reshape(shape)
        else:
            size = torch.empty(0, dtype=dtype).element_size()
            out[name] = values[: count * size].clone().view(dtype).reshape(shape)
    return out


def bits(t: torch.Tensor) -> bytes:
    return t.contiguous().numpy().tobytes()


@given(messages())
def test_size_and_round_trip(message: dict[str, torch.Tensor]) -> None:
    data = wire.encode(message)
    assert len(data) == wire.size(message)
    back = wire.decode(data)
    assert list(back) == list(message)
    for name, value in message.items():
        assert back[name].shape == value.shape
        assert back[name].dtype == value.dtype
        assert bits(back[name]) == bits(value)  # NaN payloads included


def test_stacked_size_is_that_of_one_client() -> None:
    one = {"update": torch.zeros(1000), "count": torch.zeros((), dtype=torch.int64)}
    many = {name: value.expand(7, *value.shape) for name, value in one.items()}
    assert wire.size(many, stacked=True) == wire.size(one)


def test_the_header_is_what_the_layout_says() -> None:
    # 1 field count; 1 + 6 name; dtype; dims; one u32 dimension; 4000 bytes of floats
    assert wire.size({"update": torch.zeros(1000)}) == 1 + 1 + 6 + 1 + 1 + 4 + 4000
