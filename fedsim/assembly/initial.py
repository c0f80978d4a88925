"""Sixth stage of assembly: what the server and every client start from, as the algorithm's traits say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.algorithms.kit.around import name_of
from fedsim.assembly.network import is_peers
from fedsim.data.dataset import Dataset
from fedsim.errors import InputError, require
from fedsim.ground.layout import Layout
from fedsim.ground.tree import tensors
from fedsim.pool.begun import Begun
from fedsim.pool.local_part import LocalPart
from fedsim.traits.declared import traits_of
from fedsim.types import State


@dataclass(frozen=True)
class Initial:
    """The first state of a run.

    Attributes:
        algorithm: as workers run it: peers' and asynchronous ones have something around them.
        models: of each architecture.
        layouts: of their parameters.
        x0s: [d] each, the models' parameters in the run's dtype.
        x0: what the server starts from: the model, or the part of it that the algorithm shares.
        states: what a client of each architecture starts from.
    """

    algorithm: Any
    models: tuple[nn.Module, ...]
    layouts: tuple[Layout, ...]
    x0s: tuple[Tensor, ...]
    x0: Tensor | dict[str, Tensor]
    states: tuple[State, ...]


def initial_states(algorithm: Any, models: Sequence[nn.Module], dataset: Dataset, dtype: torch.dtype) -> Initial:
    """The first state of a run of this algorithm.

    Raises:
        InputError: the models are not those that the algorithm shares and keeps, or its first states are no trees.
    """
    if is_peers(algorithm):
        worked: Any = LocalPart(algorithm)
    else:
        worked = Begun(algorithm) if traits_of(algorithm).asynchronous else algorithm
    layouts = tuple(Layout.of(model) for model in models)
    x0s = tuple(layout.flatten(model, dtype) for layout, model in zip(layouts, models, strict=True))
    if dataset.x0 is not None:
        d, shape = len(x0s[0]), dataset.x0.shape
        require(len(x0s) == 1 and shape == (d,), "data.x0", f"have the model's {d} parameters", shape)
        x0s = (cast(torch.from_numpy(dataset.x0), dtype, "data.x0"),)
    x0 = _shared(worked, layouts, x0s)
    tensors(worked.init_server(x0), "init_server")
    kept = tuple(_kept(worked, layout, x) for layout, x in zip(layouts, x0s, strict=True))
    states = tuple(worked.init_client(own) for own in kept)
    for state in states:
        tensors(state, "init_client")
    return Initial(worked, tuple(models), layouts, x0s, x0, states)


def _shared(algorithm: Any, layouts: tuple[Layout, ...], x0s: tuple[Tensor, ...]) -> Tensor | dict[str, Tensor]:
    """What the server starts from, as the algorithm's ``shares`` says."""
    name, shares = name_of(algorithm), traits_of(algorithm).shares
    if shares == "nothing":
        return x0s[0].new_empty(0)
    if shares == "common":
        number: int = algorithm.common
        must = f"be the number of one of the run's {len(x0s)} models, 0..{len(x0s) - 1}"
        require(0 <= number < len(x0s), "algorithm.common", must, number)
        return x0s[number]
    if shares in ("model", "parameters", "body", "unnormed"):
        what = {"body": "bodies", "unnormed": "all but BatchNorm"}.get(shares, "whole models")
        must = f"be one architecture for {name}, whose server averages {what}"
        require(len(x0s) == 1, "model", must, len(x0s), "choose another model, or algorithm=fedgh, lg_fedavg, fedproto")
    if shares == "model":
        return x0s[0]
    if shares == "parameters":
        return layouts[0].views(x0s[0])
    if shares == "unnormed":
        return layouts[0].split_norms(x0s[0])[0]
    if not all(layout.head for layout in layouts):
        do = (
            "use one of fedsim's own models, or one with the attributes body and head; its head is not frozen, has no "
            "adapters (model.lora.rank=8 model.lora.targets=[body.*] model.train=[head.*]), and gives the outputs "
            "without model.output"
        )
        raise InputError(f"model must end with a trained linear layer named head for {name}; {do}")
    heads = sorted({layout.head for layout in layouts if layout.head})
    must = f"have heads of one shape (outputs, features) for {name}, whose clients share it"
    require(shares == "body" or len(heads) == 1, "model", must, heads)
    body, head = layouts[0].split(x0s[0])
    return body if shares == "body" else head


def _kept(algorithm: Any, layout: Layout, x0: Tensor) -> Tensor | dict[str, Tensor]:
    """What a client starts from, as the algorithm's ``keeps`` says."""
    keeps = traits_of(algorithm).keeps
    if keeps == "model":
        return x0
    if keeps == "parameters":
        return layout.views(x0)
    if keeps == "norms":
        return layout.split_norms(x0)[1]
    body, head = layout.split(x0)
    return body if keeps == "body" else head


def cast(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Floating-point numbers in the run's dtype, whole ones as they are; raises InputError where one is too large."""
    if not values.is_floating_point() or values.dtype == dtype:
        return values
    done = values.to(dtype)
    fits = dtype.itemsize >= values.dtype.itemsize or bool(torch.isfinite(done).all())
    most = torch.finfo(dtype).max
    require(fits, name, f"lie within {most:.3g} for engine.dtype={str(dtype).removeprefix('torch.')}", "larger numbers")
    return done
