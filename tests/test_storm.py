"""kill -9 again and again, in rounds that a seed chooses, each resume on another backend: the bits of a quiet run."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.started import assert_gone, completed, kill, members, started, wait_for
from tests.test_resume import CASES, SMALL, assert_same, summary

pytestmark = pytest.mark.slow
KILLS, ROUNDS = 8, 60
SERIAL, ONE, THREE = (("engine=serial",), ("engine=ray", "engine.actors=1"), ("engine=ray", "engine.actors=3"))
BACKENDS = (SERIAL, ONE, SERIAL, THREE, SERIAL, ONE, THREE, SERIAL)
"""Of the processes that are killed; the last, which comes to the end, has one actor."""

FEW = ("schedule.cohort=4",)
KINDS = {
    "stateful_compressed": ("algorithm=scaffold", "channel=[econtrol,topk]", "channel.topk.ratio=0.1", *FEW),
    "private": CASES["private"],
    "gossip": ("algorithm=choco_sgd", "schedule=all", "topology=ring", "channel=[topk]", "channel.topk.ratio=0.1"),
    "asynchronous": ("algorithm=fedbuff", "schedule.concurrency=4", "algorithm.buffer=2"),
    "virtual_time": ("algorithm=ad_psgd", "schedule=events", "topology=ring"),
    "personalised": ("algorithm=fedper", *FEW),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_storm_leaves_the_run_that_was_never_interrupted(kind: str, tmp_path: Path) -> None:
    given = [*SMALL[1:], *KINDS[kind], f"rounds={ROUNDS}"]
    assert completed(tmp_path, *given, *SERIAL, "hydra.run.dir=one") == 0
    drawn = np.random.default_rng([*kind.encode()])
    lines = np.sort(drawn.choice(np.arange(2, ROUNDS - 15), KILLS, replace=False))
    metrics, fell = tmp_path / "other/metrics.jsonl", [0]
    with ExitStack() as storm:
        for backend, wanted in zip(BACKENDS, lines.tolist(), strict=True):
            what = ["resume=other"] if metrics.exists() else [*given, "hydra.run.dir=other"]
            process = storm.enter_context(started(tmp_path, *what, *backend))
            # A resume computes again what came after the last checkpoint: it has to come further than the last kill.
            wait_for(metrics, max(wanted, fell[-1] + 2), process)
            assert (len(members(process)) > 1) == (backend is not SERIAL)
            time.sleep(drawn.uniform(0, 0.03))  # for the kill to fall anywhere in a round
            kill(process)  # what is left of its Ray is still ending while the next one begins
            storm.callback(assert_gone, process)
            fell.append(metrics.read_bytes().count(b"\n"))
        assert completed(tmp_path, "resume=other", *ONE) == 0
    assert len(set(fell)) == KILLS + 1, "the kills fell in different rounds"
    assert fell[-1] < ROUNDS + 1, "the last kill came before the end"
    assert_same(tmp_path / "one", tmp_path / "other")
    ended = summary(tmp_path / "other")
    assert (ended["status"], len(ended["digest"])) == ("finished", 64)
    assert any("epsilon" in key for key in ended) == (kind == "private")
    assert any("bytes" in key for key in ended)
    assert len(json.loads((tmp_path / "other/provenance.json").read_text())["resumed"]) == KILLS
