"""Flat vector [d] <-> the trained tensors of a model; and how tensors lie in memory where bits are promised.

What a model trains are its parameters with ``requires_grad=True``: they are x. Its other parameters and its buffers are
constants, which stay in the module and are in no vector.

The views of x come from ONE ``x.split(sizes)``: its backward is a single concatenation, where a slice per parameter
would cost a zero-filled [d] gradient each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.errors import InputError
from fedsim.ground.frozen_norm import FrozenNorm

ALIGNMENT = 64
"""Bytes: where torch's own memory begins, a cache line and the widest vector register."""


def aligned(tensor: Tensor) -> Tensor:
    """The tensor as it is, or a copy of it: contiguous, and beginning where torch's own memory begins.

    Matrix products and factorisations (MKL, oneDNN, LAPACK) may take other paths, which round differently, for memory
    that lies or is strided otherwise: seen on AMD processors. Where bits are promised (a client alone and among others,
    any number of workers, real bytes or counted ones, before and after a resume) tensors pass here first.
    """
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that x is made of, in its order."""
    return [p for p in model.parameters() if p.requires_grad]


@dataclass(frozen=True)
class Layout:
    """Where each trained parameter of a model lies in the flat vector x [d].

    Attributes:
        names: parameter names in ``model.named_parameters()`` order.
        shapes: their shapes, in the same order.
        norms: names of those that are scales and shifts of BatchNorm, of frozen statistics too.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    norms: frozenset[str] = frozenset()

    @staticmethod
    def of(model: nn.Module) -> Layout:
        """The layout of a model's trained parameters (shared parameters appear once, as torch lists them)."""
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        layers = (m for m in model.modules() if isinstance(m, (_BatchNorm, FrozenNorm)))
        normed = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
        norms = frozenset(n for n, p in named if id(p) in normed)
        return Layout(tuple(n for n, _ in named), tuple(p.shape for _, p in named), norms)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each parameter."""
        return [shape.numel() for shape in self.shapes]

    @cached_property
    def d(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    @property
    def head(self) -> tuple[int, int] | None:
        """(outputs, features) of the layer ``head`` that ends the model, [k, f] weights and [k] bias; or None."""
        ends = self.names[-2:] == ("head.weight", "head.bias") and len(self.shapes[-2]) == 2
        return (int(self.shapes[-2][0]), int(self.shapes[-2][1])) if ends else None

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [d] -> body [d - k (f + 1)] and head [k, f + 1], whose last column is the bias."""
        k, f = self._head()
        weight, bias = x[-k * (f + 1) : -k].view(k, f), x[-k:].view(k, 1)
        return x[: -k * (f + 1)], torch.cat([weight, bias], 1)

    def join(self, body: Tensor, head: Tensor) -> Tensor:
        """The inverse of ``split``."""
        return torch.cat([body, head[:, :-1].reshape(-1), head[:, -1]])

    def split_norms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [d] -> all but the scales and shifts of BatchNorm [d - p], and these [p]."""
        if not self.norms:
            return x, x.new_empty(0)
        mine: list[Tensor] = []
        others: list[Tensor] = []
        for name, piece in zip(self.names, torch.split(x, self.sizes), strict=True):
            (mine if name in self.norms else others).append(piece)
        first, last = (torch.cat(parts) if parts else x.new_empty(0) for parts in (others, mine))
        return first, last

    def join_norms(self, others: Tensor, norms: Tensor) -> Tensor:
        """The inverse of ``split_norms``."""
        if not self.norms:
            return others
        sizes = dict(zip(self.names, self.sizes, strict=True))
        left = iter(torch.split(others, [size for name, size in sizes.items() if name not in self.norms]))
        mine = iter(torch.split(norms, [size for name, size in sizes.items() if name in self.norms]))
        return torch.cat([next(mine if name in self.norms else left) for name in self.names])

    def _head(self) -> tuple[int, int]:
        if self.head is None:
            raise InputError("model must end with a linear layer named head, such as fedsim's own models have")
        return self.head

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """Named views of x; x may carry leading dimensions: [..., d] -> {name: [..., *shape]}."""
        lead = x.shape[:-1]
        pieces = torch.split(x, self.sizes, dim=-1)
        return {n: p.reshape((*lead, *s)) for n, s, p in zip(self.names, self.shapes, pieces, strict=True)}

    def flatten(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
        """The model's current trained parameters as a new vector [d]."""
        return torch.cat([p.detach().reshape(-1).to(dtype) for p in trained(model)])

    def load(self, model: nn.Module, x: Tensor) -> nn.Module:
        """Write x [d] into the model's trained parameters, in place, and return the model."""
        with torch.no_grad():
            for p, view in zip(trained(model), self.views(x).values(), strict=True):
                p.copy_(view)
        return model
