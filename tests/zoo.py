"""Models that a stranger may bring: each must train with the plain module's gradients, or be refused in one line.

Those of ``NUMBERS`` take samples [6], those of ``TOKENS`` int64 samples [5] of 11 tokens; all give 3 outputs.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

F_IN, K, VOCABULARY, LENGTH = 6, 3, 11, 5
Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A body of one layer and a head; what is odd about it is added from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(F_IN, F_IN)
        self.head = nn.Linear(F_IN, K)
        self.state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))  # type: ignore[no-any-return]


def net(forward: Forward | None = None, prepare: Callable[[Any], object] | None = None) -> Callable[[], nn.Module]:
    """A factory of ``Net`` with another forward, and something done to it in ``__init__``."""

    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            if prepare is not None:
                prepare(self)

    if forward is not None:
        Odd.forward = forward  # type: ignore[assignment]
    return Odd


def tokens(embed: Forward | None = None, **options: Any) -> Callable[[], nn.Module]:
    """A factory of a mean of embeddings and a head."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(VOCABULARY, 4, **options)
            self.head = nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.e(x) if embed is None else embed(self.e.weight, x)
            return self.head(rows.mean(1) if rows.dim() == 3 else rows)  # type: ignore[no-any-return]

    return Bag


def with_parameter(*shape: int) -> Callable[[Any], None]:
    def prepare(model: Any) -> None:
        model.t = nn.Parameter(torch.full(shape, 0.7))

    return prepare


def tie(model: Any) -> None:
    model.again = nn.Linear(F_IN, F_IN)
    model.again.weight = model.body.weight


def several(model: Any) -> None:
    model.list = nn.ParameterList([nn.Parameter(0.1 * torch.ones(F_IN) * i) for i in range(3)])


def no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        z = self.body(x)
    return self.head(torch.tanh(z))  # type: ignore[no-any-return]


def nested_no_grad(self: Any, x: Tensor) -> Tensor:
    z = self.body(x)
    with torch.no_grad():
        size = z.abs().mean(1, keepdim=True)
        with torch.enable_grad():
            kept = torch.tanh(z)
        size = size + 1
    return self.head(kept / size)  # type: ignore[no-any-return]


