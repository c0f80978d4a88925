"""The compressors: bounds, unbiasedness, numpy loops, defined behaviour at the edges, and bugs seen in public code."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from fedsim.assembly.nodes import build_object
from fedsim.channel import wire
from fedsim.channel.half import Half
from fedsim.channel.lowrank import LowRank
from fedsim.channel.natural import Natural
from fedsim.channel.qsgd import QSGD
from fedsim.channel.quality import contraction
from fedsim.channel.randk import RandK
from fedsim.channel.sign import Sign
from fedsim.channel.terngrad import TernGrad
from fedsim.channel.topk import TopK, largest_positions
from fedsim.channel.uniform import Uniform
from fedsim.channel.wire import Levels, Positions, Side, Signs
from fedsim.errors import InputError
from fedsim.traits.declared import layer_traits

LAYERS: dict[str, Any] = {
    "topk": TopK(k=3),
    "topk_ratio": TopK(ratio=0.1),
    "randk": RandK(k=3),
    "randk_positions": RandK(ratio=0.1, shared_seed=False),
    "randk_unbiased": RandK(k=3, unbiased=True),
    "sign": Sign(),
    "sign_bucket": Sign(bucket=7),
    "sign_l2": Sign(scale="l2"),
    "qsgd": QSGD(),
    "qsgd_bucket": QSGD(levels=1, bucket=5),
    "qsgd_fine": QSGD(levels=1000, bucket=None),
    "natural": Natural(),
    "terngrad": TernGrad(),
    "terngrad_clip": TernGrad(clip=1.5),
    "int8": Uniform(),
    "int4": Uniform(bits=4, bucket=6),
    "fp16": Half(),
    "bf16": Half(format="bf16"),
    "lowrank": LowRank(),
    "lowrank2": LowRank(rank=2, iterations=0),
}
UNBIASED = [name for name, layer in LAYERS.items() if layer.omega(50) is not None]
BOUNDED = [name for name, layer in LAYERS.items() if contraction(layer, 50) is not None]
each = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


class Noise(NamedTuple):
    """The numbers of one use, drawn beforehand, so that a loop and vmap can share them."""

    u: Tensor  # uniform on [0, 1)
    z: Tensor  # standard normal
    order: Tensor  # a permutation
    s: Tensor  # a seed

    def uniform(self, like: Tensor) -> Tensor:
        return self.u[: like.shape[0]].to(like.dtype)

    def normal(self, like: Tensor) -> Tensor:
        return self.z[: like.shape[0]].to(like.dtype)

    def subset(self, k: int, like: Tensor) -> Tensor:
        assert like.shape[0] == self.order.shape[0]
        return self.order[:k].sort().values

    def seed(self, like: Tensor) -> Tensor:
        return self.s


def draws(b: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Noise:
    """[b, ...] independent ones. Uniform numbers are drawn in ``dtype``: rounding them could give 1."""
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(b, d, generator=g, dtype=dtype)
    z = torch.randn(b, 8 * d, generator=g, dtype=torch.float64)
    order = torch.rand(b, d, generator=g, dtype=torch.float64).argsort(1)
    return Noise(u, z, order, torch.randint(2**62, (b,), generator=g))


def draw(d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Noise:
    return Noise(*(t[0] for t in draws(1, d, seed, dtype)))


def over_the_wire(v: Tensor, *sides: Side) -> tuple[Tensor, tuple[Side, ...], int]:
    """Really encodes, and decodes."""
    message = {"v": (v, sides)}
    data = wire.encode(message)
    assert len(data) == wire.encoded_size(message)
    back: Any = wire.decode(data)["v"]
    dense, beside = back if isinstance(back, tuple) else (back, ())
    return dense, beside, len(data)


def counted(v: Tensor, *sides: Side) -> tuple[Tensor, tuple[Side, ...], int]:
    """Only counts."""
    return v, sides, wire.encoded_size({"v": (v, sides)})


def use(layer: Any, v: Tensor, noise: Noise | None = None, send: Any = over_the_wire) -> Tensor:
    noise = draw(len(v), dtype=v.dtype) if noise is None else noise
    out, link, _ = layer(v, layer.init(torch.zeros_like(v)), noise, send)
    assert link == ()
    return out


def many(layer: Any, v: Tensor, n: int) -> Tensor:
    """[n, d] independent uses on one vector."""
    noise = draws(n, len(v), dtype=v.dtype)
    return vmap(lambda *ts: layer(v, (), Noise(*ts), counted)[0])(*noise)


def inputs(d: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    normal = torch.randn(d, generator=g, dtype=torch.float64)
    worst = torch.ones(d, dtype=torch.float64)
    worst[0] = 1 + math.sqrt(d)  # TernGrad's
    out = {
        "normal": normal,
        "heavy": normal / torch.rand(d, generator=g, dtype=torch.float64) ** 2,
        "constant": torch.full((d,), -0.3, dtype=torch.float64),
        "one": torch.eye(d, dtype=torch.float64)[d // 2] * 5,
        "two": torch.eye(d, dtype=torch.float64)[0] - 0.5 * torch.eye(d, dtype=torch.float64)[-1],
        "worst": worst,
        "halfway": 1.5 * normal.sign(),
        "geometric": 0.7 ** torch.arange(d, dtype=torch.float64),
    }
    return {name: v.to(dtype) for name, v in out.items()}


@both
@pytest.mark.parametrize("name", BOUNDED)
def test_measured_error_is_within_the_guarantee(name: str, dtype: torch.dtype) -> None:
    layer, d = LAYERS[name], 50
    omega = layer.omega(d)
    bound = omega if omega is not None else 1 - layer.delta(d)
    uses = {TopK: 2, Half: 2, Sign: 2, LowRank: 300}.get(type(layer), 2000)  # the first three draw nothing
    for kind, v in inputs(d, dtype).items():
        if kind == "heavy" and name == "fp16":
            v = v.clamp(-60000, 60000)  # its bound holds in the range of the format
        error = ((many(layer, v, uses) - v) ** 2).sum(1).double() / (v.double() ** 2).sum()
        noise = 4 * error.std() / math.sqrt(len(error))
        assert error.mean() <= bound * (1 + 1e-5) + noise + 1e-12, (kind, float(error.mean()), bound)


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_over_ten_thousand_draws(name: str) -> None:
    layer, d, n = LAYERS[name], 24, 10_000
    for kind, v in inputs(d).items():
        got = many(layer, v, n)
        for direction in (torch.ones(d, dtype=v.dtype), v / v.norm(), inputs(d)["normal"], *torch.eye(d).double()):
            along = (got - v) @ direction
            assert along.mean().abs() <= 4.5 * along.std() / math.sqrt(n) + 1e-12 * v.abs().max(), kind


@given(st.integers(1, 60), st.integers(0, 2**31), st.sampled_from(["normal", "heavy", "grid", "wide"]))
@settings(max_examples=60)
def test_deterministic_bounds_on_random_vectors(d: int, seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    v = {
        "normal": random.normal(size=d),
        "heavy": random.standard_t(1, size=d),
        "grid": random.integers(-2, 3, d).astype(float),
        "wide": random.normal(size=d) * 10.0 ** random.integers(-60, 60, d),
    }[kind]
    x = torch.from_numpy(v)
    for layer in (TopK(k=3), TopK(ratio=0.3), Sign(), Sign(bucket=4)):
        error = float(((use(layer, x) - x) ** 2).sum())
        delta = layer.delta(d)
        assert delta is not None
        assert error <= (1 - delta) * float((x**2).sum()) * (1 + 1e-12)
    assert use(TopK(k=3), x).norm() <= x.norm() * (1 + 1e-12)


def test_terngrads_and_signs_bounds_are_attained() -> None:
    d = 49
    v = inputs(d)["worst"]
    error = ((many(TernGrad(), v, 20_000) - v) ** 2).sum(1).mean() / (v**2).sum()
    assert float(error) == pytest.approx(TernGrad().omega(d), rel=0.02)  # 20000 draws: 1 % is over two deviations
    one = inputs(d)["one"]
    assert float(((use(Sign(), one) - one) ** 2).sum() / (one**2).sum()) == pytest.approx(1 - 1 / d, rel=1e-12)
    assert float(((use(Sign(scale="l2"), one) - one) ** 2).sum() / (one**2).sum()) > 1.7  # not contractive
    assert Sign(scale="l2").delta(d) is None


@each
@both
def test_vmap_equals_the_loop_and_counting_equals_the_wire(layer: Any, dtype: torch.dtype) -> None:
    for d in (1, 2, 37, 200):
        require_that_vmap_is_the_loop(layer, d, dtype)


def require_that_vmap_is_the_loop(layer: Any, d: int, dtype: torch.dtype) -> None:
    b = 5
    v = torch.randn(b, d, generator=torch.Generator().manual_seed(d), dtype=dtype)
    noise = draws(b, d, dtype=dtype)
    before = v.clone()
    sizes = []

    def client(x: Tensor, *ts: Tensor) -> Tensor:
        out, _, size = layer(x, (), Noise(*ts), counted)
        sizes.append(size)
        return out

    together = vmap(client)(v, *noise)
    for i in range(b):
        alone, _, size = layer(v[i], (), Noise(*(t[i] for t in noise)), over_the_wire)
        assert alone.dtype == dtype
        assert torch.equal(alone, together[i]), d
        assert size == sizes[0], d
    assert torch.equal(v, before), d  # no layer writes on its input


@each
@both
def test_zero_stays_zero(layer: Any, dtype: torch.dtype) -> None:
    for d in (0, 1, 2, 9, 33, 100):
        out = use(layer, torch.zeros(d, dtype=dtype))
        assert out.shape == (d,)
        assert torch.equal(out, torch.zeros(d, dtype=dtype)), d


@each
@both
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_comes_out_not_finite(layer: Any, bad: float, dtype: torch.dtype) -> None:
    for d, place in ((n, i) for n in (1, 5, 100) for i in {0, n // 2, n - 1}):
        v = torch.linspace(-1, 1, d, dtype=dtype)
        v[place] = bad
        for seed in range(3):
            assert not use(layer, v, draw(d, seed, dtype)).isfinite().all(), (d, place, seed)


@each
def test_extreme_magnitudes_stay_finite(layer: Any) -> None:
    for scale in (1e-44, 1e-39, 1e-30, 1e18, 1e38):
        require_finite(layer, scale)


def require_finite(layer: Any, scale: float) -> None:
    v = (torch.linspace(-1, 1, 41, dtype=torch.float64) * scale).float()
    unscaled = not getattr(layer, "unbiased", False)
    if scale > 1e30 and isinstance(layer, LowRank | QSGD | Sign | RandK):
        v = v / 64  # room for a norm, or for the factor d / k
    out = use(layer, v)
    assert out.isfinite().all(), scale
    if unscaled and not isinstance(layer, Natural | Half | LowRank):
        assert out.abs().max() <= v.double().norm() * (1 + 1e-5) + 1e-44, scale


# What each does, as a numpy loop.


def buckets(v: np.ndarray, size: int | None) -> list[np.ndarray]:
    size = size or max(1, len(v))
    return [np.arange(len(v))[at : at + size] for at in range(0, len(v), size)]


def loop_topk(layer: TopK, v: np.ndarray, noise: Noise) -> np.ndarray:
    assert layer.k is not None
    out = np.zeros_like(v)
    order = np.argsort(-np.abs(v), kind="stable")[: layer.k]
    out[order] = v[order]
    return out


def loop_randk(layer: RandK, v: np.ndarray, noise: Noise) -> np.ndarray:
    assert layer.k is not None
    out = np.zeros_like(v)
    for i in noise.order.numpy()[: layer.k]:
        out[i] = v[i] * (len(v) / layer.k if layer.unbiased and layer.k < len(v) else 1)
    return out if layer.k < len(v) else v


def loop_sign(layer: Sign, v: np.ndarray, noise: Noise) -> np.ndarray:
    out = np.zeros_like(v)
    for part in buckets(v, layer.bucket):
        scale = np.abs(v[part]).mean() if layer.scale == "l1" else np.sqrt((v[part] ** 2).mean())
        for i in part:
            out[i] = scale if v[i] >= 0 else -scale
    return out


def loop_grid(v: np.ndarray, noise: Noise, bucket: int | None, top: int, scale: Callable[..., float]) -> np.ndarray:
    out = np.zeros_like(v)
    for part in buckets(v, bucket):
        unit = scale(v[part]) / top
        for i in part:
            below = math.floor(v[i] / unit)
            out[i] = unit * (below + (float(noise.u[i]) < v[i] / unit - below))
    return out


def loop_qsgd(layer: QSGD, v: np.ndarray, noise: Noise) -> np.ndarray:
    return loop_grid(v, noise, layer.bucket, layer.levels, lambda x: float(np.linalg.norm(x)))


def loop_uniform(layer: Uniform, v: np.ndarray, noise: Noise) -> np.ndarray:
    return loop_grid(v, noise, layer.bucket, {8: 127, 4: 7}[layer.bits], lambda x: float(np.abs(x).max()))


def loop_natural(layer: Natural, v: np.ndarray, noise: Noise) -> np.ndarray:
    out = np.zeros_like(v)
    for i, x in enumerate(v):
        low = 2.0 ** math.floor(math.log2(abs(x)))
        up = float(noise.u[i]) < (abs(x) - low) / low
        out[i] = math.copysign(2 * low if up else low, x)
    return out


def loop_terngrad(layer: TernGrad, v: np.ndarray, noise: Noise) -> np.ndarray:
    if layer.clip is not None and v.std() > 0:
        v = np.clip(v, -layer.clip * v.std(), layer.clip * v.std())
    peak = np.abs(v).max()
    return np.array([math.copysign(peak, x) * (float(u) < abs(x) / peak) for x, u in zip(v, noise.u, strict=True)])


def loop_half(layer: Half, v: np.ndarray, noise: Noise) -> np.ndarray:
    if layer.format == "fp16":
        return v.astype(np.float16).astype(v.dtype)
    exponent = np.floor(np.log2(np.abs(v)))
    unit = 2.0 ** (exponent - 7)
    return np.rint(v / unit) * unit  # ties to even, in both


def loop_lowrank(layer: LowRank, v: np.ndarray, noise: Noise) -> np.ndarray:
    """The projection on the subspace that A (A' A)^iterations times the start spans, by the normal equations."""
    p = math.isqrt(len(v))
    m = math.ceil(len(v) / p)
    if layer.rank * (m + p) >= len(v):
        return v
    a = np.zeros(m * p)
    a[: len(v)] = v
    a = a.reshape(m, p)
    y = a @ noise.z.numpy()[: p * layer.rank].reshape(p, layer.rank)
    for _ in range(layer.iterations):
        y = a @ (a.T @ y)
    return np.asarray((y @ np.linalg.solve(y.T @ y, y.T @ a)).reshape(-1)[: len(v)])


LOOPS: dict[type, Callable[..., np.ndarray]] = {
    TopK: loop_topk,
    RandK: loop_randk,
    Sign: loop_sign,
    QSGD: loop_qsgd,
    Uniform: loop_uniform,
    Natural: loop_natural,
    TernGrad: loop_terngrad,
    Half: loop_half,
    LowRank: loop_lowrank,
}


@pytest.mark.parametrize("name", [n for n, layer in LAYERS.items() if getattr(layer, "ratio", None) != 0.1])
@pytest.mark.parametrize("d", [1, 3, 41, 130])
def test_equals_a_numpy_loop(name: str, d: int) -> None:
    layer, noise = LAYERS[name], draw(d, seed=d)
    v = np.random.default_rng(d).normal(size=d)
    expected = LOOPS[type(layer)](layer, v, noise)
    np.testing.assert_allclose(use(layer, torch.from_numpy(v), noise).numpy(), expected, rtol=1e-10, atol=1e-12)


# Sizes: the table of bits, at d = 1001 float32. A field of one letter costs 5 bytes, a dimension 4, a side 1 + counts.


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (TopK(k=1001), 9 + 4 * 1001),
        (TopK(ratio=0.01), 9 + 4 * 11 + (1 + 1 + 2) + math.ceil(11 * 6 / 8) + math.ceil((11 + 1000 // 64) / 8)),
        (TopK(k=500), 9 + 4 * 500 + (1 + 2 + 2) + 126),
        (RandK(k=10), 9 + 4 * 10 + (1 + 1 + 2) + 8),
        (Sign(), 9 + 4 + (1 + 2) + 126),
        (Sign(bucket=100), 9 + 4 * 11 + (1 + 2) + 126),
        (QSGD(levels=7, bucket=512), 9 + 4 * 2 + (1 + 2 + 1 + 1) + math.ceil(1001 * 4 / 8)),
        (QSGD(levels=8, bucket=512), 9 + 4 * 2 + (1 + 2 + 1 + 1) + math.ceil(1001 * 5 / 8)),
        (Natural(), 9 + (1 + 2) + 126 + (1 + 2 + 1 + 2) + 1001),
        (TernGrad(), 9 + 4 + (1 + 2) + 201),
        (Uniform(), 9 + 4 + (1 + 2 + 2 + 2) + 1001),
        (Uniform(bits=4, bucket=64), 9 + 4 * 16 + (1 + 2 + 1 + 1) + 501),
        (Half(), 9 + 2 * 1001),
        (Half(format="bf16"), 9 + 2 * 1001),
        (LowRank(rank=2), 9 + 4 * 2 * (33 + 31)),
    ],
)
def test_bytes_on_the_wire(layer: Any, size: int) -> None:
    v = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    assert layer(v, (), draw(1001, dtype=v.dtype), over_the_wire)[2] == size


def chain(layers: list[Any], v: Tensor, seed: int = 0) -> tuple[Tensor, int]:
    """An onion of layers, outermost first; what an outer one puts beside the vector passes the inner ones."""

    def rest(at: int, outer: tuple[Side, ...]) -> Any:
        def send(x: Tensor, *sides: Side) -> tuple[Tensor, tuple[Side, ...], int]:
            beside = outer + sides
            if at == len(layers):
                got, back, size = over_the_wire(x, *beside)
                held.append(back)
            else:
                got, _, size = layers[at](x, (), draw(len(x), seed, x.dtype), rest(at + 1, beside))
            return got, held[0][len(outer) : len(beside)], size

        return send

    held: list[tuple[Side, ...]] = []
    out, _, size = rest(0, ())(v)
    return out, size


def test_layers_compose() -> None:
    v = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    positions = math.ceil(10 * 6 / 8) + math.ceil((10 + 999 // 64) / 8)

    out, size = chain([TopK(k=10), Half()], v)
    assert torch.equal(out, use(TopK(k=10), v).half().float())
    assert size == 9 + 2 * 10 + (1 + 1 + 2) + positions

    out, size = chain([QSGD(), Half()], v)
    norms = torch.stack([v[:512].norm(), v[512:].norm()]).half().float()
    whole = out / torch.cat([norms[0].expand(512), norms[1].expand(488)]) * 7
    assert torch.allclose(whole, whole.round(), atol=1e-5)
    assert size == 9 + 2 * 2 + (1 + 2 + 1 + 1) + 500

    out, size = chain([TopK(k=10), QSGD()], v)
    index = largest_positions(v, 10)
    expected = torch.zeros_like(v).scatter(0, index, use(QSGD(), v[index]))
    assert torch.equal(out, expected)
    assert size == 9 + 4 + (1 + 1 + 2) + positions + (1 + 1 + 1 + 1) + 5


def test_contraction_is_what_a_step_size_may_use() -> None:
    assert contraction(TopK(k=5), 50) == 0.1
    assert contraction(RandK(k=5, unbiased=True), 50) == pytest.approx(0.1)  # omega = 9
    assert contraction(Natural(), 50) == pytest.approx(8 / 9)
    assert contraction(Sign(scale="l2"), 50) is None
    assert contraction(LowRank(), 100) == 0.1
    assert contraction(LowRank(), 4) == 1
    assert all(layer_traits(layer).loses for layer in LAYERS.values())


@pytest.mark.parametrize("d", [1, 2, 7, 64, 1000])
def test_scaled_unbiased_compressors_contract(d: int) -> None:
    for layer in (RandK(k=1, unbiased=True), TernGrad(), QSGD(bucket=None), Natural()):
        delta = contraction(layer, d)
        assert delta is not None
        assert 0 < delta <= 1


# Top-K


@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 2**31))
@settings(max_examples=60)
def test_topk_breaks_ties_by_the_lowest_position(d: int, k: int, seed: int) -> None:
    v = np.random.default_rng(seed).integers(-2, 3, d).astype(np.float32)
    order = np.argsort(-np.abs(v), kind="stable")[:k]
    assert largest_positions(torch.from_numpy(v), min(k, d)).tolist() == sorted(order.tolist())


@pytest.mark.parametrize("kind", ["normal", "constant", "few", "periodic", "grid", "nan"])
@pytest.mark.parametrize("k", [1, 57, 1000, 30_000])
def test_topk_of_long_vectors_is_exact(kind: str, k: int) -> None:
    """Long enough for the guessed threshold, and vectors on which the guess is bad."""
    d = 100_003
    random = np.random.default_rng(k)
    v = random.normal(size=d).astype(np.float32)
    if kind == "constant":
        v[:] = -1
    if kind == "few":
        v[random.permutation(d)[: d - 20]] = 0
    if kind == "periodic":
        v[::64] *= 1000  # exactly what the sample looks at: the guess is far too high
    if kind == "grid":
        v = v.round()
    if kind == "nan":
        v[[5, 70_000]] = np.nan
    magnitude = np.where(np.isnan(v), np.inf, np.abs(v))
    expected = np.sort(np.argsort(-magnitude, kind="stable")[:k])
    assert np.array_equal(largest_positions(torch.from_numpy(v), k).numpy(), expected)


def test_kept_is_the_fraction_that_travels_as_it_is_written() -> None:
    """Not the fraction dropped; and 0.07 * 100 is 7, though 7.000000000000001 in binary."""
    v = torch.randn(100, generator=torch.Generator().manual_seed(0))
    for ratio, count in [(0.07, 7), (0.9, 90), (0.001, 1), (1.0, 100), (0.29, 29), (0.011, 2)]:
        assert int((use(TopK(ratio=ratio), v) != 0).sum()) == count
        assert int((use(RandK(ratio=ratio), v) != 0).sum()) == count


def test_at_k_above_d_everything_travels_without_positions() -> None:
    v = torch.tensor([1.0, -2.0, 0.0])
    for layer in (TopK(k=3), TopK(k=99), RandK(k=3), RandK(k=99, unbiased=True)):
        out, _, size = layer(v, (), draw(3), over_the_wire)
        assert torch.equal(out, v)
        assert size == 9 + 12
        assert contraction(layer, 3) == 1


# Bugs seen in public code


def test_topk_orders_magnitudes_not_values() -> None:
    assert use(TopK(k=1), torch.tensor([1.0, -9.0, 2.0])).tolist() == [0, -9, 0]


def test_topk_keeps_exactly_k_among_equals() -> None:
    assert use(TopK(k=2), torch.ones(5)).tolist() == [1, 1, 0, 0, 0]


def test_randk_keeps_exactly_k_and_rescales() -> None:
    for seed in range(50):
        out = use(RandK(k=4, unbiased=True), torch.ones(20), draw(20, seed, torch.float32))
        assert sorted(out.tolist()) == [0.0] * 16 + [5.0] * 4


def test_positions_beyond_2_24_survive() -> None:
    """In a float32 tensor they would be rounded to even numbers."""
    index = torch.tensor([2**24 + 1, 2**24 + 3, 2**31 + 5])
    _, (back,), _ = over_the_wire(torch.zeros(3), Positions(index, 2**32))
    assert torch.equal(back.tensor, index)


def test_one_bit_decodes_to_plus_and_minus_the_scale_only() -> None:
    out = use(Sign(), torch.tensor([-3.0, 0.0, 1.0, -0.0, 4.0, -4.0, 1.0, 1.0, 2.0]))
    assert torch.equal(out, torch.tensor([-1.0, 1, 1, 1, 1, -1, 1, 1, 1]) * torch.tensor(16 / 9))
    _, (signs,), _ = over_the_wire(torch.zeros(1), Signs(torch.tensor([True, False])))
    assert signs.tensor.dtype == torch.bool


def test_a_zero_bucket_beside_others_is_zero() -> None:
    v = torch.cat([torch.zeros(5), torch.ones(5), torch.zeros(3)])
    for layer in (QSGD(bucket=5), Uniform(bucket=5), Sign(bucket=5)):
        out = use(layer, v)
        assert torch.equal(out[:5], torch.zeros(5))
        assert torch.equal(out[10:], torch.zeros(3))
        assert out[5:10].abs().sum() > 0


def test_lowrank_of_a_matrix_of_lower_rank_is_exact() -> None:
    """Rank 1 asked for rank 3: two columns of the subspace have nothing to span, and must not divide by their norm."""
    g = torch.Generator().manual_seed(0)
    a = torch.outer(*torch.randn(2, 20, generator=g, dtype=torch.float64))
    a[:, 3] = 0
    out = use(LowRank(rank=3), a.reshape(-1))
    assert torch.allclose(out, a.reshape(-1), rtol=0, atol=1e-12)


def test_lowrank_comes_close_to_the_best_rank() -> None:
    g = torch.Generator().manual_seed(0)
    q1, q2 = (torch.linalg.qr(torch.randn(30, 30, generator=g, dtype=torch.float64)).Q for _ in range(2))
    spectrum = 2.0 ** -torch.arange(30, dtype=torch.float64)
    v = (q1 @ spectrum.diag() @ q2).reshape(-1)
    error = (use(LowRank(rank=3, iterations=3), v) - v).norm()
    assert spectrum[3:].norm() * (1 - 1e-12) <= error <= 1.05 * spectrum[3:].norm()


def test_the_largest_magnitude_is_never_rounded_beyond_the_grid() -> None:
    """max / (max / 127) can exceed 127 in floating point; 128 would not fit its bits."""
    g = torch.Generator().manual_seed(0)
    for v in torch.rand(300, 3, generator=g) * 10:
        assert use(Uniform(), v).abs().max() == v.abs().max()
        assert use(TernGrad(), v).abs().max() == v.abs().max()
        assert use(QSGD(levels=3), v[:1]) == v[:1]


# Ends of the number formats


def test_natural_at_the_ends_of_the_exponents() -> None:
    tiny, top = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    v = torch.tensor([0.0, -0.0, tiny / 2, tiny, 2.0**127, top, -top, 1.0, 1.5, -3.0, math.inf, -math.inf, math.nan])
    low = use(Natural(), v, draw(13)._replace(u=torch.full((13,), 0.99)))
    high = use(Natural(), v, draw(13)._replace(u=torch.zeros(13)))
    inf = math.inf
    assert low.tolist() == [0, 0, 0, tiny, 2.0**127, 2.0**127, -(2.0**127), 1, 1, -2, inf, -inf, -inf]
    assert high.tolist() == [0, 0, tiny, tiny, 2.0**127, 2.0**127, -(2.0**127), 1, 2, -4, inf, -inf, -inf]


def test_half_saturates_what_is_finite_and_keeps_what_is_not() -> None:
    v = torch.tensor([7e4, -1e30, 65504.0, 1e-9, math.inf, -math.inf])
    assert use(Half(), v).tolist() == [65504, -65504, 65504, 0, math.inf, -math.inf]
    top = torch.finfo(torch.bfloat16).max
    big = torch.tensor([torch.finfo(torch.float32).max, math.inf])
    assert use(Half(format="bf16"), big).tolist() == [top, math.inf]
    assert use(Half(format="bf16"), torch.tensor([1e300], dtype=torch.float64)).tolist() == [top]


# Options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(k=0), "k must be >= 1, got 0"),
        (lambda: TopK(ratio=7), "ratio must be in \\(0, 1\\], got 7"),
        (lambda: RandK(ratio=0.0), "ratio must be in \\(0, 1\\], got 0.0"),
        (lambda: TopK(ratio=math.nan), "ratio must be a finite number, got nan"),
        (lambda: TopK(k=None, ratio=None), "k must be given, or ratio"),
        (lambda: Sign(bucket=0), "bucket must be >= 1"),
        (lambda: QSGD(levels=0), "levels must be in"),
        (lambda: Uniform(bits=1), "bits must be in \\[2, 16\\], got 1"),
        (lambda: LowRank(rank=0), "rank must be >= 1"),
        (lambda: LowRank(iterations=-1), "iterations must be >= 0"),
    ],
)
def test_options_out_of_range_are_one_clear_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


CONFIGS = Path(__file__).parents[2] / "configs" / "channel"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("topk", TopK()),
        ("randk", RandK()),
        ("sign", Sign()),
        ("qsgd", QSGD()),
        ("natural", Natural()),
        ("terngrad", TernGrad()),
        ("int8", Uniform()),
        ("int4", Uniform(bits=4, bucket=64)),
        ("fp16", Half()),
        ("bf16", Half(format="bf16")),
        ("lowrank", LowRank()),
    ],
)
def test_the_yaml_holds_the_defaults_of_the_class(name: str, kind: Any) -> None:
    node = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert list(node) == [name]
    assert build_object(node[name], name) == kind


def test_wider_levels_hold_wider_ranges() -> None:
    _, (levels,), _ = over_the_wire(torch.zeros(0), Levels(torch.tensor([-1000, 1000]), -1000, 1000))
    assert levels.tensor.tolist() == [-1000, 1000]
