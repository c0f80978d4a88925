"""One client of one round again, alone and in this process: prints and breakpoints work, the debugger can stop there.

The state before the round is that of the run, to the bit: from the nearest checkpoint, else from the start. The client
itself is computed on its own (``engine.batching=loop``), so its last digits may differ from those of its block.
"""

from __future__ import annotations

import copy
import inspect
import json
import pdb
from bdb import BdbQuit
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from fedsim.algorithms.kit.around import innermost
from fedsim.assembly.assemble import Assembled, assemble
from fedsim.assembly.configuration import build_run
from fedsim.assembly.parts import Parts
from fedsim.cli.folder import config_folder
from fedsim.cli.resume import stopped
from fedsim.errors import Diverged, InputError, first_line, require
from fedsim.evaluate import Evaluate
from fedsim.ground.console import Terminal, error, note, number
from fedsim.ground.tree import leaves, tree_map
from fedsim.kernels.kernel import Kernel
from fedsim.pool.block import Job, Outcome, to_device
from fedsim.pool.local_part import written
from fedsim.pool.worker import Backend, Worker
from fedsim.record.checkpoint import Checkpointing, Checkpoints
from fedsim.record.provenance import cpu_capability

MOST_NAMED = 8
"""Clients that the command of ``line`` names; of more, it replays the whole round."""


class WorkFound(Exception):
    """Leaves a round where its clients would begin to work, and takes along what is needed to do their work elsewhere.

    Attributes:
        found: clients, each with the job that it is in.
        shared: the round's broadcast.
    """

    def __init__(self, found: list[tuple[int, Job]], shared: Any):
        super().__init__("found")
        self.found, self.shared = found, shared


class CatchWork:
    """A backend that leaves the round where the clients' work would begin.

    Args:
        backend: who computes everything else.
        clients: whose work is looked for; None: everybody's.
    """

    def __init__(self, backend: Backend, clients: tuple[int, ...] | None):
        self.backend, self.clients = backend, clients
        self.armed = False
        self.seen: set[int] = set()

    def map(self, method: str, jobs: Sequence[Any], costs: Sequence[float], shared: Any) -> list[Any]:
        """What the backend returns; once ``armed``, raises WorkFound when some of the clients would work."""
        if self.armed and method == "train":
            working = sorted((i, job.number, job) for job in jobs for i in job.clients)
            self.seen |= {i for i, *_ in working}
            found = [(i, job) for i, _, job in working if self.clients is None or i in self.clients]
            if found:
                raise WorkFound(found, shared)
        return self.backend.map(method, jobs, costs, shared)

    def close(self) -> None:
        """Release everything."""
        self.backend.close()


class ClientWork(NamedTuple):
    """What one client did."""

    client: int
    samples: int
    outcome: Outcome


def replay(
    run_dir: Path, round_: int, clients: tuple[int, ...] | None, words: Sequence[str] = (), *, debug: bool = False
) -> int:
    """Replay and print; returns the exit code: 1 when the client failed under the debugger.

    Args:
        run_dir: the folder of a run.
        round_: from 1.
        clients: whose work; None: everybody's.
        words: ``trust=true`` for a folder that names other classes than fedsim's.
        debug: stop in the debugger where a client's work begins.

    Raises:
        InputError: the folder holds no run of the command line, or nobody of ``clients`` works in that round.
    """
    config, folder = stopped([f"resume={run_dir}", "engine=serial", *words], config_folder())
    parts = Parts(**build_run(config | {"callbacks": {}}))  # nobody listens to a replay
    require(round_ <= parts.planned_rounds, "round", f"be 1..{parts.planned_rounds}", round_)
    then, now = recorded_capability(folder), cpu_capability()
    if then not in (None, now):
        note(f"the run's CPU capability was {then}, here it is {now}: numbers may differ from the run's in rounding")
    assembled = assemble(parts)
    setup = assembled.prepared.setup
    each: Kernel = "loop"
    kernels = (each,) * len(setup.kernels)
    alone = replace(setup, models=copy.deepcopy(setup.models), kernels=kernels)  # before rounds take the models over
    last = len(assembled.population) - 1
    for i in clients or ():
        require(0 <= i <= last, "client", f"be 0..{last}", i)
    caught = find(assembled, folder, round_, clients)
    worker = Worker(alone)
    debugger = _debugger(setup.algorithm) if debug else None
    done: list[ClientWork] = []
    try:
        for client, job in caught.found:
            at = client
            done.append(work(worker, client, job, caught.shared, debugger))
    except BdbQuit:
        return 0
    except Exception as failure:
        error(f"client {at} failed in round {round_}: {type(failure).__name__}: {first_line(failure)}")
        if debugger is None:
            raise
        pdb.post_mortem(failure.__traceback__)
        return 1
    finally:
        if debugger is not None:
            debugger.clear_all_breaks()  # which outlive it
    _show(round_, done)
    return 0


