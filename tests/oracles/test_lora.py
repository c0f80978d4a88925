"""LoRA against the paper's equation in a plain torch loop, written here with its own A, B and W."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.errors import InputError
from fedsim.models import Adapted, LoRA, build, cnn, mlp, without_adapters
from fedsim.partition import Iid
from tests.oracles.test_trained_part import CLIENTS, KERNELS, ROUNDING, SEED, fedavg_by_hand, numbers, run


class Adapter(nn.Module):
    """y = W x + b + (alpha / r) B A x, in one line and with parameters of its own."""

    def __init__(self, w: Tensor, b: Tensor, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("w", w.detach().clone())
        self.register_buffer("b", b.detach().clone())
        self.down, self.up, self.scale = nn.Parameter(down.clone()), nn.Parameter(up.clone()), scale

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.get_buffer("w").T + self.get_buffer("b") + self.scale * (x @ self.down.T @ self.up.T)


LORA = LoRA(rank=2, targets=("body.1", "body.3"), alpha=5.0)


def pair(trained_head: bool) -> tuple[nn.Module, nn.Module]:
    """A model of fedsim's and the same by hand."""
    base = build(mlp, (6,), 3, {"hidden": (8, 7), "activation": "tanh"}, 3)
    train = ("head.*",) if trained_head else None
    model = build(Adapted(base, lora=LORA, train=train), (6,), 3, {}, 4)
    hand = copy.deepcopy(base)
    for number in (1, 3):
        layer, lora = base.body[number], model.body[number]  # type: ignore[index,union-attr]
        adapter = Adapter(layer.weight, layer.bias, lora.lora_A.weight, lora.lora_B.weight, 5 / 2)
        hand.body[number] = adapter  # type: ignore[index,operator]
    hand.head.requires_grad_(trained_head)
    return model, hand


def test_it_begins_as_the_model_it_is_put_into() -> None:
    base = build(mlp, (6,), 3, {"hidden": (8,)}, 3)
    model, x = LoRA(rank=3).put_into(copy.deepcopy(base)), torch.randn(5, 6)
    assert torch.equal(model(x), base(x))
    for name, shape in (("body.1", (3, 6)), ("head", (3, 8))):
        layer = model.get_submodule(name)
        assert layer.lora_A.weight.shape == shape
        assert layer.lora_B.weight.abs().max() == 0
        assert 0 < layer.lora_A.weight.abs().max() <= 1 / math.sqrt(shape[1])  # as nn.Linear draws its weight
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"{at}.{part}.weight" for at in ("body.1", "head") for part in ("lora_A", "lora_B")]


@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_training_is_the_papers_equation(trained_head: bool, dtype: str, kernel: dict[str, Any]) -> None:
    model, hand = pair(trained_head)
    data, kind = numbers((6,)), getattr(torch, dtype)
    result = run(model, data, engine=kernel | {"dtype": dtype})
    want = fedavg_by_hand(hand, data, Iid(clients=CLIENTS), lr=0.1, rounds=2, dtype=kind)
    assert result.model is not None
    got = [p for p in result.model.parameters() if p.requires_grad]
    for a, b in zip(got, (p for p in want.parameters() if p.requires_grad), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING[dtype])
        assert b.abs().max() > 0
    moved = [p for p in hand.parameters() if p.requires_grad]
    assert any(not torch.equal(a.to(kind), b) for a, b in zip(moved, got, strict=True))


def test_draws_have_the_address_of_the_seed() -> None:
    model = Adapted(mlp, lora=LoRA(rank=2))
    first, again, other = (build(model, (6,), 3, {}, seed).head.lora_A.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bytes_are_those_of_the_adapters() -> None:
    data = numbers((6,))
    model = build(Adapted(mlp, lora=LoRA(rank=2, targets=("body.*",))), (6,), 3, {}, 0)
    result = run(model, data)
    d = 2 * 6 + 200 * 2
    assert result.server is not None
    assert result.server.x.numel() == d
    assert 0 <= result.metrics[-1]["comm/uplink_bytes"] - CLIENTS * 4 * d < CLIENTS * 100


def test_merging_gives_the_same_function_without_adapters() -> None:
    model = Adapted(mlp, lora=LoRA(rank=2, targets=("*",), alpha=3))((6,), 3)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    plain = mlp((6,), 3)
    plain.load_state_dict(without_adapters(model.state_dict()))
    x = torch.randn(4, 6)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-5)


