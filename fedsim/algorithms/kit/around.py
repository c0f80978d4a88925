"""An algorithm around another one: everything that a wrapper does not redefine is the inner algorithm's, its words too.

A wrapper that adds to the state of a client or of the server says where the inner algorithm's state lies in it
(``inside``, ``put``); no other method has to know.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.traits.declared import Declared, Forwarding, traits_of
from fedsim.types import Message, Round

if TYPE_CHECKING:
    from fedsim.traits.releases import Drawn, Release


@dataclass(frozen=True)
class Around(Declared, Forwarding):
    """A wrapper at its neutral value: the inner algorithm itself.

    Attributes:
        base: the inner algorithm, of a server.
    """

    base: Any

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def traits(self) -> Traits:
        """The inner algorithm's; a wrapper that changes some of its words says so here."""
        return traits_of(self.base)

    def inside(self, state: Any) -> Any:
        """The inner algorithm's state of a client in the wrapper's."""
        return state

    def put(self, state: Any, inner: Any) -> Any:
        """The wrapper's state of a client with another inner one."""
        return inner

    def init_server(self, x0: Any) -> Any:
        """The inner algorithm's."""
        return self.base.init_server(x0)

    def init_client(self, x0: Any) -> Any:
        """The inner algorithm's."""
        return self.base.init_client(x0)

    def broadcast(self, server: Any, rnd: Round) -> Message:
        """The inner algorithm's."""
        sent: Message = self.base.broadcast(server, rnd)
        return sent

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The inner algorithm's."""
        message, inner = self.base.local(obj, self.inside(client), got, rnd)
        return message, self.put(client, inner)

    def server(self, server: Any, received: Message, rnd: Round) -> Any:
        """The inner algorithm's."""
        return self.base.server(server, received, rnd)

    def settle(self, client: Any, sent: Message, arrived: Message, rnd: Round) -> Any:
        """The inner algorithm's, see ``fedsim.traits.HOOKS``."""
        return self.put(client, self.base.settle(self.inside(client), sent, arrived, rnd))

    def own(self, obj: Objective, client: Any, got: Message, rnd: Round) -> Tensor:
        """The inner algorithm's, see ``fedsim.traits.HOOKS``."""
        found: Tensor = self.base.own(obj, self.inside(client), got, rnd)
        return found

    def public_of(self, steps: int, rnd: Round) -> dict[str, float]:
        """The inner algorithm's, see ``fedsim.traits.HOOKS``."""
        found: dict[str, float] = self.base.public_of(steps, rnd)
        return found

    def kind(self, rnd: Round) -> Hashable:
        """The inner algorithm's, see ``fedsim.traits.HOOKS``."""
        kind: Hashable = self.base.kind(rnd)
        return kind

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """The inner algorithm's, see ``fedsim.traits.HOOKS``."""
        found: tuple[Release, ...] = self.base.releases(rnd)
        return found

    def client_releases(self, rnd: Round, drawn: Drawn) -> tuple[Release, ...]:
        """The inner algorithm's, see ``fedsim.traits.HOOKS``."""
        found: tuple[Release, ...] = self.base.client_releases(rnd, drawn)
        return found

    def exposed(self, rnd: Round) -> tuple[int, ...]:
        """The inner algorithm's, see ``fedsim.traits.HOOKS``."""
        found: tuple[int, ...] = self.base.exposed(rnd)
        return found

    def paper_multiplier(self, epsilon: float, delta: float, rounds: int) -> float:
        """The inner algorithm's, see ``fedsim.traits.HOOKS``."""
        return float(self.base.paper_multiplier(epsilon, delta, rounds))


def innermost(algorithm: Any) -> Any:
    """The algorithm inside all wrappers."""
    return innermost(algorithm.base) if isinstance(algorithm, Around) else algorithm


def within(kind: type, algorithm: Any) -> bool:
    """Whether a wrapper of this class is somewhere around or inside an algorithm."""
    return isinstance(algorithm, kind) or (isinstance(algorithm, Around) and within(kind, algorithm.base))


def name_of(algorithm: Any) -> str:
    """Its class; of a wrapper, with that of the algorithm inside."""
    more = f" around {name_of(algorithm.base)}" if isinstance(algorithm, Around) else ""
    return type(algorithm).__name__ + more


def noisy_part(algorithm: Any) -> Any:
    """The one of an algorithm and its wrappers that makes the noise: a mechanism, or an algorithm private by itself."""
    # a wrapper that is no mechanism has the noise of what it is around
    is_mechanism = not isinstance(algorithm, Around) or traits_of(algorithm).noise != traits_of(algorithm.base).noise
    return algorithm if is_mechanism else noisy_part(algorithm.base)


def with_noise(algorithm: Any, multiplier: float) -> Any:
    """A private algorithm, or one with a private one inside, with this noise multiplier."""
    if isinstance(algorithm, Around):
        return replace(algorithm, base=with_noise(algorithm.base, multiplier))
    must = "be a dataclass with a field noise_multiplier, which a target epsilon sets"
    good = is_dataclass(algorithm) and any(f.name == "noise_multiplier" for f in fields(algorithm))
    require(good, "algorithm", must, name_of(algorithm))
    return replace(algorithm, noise_multiplier=multiplier)
