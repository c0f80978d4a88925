"""Low-rank adapters: W stays, and y = W x + (alpha / rank) B A x, of which A and B are trained.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022 (arXiv
2106.09685), section 4. B begins at zero, so that the model begins as it is. A begins as in the authors' code (loralib),
where it is drawn as nn.Linear draws its weight; the paper says Gaussian, and no variance. Not taken over: their dropout
before A.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.models.names import matches, matching

PACKED = "in_proj_weight"
"""Of nn.MultiheadAttention: the projections to queries, keys and values as one matrix."""


@dataclass(frozen=True)
class LoRA:
    """Which layers of a model get adapters, and of what rank.

    Attributes:
        rank: of A [rank, in] and B [out, rank], >= 1.
        targets: patterns of names of linear layers and of ``nn.MultiheadAttention``, such as ``body.*``; of the latter
            the packed projection to queries, keys and values gets one adapter, and its ``out_proj``, a linear layer,
            one where it matches.
        alpha: > 0; B A is multiplied by alpha / rank. None: alpha = rank.
    """

    rank: int
    targets: tuple[str, ...] = ("*",)
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.rank >= 1, "rank", "be >= 1", self.rank)
        require(len(self.targets) > 0, "targets", "be one or more patterns of names of layers", self.targets)
        require(self.alpha is None or self.alpha > 0, "alpha", "be > 0 or null", self.alpha)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def own_scales(self, tensors: Mapping[str, Tensor], file: str, skip: Sequence[str]) -> list[str]:
        """Of the adapters in a file, the scales of those whose A is left to the model, as these then are.

        Raises:
            InputError: others are of this rank and another scale, so that they would be other adapters here.
        """
        found = []
        for at in _adapters(tensors):
            if matches(f"{at}lora_A.weight", skip):
                found.append(f"{at}scale")
            elif len(tensors[f"{at}lora_A.weight"]) == self.rank:  # else their shapes are told
                theirs = float(tensors[f"{at}scale"])
                must = f"be {theirs * self.rank:.7g}, as of the adapters in {file}"
                require(math.isclose(theirs, self.scale, rel_tol=1e-6), "model.lora.alpha", must, self.alpha)
        return found

    def put_into(self, model: nn.Module) -> nn.Module:
        """Give a model its adapters, in place; its own parameters are frozen, and only the adapters are left to train.

        Raises:
            InputError: a pattern matches no layer that can have one, or the rank is larger than such a layer.
        """
        layers = dict(_adaptable(model))
        wanted = matching("model.lora.targets", self.targets, layers, "linear and attention layers")
        model.requires_grad_(False)
        for path in layers:
            if path in wanted:
                model = self._adapted(model, path, layers[path])
        return model

    def _adapted(self, model: nn.Module, path: str, layer: Any) -> nn.Module:
        """The model with an adapter at one of its layers."""
        home = model.get_submodule(path.rpartition(".")[0])
        if isinstance(layer, nn.MultiheadAttention):
            packed: Any = layer.in_proj_weight
            require(packed is not None, "model.lora.targets", "be layers of one packed projection", path)
            parametrize.register_parametrization(layer, PACKED, self._update(packed, path))
        elif isinstance(home, nn.MultiheadAttention):  # which uses the weight of its out_proj, and never calls it
            parametrize.register_parametrization(layer, "weight", self._update(layer.weight, path))
        else:
            self._require_fit(layer.weight, path)
            adapted = LoRALinear(layer, self)
            if not path:
                return adapted
            for other in list(model.modules()):  # a layer may have several places
                for name in [name for name, child in other._modules.items() if child is layer]:
                    setattr(other, name, adapted)
        return model

    def _update(self, weight: Tensor, path: str) -> LowRankUpdate:
        self._require_fit(weight, path)
        return LowRankUpdate(weight, self)

    def _require_fit(self, weight: Tensor, path: str) -> None:
        most = min(weight.shape)
        require(self.rank <= most, "model.lora.rank", f"be <= {most}, the smaller side of {path}", self.rank)


def _adaptable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that can have an adapter, by path; a layer of two names by its first."""
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
            yield path, module


