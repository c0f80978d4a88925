"""Client-level differential privacy by discrete Gaussian noise of the clients and a sum modulo 2^bits.

Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation",
ICML 2021, arXiv 2102.06387, algorithms 1 and 2; the arithmetic is ``fedsim.privacy.secure_sum``. Around any algorithm
that sends one vector of the model's size: clients turn, scale, clip and round it to integers, add their share of the
noise, and send them modulo 2^bits; the server is given the sum alone. A client that is missing takes its share of the
noise along: what each round cost follows from who came.

Deviation: the signs of the rotation follow from the number of the round, which everybody knows.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.aggregate import Sums
from fedsim.algorithms.kit.around import name_of
from fedsim.channel.packing import Reader, pack_unsigned, unpack_unsigned
from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.opaque import opaque
from fedsim.ground.rng import numpy_stream
from fedsim.ground.tree import leaves, tree_map
from fedsim.objective import Objective
from fedsim.privacy.secure_sum import SecureSum, draw_signs
from fedsim.privacy.wrapped import Wrapped
from fedsim.traits import RuleTraits, Traits
from fedsim.traits.declared import traits_of
from fedsim.traits.releases import Drawn, Release
from fedsim.types import Message, Round


@dataclass(frozen=True)
class ModularSum:
    """The server's rule for messages of integers: it learns their sum, and of numbers that are public their mean.

    Attributes:
        weights: clients weigh the same.
    """

    traits: ClassVar[RuleTraits] = RuleTraits(integers=True)
    weights: Literal["uniform"] = "uniform"

    def __post_init__(self) -> None:
        check_fields(self)

    def add(self, sums: Sums, clients: tuple[int, ...], messages: Message, weights: Tensor) -> Sums:
        """{field: sum [2^k] int64 of the packed messages [b, bytes]}; of public fields the sum, float64."""
        for name, packed in messages.items():
            if packed.is_floating_point():  # a public field, which travels as it is
                public = packed.double().sum(0).cpu()
                sums[name] = public if name not in sums else sums[name] + public
                continue
            # int64 sums are exact, so neither their order nor their place can be told from the result
            total = sum(unpacked(row.cpu().numpy().tobytes()) for row in packed)
            new = torch.from_numpy(np.asarray(total))
            sums[name] = new if name not in sums else sums[name] + new
        return sums

    def merge(self, left: Sums, right: Sums) -> Sums:
        """The sums of both together, field by field."""
        return tree_map(np.add, left, right)  # type: ignore[no-any-return]

    def finish(self, sums: Sums, total: float, dtype: torch.dtype) -> Message:
        """The sums, int64; modulo 2^bits they are what a secure sum gives. Of public fields the mean."""
        found = {name: torch.from_numpy(np.asarray(value)) for name, value in sums.items()}
        # the rule learns nothing but sums: clients weigh 1 each, so ``total`` is how many came
        return {name: (sum_ / total).to(dtype) if sum_.is_floating_point() else sum_ for name, sum_ in found.items()}


def packed(integers: np.ndarray, bits: int) -> np.ndarray:
    """Integers [2^k] in [-2^(bits-1), 2^(bits-1)) -> uint8: bits and k, a byte each, then ``bits`` bits of each."""
    # modulo 2^bits a negative number is its residue, which has no sign to pack
    head = bytes([bits, (len(integers) - 1).bit_length()])
    return np.array(bytearray(head + pack_unsigned(integers % (1 << bits), bits)), np.uint8)


def unpacked(data: bytes) -> NDArray[np.int64]:
    """The inverse of ``packed``, but for a multiple of 2^bits: numbers in [0, 2^bits)."""
    reader = Reader(data)
    bits, k = reader.byte(), reader.byte()
    return unpack_unsigned(reader, 1 << k, bits)


@dataclass(frozen=True)
class DiscreteNoise(Wrapped):
    """Clients clip, round and add integer noise; the server is given the sum modulo 2^bits.

    Attributes:
        expected: clients expected in a round, >= 1; scale and local noise are made for it.
        parameters: d, numbers in a message, >= 1.
        bits: of each number on the wire, in 2..48.
        deviations: standard deviations of the sum that fit before it wraps, > 0.
    """

    expected: int
    parameters: int
    bits: int = SecureSum.bits
    deviations: float = SecureSum.deviations

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("expected", "parameters"):
            require(getattr(self, name) >= 1, name, "be >= 1", getattr(self, name))
        require(2 <= self.bits <= 48, "bits", "be in 2..48", self.bits)
        require(self.deviations > 0, "deviations", "be > 0", self.deviations)
        if "settle" in traits_of(self.base).hooks:
            must = "be none, central_gaussian, adaptive_gaussian or local_gaussian"
            name = name_of(self.base)
            raise InputError(
                f"privacy must {must} for {name}, which reads what arrived of its numbers, not of integers"
            )

    @property
    def traits(self) -> Traits:
        """The algorithm's, and messages of integers in which every client has its share of the noise."""
        words = {"noise": "shares", "own_sampling": True, "by_cohort": True, "integers": True}
        return self.private("client_releases", **words)

    @property
    def rule(self) -> SecureSum:
        """The arithmetic of rounding, noise and sum with these options."""
        return SecureSum(self.clip, self.noise_multiplier, self.expected, self.bits, self.deviations)

    def check(self) -> None:
        """Scale and noise must fit the bits."""
        _ = self.rule

    def kind(self, rnd: Round) -> Hashable:
        """How many clients came."""
        return len(rnd.clients)

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """``()``: a round lets out nothing of clients that did not come."""
        return ()

    def client_releases(self, rnd: Round, drawn: Drawn) -> tuple[Release, ...]:
        """The sum over those who came, for each of them."""
        arrived = len(rnd.clients)
        return (self.rule.release(self.parameters, arrived),) if self.noise_multiplier and arrived else ()

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The algorithm's work; its payload as packed integers [bytes]."""
        message, state = self.base.local(obj, client, got, rnd)
        name, value = self.vector(message, self.parameters)
        rule, signs = self.rule, self._signs(rnd)  # one rotation for the whole cohort, or the sum could not be undone

        def alone(v: Tensor, seed: Tensor) -> Tensor:
            whole = rule.encode(v.double().cpu().numpy(), signs, np.random.default_rng(int(seed)))
            return torch.from_numpy(packed(whole, rule.bits)).to(v.device)

        # drawn and rounded client by client in numpy: an integer law that vmap cannot batch
        def together(v: Tensor, seed: Tensor) -> Tensor:
            return torch.stack([alone(*one) for one in zip(v, seed, strict=True)])

        sent = opaque(alone, together, value.reshape(-1), obj.noise.seed(value))
        return {name: sent, **self.beside(message)}, state

    def server(self, server: Any, received: Message, rnd: Round) -> Any:
        """The algorithm's step on the decoded sum over the expected cohort."""
        ((name, total),) = self.payload(received).items()
        if total.dtype != torch.int64:
            raise InputError("aggregate must be fedsim.privacy.discrete.ModularSum for the sum of integers, got a mean")
        # over the expected cohort: the real size would be let out
        mean = self.rule.decode(total.cpu().numpy(), self.parameters, self._signs(rnd)) / self.expected
        like = next(leaf for leaf in leaves(server) if leaf.is_floating_point())
        summed = {name: torch.from_numpy(mean).to(like)}
        return self.base.server(server, {**summed, **self.known(received, rnd)}, rnd)

    def _signs(self, rnd: Round) -> np.ndarray:
        """The +-1 [2^k] of this round's rotation."""
        return draw_signs(self.parameters, numpy_stream(0, addresses.ROTATION, rnd.index))