def switches(self: Any, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    z = self.body(x)
    torch.set_grad_enabled(True)
    return self.head(torch.tanh(z))  # type: ignore[no-any-return]


def switches_off(self: Any, x: Tensor) -> Tensor:
    out = self.head(self.body(x))
    torch.set_grad_enabled(False)
    return out  # type: ignore[no-any-return]


def inference(self: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        z = self.body(x)
    return self.head(z)  # type: ignore[no-any-return]


def autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = self.body(x)
    return self.head(torch.tanh(z.to(x.dtype)))  # type: ignore[no-any-return]


class Reversed(torch.autograd.Function):
    """Forward the identity, backward its negative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return -grads[0]


class Straight(torch.autograd.Function):
    """Forward the sign, backward the identity; written for torch.func as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


def by_own_generator(kind: str) -> Callable[[], nn.Module]:
    def prepare(model: Any) -> None:
        model.g = torch.Generator().manual_seed(0) if kind == "torch" else np.random.default_rng(0)

    def forward(self: Any, x: Tensor) -> Tensor:
        if kind == "torch":
            noise = torch.rand(x.shape, generator=self.g).to(x.dtype)
        else:
            noise = torch.as_tensor(self.g.random(x.shape)).to(x.dtype)
        return self.head(self.body(x * noise))  # type: ignore[no-any-return]

    return net(forward, prepare)


def counts_calls(self: Any, x: Tensor) -> Tensor:
    self.state = (self.state or 0) + 1
    return self.head(self.body(x)) * (1 + self.state)  # type: ignore[no-any-return]


def remembers(self: Any, x: Tensor) -> Tensor:
    z = torch.tanh(self.body(x))
    last = z.mean(0) if self.state is None else self.state
    self.state = z.mean(0).detach()
    return self.head(z + last)  # type: ignore[no-any-return]


def caches(self: Any, x: Tensor) -> Tensor:
    if self.state is None:
        self.state = self.body.weight.detach() * 2
    return self.head(x @ self.state + self.body(x))  # type: ignore[no-any-return]


def keeps_activations(self: Any, x: Tensor) -> Tensor:
    self.state = torch.tanh(self.body(x))
    return self.head(self.state)  # type: ignore[no-any-return]


def writes_a_buffer(self: Any, x: Tensor) -> Tensor:
    self.seen += x.detach().abs().sum()
    return self.head(self.body(x))  # type: ignore[no-any-return]


def clamps(self: Any, x: Tensor) -> Tensor:
    self.body.weight.data.clamp_(-0.1, 0.1)
    return self.head(self.body(x))  # type: ignore[no-any-return]


def freezes(self: Any, x: Tensor) -> Tensor:
    self.body.weight.requires_grad_(False)
    return self.head(self.body(x))  # type: ignore[no-any-return]


def masked(self: Any, x: Tensor) -> Tensor:
    weight = self.body.weight * 0.5 + (self.body.weight * 0.5).detach()
    return self.head(torch.tanh(F.linear(x, weight, self.body.bias)))  # type: ignore[no-any-return]


def hooks_an_activation(self: Any, x: Tensor) -> Tensor:
    z = torch.tanh(self.body(x))
    if z.requires_grad:
        z.register_hook(lambda g: g * 0.25)
    return self.head(z)  # type: ignore[no-any-return]


def centres_the_batch(self: Any, x: Tensor) -> Tensor:
    z = self.body(x)
    return self.head(torch.tanh(z - z.mean(0) if self.training else z))  # type: ignore[no-any-return]


def in_training(usual: Forward, odd: Forward, when: Callable[[Tensor], Any] = lambda x: True) -> Forward:
    """One forward in training mode for some minibatches, another one else."""
    return lambda m, x: odd(m, x) if m.training and when(x) else usual(m, x)


def plain(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.tanh(m.body(x)))  # type: ignore[no-any-return]


def skips(draw: Callable[[Any], float]) -> Forward:
    """Stochastic depth: now and then, the body is left out."""
    return lambda m, x: m.head(x) if m.training and draw(m) < 1e-3 else plain(m, x)


def holds(**values: Any) -> Callable[[Any], None]:
    """Attributes; buffers where they are tensors."""

    def prepare(model: Any) -> None:
        for name, value in values.items():
            if isinstance(value, Tensor):
                model.register_buffer(name, value.clone())
            else:
                setattr(model, name, copy.deepcopy(value))

    return prepare


SHARED = np.random.default_rng(0)
TALLY = {"calls": 0}


def tallies(m: Any, x: Tensor) -> Tensor:
    TALLY["calls"] += 1
    return plain(m, x)


def counts_late(m: Any, x: Tensor) -> Tensor:
    m.calls = m.calls + 1
    return plain(m, x) * (1 if m.calls < 40 else 0.1)  # type: ignore[no-any-return]


def lists(m: Any, x: Tensor) -> Tensor:
    m.log.append(len(x))
    return plain(m, x) * (1 if len(m.log) < 40 else 0.1)  # type: ignore[no-any-return]


def averages(m: Any, x: Tensor) -> Tensor:
    """Statistics of its own, outside the buffers, for evaluation."""
    if m.training:
        m.kept["mean"] = 0.5 * m.kept["mean"] + 0.5 * x.detach().mean(0)
    return plain(m, x if m.training else x - m.kept["mean"])


def writes_when_large(m: Any, x: Tensor) -> Tensor:
    if m.training and len(x) > 5:
        m.seen += 1
    return plain(m, x) * (1 + m.seen)  # type: ignore[no-any-return]


def observes_weights(m: Any, x: Tensor) -> Tensor:
    if m.training:
        m.seen = torch.maximum(m.seen, m.head.weight.detach().abs().max())
    return plain(m, x / m.seen)


def clips_late(m: Any, x: Tensor) -> Tensor:
    if m.training:
        m.head.weight.data.clamp_(-0.6, 0.6)
    return plain(m, x)


def norms_late(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        if m.head.weight.norm() > 2:
            m.head.weight.mul_(2 / m.head.weight.norm())
    return plain(m, x)


def forgets_nothing(m: Any, x: Tensor) -> Tensor:
    """A product of weights that is kept until the next training step."""
    if m.training:
        m.state = None
    elif m.state is None:
        m.state = (m.head.weight @ m.body.weight).detach()
    return x @ (m.head.weight @ m.body.weight if m.training else m.state).T  # type: ignore[no-any-return]


def constant_at_first_call(m: Any, x: Tensor) -> Tensor:
    if m.state is None:
        m.state = torch.arange(F_IN).to(x.dtype) / F_IN
    return plain(m, x + m.state)


def remembers_its_size(m: Any, x: Tensor) -> Tensor:
    """As recurrent models do, for a first hidden state."""
    m.state = len(x)
    return plain(m, x + torch.zeros(m.state, F_IN, dtype=x.dtype))


def first_weights(m: Any, x: Tensor) -> Tensor:
    if m.state is None:
        m.state = m.body.weight.detach().clone()
    return plain(m, x @ m.state.to(x.dtype))


def writes_its_input_by_numpy(m: Any, x: Tensor) -> Tensor:
    if m.training:
        a = x.detach().numpy()
        np.clip(a, -1, 1, out=a)
    return plain(m, x)


def meta(m: Any) -> None:
    m.to("meta")


def shifts_its_input(self: Any, x: Tensor) -> Tensor:
    x -= 1
    return self.head(self.body(x))  # type: ignore[no-any-return]


def other_in_training(self: Any, x: Tensor) -> Tensor:
    out = self.head(torch.tanh(self.body(x)))
    return out if self.training else 3 * out  # type: ignore[no-any-return]


def skips_in_training(self: Any, x: Tensor) -> Tensor:
    z = x if self.training else torch.tanh(self.body(x))
    return self.head(z)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """A transformer's block on two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x.view(-1, 2, 3))).mean(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A GRU over six steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 4, batch_first=True), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x.unsqueeze(2))[0][:, -1])  # type: ignore[no-any-return]


class TrainsItself(Net):
    """Overrides ``train`` as people do to keep a part in evaluation mode, and forgets to return itself."""

    def train(self, mode: bool = True) -> Any:  # type: ignore[override]
        super().train(mode)
        self.body.eval()


class TwoHeads(Net):
    """Its head is called twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x))) + self.head(x)  # type: ignore[no-any-return]