def _pair(weight: Tensor, rank: int) -> tuple[nn.Linear, nn.Linear]:
    """A and B of a weight [out, in], in its dtype, as layers without biases."""
    out, features = weight.shape
    a, b = (nn.Linear(*sides, bias=False, dtype=weight.dtype) for sides in ((features, rank), (rank, out)))
    nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
    nn.init.zeros_(b.weight)
    return a, b


class LoRALinear(nn.Module):
    """A linear layer with an adapter.

    Attributes:
        base: the layer as it was.
        lora_A: A, [rank, in].
        lora_B: B, [out, rank].
        scale: alpha / rank, in the model's file, so that this says all.
    """

    scale: Tensor

    def __init__(self, base: nn.Linear, lora: LoRA) -> None:
        super().__init__()
        self.base, self.factor = base, lora.scale
        self.lora_A, self.lora_B = _pair(base.weight, lora.rank)
        self.register_buffer("scale", torch.tensor(lora.scale, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        out: Tensor = self.base(x) + self.lora_B(self.lora_A(x)) * self.factor
        return out

    @property
    def weight(self) -> Tensor:
        """W + (alpha / rank) B A, for layers that use the weight of another themselves."""
        return self.base.weight + self.lora_B.weight @ self.lora_A.weight * self.factor

    @property
    def bias(self) -> Tensor | None:
        """The layer's own."""
        return self.base.bias


class LowRankUpdate(nn.Module):
    """A weight that is W + (alpha / rank) B A wherever it is used: of a layer that is more than a product with it."""

    scale: Tensor

    def __init__(self, weight: Tensor, lora: LoRA) -> None:
        super().__init__()
        self.factor = lora.scale
        self.lora_A, self.lora_B = _pair(weight, lora.rank)
        self.register_buffer("scale", torch.tensor(lora.scale, dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """W [out, in] -> [out, in]."""
        return weight + self.lora_B.weight @ self.lora_A.weight * self.factor


def _adapters(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Where there are adapters among named tensors: what their names begin with."""
    for at in [name.removesuffix("lora_A.weight") for name in tensors if name.endswith("lora_A.weight")]:
        if tensors.keys() >= {f"{at}lora_B.weight", f"{at}scale", _places(at)[0]}:
            yield at


def without_adapters(tensors: dict[str, Tensor], kept: Container[str] = ()) -> dict[str, Tensor]:
    """The tensors of a model with adapters as those of the same model without: every W is W + (alpha / rank) B A.

    >>> from fedsim.models import mlp
    >>> plain = mlp((4,), 3)
    >>> adapted = LoRA(rank=2, targets=("head",)).put_into(mlp((4,), 3))
    >>> without_adapters(adapted.state_dict()).keys() == plain.state_dict().keys()
    True

    Args:
        tensors: by name.
        kept: names of a model's own; what is an adapter there too stays one.
    """
    found = dict(tensors)
    for at in _adapters(tensors):
        if f"{at}lora_A.weight" in kept:
            continue
        a, b, scale = (found.pop(at + part) for part in ("lora_A.weight", "lora_B.weight", "scale"))
        base, own = _places(at)
        found[own] = found.pop(base) + b @ a * scale
        bias = f"{at}base.bias"
        if bias in found:
            found[f"{at}bias"] = found.pop(bias)
    return found


def _places(at: str) -> tuple[str, str]:
    """Of an adapter at ``at``: where its W lies, and where W lies in a model without adapters."""
    home, _, rest = at.rstrip(".").rpartition("parametrizations.")
    if at.endswith(".0.") and home + rest != at.rstrip("."):
        name = rest.removesuffix(".0")
        return f"{home}parametrizations.{name}.original", f"{home}{name}"
    return f"{at}base.weight", f"{at}weight"
