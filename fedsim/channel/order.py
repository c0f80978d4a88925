"""Which layer of a channel may stand outside which other, with each rule's reason, and which fields they may name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from fedsim.errors import InputError
from fedsim.traits.declared import layer_traits

if TYPE_CHECKING:
    from fedsim.channel.onion import Layer

REASONS = {
    ("codec", "feedback"): "{1} remembers what the layers inside it lose, and {0} outside it loses something first",
    ("feedback", "feedback"): "two memories of one link would each correct what the other corrects",
    ("layerwise", "feedback"): "{1} remembers whole vectors, and {0} outside it hands on pieces of them",
    ("layerwise", "layerwise"): "the vector is cut already",
    ("codec", "layerwise"): "{0} hands on what is no longer the model's parameters",
}
"""(kind outside, kind inside) -> why not."""


def kind(layer: Layer) -> str:
    """``codec`` (loses information), ``feedback`` (remembers), ``layerwise`` or ``other``."""
    return layer_traits(layer.middleware).kind


def check_order(layers: Sequence[Layer]) -> None:
    """Raise InputError when a layer stands outside one that it must not, or has the name of another."""
    names = [layer.name for layer in layers]
    for layer in layers:
        layer_traits(layer.middleware)  # what it says of itself must be true
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(
            f"channel must not have two layers named {twice}: they would share memory and random numbers; rename one"
        )
    for outer, inner in combinations(layers, 2):
        why = REASONS.get((kind(outer), kind(inner)))
        if why is not None:
            raise InputError(
                f"channel must not have {outer.name} before {inner.name}: {why.format(outer.name, inner.name)}; "
                f"put {inner.name} before {outer.name}, or leave one out"
            )


def check_layer_fields(link: str, layers: Sequence[Layer], sent: Iterable[str], later: Iterable[str] = ()) -> None:
    """Raise InputError when a layer is limited to a field that no message has, nor will have ``later``."""
    known = sorted({*sent, *later})
    for layer in layers:
        if wrong := [name for name in layer.fields or () if name not in known]:
            must = f"name fields that the messages of the first three rounds or the last have ({', '.join(known)})"
            raise InputError(f"{link}.{layer.name}.fields must {must}, got {wrong[0]!r}")
