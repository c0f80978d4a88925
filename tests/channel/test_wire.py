"""The wire: counted bytes are the encoded bytes, decoding gives back the same bits, and nothing else is decoded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsim.channel import wire
from fedsim.channel.wire import Content, Levels, Positions, Seed, Side, Signs, Trits
from fedsim.errors import InputError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = math.prod(shape)
    if dtype is torch.bool:
        return torch.from_numpy(random.integers(0, 2, count).astype(bool)).reshape(shape)
    raw = torch.empty(count * dtype.itemsize, dtype=torch.uint8)  # NaN payloads included
    return raw.copy_(torch.from_numpy(random.integers(0, 256, len(raw), np.uint8))).view(dtype).reshape(shape)


@st.composite
def sides(draw: st.DrawFn) -> Side:
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    d = draw(st.integers(0, 300))
    kind = draw(st.sampled_from([Positions, Signs, Levels, Trits, Seed]))
    if kind is Positions:
        k = draw(st.integers(0, d))
        return Positions(torch.from_numpy(np.sort(random.permutation(d)[:k])), d)
    if kind is Signs:
        return Signs(torch.from_numpy(random.integers(0, 2, d).astype(bool)))
    if kind is Levels:
        low = draw(st.integers(-(2**40), 2**40))
        high = low + draw(st.integers(1, 2**40))
        return Levels(torch.from_numpy(random.integers(low, high + 1, d)), low, high)
    if kind is Trits:
        return Trits(torch.from_numpy(random.integers(-1, 2, d).astype(np.int8)))
    return Seed(torch.tensor(int(random.integers(0, 2**63))), draw(st.integers(0, d)), d)


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Content]:
    out: dict[str, Content] = {}
    for name in draw(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=4)):
        beside = tuple(draw(st.lists(sides(), max_size=3)))
        dense = draw(tensors())
        out[name] = (dense, beside) if beside else dense
    return out


def bits(t: Tensor) -> bytes:
    return t.contiguous().view(torch.int16 if t.dtype == torch.bfloat16 else t.dtype).numpy().tobytes()


def same(a: Content, b: Content) -> None:
    dense_a, sides_a = a if isinstance(a, tuple) else (a, ())
    dense_b, sides_b = b if isinstance(b, tuple) else (b, ())
    assert dense_a.shape == dense_b.shape
    assert dense_a.dtype == dense_b.dtype
    assert bits(dense_a) == bits(dense_b)
    assert len(sides_a) == len(sides_b)
    for s, t in zip(sides_a, sides_b, strict=True):
        assert type(s) is type(t)
        assert s.tensor.tolist() == t.tensor.tolist()
        static = {k: v for k, v in vars(s).items() if k != "tensor"}
        assert static == {k: v for k, v in vars(t).items() if k != "tensor"}


@given(messages())
def test_size_and_round_trip(message: dict[str, Content]) -> None:
    data = wire.encode(message)
    assert len(data) == wire.encoded_size(message)
    back = wire.decode(data)
    assert list(back) == list(message)
    for name, value in message.items():
        same(back[name], value)


@given(messages(), st.data())
def test_whatever_is_decoded_is_what_encode_writes(message: dict[str, Content], data: st.DataObject) -> None:
    """Truncated, lengthened or changed bytes are refused, or are another message's own encoding."""
    raw = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(raw) - 1))
        raw[where] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    for changed in (bytes(raw), cut):
        try:
            back = wire.decode(changed)
        except InputError:
            continue
        assert wire.encode(back) == changed


@given(messages())
def test_a_missing_or_an_extra_byte_is_refused(message: dict[str, Content]) -> None:
    data = wire.encode(message)
    with pytest.raises(InputError, match="message must be bytes of wire"):
        wire.decode(data + b"\0")
    with pytest.raises(InputError, match="too early"):
        wire.decode(data[:-1])


