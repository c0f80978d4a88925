"""What the layers of a link may do to a private run: where the noise is added, and what it still hides behind them.

Four cases are told apart, by the word ``noise`` of an algorithm's or mechanism's traits:

- ``clients``: every message has all its noise before it enters the channel. Any layer may follow, with memory or
  without: it sees nothing else.
- ``shares``: each client adds a share, and only the sum of all messages has enough. A layer acts on each message alone,
  and what it makes of one client's spike has that client's share in it and no more: none may follow that loses
  anything.
- ``server``: the noise is measured by how far one unit moves the mean of what arrives. Where the unit is a client,
  whose message is there or not, a layer must lengthen no message (``nonexpansive``). Where it is a sample, which
  changes the message a little, a layer must bring no two messages further apart (``lipschitz``): Top-K lets through
  what a sample tips the scale for, a sign turns. No layer may remember: what one unit left in a memory comes out in
  later rounds.
- ``none``: not private.

Layers say of themselves, apart from what follows further in:

- ``nonexpansive``: no vector becomes longer, however much the layers inside shorten each entry of what they get.
- ``entrywise``: no entry becomes larger, which nonexpansive layers inside another one need: they get its numbers
  (a sign's scales, which stand for many entries each), not the vector.
- ``lipschitz``: for one draw of its random numbers ||C(u) - C(v)|| <= ||u - v||, and the layers inside get a vector of
  which the same holds.

A broadcast is made of what was let out, so layers of the downlink cost nothing, unless the server's noise is measured
by vectors that clients clip by (``exact_downlink``): both must then have the same bits.
"""

from __future__ import annotations

from typing import Any

from fedsim.aggregate import Aggregate
from fedsim.algorithms.kit.around import name_of
from fedsim.channel.channel import Channel
from fedsim.channel.onion import Layer
from fedsim.errors import InputError
from fedsim.traits.declared import layer_traits, rule_traits, traits_of
from fedsim.traits.releases import Unit


def check_links(algorithm: Any, channel: Channel, downlink: Channel, unit: Unit | None) -> None:
    """Raise InputError where a layer would undo what the privacy of the messages rests on.

    Args:
        algorithm: the private one.
        channel: layers of the clients' messages.
        downlink: layers of the server's broadcast.
        unit: what the releases hide; None asks for the most.
    """
    name, said = name_of(algorithm), traits_of(algorithm)
    lossy = next((layer for layer in downlink.layers if not _faithful(layer)), None)
    if lossy is not None and said.exact_downlink:
        raise InputError(
            f"downlink must not have {lossy.name} for {name} with noise of the server: clients clip by the distance of "
            "the models that they hear, the noise follows from the server's own, and behind a layer that loses "
            "something these differ; use downlink=[]"
        )
    public = set(said.public)  # a layer on public fields alone touches nothing that the noise protects
    layers = [layer for layer in channel.layers if layer.fields is None or not public.issuperset(layer.fields)]
    if said.integers and layers:
        raise InputError(
            f"channel must be [] for messages of integers, which are summed modulo 2^bits, got {layers[0].name}"
        )
    # what loses nothing hands on what was sent, and post-processing of a private message costs nothing
    layers = [layer for layer in layers if not _faithful(layer)]
    if said.noise == "shares" and layers:
        raise InputError(
            f"channel must not have {layers[0].name} for {name}, whose clients each add a share of the noise: only the "
            "sum of all messages hides a unit, and the layer acts on each message, which has too little; use "
            "channel=[], or algorithm=dp_sgd or privacy=local_gaussian, whose noise is whole in every message"
        )
    if said.noise == "server":
        for at, layer in enumerate(layers):  # outermost first: a layer gets the numbers of those before it
            _check_layer(name, layer, layers[:at], unit)


def _faithful(layer: Layer) -> bool:
    """Whether a layer says that what arrives is what was sent."""
    said = layer_traits(layer.middleware)
    return said.layerwise or (said.linear and said.lipschitz and not said.loses and not said.feedback)


def _check_layer(name: str, layer: Layer, outside: list[Layer], unit: Unit | None) -> None:
    """Raise InputError unless the server's noise still hides a unit behind this layer, inside those ``outside``."""
    words = layer_traits(layer.middleware)
    if words.feedback:
        why = "remembers earlier messages, and what one unit changed in them comes out again in later rounds"
        use = "layers without memory"
    elif unit != "client":
        if words.lipschitz:
            return
        why = "can bring two messages that differ by one sample further apart than they were"
        use = "a biased randk"
    else:
        wide = [other.name for other in outside if not layer_traits(other.middleware).entrywise]
        if words.nonexpansive and (words.entrywise or not wide):
            return
        why = f"inside {wide[0]} can make a message longer" if wide else "can make a message longer"
        use = "topk, sign or a biased randk"
    bound = "the clip bound" if unit == "client" else "the sensitivity"
    whole = "privacy=local_gaussian" if unit == "client" else "algorithm=dp_sgd"
    raise InputError(
        f"channel must not have {layer.name} for {name} under noise of the server: it {why}, so {bound}, which the "
        f"noise is measured by, does not hold at the server; use {use}, or {whole}, whose noise is whole in every "
        "message before any layer"
    )


def check_rule(algorithm: Any, aggregate: Aggregate) -> None:
    """Raise InputError unless the server's rule is the mean that the noise is measured for."""
    said = traits_of(algorithm)
    if said.noise in ("server", "shares") and not said.integers and not rule_traits(aggregate).linear:
        raise InputError(
            f"aggregate must be a mean under the noise of {name_of(algorithm)}, measured by how far one client moves a "
            f"mean, got {type(aggregate).__name__}, which does not declare traits = RuleTraits(linear=True); "
            "use aggregate=mean, or noise of each client (privacy=local_gaussian)"
        )