class Attention(nn.Module):
    """Self-attention over a sample's four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class AttentionByHand(nn.Module):
    """The same with queries, keys and values written out."""

    def __init__(self, base: Attention, adapted: nn.Module) -> None:
        super().__init__()
        a = base.attention
        packed, out = (
            adapted.get_submodule(f"attention.{at}")
            for at in ("parametrizations.in_proj_weight.0", "out_proj.parametrizations.weight.0")
        )
        self.out = Adapter(a.out_proj.weight, a.out_proj.bias, out.lora_A.weight, out.lora_B.weight, 2.0)
        self.qkv = Adapter(a.in_proj_weight, a.in_proj_bias, packed.lora_A.weight, packed.lora_B.weight, 2.0)
        self.head = copy.deepcopy(base.head).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(3), -1) @ v
        return self.head((x + self.out(mixed.transpose(1, 2).flatten(2))).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention_projections(dtype: str) -> None:
    torch.manual_seed(0)
    base, data, kind = Attention(), numbers((4, 6)), getattr(torch, dtype)
    model = build(Adapted(base, lora=LoRA(rank=2, targets=("attention*",), alpha=4)), (4, 6), 3, {}, 1)
    hand = AttentionByHand(base, model)
    result = run(model, data, engine={"dtype": dtype})
    want = fedavg_by_hand(hand, data, Iid(clients=CLIENTS), lr=0.1, rounds=2, dtype=kind)
    assert result.model is not None
    got = {n: p for n, p in result.model.named_parameters() if p.requires_grad}
    expected = [p for p in want.parameters() if p.requires_grad]
    assert len(got) == len(expected) == 4
    for (name, a), b in zip(got.items(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING[dtype], msg=name)
        assert b.abs().max() > 0
    plain = Attention().to(kind)
    plain.load_state_dict(without_adapters(result.model.state_dict()))
    x = torch.randn(5, 4, 6, dtype=kind)
    torch.testing.assert_close(plain(x), result.model(x), rtol=1e-5, atol=1e-5)


def test_a_transformer_layer_with_adapters_predicts_as_it_trains() -> None:
    """Its fast path in evaluation mode uses the weights of its linear layers itself."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = LoRA(rank=2, targets=("self_attn", "linear*")).put_into(layer)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    x = torch.randn(3, 4, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), model.train()(x), rtol=1e-5, atol=1e-5)


def test_a_layer_of_two_places_has_one_adapter() -> None:
    layer = nn.Linear(4, 4)
    model = LoRA(rank=2).put_into(nn.Sequential(layer, nn.Tanh(), layer))
    assert model[0] is model[2]  # type: ignore[index]
    assert len(list(model.parameters())) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(rank=0), "rank must be >= 1, got 0"),
        (lambda: LoRA(rank=2, alpha=0), "alpha must be > 0 or null, got 0"),
        (lambda: LoRA(rank=2, targets=()), "targets must be one or more patterns of names of layers"),
        (
            lambda: Adapted(mlp, lora=LoRA(rank=2, targets=("boddy",)))((6,), 3),
            "patterns of names of linear and attention layers, got 'boddy'; there are: body.1",
        ),
        (
            lambda: Adapted(mlp, lora=LoRA(rank=4))((6,), 3),
            "model.lora.rank must be <= 3, the smaller side of head, got 4",
        ),
        (
            lambda: Adapted(cnn, lora=LoRA(rank=1, targets=("body.0",)))((1, 28, 28), 3),
            "got 'body.0'; there are: head",
        ),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)


def test_a_run_with_adapters_begins_others_with_and_without(tmp_path: Any) -> None:
    data = numbers((6,))
    first = run(Adapted(mlp, lora=LoRA(rank=2, alpha=4)), data, run_dir=tmp_path / "first")
    assert first.model is not None
    want, x = first.model(torch.ones(1, 6)), torch.ones(1, 6)
    on = build(Adapted(mlp, lora=LoRA(rank=2, alpha=4), init=str(tmp_path / "first")), (6,), 3, {}, seed=9)
    for a, b in zip(on.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(a, b)
    plain = build(Adapted(mlp, init=str(tmp_path / "first")), (6,), 3, {}, seed=9)
    assert [name for name, _ in plain.named_parameters()] == [
        "body.1.weight",
        "body.1.bias",
        "head.weight",
        "head.bias",
    ]
    torch.testing.assert_close(plain(x), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(F.softmax(plain(x), -1), F.softmax(on(x), -1), rtol=1e-5, atol=1e-5)
    assert SEED != 9
