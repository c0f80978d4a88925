"""One side of a race, in a process and an environment of its own: a round for every line that it reads.

``serve`` is the program's side, in any environment, with nothing but the standard library; ``Contender`` that of the
table, which starts the program, asks for one round after the other and reads CPU seconds of the program and all that
it started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ANSWERS = "FEDSIM_BENCH_ANSWERS"
"""Number of the file descriptor for answers; what a simulator prints goes elsewhere."""

TICK = os.sysconf("SC_CLK_TCK")
MOST_WAIT = 900.0


def asked(reply: dict[str, Any] | None = None) -> bool:
    """Answer, and wait for the next round: whether there is one."""
    os.write(int(os.environ[ANSWERS]), (json.dumps(reply or {}) + "\n").encode())
    return bool(sys.stdin.readline().strip())


def serve(step: Callable[[], Any]) -> None:
    """Run a round for every line of the standard input, and answer each with a line."""
    while asked():
        step()


class Cost(NamedTuple):
    """What a round took."""

    seconds: float
    cpu: float


class Contender:
    """A program that races.

    Args:
        name: as the table calls it.
        command: its arguments, the first of them the interpreter.
        log: what it printed.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path):
        self.name, self.log = name, log
        reads, writes = os.pipe()
        variables = os.environ | {ANSWERS: str(writes), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=out, pass_fds=[writes], env=variables, text=True
            )
        os.close(writes)
        self.answers = os.fdopen(reads)
        self._answer()

    def step(self) -> Cost:
        """One round."""
        cpu, start = self._cpu(), time.perf_counter()
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        self._answer()
        return Cost(time.perf_counter() - start, self._cpu() - cpu)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.answers.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _answer(self) -> None:
        if not self.answers.readline():
            self._failed()

    def _failed(self) -> NoReturn:
        last = self.log.read_text().strip().splitlines()[-15:]
        raise SystemExit("\n".join([f"{self.name} ended (all it printed: {self.log}):", *last]))

    def _cpu(self) -> float:
        """CPU seconds so far of the program, its children and theirs."""
        parents: dict[int, list[int]] = {}
        spent: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            pid = int(path.parent.name)
            parents.setdefault(int(fields[1]), []).append(pid)
            spent[pid] = sum(map(int, fields[11:15]))  # its own and its ended children's
        total, left = 0, [self.process.pid]
        while left:
            pid = left.pop()
            total += spent.get(pid, 0)
            left += parents.get(pid, [])
        return total / TICK
