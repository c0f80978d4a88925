"""After the fifth stage of assembly: who owns the buffers that a model's forward writes, put around the algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedsim.algorithms.kit.around import name_of
from fedsim.assembly.network import is_peers
from fedsim.assembly.parts import Parts
from fedsim.data.dataset import Dataset
from fedsim.errors import InputError, require
from fedsim.ground.buffers import Buffers
from fedsim.ground.layout import Layout
from fedsim.models import twin, zero_sample
from fedsim.models.policy import OWNED, policy_of, written_buffers
from fedsim.pool.owned_buffers import AveragedBuffers, LocalBuffers
from fedsim.traits.declared import rule_traits, traits_of

KEY = "model.batchnorm"


def with_owner(
    parts: Parts, dataset: Dataset, models: Sequence[nn.Module], algorithm: Any
) -> tuple[Any, tuple[str, ...]]:
    """The algorithm with an owner for what forward writes, and the names of these buffers; () where nothing has one.

    Raises:
        InputError: the run has a part for which these buffers have no meaning, or would be let out unseen.
    """
    policies = [policy for factory in parts.factories if (policy := policy_of(factory)) in OWNED]
    if not policies:
        return algorithm, ()
    policy = policies[0]
    require_owner(parts, policy, algorithm)
    model = models[0]
    still = twin(model).eval()
    sample = zero_sample(still, dataset.input_shape, tokens=dataset.train.x.dtype == "int64")
    written = written_buffers(twin(model), sample.expand(2, *sample.shape[1:]))
    name = type(model).__name__
    do = "leave it out: it is for BatchNorm and its kin"
    require(bool(written), KEY, f"be error for {name}, whose forward writes no buffer", policy, do)
    buffers = Buffers.of(model, written)
    first = buffers.flatten(model, parts.dtype)
    if policy == "local":
        return LocalBuffers(algorithm, first), buffers.names
    return AveragedBuffers(algorithm, first, buffers.whole), buffers.names


def owner_notes(algorithm: Any, model: nn.Module) -> tuple[str, ...]:
    """What the user should know where a method is about BatchNorm and the model has none, one sentence."""
    if traits_of(algorithm).keeps != "norms" or Layout.of(model).norms:
        return ()
    name, kind = name_of(algorithm), type(model).__name__
    return (f"{name} keeps BatchNorm at the clients, but {kind} trains none: all of it is averaged, as in FedAvg",)


def require_owner(parts: Parts, policy: str, algorithm: Any) -> None:
    """Raise InputError where clients' buffers would have no owner, or no protection."""
    said, name = traits_of(algorithm), name_of(algorithm)
    one = f"be error, groupnorm or frozen for {name}"
    require(len(parts.factories) == 1, KEY, "be error, groupnorm or frozen for several architectures", policy)
    require(not is_peers(algorithm), KEY, f"{one}, whose peers have no server to begin and to test with", policy)
    require(not said.asynchronous, KEY, f"{one}, whose server does not wait for all statistics of a round", policy)
    require(said.shares != "common", KEY, f"{one}, whose clients train two models each", policy)
    sampling = "be shuffle for BatchNorm, which has no statistics of an empty minibatch"
    require(parts.local.sampling == "shuffle", "local.sampling", sampling, parts.local.sampling)
    kernel = "be auto for buffers that forward writes: such a model is computed one client at a time"
    require(parts.engine.kernel == "auto", "engine.kernel", kernel, parts.engine.kernel)
    if policy == "local":
        must = "be false with model.batchnorm=local: the global model has no statistics of its own"
        require(not parts.evaluate.gradient, "evaluate.gradient", must, True)
        return
    private = parts.privacy is not None or said.noise != "none"
    require(not private, KEY, "be error, groupnorm, frozen or local for a private run: no noise covers means", policy)
    lone = said.stacked or said.integers or not rule_traits(parts.aggregate).linear
    require(not lone, KEY, f"be error, groupnorm, frozen or local where the server takes no mean ({name})", policy)
    if said.keeps == "norms":
        raise InputError(f"{KEY} must be local for {name}, whose clients keep their BatchNorm, got {policy!r}")