def recorded_capability(folder: Path) -> str | None:
    """The CPU capability that a run was computed with; None where its folder does not say."""
    try:
        found = json.loads((folder / "provenance.json").read_text())["cpu"]["capability"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return str(found)


def find(assembled: Assembled, folder: Path, round_: int, clients: tuple[int, ...] | None) -> WorkFound:
    """The work of clients in a round, the run having been brought to the state before it."""
    backend = assembled.start()
    catch = CatchWork(backend, clients)
    try:
        run = assembled.begin(catch, Evaluate(every=assembled.parts.planned_rounds))
        saved = Checkpoints(folder / "checkpoints", Checkpointing()).newest(round_ - 1)
        if saved is not None:
            of_run = replace(
                saved,
                arrays={path: leaf for path, leaf in saved.arrays.items() if path.startswith("run/")},
                numbers={path: leaf for path, leaf in saved.numbers.items() if path.startswith("run/")},
            )
            run.restore(of_run.into({"run": run.snapshot()})["run"])
        note(f"from the checkpoint after round {run.done}" if saved else "from the start")
        while run.done < round_ - 1:
            run.step()
        catch.armed = True
        run.step()
    except WorkFound as work:
        return work
    except Diverged as stop:
        raise InputError(f"round must be one that the run reached, got {round_}: {stop}") from stop
    finally:
        backend.close()
    who = ", ".join(map(str, sorted(catch.seen)))
    raise InputError(f"client must be one of those who work in round {round_} ({who}), got {clients}")


def work(worker: Worker, client: int, job: Job, shared: Any, debugger: pdb.Pdb | None = None) -> ClientWork:
    """The client's part of a job, on its own."""
    at = job.clients.index(client)
    row = to_device(tree_map(lambda a: a[at : at + 1], job.rows), worker.device)
    got = to_device(shared, worker.device)
    run = worker.blocks[job.architecture].run
    call = ((client,), row, got, job.round)
    samples = int(worker.setup.train.sizes()[client])
    if debugger is None:
        return ClientWork(client, samples, run(*call))
    debugger.rcLines = ["continue"]  # past the engine's first line, where it would stop else
    outcome: Any = debugger.runcall(run, *call)
    if outcome is None:  # the user has quit
        raise BdbQuit
    return ClientWork(client, samples, outcome)


def _debugger(algorithm: Any) -> pdb.Pdb:
    """A debugger that stops at the first line of the algorithm's ``local``; of one around another, of the inner one."""
    inner = innermost(written(algorithm))
    code = inspect.unwrap(type(inner).local).__code__
    debugger = pdb.Pdb(nosigint=True)
    debugger.set_break(code.co_filename, code.co_firstlineno, funcname=code.co_name)
    return debugger


def _show(round_: int, done: Sequence[ClientWork]) -> None:
    """A line for each client: what it lost, and how large what it sent is."""
    fields = list(done[0].outcome.messages)
    table = Table(title=f"round {round_}", header_style="dim", border_style="dim")
    for head in ("client", "samples", "loss", *(f"|{name}|" for name in fields), "new state"):
        table.add_column(head, justify="right")
    for client, samples, outcome in done:
        norms = [_norm(outcome.messages[name]) for name in fields]
        table.add_row(str(client), str(samples), number(float(outcome.losses[0])), *norms, _norm(outcome.states[0]))
    Terminal().print(table)


def _norm(tree: Any) -> str:
    """The root of the sum of squares of all numbers of a tree; nan and inf show."""
    parts = [leaf.double().square().sum() for leaf in leaves(tree)]
    return number(float(sum(parts)) ** 0.5) if parts else "-"


def line(run_dir: Path, round_: int, clients: Sequence[int], words: Sequence[str] = ()) -> str:
    """The command that replays these clients of a round; ``words`` are said beside it."""
    who = [f"client={','.join(map(str, clients))}"] if 0 < len(clients) <= MOST_NAMED else []
    return " ".join([f"fedsim replay {run_dir} round={round_}", *who, *words])
