"""The same run serially and on Ray with different numbers of actors: equal after every round, or which one differs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from rich.table import Table

from fedsim.assembly.assemble import assemble
from fedsim.assembly.configuration import build_run
from fedsim.assembly.parts import Parts
from fedsim.cli.compose import compose
from fedsim.errors import Diverged
from fedsim.ground.console import Terminal, error
from fedsim.record.provenance import cpu_capability

ROUNDS = 3
"""Unless the command line says otherwise."""

ACTORS = (1, 3)
SHOWN = 16  # of a digest's 64 digits


def verify(overrides: Sequence[str]) -> int:
    """Compare and print; returns 0 when all are equal, 1 when not.

    Raises:
        InputError: the overrides do not describe a run.
    """
    counted = any(text.lstrip("+").startswith("rounds=") for text in overrides)
    parts = Parts(**build_run(compose([*overrides, *([] if counted else [f"rounds={ROUNDS}"])])))
    engine = parts.engine
    ways = {"serial": replace(engine, backend="serial")}
    ways |= {f"ray, {n} actor{'s' * (n > 1)}": replace(engine, backend="ray", actors=n) for n in ACTORS}
    console = Terminal()
    traces: dict[str, list[str]] = {}
    for name, way in ways.items():
        begun = time.perf_counter()
        traces[name] = trace(replace(parts, engine=way))
        took = f"{len(traces[name]) - 1} rounds in {time.perf_counter() - begun:.1f} s"
        console.print(f"{name}: {took}", style="dim", highlight=False)
    _show(console, traces)
    if (found := difference(traces)) is None:
        equal = f"equal after every one of {len(traces['serial']) - 1} rounds (CPU capability {cpu_capability()})"
        console.print(equal, style="bold green", highlight=False)
        return 0
    name, round_ = found
    why = f"; this machine's CPU capability is {cpu_capability()}, where actors had another one that may be why"
    error(f"{name} differs from serial, first after round {round_}{why if engine.address is not None else ''}")
    return 1


def trace(parts: Parts) -> list[str]:
    """The digest of the run's state at its start and after every round; ``diverged`` ends it where the run does."""
    assembled = assemble(parts)
    rarely = replace(parts.evaluate, every=parts.planned_rounds)  # nothing is measured before the last round
    with ExitStack() as stack:
        backend = assembled.start()
        stack.callback(backend.close)
        run = assembled.begin(backend, rarely)
        digests = [run.digest()]
        try:
            while run.done < run.rounds:
                run.step()
                digests.append(run.digest())
        except Diverged as stop:
            digests.append(f"diverged: {stop}")
    return digests


def difference(traces: Mapping[str, Sequence[str]]) -> tuple[str, int] | None:
    """Who differs from the first trace, and after which round first; None where all are equal."""
    (_, first), *others = traces.items()
    found = []
    for name, other in others:
        if list(other) != list(first):
            longest = max(len(first), len(other))
            padded = [[*t, *[""] * (longest - len(t))] for t in (first, other)]
            found.append((next(r for r in range(longest) if padded[0][r] != padded[1][r]), name))
    return (min(found)[1], min(found)[0]) if found else None


def _show(console: Terminal, traces: Mapping[str, Sequence[str]]) -> None:
    table = Table(header_style="dim", border_style="dim")
    for head in ("round", *traces):
        table.add_column(head, justify="right" if head == "round" else "left")
    for r in range(max(map(len, traces.values()))):
        cells = [t[r][:SHOWN] if r < len(t) else "" for t in traces.values()]
        table.add_row(str(r), *cells, style=None if len(set(cells)) == 1 else "bold red")
    console.print(table)
