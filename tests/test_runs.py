"""What the kinds of run share: one loop, one list of what a checkpoint holds, one place where clients work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedsim.aggregate import Mean, Stack
from fedsim.algorithms.ad_psgd import ADPSGD
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.algorithms.fedbuff import FedBuff
from fedsim.algorithms.scaffold import Scaffold
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.errors import Diverged
from fedsim.evaluate import Evaluate
from fedsim.local import Local
from fedsim.models import linear_zero
from fedsim.partition import Natural
from fedsim.pool.engine import Engine
from fedsim.pool.jobs import Rows
from fedsim.runs.run import Run, Worked
from fedsim.schedule import All, Asynchronous, Events
from fedsim.topology import Ring
from fedsim.types import Round
from tests.conftest import Quadratics

N = 6
KINDS: dict[str, dict[str, Any]] = {
    "rounds": {"algorithm": Scaffold(lr=0.05), "schedule": All(), "aggregate": Mean("uniform")},
    "arrivals": {"algorithm": FedBuff(lr=0.05, buffer=2), "schedule": Asynchronous(4), "aggregate": Stack()},
    "peers": {"algorithm": DPSGD(lr=0.05), "schedule": All(), "topology": Ring(), "aggregate": Mean("uniform")},
    "virtual time": {
        "algorithm": ADPSGD(lr=0.05),
        "schedule": Events(t_end=8.0),
        "topology": Ring(),
        "aggregate": Mean("uniform"),
    },
}


def begun(kind: str) -> Run:
    """A run before its first step; the caller closes its backend."""
    data = Quadratics(n=N).dataset()
    engine, local = Engine(backend="serial"), Local(steps=2, batch_size=3)
    parts = Parts(
        data=data, partition=Natural(), model=linear_zero, rounds=8, local=local, engine=engine, **KINDS[kind]
    )
    assembled = assemble(parts, data)
    return assembled.begin(assembled.start(), Evaluate(every=8))


def finish(run: Run) -> list[dict[str, float]]:
    """The records of all steps."""
    records = []
    while run.done < run.rounds:
        records.append(run.step())
    run.backend.close()
    return records


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_never_answers_is_left_out_by_one_edit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropout that concerns all kinds of run is written once, where clients work: ``Run.work``."""
    gone, whole, work = 2, begun(kind), Run.work
    whole_records = finish(whole)

    def without(self: Run, rounds: Sequence[Round], rows: Sequence[Rows], broadcast: Any) -> list[Worked]:
        left = [replace(rnd, clients=tuple(i for i in rnd.clients if i != gone)) for rnd in rounds]
        return work(self, left, rows, broadcast)

    monkeypatch.setattr(Run, "work", without)
    run = begun(kind)
    untouched = run.stores[0].read([gone])[0]
    records = finish(run)
    assert run.digest() != whole.digest()
    assert len(records) == len(whole_records) == 8
    assert bool(torch.isfinite(run.point()).all())
    if kind in ("rounds", "arrivals"):  # peers' states change by what neighbours hold
        found = run.stores[0].read([gone])[0]
        for now, before in zip(found, untouched, strict=True):
            torch.testing.assert_close(torch.as_tensor(now), torch.as_tensor(before), rtol=0, atol=0)
    if kind == "rounds":
        sent = [record["comm/uplink_bytes"] * N for record in records]
        assert sent == [record["comm/uplink_bytes"] * (N - 1) for record in whole_records]


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_a_run_is_all_that_a_checkpoint_needs(kind: str) -> None:
    """Half a run, and a new one that is given its snapshot: the records, the bytes and the digest of the whole run."""
    whole, half, rest = begun(kind), begun(kind), begun(kind)
    records = finish(whole)
    for _ in range(3):
        half.step()
    saved = half.snapshot()
    half.backend.close()
    assert set(saved) == {*half.state._fields, "stores", "done", "totals", "plain"}
    rest.restore(saved)
    timeless = [{tag: value for tag, value in r.items() if tag not in TIMES} for r in records]
    again = [{tag: value for tag, value in r.items() if tag not in TIMES} for r in finish(rest)]
    assert again == timeless[3:]
    assert rest.digest() == whole.digest()
    assert rest.traffic == whole.traffic


TIMES = ("time/round_s", "time/evaluate_s")


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_finite_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(kind)
    run.step()
    before, done, digest = run.state, run.done, run.digest()
    advance, vital = type(run).advance, run.vital

    def broken(self: Run) -> Any:
        step = advance(self)
        nowhere = torch.full((3,), torch.inf)
        return replace(step, state=step.state._replace(**{vital: (nowhere,)}))

    monkeypatch.setattr(type(run), "advance", broken)
    with pytest.raises(Diverged, match=r"is not finite (after round 2|at virtual time)"):
        run.step()
    assert run.state is before
    assert (run.done, run.digest()) == (done, digest)
    run.backend.close()
