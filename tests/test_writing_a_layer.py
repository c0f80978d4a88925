"""docs/channel.md works as written: its commands and its table of sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from fedsim.assembly.nodes import build_channel
from fedsim.channel.channel import noises
from tests.pages import ROOT, Desk, Page, sat_down

PAGE = Page("channel.md")
SIZES = re.findall(r"^\| (?:`([\w,]+)`|none) \| ([\d,]+) \| ([\d.]+) \|", PAGE.text, re.M)


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    with sat_down(tmp_path, PAGE, capsys) as desk:
        yield desk


def test_the_page_holds_what_is_tested_here() -> None:
    assert [program for program, _ in PAGE.commands] == ["fedsim", "fedsim"]
    assert not PAGE.files
    assert not PAGE.scripts
    assert len(SIZES) >= 14


@pytest.mark.parametrize("number", range(2))
def test_its_runs(number: int, desk: Desk) -> None:
    code, printed = desk.fedsim(PAGE.commands[number][1])
    assert code == 0, printed
    assert desk.summary()["status"] == "finished"
    (path,) = desk.folder.glob("outputs/*/*/metrics.jsonl")
    assert json.loads(path.read_text().splitlines()[-1])["comm/uplink_ratio"] > 2


@pytest.mark.parametrize(("layers", "size", "bits"), SIZES)
def test_its_sizes(layers: str, size: str, bits: str) -> None:
    """Counted and really encoded."""
    node: dict[str, object] = {}
    for name in filter(None, layers.split(",")):
        node |= yaml.safe_load((ROOT / f"configs/channel/{name}.yaml").read_text())
    v = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    for encode in (False, True):
        channel = build_channel({"encode": encode, **node}, "channel")
        noise = noises(0, "uplink", 0, torch.tensor(0))
        _, _, sent = channel.send({"update": v}, channel.init({"update": v}), noise, (len(v),))
        assert f"{int(sent):,}" == size
        assert f"{8 * int(sent) / len(v):.2f}" == bits


@pytest.mark.parametrize("link", ["channel", "downlink"])
def test_a_field_that_no_message_has_is_refused(link: str, desk: Desk) -> None:
    code, printed = desk.fedsim(f"{link}=[topk] {link}.topk.fields=[updte] engine=serial rounds=1")
    known = {"channel": "update", "downlink": "x"}[link]
    must = f"name fields that the messages of the first three rounds or the last have ({known})"
    assert printed == f"error: {link}.topk.fields must {must}, got 'updte'\n"
    assert code == 2
