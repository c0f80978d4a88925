"""What an algorithm, a server rule and a layer of the channel say of themselves, as one frozen value each.

A class declares it as ``traits``, for example ``traits = Traits(uniform=True, hooks=("settle",))``. A word that does
not exist, or a wrong value, is refused where the class is written down. A class whose words depend on its
hyper-parameters declares ``traits`` as a property. Whatever the rest of the program wants to know of a part it reads
from this value and nowhere else; ``traits.declared`` checks that the class agrees with what it says. This file knows
nothing of what the words lead to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from fedsim.errors import InputError
from fedsim.fields import check_fields


@dataclass(frozen=True)
class Words:
    """What the three kinds of traits share: every value is one of those that its word has."""

    def __post_init__(self) -> None:
        try:
            check_fields(self)
        except InputError as error:
            raise InputError(f"{type(self).__name__}: {error}") from None


Hook = Literal[
    "settle",
    "own",
    "common",
    "publish",
    "tuned",
    "gossip_steps",
    "most_chi12",
    "buffer",
    "releases",
    "client_releases",
    "exposed",
    "public_of",
    "kind",
    "paper_multiplier",
    "noise_multiplier",
]


@dataclass(frozen=True)
class Traits(Words):
    """What an algorithm says of itself.

    Attributes:
        role: whose it is: of a ``server`` and its clients, of ``peers`` that gossip in rounds, or of peers to whom
            ``events`` happen in virtual time.
        uniform: it is right for equal weights of the clients only (control variates averaged over the population);
            ``aggregate.weights=examples`` is refused.
        everyone: every client takes part in every round; other schedules are refused.
        classes: it wants a classification task, and a model with an output for each class.
        stacked: its server wants every client's own message (``aggregate.Stack``), not their mean.
        integers: its messages are integers, which the rule sums (``privacy.discrete.ModularSum``).
        asynchronous: its server does not wait for a round to be complete (``schedule=async``).
        shares: what the server starts from, which ``init_server`` gets: ``model`` (one architecture for all; the
            server's state has a field ``x``), ``common`` (the same, of the architecture number ``common``, while
            clients have their own), ``parameters`` (as ``model``, but {name: tensor}), ``body``, ``head`` ([outputs,
            features + 1], the bias last), ``unnormed`` (all but the scales and shifts of BatchNorm) or ``nothing``.
        keeps: what ``init_client`` gets of the client's own initial model; ``norms`` are the scales and shifts of
            BatchNorm [p].
        moves: its clients send ``update``, where their local steps ended less where they began; ``relaxed`` needs it.
        static: the topology must not change, for peers keep copies of their neighbours, or are tuned to it.
        mixes: whether the ``rows`` of W must sum to 1, or its ``columns``, for peers that carry weights (push-sum).
        coupled: peers have no clocks of their own: the two of a meeting compute just before it.
        noise: who makes its messages private: nobody (``none``); the ``server``, by noise on the mean; every one of its
            ``clients``, by noise that protects its own message whatever becomes of it; or all clients together, by
            ``shares`` of a noise that protects their mean only.
        exact_downlink: clients must hear the server's very bits, because the server's noise is measured by vectors that
            clients clip by; a lossy ``downlink`` is refused in a private run.
        own_sampling: its releases say themselves how clients are drawn; the schedule is not to be counted again.
        by_cohort: what a round releases depends on who came.
        equal_steps: all clients must make equally many local steps, for they share the noise.
        public: fields of a message that say nothing of a client's samples but their number (step counts): they are
            neither clipped nor noised.
        compresses: fields of its messages that a layer of the channel should act on, for the method is made for it.
        compresses_from: first round in which it sends these fields.
        in_full: fields that no layer should touch.
        hooks: methods and attributes beyond those of its protocol which the class has and the engine shall use, see
            ``HOOKS``.
    """

    role: Literal["server", "peers", "events"] = "server"
    uniform: bool = False
    everyone: bool = False
    classes: bool = False
    stacked: bool = False
    integers: bool = False
    asynchronous: bool = False
    shares: Literal["model", "common", "parameters", "body", "head", "unnormed", "nothing"] = "model"
    keeps: Literal["model", "parameters", "body", "head", "norms"] = "model"
    moves: bool = False
    static: bool = False
    mixes: Literal["rows", "columns"] = "rows"
    coupled: bool = False
    noise: Literal["none", "server", "clients", "shares"] = "none"
    exact_downlink: bool = False
    own_sampling: bool = False
    by_cohort: bool = False
    equal_steps: bool = False
    public: tuple[str, ...] = ()
    compresses: tuple[str, ...] = ()
    compresses_from: int = 0
    in_full: tuple[str, ...] = ()
    hooks: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("public", "compresses", "in_full", "hooks"):
            said = getattr(self, name)
            if len(set(said)) != len(said) or "" in said:
                raise InputError(f"Traits: {name} must name each once, got {said!r}")
        if self.compresses_from < 0:
            raise InputError(f"Traits: compresses_from must be >= 0, got {self.compresses_from}")
        for hook, needed in (("buffer", self.asynchronous), ("common", self.shares == "common")):
            if needed and hook not in self.hooks:
                what = "asynchronous=True" if hook == "buffer" else "shares='common'"
                raise InputError(
                    f"Traits: hooks must have {hook!r} for {what}, got {self.hooks!r}; it is {HOOKS[hook]}"
                )
        if self.stacked and self.integers:
            raise InputError("Traits: stacked and integers must not both be True: a rule gives one or the other")
        if (self.noise != "none") != ("releases" in self.hooks):
            raise InputError(
                f"Traits: noise must be none exactly where there is no hook releases, got noise={self.noise!r} and "
                f"hooks={self.hooks!r}; say who adds the noise, and give a method releases"
            )

    def but(self, *hooks: Hook, **words: Any) -> Traits:
        """A copy with ``words`` replaced and ``hooks`` added to those that are there."""
        return replace(self, **words, hooks=(*self.hooks, *(name for name in hooks if name not in self.hooks)))


HOOKS: dict[str, str] = {
    "settle": "settle(client, sent, arrived, rnd) -> client: after local, what the far end decoded of its message",
    "own": "own(obj, client, got, rnd) -> x [d]: the client's own model, which it is tested with",
    "common": "common: number of the architecture that the server shares",
    "publish": "publish(peer, arrived, rnd) -> (peer, message): what is mixed instead of the offer itself",
    "tuned": "tuned(constants) -> algorithm: with the step sizes that graph and losses ask for",
    "gossip_steps": "gossip_steps: exchanges in a round, each with offers of its own",
    "most_chi12": "most_chi12: largest chi1 * chi2 of the graph that it is proven for",
    "buffer": "buffer: arrivals between two steps of an asynchronous server",
    "releases": "releases(rnd) -> releases: what a round lets out of any client",
    "client_releases": "client_releases(rnd, drawn) -> releases: what a round lets out of one client alone",
    "exposed": "exposed(rnd) -> clients: those whose data a round touches, where that is not the cohort",
    "public_of": "public_of(steps, rnd) -> {field: value}: its public fields for a client with so many local steps",
    "kind": "kind(rnd) -> hashable: rounds of one kind let out the same",
    "paper_multiplier": "paper_multiplier(epsilon, delta, rounds) -> noise multiplier by the paper's formula",
    "noise_multiplier": "noise_multiplier: noise over sensitivity, which a target epsilon sets",
}
"""What an algorithm may have beyond the methods of its protocol, and what for."""

METHODS = {
    "server": ("init_server", "init_client", "broadcast", "local", "server"),
    "peers": ("init_client", "model", "local", "offer", "mix"),
    "events": ("tuned", "init_client", "model", "flow", "local", "offer", "meet"),
}
"""The methods of each role's protocol, see ``fedsim.algorithms.kit.protocols``."""