def test_a_count_that_no_memory_holds_is_refused_at_once() -> None:
    """d = 2^62 costs nine bytes to write; nothing of that size may be allocated."""
    huge = b"\xff" * 8 + b"\x3f"
    start = b"\x01\x01v\x00\x11" + b"\0" * 4
    for kind in range(4):
        for rest in (b"", b"\x00", huge, b"\x00\x01", huge + b"\x01"):
            with pytest.raises(InputError):
                wire.decode(start + bytes([kind]) + huge + rest)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("0101760011 00000000 00 02 64 0000 03", "positions that do not ascend"),  # 0, 0 among 100
        ("0101760011 00000000 00 02 64 e003 11", "positions that do not ascend"),  # 0, 127 among 100
        ("0101760011 00000000 00 02 64 0000 07", "3 instead of 2 positions"),
        ("0101760011 00000000 00 02 03 07", "a bitmap of 3 instead of 2"),
        ("0101760011 00000000 00 04 03 07", "4 positions among 3"),
        ("0101760011 00000000 01 03 08", "padding"),
        ("0101760011 00000000 01 8300 00", "a malformed number"),  # 3 in more bytes than it needs
        ("0101760011 00000000 02 01 00 02 03", "a level above 2"),
        ("0101760011 00000000 02 01 00 00", "levels from 0 to 0"),
        ("0101760011 00000000 03 01 f3", "no five trits"),
        ("0101760011 00000000 03 01 03", "padding"),
        ("0101760011 00000000 05", "a side of kind 5"),
        ("0101760601 01000000 02", "a bool that is neither 0 nor 1"),
        ("0101760a00", "dtype 10"),
        ("0101ff0000", "the name"),
        ("020176050000 0176050000", "a second field"),
        ("", "too early"),
    ],
)
def test_malformed_bytes_are_named(data: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        wire.decode(bytes.fromhex(data))


def test_stacked_size_is_that_of_one_client() -> None:
    def one(*lead: int) -> dict[str, Content]:
        levels = Levels(torch.zeros(*lead, 999, dtype=torch.int8), -7, 7)
        positions = Positions(torch.arange(10).expand(*lead, 10), 999)
        signs, trits = torch.zeros(*lead, 17, dtype=torch.bool), torch.zeros(*lead, 17, dtype=torch.int8)
        beside = (positions, levels, Signs(signs), Trits(trits), Seed(torch.ones(lead, dtype=torch.int64), 3, 9))
        return {"update": (torch.zeros(*lead, 10), beside), "count": torch.zeros(lead, dtype=torch.int64)}

    assert wire.encoded_size(one(7), stacked=True) == wire.encoded_size(one()) == len(wire.encode(one()))


def test_size_inside_vmap() -> None:
    inside = []

    def client(v: Tensor) -> Tensor:
        inside.append(wire.encoded_size({"v": (v[:3], (Positions(v.argsort()[:3], 40), Signs(v >= 0)))}))
        return v

    torch.func.vmap(client)(torch.randn(5, 40))
    alone = {"v": (torch.zeros(3), (Positions(torch.arange(3), 40), Signs(torch.ones(40, dtype=torch.bool))))}
    assert inside == [len(wire.encode(alone))]


def test_the_header_is_what_the_layout_says() -> None:
    # 1 field count; 1 + 6 name; dtype; dims; one u32 dimension; 4000 bytes of floats
    assert wire.encoded_size({"update": torch.zeros(1000)}) == 1 + 1 + 6 + 1 + 1 + 4 + 4000


def beside(side: Side) -> int:
    """Bytes of one side, without those of its field."""
    plain = {"v": torch.zeros(0)}
    return wire.encoded_size({"v": (plain["v"], (side,))}) - wire.encoded_size(plain)


@pytest.mark.parametrize("d", [0, 1, 7, 8, 9, 1000])
def test_sizes_of_signs_levels_and_trits(d: int) -> None:
    count = 1 if d < 128 else 2  # seven bits of d a byte
    assert beside(Signs(torch.zeros(d, dtype=torch.bool))) == 1 + count + math.ceil(d / 8)
    assert beside(Trits(torch.zeros(d, dtype=torch.int8))) == 1 + count + math.ceil(d / 5)
    for low, high in [(0, 1), (-1, 1), (-7, 7), (-8, 7), (-127, 127), (0, 255), (0, 256), (-300, 300), (5, 6)]:
        width = math.ceil(math.log2(high - low + 1))
        header = (1 if 2 * abs(low) < 128 else 2) + (1 if high - low < 128 else 2)
        side = Levels(torch.full((d,), high, dtype=torch.int64), low, high)
        assert beside(side) == 1 + count + header + math.ceil(d * width / 8)


@pytest.mark.parametrize(("ratio", "bits_each"), [(0.1, 5.25), (0.01, 8.56), (0.001, 11.95)])
def test_elias_fano_at_the_sizes_of_a_resnet18(ratio: float, bits_each: float) -> None:
    """The bits per position that were measured for d = 11,173,962, and the entropy as a lower bound."""
    d = 11_173_962
    k = math.ceil(ratio * d)
    size = 8 * (beside(Positions(torch.zeros(k, dtype=torch.int64), d)) - 1)
    entropy = (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2)
    assert size / k == pytest.approx(bits_each, abs=0.01)
    assert entropy < size < 1.12 * entropy


@given(st.integers(0, 3000), st.data())
def test_positions_take_the_smaller_of_a_bitmap_and_elias_fano(d: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, d))
    side = Positions(torch.arange(k), d)
    payload = len(side.payload())
    assert payload == side.payload_size() <= math.ceil(d / 8) + 1
    if k and d / k > 4:
        assert payload <= k * (2 + math.log2(d / k)) / 8 + 2
    assert payload == (math.ceil(d / 8) if 4 * k >= d else payload)


