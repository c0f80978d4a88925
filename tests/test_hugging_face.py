"""Transformers built from a small configuration, without a download, and models wrapped by peft."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.data import Dataset, Split
from fedsim.errors import InputError
from fedsim.models import Adapted, LoRA, Output, build, mlp, without_adapters
from tests.oracles.test_trained_part import CLIENTS, numbers, run

WORDS, LENGTH = 11, 6


def tokens(n: int = 12) -> Dataset:
    random = np.random.default_rng(0)
    x = random.integers(0, WORDS, (n, LENGTH + 1))
    return Dataset("tokens", Split(x[:, :-1], x[:, 1:]), None, "next_token", WORDS)


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LENGTH, attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]


def test_a_transformer_trains_its_adapters_alone() -> None:
    model = Adapted(llama(), lora=LoRA(rank=2, targets=("*.q_proj", "*.v_proj")), output="logits")
    result = run(model, tokens(), trajectory=True)
    d = 2 * (2 * 8 + 8 * 2)
    assert result.server is not None
    assert result.server.x.numel() == d
    assert 0 <= result.metrics[-1]["comm/uplink_bytes"] - CLIENTS * 4 * d < CLIENTS * 100
    assert result.trajectory is not None
    assert np.abs(result.trajectory[-1] - result.trajectory[0]).max() > 0
    assert result.model is not None
    plain = llama()
    plain.load_state_dict(without_adapters(result.model.state_dict()))  # the names of transformers, for from_pretrained
    x = torch.from_numpy(tokens().train.x)
    torch.testing.assert_close(plain.eval()(x).logits, result.model(x), rtol=1e-4, atol=1e-5)


def test_a_model_wrapped_by_peft() -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    wrapped = peft.get_peft_model(llama(), settings)
    d = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert d == 2 * (2 * 8 + 8 * 2)
    result = run(Output(wrapped, "logits"), tokens())
    assert result.server is not None
    assert result.server.x.numel() == d
    assert 0 <= result.metrics[-1]["comm/uplink_bytes"] - CLIENTS * 4 * d < CLIENTS * 100


def test_peft_and_fedsim_train_the_same_adapters() -> None:
    """The same A, B and W in both give the same rounds."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    theirs = peft.get_peft_model(llama(), settings)
    ours = LoRA(rank=2, targets=("*.q_proj", "*.v_proj"), alpha=4).put_into(llama())
    weights = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        if p.requires_grad:
            p.data.copy_(weights[f"base_model.model.{re.sub(r'.weight$', '.default.weight', name)}"])
    a, b = (run(Output(m, "logits"), tokens(), engine={"dtype": "float64"}) for m in (theirs, ours))
    assert a.server is not None
    assert b.server is not None
    torch.testing.assert_close(a.server.x, b.server.x, rtol=0, atol=1e-12)


class Two(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = build(mlp, (6,), 3, {"hidden": (5,)}, 0), kind

    def forward(self, x: torch.Tensor) -> Any:
        out = self.inner(x)
        return {"mapping": {"logits": out, "inputs": x}, "tuple": (x, out), "tensor": out}[self.kind]


@pytest.mark.parametrize(("kind", "name"), [("mapping", "logits"), ("tuple", 1), ("tuple", -1)])
def test_one_of_several_outputs(kind: str, name: str | int) -> None:
    plain = run(build(mlp, (6,), 3, {"hidden": (5,)}, 0), numbers((6,)))
    result = run(Adapted(Two(kind), output=name), numbers((6,)))
    assert result.server is not None
    assert plain.server is not None
    assert torch.equal(result.server.x, plain.server.x)
    assert result.model is not None
    assert set(result.model.state_dict()) == set(Two(kind).state_dict())


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("mapping", "logit", "model.output must be one of the model's outputs, got 'logit'; there are: logits, inputs"),
        ("tuple", 2, "model.output must be one of the model's outputs, got 2; there are: 0..1"),
        ("tuple", None, "got tuple; choose one of its outputs with model.output=0"),
        ("tensor", 0, "model.output must be left out for a model that gives one tensor, got 0"),
        ("tensor", "T", "model.output must be left out for a model that gives one tensor, got 'T'"),
        ("mapping", None, "got dict; choose one of its outputs with model.output=logits"),
    ],
)
def test_outputs_that_are_not_there(kind: str, name: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        run(Adapted(Two(kind), output=name), numbers((6,)))
