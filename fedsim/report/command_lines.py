"""The command line that runs a method again, from what the sweep or Hydra kept of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from fedsim.report.runs import RecordedRun, load_yaml

FROM_PYTHON = "no command: started from Python with samples of its own"


def command_lines(runs: Sequence[RecordedRun]) -> list[str]:
    """The command lines of one method, one for all its seeds where their other arguments are the same."""
    seeds: dict[tuple[str, ...], list[int]] = {}
    for run in runs:
        seeds.setdefault(_arguments(run), []).append(run.seed)
    return [_line(arguments, sorted(found)) for arguments, found in seeds.items()]


def _line(arguments: tuple[str, ...], seeds: Sequence[int]) -> str:
    if arguments == (FROM_PYTHON,):
        return f"{FROM_PYTHON} (seed {', '.join(map(str, seeds))})"
    sweep = ["-m"] if len(seeds) > 1 else []
    return shlex.join(["fedsim", *sweep, *arguments, f"seed={','.join(map(str, seeds))}"])


def _arguments(run: RecordedRun) -> tuple[str, ...]:
    """A run's arguments without the seed: its overrides, or its whole configuration as the one to start from."""
    kept = run.path / ".hydra" / "overrides.yaml"
    if "overrides" in run.job or kept.exists():
        listed = run.job["overrides"] if "overrides" in run.job else load_yaml(kept)
        overrides = [str(text) for text in listed or []]
        if "resumed" in run.provenance:  # perhaps with more rounds
            overrides = [
                *(text for text in overrides if not text.startswith("rounds=")),
                f"rounds={run.config['rounds']}",
            ]
        return tuple(text for text in _as_typed(overrides) if not text.startswith("seed="))
    if "_target_" in dict(run.config.get("data") or {}):  # not samples that only Python had
        return ("--config-path", str(run.path), "--config-name", "config")
    return (FROM_PYTHON,)


def _as_typed(overrides: Sequence[str]) -> list[str]:
    """Without what ``fedsim`` adds for a user's own class: ``~GROUP``, and ``++`` before the group's keys."""
    own = {text[2:].partition("._target_=")[0] for text in overrides if text.startswith("++") and "._target_=" in text}
    typed = []
    for text in overrides:
        if text.removeprefix("~") in own and text.startswith("~"):
            continue
        typed.append(text.removeprefix("++") if text.startswith("++") and text[2:].partition(".")[0] in own else text)
    return typed