def hook(name: str, act: Callable[..., Any]) -> Callable[[], nn.Module]:
    return net(prepare=lambda model: getattr(model.body, name)(act))


def on_parameter(name: str) -> Callable[[], nn.Module]:
    return net(prepare=lambda model: getattr(model.body.weight, name)(lambda *_: None))


def reused(self: Any, x: Tensor) -> Tensor:
    return self.head(torch.tanh(self.body(torch.tanh(self.body(x)))))  # type: ignore[no-any-return]


NUMBERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    # what is odd: (factory, what must become of it: right, or a word of the refusal)
    "temperature": (net(lambda m, x: m.head(torch.tanh(m.body(x))) * m.t, with_parameter()), "right"),
    "temperature_exp": (net(lambda m, x: m.head(m.body(x)) / m.t.exp(), with_parameter()), "right"),
    "only_a_scalar": (net(lambda m, x: m.head(x + m.t), with_parameter()), "right"),
    "one_number": (net(lambda m, x: m.head(m.body(x)) * m.t, with_parameter(1)), "right"),
    "empty_parameter": (net(prepare=with_parameter(0, 3)), "right"),
    "five_dimensions": (net(lambda m, x: m.head(m.body(x)) * m.t.sum(), with_parameter(1, 2, 1, 1, 2)), "right"),
    "tied": (net(lambda m, x: m.head(torch.tanh(m.again(torch.tanh(m.body(x))))), tie), "right"),
    "used_twice": (net(reused), "right"),
    "unused": (net(lambda m, x: m.head(x)), "right"),
    "parameter_list": (net(lambda m, x: m.head(m.body(x) + sum(m.list)), several), "right"),
    "transposed_parameter": (
        net(prepare=lambda m: setattr(m.body, "weight", nn.Parameter(torch.ones(6, 6).tril().t() / 6))),
        "right",
    ),
    "no_grad": (net(no_grad), "right"),
    "nested_no_grad": (net(nested_no_grad), "right"),
    "set_grad_enabled": (net(switches), "right"),
    "set_grad_enabled_for_good": (net(switches_off), "fails on training samples"),
    "inference_mode": (net(inference), "fails on training samples"),
    "autocast": (net(autocast), "right"),
    "detach": (net(lambda m, x: m.head(torch.tanh(m.body(x).detach()))), "right"),
    "half_detached_weight": (net(masked), "right"),
    "reversed_gradient": (net(lambda m, x: m.head(Reversed.apply(m.body(x)))), "right"),
    "straight_through": (net(lambda m, x: m.head(Straight.apply(m.body(x)))), "right"),
    "checkpoint": (net(lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=False))), "right"),
    "checkpoint_reentrant": (
        net(lambda m, x: m.head(checkpoint(m.body, m.body(x), use_reentrant=True))),
        "cannot be trained",
    ),
    "branch_on_data": (net(in_training(plain, lambda m, x: m.head(x), lambda x: x.sum() > 0)), "right"),
    "branch_on_size": (net(in_training(plain, lambda m, x: m.head(x), lambda x: len(x) > 2)), "right"),
    "branch_on_larger_size": (net(in_training(plain, lambda m, x: m.head(x), lambda x: len(x) > 8)), "right"),
    "branch_on_middle_size": (net(in_training(plain, lambda m, x: m.head(x), lambda x: len(x) > 5)), "right"),
    "scaled_by_size": (net(in_training(plain, lambda m, x: plain(m, x) * (len(x) / 10))), "right"),
    "branch_on_size_everywhere": (net(lambda m, x: plain(m, x) if len(x) > 2 else m.head(x)), "others are beside"),
    "centred_everywhere": (net(lambda m, x: plain(m, x - x.mean(0))), "others are beside"),
    "softmax_over_samples": (net(lambda m, x: m.head(torch.softmax(m.body(x), 0))), "others are beside"),
    "attention_over_samples": (net(lambda m, x: m.head(torch.softmax(x @ x.T, 1) @ m.body(x))), "others are beside"),
    "not_a_number": (net(lambda m, x: plain(m, x) + (x[:, :1] - 1e3).log()), "not finite"),
    "not_a_number_in_a_weight": (net(prepare=lambda m: m.head.weight.data[0].fill_(torch.nan)), "not finite"),
    "script": (lambda: torch.jit.script(Net()), "torch.jit"),  # type: ignore[no-untyped-call]
    "trace": (lambda: torch.jit.trace(Net(), torch.zeros(1, F_IN)), "torch.jit"),  # type: ignore[no-untyped-call]
    "meta": (net(prepare=meta), "meta"),
    "rare_torch_generator": (
        net(skips(lambda m: float(torch.rand(1, generator=m.g))), holds(g=torch.Generator())),
        "random generator",
    ),
    "rare_numpy_generator": (net(skips(lambda m: m.g.random()), holds(g=np.random.default_rng(3))), "random generator"),
    "rare_nested_generator": (
        net(skips(lambda m: m.g["depth"][0].random()), holds(g={"depth": [np.random.default_rng(3)]})),
        "random generator",
    ),
    "rare_random_state": (net(skips(lambda m: m.g.rand()), holds(g=np.random.RandomState(3))), "random generator"),
    "rare_python_generator": (net(skips(lambda m: m.g.random()), holds(g=random.Random(3))), "random generator"),
    "rare_module_generator": (net(skips(lambda m: SHARED.random())), "random generator"),
    "rare_new_generator": (net(skips(lambda m: np.random.default_rng().random())), "makes random numbers"),
    "rare_system_random": (net(skips(lambda m: random.SystemRandom().random())), "makes random numbers"),
    "rare_entropy": (net(skips(lambda m: os.urandom(1)[0] / 256)), "makes random numbers"),
    "noise_when_large": (net(lambda m, x: plain(m, F.rrelu(x, training=m.training and len(x) > 4))), "(torch)"),
    "generator_of_constants": (
        net(lambda m, x: plain(m, x + torch.rand(F_IN, generator=torch.Generator().manual_seed(1)).to(x.dtype))),
        "right",
    ),
    "late_counter": (net(counts_late, holds(calls=0)), "keeps calls"),
    "late_list": (net(lists, holds(log=[])), "keeps "),
    "late_tally": (net(tallies), "keeps TALLY"),
    "own_statistics": (net(averages, holds(kept={"mean": 0.0})), "keeps kept"),
    "product_kept": (net(forgets_nothing), "remembers"),
    "buffer_when_large": (net(writes_when_large, holds(seen=torch.zeros(()))), "changes its buffer"),
    "buffer_of_weights": (net(observes_weights, holds(seen=torch.tensor(2.0))), "changes its buffer"),
    "late_clip": (net(clips_late), "changes its parameters"),
    "late_norm": (net(norms_late), "writes into its parameter"),
    "input_by_numpy": (net(writes_its_input_by_numpy), "writes into its input"),
    "spectral_norm": (net(prepare=lambda m: parametrizations.spectral_norm(m.body)), "changes its buffer"),
    "weight_norm": (net(prepare=lambda m: parametrizations.weight_norm(m.body)), "right"),
    "orthogonal": (net(prepare=lambda m: parametrizations.orthogonal(m.body)), "right"),
    "old_weight_norm": (net(prepare=lambda m: nn.utils.weight_norm(m.body)), "right"),
    "bfloat16_part": (net(prepare=lambda m: m.body.bfloat16()), "one dtype"),
    "double": (net(prepare=lambda m: m.double()), "right"),
    "lazy": (net(prepare=lambda m: setattr(m, "body", nn.LazyLinear(6))), "lazy"),
    "buffer": (
        net(lambda m, x: m.head(m.body(x - m.c)), lambda m: m.register_buffer("c", torch.arange(6.0))),
        "right",
    ),
    "written_buffer": (
        net(writes_a_buffer, lambda m: m.register_buffer("seen", torch.zeros(()))),
        "changes its buffer",
    ),
    "clamped_weights": (net(clamps), "changes its parameters"),
    "frozen_in_forward": (net(freezes), "is trained; say it before"),
    "hooked_activation": (net(hooks_an_activation), "right"),
    "centred_batch": (net(centres_the_batch), "right"),
    "input_in_place": (net(shifts_its_input), "writes into its input"),
    "activation_in_place": (net(lambda m, x: m.head(m.body(x).mul_(2).tanh_())), "right"),
    "numpy_random": (net(lambda m, x: m.head(m.body(x)) * float(np.random.rand())), "numpy.random"),  # noqa: NPY002
    "python_random": (net(lambda m, x: m.head(m.body(x)) * random.random()), "(random)"),
    "torch_random": (net(lambda m, x: m.head(m.body(F.rrelu(x, training=m.training)))), "(torch)"),
    "own_torch_generator": (by_own_generator("torch"), "random generator"),
    "own_numpy_generator": (by_own_generator("numpy"), "random generator"),
    "counter": (net(counts_calls), "keeps state"),
    "memory": (net(remembers), "called again"),
    "stale_cache": (net(caches), "remembers"),
    "first_weights": (net(first_weights), "remembers"),
    "constant_at_first_call": (net(constant_at_first_call), "right"),
    "remembers_its_size": (net(remembers_its_size), "right"),
    "kept_activations": (net(keeps_activations), "right"),
    "attention": (Attention, "right"),
    "gru": (Recurrent, "right"),
    "own_train": (TrainsItself, "right"),
    "two_heads": (TwoHeads, "right"),
    "other_in_training": (net(other_in_training), "right"),
    "skips_in_training": (net(skips_in_training), "right"),
    "forward_hook": (hook("register_forward_hook", lambda m, i, o: o * 2), "right"),
    "forward_pre_hook": (hook("register_forward_pre_hook", lambda m, i: (i[0] * 2,)), "right"),
    "full_backward_hook": (hook("register_full_backward_hook", lambda m, i, o: None), "right"),
    "full_backward_pre_hook": (hook("register_full_backward_pre_hook", lambda m, o: (o[0] * 0.5,)), "right"),
    "backward_hook": (hook("register_backward_hook", lambda m, i, o: None), "right"),
    "state_dict_hook": (hook("_register_state_dict_hook", lambda *a: None), "right"),
    "parameter_hook": (on_parameter("register_hook"), "hook on its gradient"),
    "parameter_accumulate_hook": (on_parameter("register_post_accumulate_grad_hook"), "hook on its gradient"),
    "plain_tensor": (
        net(lambda m, x: m.head(m.body(x) * m.c), lambda m: setattr(m, "c", torch.arange(6.0))),
        "right",
    ),
    "einsum": (net(lambda m, x: torch.einsum("mf,kf->mk", m.body(x), m.head.weight) + m.head.bias), "right"),
}

TOKENS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "embedding": (tokens(), "right"),
    "padding_idx": (tokens(padding_idx=0), "right"),
    "padding_idx_last": (tokens(padding_idx=10), "right"),
    "scale_grad_by_freq": (tokens(scale_grad_by_freq=True), "right"),
    "max_norm": (tokens(max_norm=0.5), "writes into its parameter"),
    "sparse": (tokens(sparse=True), "right"),
    "functional_padding": (tokens(lambda w, x: F.embedding(x, w, padding_idx=4)), "right"),
    "functional_frequency": (tokens(lambda w, x: F.embedding(x, w, scale_grad_by_freq=True)), "right"),
    "bag": (tokens(lambda w, x: F.embedding_bag(x, w, mode="mean")), "right"),
    "bag_padding": (tokens(lambda w, x: F.embedding_bag(x, w, mode="sum", padding_idx=3)), "right"),
    "one_hot": (tokens(lambda w, x: F.one_hot(x, VOCABULARY).to(w.dtype) @ w), "right"),
    "gather": (tokens(lambda w, x: w[x]), "right"),
}
