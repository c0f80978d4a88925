"""Fifth stage of assembly: whether the server's rule gives the algorithm and the channel what they build on."""

from __future__ import annotations

from typing import Any

from fedsim.aggregate import Aggregate
from fedsim.algorithms.kit.around import name_of
from fedsim.channel.channel import Channel
from fedsim.errors import InputError, require
from fedsim.traits.declared import layer_traits, rule_traits, traits_of


def require_weights(aggregate: Aggregate) -> None:
    """Raise InputError unless a server rule says what clients weigh."""
    weights = getattr(aggregate, "weights", None)
    must = "be uniform or examples, which every server rule says"
    require(weights in ("uniform", "examples"), "aggregate.weights", must, weights)


def require_server_rule(algorithm: Any, aggregate: Aggregate, channel: Channel) -> None:
    """Raise InputError unless the server's rule is one for the algorithm, and for what layers remember at the server.

    Args:
        algorithm: as it runs: a private run's is the private one.
        aggregate: the rule.
        channel: around the clients' messages.
    """
    require_rule(algorithm, aggregate)
    require_mean(channel, aggregate)


def require_rule(algorithm: Any, aggregate: Aggregate) -> None:
    """Raise InputError unless the server rule gives the algorithm what it wants: equal weights, a mean or a stack."""
    require_weights(aggregate)
    require(
        aggregate.weights == "uniform" or not traits_of(algorithm).uniform,
        "aggregate.weights",
        f"be uniform for {name_of(algorithm)}, whose clients must weigh the same",
        aggregate.weights,
        "add aggregate.weights=uniform",
    )
    said, gives = traits_of(algorithm), rule_traits(aggregate)
    name = name_of(algorithm)
    must = f"be {'the sum of integers' if said.integers else 'a rule for numbers'} for {name}"
    rule = "fedsim.privacy.discrete.ModularSum, which privacy=discrete_gaussian chooses on the command line"
    do = f"use {rule}" if said.integers else "add aggregate=mean"
    require(gives.integers == said.integers, "aggregate", must, type(aggregate).__name__, do)
    must = f"be {'stack' if said.stacked else 'a mean'} for {name}"
    do = f"add aggregate={'stack' if said.stacked else 'mean'}"
    require(gives.stacks == said.stacked, "aggregate", must, type(aggregate).__name__, do)


def require_mean(channel: Channel, aggregate: Aggregate) -> None:
    """Raise InputError when a layer's memory at the server is a mean of what clients sent, and the rule is no mean."""
    for layer in channel.layers:
        if layer_traits(layer.middleware).receives and not rule_traits(aggregate).linear:
            raise InputError(
                f"aggregate must be a mean beside channel={layer.name}, which makes the server remember a mean of all "
                f"clients' messages, got {type(aggregate).__name__}, which does not declare "
                "traits = RuleTraits(linear=True); use aggregate=mean, or a feedback without memory at the server: ef14"
            )
