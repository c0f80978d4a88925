"""Which layers may stand outside which, and what a user reads who gets it wrong."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim.assembly.nodes import build_channel, build_object
from fedsim.channel.channel import Channel
from fedsim.channel.onion import Layer
from fedsim.channel.qsgd import QSGD
from fedsim.channel.topk import TopK
from fedsim.cli.argv import with_own_classes
from fedsim.errors import InputError
from tests.test_cli import ROOT, composed, main, options, problems  # noqa: F401 - main is a fixture

FEEDBACK = ("diana", "econtrol", "ef14", "ef21", "ef21_plus", "ef21_sgdm")
LAYERS = sorted(path.stem for path in (ROOT / "configs/channel").glob("*.yaml"))
CODECS = tuple(name for name in LAYERS if name not in (*FEEDBACK, "layerwise"))
LOST = ("remembers what the layers inside it lose",)
WHY = {
    **{("codec", "feedback"): LOST},
    ("feedback", "feedback"): ("two memories of one link",),
    ("layerwise", "feedback"): ("remembers whole vectors", "pieces"),
    ("codec", "layerwise"): ("no longer the model's parameters",),
}


def kind(name: str) -> str:
    return "feedback" if name in FEEDBACK else "layerwise" if name == "layerwise" else "codec"


def layer(name: str) -> Layer:
    node = yaml.safe_load((ROOT / f"configs/channel/{name}.yaml").read_text())[name]
    return Layer(name, build_object(node, name))


@pytest.mark.parametrize("outer", LAYERS)
def test_every_pair_of_the_catalogue(outer: str) -> None:
    """A forbidden one names both layers and the reason; all others pass."""
    refused = 0
    for inner in LAYERS:
        if inner == outer:
            continue
        why = WHY.get((kind(outer), kind(inner)))
        if why is None:
            Channel((layer(outer), layer(inner)))
            continue
        refused += 1
        with pytest.raises(InputError) as error:
            Channel((layer(outer), layer(inner)))
        line = str(error.value)
        assert line.startswith(f"channel must not have {outer} before {inner}: ")
        assert "\n" not in line
        assert [words for words in why if words not in line] == []
    assert refused == {"codec": 7, "feedback": 5, "layerwise": 6}[kind(outer)]


def test_layers_between_do_not_hide_a_wrong_order() -> None:
    for names in permutations(["econtrol", "layerwise", "topk", "fp16"]):
        right = names[:2] == ("econtrol", "layerwise")
        if right:
            Channel(tuple(map(layer, names)))
        else:
            with pytest.raises(InputError, match="channel must not have"):
                Channel(tuple(map(layer, names)))


def test_two_cuts_of_a_vector() -> None:
    with pytest.raises(InputError, match=r"must not have first before second: the vector is cut already"):
        Channel((layer("layerwise")._replace(name="first"), layer("layerwise")._replace(name="second")))


def test_two_layers_need_two_names() -> None:
    """Names address memories and random numbers."""
    with pytest.raises(InputError, match="two layers named q"):
        Channel((Layer("q", QSGD()), Layer("q", QSGD(levels=3))))
    Channel((Layer("q", QSGD()), Layer("p", QSGD(levels=3))))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["channel=[topk,ef14]"], ["channel must not have topk before ef14", "loses something first"]),
        (["downlink=[ef14,ef21,topk]"], ["must not have ef14 before ef21", "two memories"]),
        (["channel=[layerwise,econtrol,topk]"], ["must not have layerwise before econtrol", "whole vectors"]),
        (["channel=[sign,layerwise]"], ["must not have sign before layerwise", "no longer the model's parameters"]),
        (["channel=[topkk]"], ["unknown option channel=topkk", "did you mean", "topk", "qsgd", "econtrol"]),
        (["downlink=[qsgdd]"], ["unknown option downlink=qsgdd", "did you mean qsgd?", "econtrol", "topk"]),
        (["channel.topk.k=3"], ["unknown key channel.topk", "keys of channel: encode"]),
        (["channel=[fp16]", "channel.topk.k=3"], ["unknown key channel.topk", "keys of channel: encode, fp16"]),
        (["channel=[topk]", "channel.topk.kk=3"], ["unknown key channel.topk.kk", "ratio"]),
        (["channel=[topk]", "channel.topk.k=0"], ["channel.topk.k must be >= 1, got 0"]),
        (["channel=[topk]", "channel.topk.ratio=0"], ["channel.topk.ratio must be in (0, 1], got 0"]),
        (["channel=[topk]", "channel.topk.ratio=null"], ["channel.topk.k must be given, or ratio"]),
        (["channel=[topk]", "channel.topk.k=abc"], ["channel.topk.k must be an int or null, got 'abc'"]),
        (["channel=[topk]", "~channel.topk._target_"], ["channel.topk must be a layer with _target_"]),
        (["channel=[econtrol,topk]", "channel.econtrol.init=half"], ["channel.econtrol.init must be one of", "full"]),
        (["channel=[econtrol,topk]", "channel.econtrol.eta=-1"], ["channel.econtrol.eta must be >= 0"]),
        (["channel=[ef21_sgdm,topk]", "channel.ef21_sgdm.a=0"], ["channel.ef21_sgdm.a must be in (0, 1], got 0"]),
        (["channel=[diana,qsgd]", "channel.diana.alpha=2"], ["channel.diana.alpha must be in (0, 1]"]),
        (["channel=[sign]", "channel.sign.scale=l3"], ["channel.sign.scale must be one of l1, l2, got 'l3'"]),
        (["channel.encode=3"], ["channel.encode must be true or false, got 3"]),
        (["channel=[topk]", "+channel.topk.fields=update"], ["channel.topk.fields must be a list of", "'update'"]),
    ],
    ids=lambda part: "_".join(part) if "=" in part[0] or part[0].startswith("~") else None,
)
def test_one_clear_line_for_each_mistake(argv: list[str], words: list[str]) -> None:
    (line,) = problems(*with_own_classes(argv))
    assert [word for word in words if word not in line] == []


def test_what_is_right_passes() -> None:
    cfg = composed(
        "channel=[econtrol,layerwise,topk,fp16]",
        "channel.topk.k=5",
        "+channel.topk.fields=[update]",
        "channel.econtrol.init=full",
        "channel@downlink=[fp16]",
        "channel.encode=true",
    )
    up, down = build_channel(cfg["channel"], "channel"), build_channel(cfg["downlink"], "downlink")
    assert [found.name for found in up.layers] == ["econtrol", "layerwise", "topk", "fp16"]
    assert up.layers[2] == Layer("topk", TopK(k=5), ("update",))
    assert up.layers[0].middleware.start == "full"
    assert up.encode
    assert [found.name for found in down.layers] == ["fp16"]
    assert not down.encode
    assert options("channel") == LAYERS


SMALL = ("data=digits", "engine=serial", "partition.clients=4", "rounds=2", "schedule=all")


def refusal(call: Callable[..., int], capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert call(*argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


def test_order_is_checked_before_data_are_read(
    main: Callable[..., int],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    line = refusal(main, capsys, "data=mnist", f"data.root={tmp_path}/nowhere", "channel=[topk,ef14]")
    assert "channel must not have topk before ef14" in line


@pytest.mark.parametrize("link", ["channel", "downlink"])
@pytest.mark.parametrize(
    ("layers", "keys", "words"),
    [
        ("econtrol,sign", {"sign.scale": "l2"}, ["eta must be given", "contraction"]),
        ("diana,topk", {}, ["diana must stand outside an unbiased compressor", "qsgd"]),
        ("diana,randk", {}, ["diana must stand outside an unbiased compressor", "unbiased=true"]),
    ],
    ids=["econtrol_sign_l2", "diana_topk", "diana_randk"],
)
def test_a_layer_that_cannot_work_says_so_before_anything_is_spawned(
    link: str,
    layers: str,
    keys: dict[str, Any],
    words: list[str],
    main: Callable[..., int],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    line = refusal(main, capsys, *SMALL, f"{link}=[{layers}]", *(f"{link}.{k}={value}" for k, value in keys.items()))
    assert [word for word in words if word not in line] == []
    assert not list(tmp_path.rglob("provenance.json")), "the run had begun"
