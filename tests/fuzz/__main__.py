"""Make cases, run each, say what broke a promise, and how to run it again."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import folders, typed, verdict, warm

FOLDERS = 3
"""One in so many cases is about a run's folder."""


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A command line, or a folder with one."""
    about_folder = draw(st.integers(1, FOLDERS)) == FOLDERS
    return draw(folders.folder_cases()) if about_folder else {"argv": draw(typed.command_lines())}


def drawn(number: int) -> dict[str, Any]:
    """The case of a seed, always the same with the same version of Hypothesis.

    Hypothesis begins every search with the simplest case there is, and goes on near those that it had: one search for
    each seed, of which the second case counts, varies most.
    """
    found: list[dict[str, Any]] = []

    @seed(number)
    @settings(
        max_examples=2, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(cases())
    def note(case: dict[str, Any]) -> None:
        found.append(case)

    note()
    return found[-1]


def tried(case: dict[str, Any], home: Path) -> tuple[list[str], warm.Outcome]:
    """What a case broke, and its outcome."""
    place = home / "case"
    place.mkdir()
    (place / "notes.txt").write_text("of somebody else")
    try:
        if "folder" in case:
            shutil.copytree(home / "made" / case["folder"] / "run", place / "run", symlinks=True)
            for how in case["changes"]:
                folders.change(place / "run", *how)
        before = verdict.content(place, "run")
        outcome = warm.forked(case["argv"], place)
        return verdict.broken(outcome, before, verdict.content(place, "run")), outcome
    finally:
        shutil.rmtree(place)


def main() -> int:
    """Returns 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next has the next")
    parser.add_argument("--case", help="one case, as it was printed, in place of drawn ones")
    parser.add_argument("--all", action="store_true", help="say how every case ended")
    args = parser.parse_args()
    made = (
        [json.loads(args.case)] if args.case else [drawn(number) for number in range(args.seed, args.seed + args.count)]
    )
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name).resolve()
        warm.warm(home)
        if any("folder" in case for case in made):
            folders.made(home / "made")
        for case in made:
            faults, outcome = tried(case, home)
            counts["broken" if faults else f"exit {outcome.code}"] += 1
            if args.all:
                say(f"{outcome.code} {outcome.seconds:.1f}s {json.dumps(case)} | {outcome.err[:300]}")
            if faults or args.case:
                again = f"python -m tests.fuzz --case {shlex.quote(json.dumps(case))}"
                say("\n".join([*faults, *outcome.err.splitlines()[0 if args.case else -3 :], again, ""]))
    say(json.dumps({"cases": len(made), **counts}))
    return int(counts["broken"] > 0)


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
