"""Bits of dropout: an independent computation of them, their law, and what each kind of dropout makes of them.

``words`` and ``random_bits`` below are written from the papers' pseudocode with numpy's unsigned numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.errors import InputError
from fedsim.ground.masks import bits_of, derived
from fedsim.models.dropout import Masks, draws

KEYS = torch.tensor([3, 2**62 + 17, -5, 0])
M = len(KEYS)


def below(key: int, n: int) -> int:
    """SplitMix64's n-th output, n = 0, 1, ..., from the state ``key``."""
    z = (key + (n + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def lowbias32(x: np.ndarray) -> np.ndarray:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> np.uint32(shift)) * np.uint32(factor)
    return x ^ x >> np.uint32(16)


def random_bits(key: int, place: int, count: int) -> np.ndarray:
    """uint32 bits of the first numbers of an example's activation."""
    word = below(key, place)
    index = np.arange(count, dtype=np.uint32)
    return lowbias32(lowbias32(index) ^ np.uint32(word % 2**32)) ^ np.uint32(word >> 32)


def keep(key: int, place: int, p: float, *shape: int) -> Tensor:
    """float64 mask of one example at one place: 1 where a number is kept."""
    # Bits are compared as signed numbers.
    kept = random_bits(key, place, math.prod(shape)).view(np.int32).astype(np.float64) / 2**32 + 0.5 >= p
    return torch.from_numpy(kept.astype(np.float64)).view(shape)


def masks(place: int, p: float, *shape: int, keys: Tensor = KEYS) -> Tensor:
    """The masks [m, *shape] of all examples."""
    return torch.stack([keep(int(key), place, p, *shape) for key in keys])


def test_keys_and_bits_are_those_of_the_papers() -> None:
    for key in KEYS.tolist():
        for n in (-1, 0, 1, 99):
            assert int(derived(torch.tensor(key), n)) % 2**64 == below(key, n)
    for place in (0, 3):
        want = np.stack([random_bits(int(key), place, 1001) for key in KEYS]).view(np.int32)
        assert torch.equal(bits_of(KEYS, place, (M, 7, 11, 13)).reshape(M, -1), torch.from_numpy(want))
        assert torch.equal(
            bits_of(KEYS, place, (7, M, 11, 13), 1), bits_of(KEYS, place, (M, 7, 11, 13)).transpose(0, 1)
        )
        assert torch.equal(bits_of(KEYS, place, (7 * M, 143)).reshape(M, -1), torch.from_numpy(want))
        assert torch.equal(bits_of(KEYS, place, (7, 11, 13)).flatten(), torch.from_numpy(want[0]))  # not by example


def test_numbers_that_results_follow_from() -> None:
    """Another generator is another result of every run with dropout: change nothing here."""
    assert bits_of(torch.tensor([1]), 2, (1, 4)).tolist() == [NUMBERS]


NUMBERS = [-383306976, 1276843034, -1936834395, -511889443]


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """uint32 bits [places, examples, numbers] of steps and examples that have neighbouring numbers in their address."""
    keys = derived(derived(torch.tensor([12345]), torch.arange(16))[:, None], torch.arange(8)).flatten()
    return np.stack([bits_of(keys, place, (128, 4096)).numpy().view(np.uint32) for place in range(3)])


@pytest.mark.parametrize("p", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_the_rate_of_a_mask(p: float, many: np.ndarray) -> None:
    """Within five standard deviations in all, for every example, for every number of the activation."""
    dropped = many.view(np.int32) < round(p * 2**32) - 2**31
    for axes in ((0, 1, 2), (0, 2), (0, 1), (1, 2)):
        count = math.prod(many.shape[a] for a in axes)
        gap = np.abs(dropped.mean(axis=axes) - p).max()
        assert gap < 5.5 * math.sqrt(p * (1 - p) / count)  # of up to 4096 means, 5.5 is 1e-4


def test_bits_are_independent_of_their_neighbours(many: np.ndarray) -> None:
    """Correlations of example, step, place and number with the next, of every bit with every bit: within 5.5 sigma."""
    sign = many.view(np.int32) < 0
    pairs = {
        "numbers": (sign[..., :-1], sign[..., 1:]),
        "rows of an image": (sign[..., :-32], sign[..., 32:]),
        "examples": (sign[:, :-1], sign[:, 1:]),
        "steps": (sign[:, :-8], sign[:, 8:]),
        "places": (sign[:-1], sign[1:]),
    }
    for what, (a, b) in pairs.items():
        assert abs((a == b).mean() - 0.5) < 5.5 * 0.5 / math.sqrt(a.size), what
    each = np.unpackbits(many[0, :64].view(np.uint8).reshape(-1, 4), axis=1).astype(np.float32) - 0.5
    correlation = 4 * each.T @ each / len(each)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5.5 / math.sqrt(len(each))


def test_bits_are_uniform(many: np.ndarray) -> None:
    """Chi-square of the high and the low byte, and of pairs of neighbours' high nibbles: 6 sigma."""
    high, low = many >> 24, many & 255
    nibbles = many >> 28
    for values, cells in ((high, 256), (low, 256), (16 * nibbles[..., ::2] + nibbles[..., 1::2], 256)):
        counts = np.bincount(values.ravel(), minlength=cells)
        chi2 = ((counts - values.size / cells) ** 2).sum() / (values.size / cells)
        assert abs(chi2 - (cells - 1)) < 6 * math.sqrt(2 * (cells - 1))


LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], tuple[int, ...], bool]] = {
    # name: (class, shape of a sample, shape of its mask, alpha)
    "Dropout": (nn.Dropout, (3, 4), (3, 4), False),
    "Dropout of numbers": (nn.Dropout, (6,), (6,), False),
    "Dropout1d": (nn.Dropout1d, (3, 4), (3, 1), False),
    "Dropout2d": (nn.Dropout2d, (3, 4, 5), (3, 1, 1), False),
    "Dropout3d": (nn.Dropout3d, (3, 2, 2, 2), (3, 1, 1, 1), False),
    "AlphaDropout": (nn.AlphaDropout, (3, 4), (3, 4), True),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout, (3, 4, 5), (3, 1, 1), True),
}