@dataclass(frozen=True)
class RuleTraits(Words):
    """What a server rule says of itself; a rule that says nothing is taken for one that is not a mean.

    Attributes:
        linear: its result is the mean of the messages by the clients' weights, sum_i p_i m_i with p_i >= 0 and
            sum_i p_i = 1: noise that is measured for a mean, and memories of means at the server, rest on it.
        stacks: it hands on every client's own message.
        integers: it sums integers modulo a power of two.
    """

    linear: bool = False
    stacks: bool = False
    integers: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linear + self.stacks + self.integers > 1:
            raise InputError("RuleTraits: only one of linear, stacks and integers can be True")


@dataclass(frozen=True)
class LayerTraits(Words):
    """What a layer says of itself: of what it does to a vector v [d] alone, the layers inside it losing nothing.

    Attributes:
        loses: it is a compressor: what arrives is not what was sent, and ``delta(d)`` and ``omega(d)`` say how much at
            worst.
        feedback: it remembers earlier messages of its link.
        receives: its second half at the receiver (``init_server``, ``receive``) remembers the mean over all clients.
        layerwise: the layers inside it act on each parameter of the model on its own.
        linear: for given random numbers, C(a v + b w) = a C(v) + b C(w).
        lipschitz: for given random numbers ||C(v) - C(w)|| <= ||v - w||: a bound on how far one sample moves a message
            holds behind it.
        nonexpansive: ||C(v)|| <= ||v||: a bound on the norm of a message holds behind it.
        entrywise: no entry becomes larger in magnitude, so that a nonexpansive layer may stand inside this one.
        unbiased: E C(v) = v; ``omega(d)`` is its variance.
        contractive: E ||C(v) - v||^2 <= (1 - delta(d)) ||v||^2 for every v.
    """

    loses: bool = False
    feedback: bool = False
    receives: bool = False
    layerwise: bool = False
    linear: bool = False
    lipschitz: bool = False
    nonexpansive: bool = False
    entrywise: bool = False
    unbiased: bool = False
    contractive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lipschitz and not self.nonexpansive:
            raise InputError("LayerTraits: what is lipschitz is nonexpansive too (C(0) = 0), got nonexpansive=False")
        if self.receives and not self.feedback:
            raise InputError("LayerTraits: receives=True needs feedback=True: the far end's memory is half of a link's")
        if (self.unbiased or self.contractive) and not self.loses:
            raise InputError("LayerTraits: unbiased and contractive are said of what loses something: add loses=True")

    @property
    def kind(self) -> Literal["codec", "feedback", "layerwise", "other"]:
        """What the rules of order are about."""
        return "layerwise" if self.layerwise else "feedback" if self.feedback else "codec" if self.loses else "other"