@pytest.mark.parametrize(
    ("index", "d"),
    [
        ([], 0),
        ([], 10),
        ([], 2**40),
        ([0], 1),
        ([0, 1, 2], 3),
        ([2**31, 2**31 + 1, 2**40 - 1], 2**40),  # beyond int32, and beyond the 2^24 of a float32
        ([0, 2**24 + 1, 2**24 + 3], 2**25),
        ([0], 2**62),
        ([2**62 - 1], 2**62),
        ([99], 100),
        (list(range(25)), 100),  # the first bitmap
        (list(range(75, 99)), 100),
    ],
)
def test_positions_at_the_edges(index: list[int], d: int) -> None:
    message: dict[str, Content] = {"v": (torch.zeros(0), (Positions(torch.tensor(index, dtype=torch.int64), d),))}
    data = wire.encode(message)
    assert len(data) == wire.encoded_size(message)
    same(wire.decode(data)["v"], message["v"])


def test_positions_agree_with_a_loop_that_writes_elias_fano_bit_by_bit() -> None:
    index, d = [3, 4, 17, 40, 41, 99], 100  # 100 / 6 = 16.7: four low bits
    low = "".join(f"{i % 16:04b}"[::-1] for i in index)
    upper = ["0"] * (6 + 99 // 16)
    for place, i in enumerate(index):
        upper[i // 16 + place] = "1"

    def as_bytes(text: str) -> bytes:
        return bytes(int(text[at : at + 8][::-1], 2) for at in range(0, len(text), 8))

    side = Positions(torch.tensor(index), d)
    assert side.payload() == as_bytes(low) + as_bytes("".join(upper))


def test_trits_are_base_three_digits() -> None:
    side = Trits(torch.tensor([-1, 0, 1, 1, 1, 1], dtype=torch.int8))
    assert side.payload() == bytes([0 + 1 * 3 + 2 * 9 + 2 * 27 + 2 * 81, 2])


def test_levels_come_back_in_the_narrowest_dtype() -> None:
    for low, high, dtype in [(-128, 127, torch.int8), (0, 255, torch.int16), (-(2**15), 2**15, torch.int32)]:
        message: dict[str, Content] = {"v": (torch.zeros(0), (Levels(torch.tensor([low, high]), low, high),))}
        back: Any = wire.decode(wire.encode(message))["v"]
        assert back[1][0].tensor.dtype == dtype
        assert back[1][0].tensor.tolist() == [low, high]


@pytest.mark.parametrize(
    "side",
    [
        Positions(torch.tensor([3, 2]), 5),
        Positions(torch.tensor([2, 2]), 500),
        Positions(torch.tensor([-1]), 5),
        Positions(torch.tensor([5]), 5),
        Levels(torch.tensor([8]), -7, 7),
        Levels(torch.tensor([-8]), -7, 7),
        Trits(torch.tensor([2], dtype=torch.int8)),
        Trits(torch.tensor([1])),
        Signs(torch.tensor([1.0])),
        Seed(torch.tensor(1.0), 1, 2),
    ],
)
def test_a_side_that_is_not_what_its_kind_says_is_refused(side: Side) -> None:
    with pytest.raises(InputError, match="must"):
        wire.encode({"v": (torch.zeros(1), (side,))})


def test_limits_of_a_message_are_clear() -> None:
    with pytest.raises(InputError, match="at most 255 fields"):
        wire.encoded_size({str(i): torch.zeros(0) for i in range(256)})
    with pytest.raises(InputError, match="at most 255 bytes"):
        wire.encoded_size({"é" * 128: torch.zeros(0)})
    with pytest.raises(InputError, match="dtypes"):
        wire.encode({"v": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(InputError, match="below 2\\^32"):
        wire.encoded_size({"v": torch.zeros(1).expand(2**32)})
    with pytest.raises(InputError, match="high must be > low"):
        Levels(torch.zeros(1), 3, 3)


def test_a_view_is_encoded_like_its_copy() -> None:
    for view in (torch.arange(6.0).reshape(2, 3).T, torch.ones(()).expand(1), torch.from_numpy(np.zeros(0))):
        assert wire.encode({"v": view}) == wire.encode({"v": view.clone(memory_format=torch.contiguous_format)})