def by_hand(x: Tensor, mask: Tensor, p: float, alpha: bool) -> Tensor:
    if not alpha:
        return x * mask / (1 - p)
    a = 1.7580993408473766
    value = torch.where(mask > 0, x, -a)  # mean and variance are restored, Klambauer et al. 2017, section "Dropout"
    scale = 1 / math.sqrt((1 - p) * (1 + p * a * a))
    return scale * (value + p * a)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_of_torch_with_masks_written_out(name: str, inplace: bool) -> None:
    make, shape, channels, alpha = LAYERS[name]
    x = torch.randn(M, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for p in (0.3, 0.8):
        layer = make(p, inplace=inplace)
        assert draws(layer)
        with Masks(KEYS):
            first, second = layer(x.clone()), layer(x.float())
        torch.testing.assert_close(first, by_hand(x, masks(0, p, *channels), p, alpha), rtol=1e-12, atol=1e-12)
        want = by_hand(x, masks(1, p, *channels), p, alpha)
        torch.testing.assert_close(second, want.float(), rtol=1e-6, atol=1e-6)
    with Masks(KEYS):
        assert torch.equal(make(0.0)(x), x)
        assert not make(1.0)(x.clone()).any()
        assert torch.equal(layer.eval()(x), x)
    assert not draws(make(0.0))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.dropout(x, 0.3),
        lambda x: F.dropout(x, p=0.3, training=True),
        lambda x: F.dropout(input=x, p=0.3),
        lambda x: F.dropout(x.clone(), 0.3, inplace=True),
        lambda x: torch.dropout(x, 0.3, True),
        lambda x: torch.dropout(x, p=0.3, train=True),
        lambda x: torch.dropout_(x.clone(), 0.3, True),
        lambda x: nn.functional.dropout(F.dropout(F.dropout(x, 0.0), 0.9, training=False), 0.3),
    ],
)
def test_calls_in_forward(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.arange(1.0, 13.0, dtype=torch.float64).view(M, 3)
    before = torch.get_rng_state()
    with Masks(KEYS):
        got = call(x)
    torch.testing.assert_close(got, x * masks(0, 0.3, 3) / 0.7, rtol=1e-12, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_channel_calls_and_single_samples() -> None:
    x = torch.ones(M, 3, 4, 5, dtype=torch.float64)
    for call in (F.dropout2d, torch.feature_dropout, torch.feature_dropout_):
        with Masks(KEYS):
            got = call(x.clone(), 0.5, True)
        assert torch.equal(got, (2 * masks(0, 0.5, 3, 1, 1)).expand_as(x))
    with Masks(KEYS):  # [c, l]: torch takes the first dimension for channels, which here are the examples
        assert torch.equal(F.dropout1d(x[:, 0, 0], 0.5), (2 * masks(0, 0.5, 1)).expand(M, 5))
    for call in (F.alpha_dropout, torch.alpha_dropout, torch.alpha_dropout_):
        with Masks(KEYS):
            got = call(x.clone(), 0.5, True)
        torch.testing.assert_close(got, by_hand(x, masks(0, 0.5, 3, 4, 5), 0.5, True), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="between 0 and 1"), Masks(KEYS):
        F.dropout(x, 1.5)


NEVER = 1e-12  # so seldom that nothing is dropped: what is left is the mathematics around the masks


def heads(m: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(m, 2, n, 3, dtype=torch.float64, generator=generator) for n in (4, 5, 5))
    return q, k, v


def test_attention_with_nothing_dropped_is_torchs() -> None:
    q, k, v = heads(M, generator=torch.Generator().manual_seed(1))
    some = torch.rand(4, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    some[1] = False  # a position that sees nothing
    cases: list[dict[str, Any]] = [
        {},
        {"attn_mask": some},
        {"attn_mask": torch.randn(M, 1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))},
        {"is_causal": True},
        {"scale": 0.1},
        {"enable_gqa": True},
    ]
    for case in cases:
        keys, values = (k[:, :1], v[:, :1]) if case.get("enable_gqa") else (k, v)
        want = F.scaled_dot_product_attention(q, keys, values, **case)
        with Masks(KEYS):
            got = F.scaled_dot_product_attention(q, keys, values, dropout_p=NEVER, **case)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def test_attention_drops_weights() -> None:
    q, k, v = heads(M, generator=torch.Generator().manual_seed(1))
    with Masks(KEYS):
        got = F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)
    weights = (q @ k.mT / math.sqrt(3)).softmax(-1) * masks(0, 0.4, 2, 4, 5) / 0.6
    torch.testing.assert_close(got, weights @ v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_multi_head_attention(first: bool, shown: bool) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(6, 2, dropout=0.4, batch_first=first, bias=False, dtype=torch.float64)
    x = torch.randn(M, 5, 6, dtype=torch.float64)
    given = x if first else x.transpose(0, 1)
    with Masks(KEYS):
        got = plain(given, given, given, need_weights=shown)[0]
    q, k, v = (x @ w.T for w in plain.in_proj_weight.chunk(3))
    q, k, v = (t.view(M, 5, 2, 3).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.mT / math.sqrt(3)).softmax(-1) * masks(0, 0.4, 2, 5, 5) / 0.6
    want = (weights @ v).transpose(1, 2).reshape(M, 5, 6) @ plain.out_proj.weight.T
    torch.testing.assert_close(got if first else got.transpose(0, 1), want, rtol=1e-12, atol=1e-12)
    assert draws(plain)
    plain.dropout = NEVER
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    with Masks(KEYS):
        got = plain(given, given, given, attn_mask=causal, need_weights=shown)[0]
    plain.dropout = 0.0
    want = plain(given, given, given, attn_mask=causal, need_weights=shown)[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_transformers_layer_has_four_places() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3, batch_first=True, dtype=torch.float64)
    x = torch.randn(M, 5, 6, dtype=torch.float64)
    with Masks(KEYS) as mode:
        got = layer(x)
    assert len(mode.shapes) == 4
    with Masks(KEYS):  # the first place
        attended = layer.self_attn(x, x, x, need_weights=False)[0]
    y = layer.norm1(x + attended * masks(1, 0.3, 5, 6) / 0.7)
    inner = torch.relu(layer.linear1(y)) * masks(2, 0.3, 5, 8) / 0.7
    want = layer.norm2(y + layer.linear2(inner) * masks(3, 0.3, 5, 6) / 0.7)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_drop_between_layers(kind: Any, both: bool, first: bool) -> None:
    torch.manual_seed(0)
    options = {"batch_first": first, "bidirectional": both, "dtype": torch.float64}
    model, width = kind(3, 4, 3, dropout=0.4, **options), 8 if both else 4
    layers = [kind(3 if k == 0 else width, 4, 1, **options) for k in range(3)]
    for k, layer in enumerate(layers):
        layer.load_state_dict({n: model.get_parameter(n.replace("_l0", f"_l{k}")) for n, _ in layer.named_parameters()})
    x = torch.randn(M, 5, 3, dtype=torch.float64)
    with Masks(KEYS):
        got, ends = model(x if first else x.transpose(0, 1))
    y, finals = x if first else x.transpose(0, 1), []
    for k, layer in enumerate(layers):
        if k:
            mask = masks(k - 1, 0.4, 5, width)
            y = y * (mask if first else mask.transpose(0, 1)) / 0.6
        y, end = layer(y)
        finals.append(end)
    torch.testing.assert_close(got, y, rtol=1e-12, atol=1e-12)
    if kind is nn.LSTM:
        finals = [torch.cat([end[j] for end in finals]) for j in range(2)]
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(ends, finals, strict=True))
    else:
        torch.testing.assert_close(ends, torch.cat(finals), rtol=1e-12, atol=1e-12)
    assert draws(model)
    assert not draws(kind(3, 4, 2))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.RNN])
