"""kill -9 again and again, in rounds that a seed chooses, each resume on another backend: the bits of a quiet run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.test_resume import CASES, SMALL, recorded, started, summary, wait_for

pytestmark = pytest.mark.slow
KILLS, ROUNDS = 8, 60
BACKENDS = (("engine=serial",), ("engine=ray", "engine.actors=1"), ("engine=ray", "engine.actors=3"))
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
    assert started(tmp_path, *given, "engine=serial", "hydra.run.dir=one").wait() == 0
    drawn = np.random.default_rng([*kind.encode()])
    lines = np.sort(drawn.choice(np.arange(2, ROUNDS - 10), KILLS, replace=False))
    metrics, fell = tmp_path / "other/metrics.jsonl", []
    for number, wanted in enumerate(lines.tolist()):
        engine = BACKENDS[number % len(BACKENDS)]
        what = ["resume=other"] if metrics.exists() else [*given, "hydra.run.dir=other"]
        process = started(tmp_path, *what, *engine)
        # A resume computes again what came after the last checkpoint: it is one round further than the last kill.
        wait_for(metrics, max(wanted, fell[-1] + 2 if fell else 0), process)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        fell.append(metrics.read_bytes().count(b"\n"))
    assert len(set(fell)) == KILLS, "the kills fell in different rounds"
    assert fell[-1] < ROUNDS + 1
    assert started(tmp_path, "resume=other", *BACKENDS[KILLS % len(BACKENDS)]).wait() == 0
    assert recorded(tmp_path / "other") == recorded(tmp_path / "one")
    ended = summary(tmp_path / "other")
    assert ended == summary(tmp_path / "one")
    assert len(ended["digest"]) == 64
    assert any("epsilon" in key for key in ended) == (kind == "private")