def test_a_sequence_may_be_as_long_as_the_minibatch(kind: Any) -> None:
    """Which dimension holds the examples is known of a recurrent layer, and of attention."""
    torch.manual_seed(0)
    x = torch.randn(M, M, 4, dtype=torch.float64)
    layer = kind(4, 4, 2, dropout=0.4, batch_first=True, dtype=torch.float64)
    with Masks(KEYS):
        want = layer(x)[0]
    layer.batch_first = False
    with Masks(KEYS):
        got = layer(x.transpose(0, 1))[0].transpose(0, 1)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    heads = nn.MultiheadAttention(4, M, dropout=0.4, batch_first=True, dtype=torch.float64)
    rows = x.repeat_interleave(3, 0)  # three of each example, as many heads as examples
    with Masks(KEYS):
        got = heads(rows, rows, rows, need_weights=False)[0]
    with Masks(KEYS):
        want = heads(rows, rows, rows)[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_projections_no_bias_and_evaluation_of_recurrent_layers() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, M, 3, dtype=torch.float64)
    for options in ({"proj_size": 2}, {"bias": False}):
        model = nn.LSTM(3, 4, 2, dropout=NEVER, dtype=torch.float64, **options)
        with Masks(KEYS):
            got = model(x)[0]
        with Masks(KEYS):
            want = model.eval()(x)[0]
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 2, 1]))
    with Masks(KEYS), pytest.raises(InputError, match="packed sequences"):
        nn.LSTM(3, 4, 2, dropout=0.5, dtype=torch.float64)(packed)
    with Masks(KEYS):
        nn.LSTM(3, 4, 2, dtype=torch.float64)(packed)


def test_under_vmap_as_alone() -> None:
    x = torch.randn(2, M, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keys = torch.stack([KEYS, KEYS + 1])

    def one(x: Tensor, keys: Tensor) -> Tensor:
        with Masks(keys):
            return F.alpha_dropout(F.dropout1d(F.dropout(x, 0.3), 0.4), 0.2, True)

    alone = torch.stack([one(*pair) for pair in zip(x, keys, strict=True)])
    assert torch.equal(torch.func.vmap(one)(x, keys), alone)
