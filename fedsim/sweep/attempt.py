"""One job of a sweep, in this process: its state file says how it stands before, during and after."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsim.assembly.configuration import build_run
from fedsim.errors import Interrupted, first_line
from fedsim.record.result import Result
from fedsim.record.run_folder import summary_of
from fedsim.simulation import simulate
from fedsim.sweep.machine import disk_error, reason
from fedsim.sweep.state import SweepFolder, identity, now


def attempt(
    sweep: SweepFolder, config: Mapping[str, Any], *, address: str | None = None, progress: bool = False
) -> Result:
    """Run a job that the sweep has claimed, from its last checkpoint if it has begun before.

    Args:
        sweep: where the job was claimed.
        config: its resolved configuration.
        address: of the Ray cluster that its actors share with other jobs, instead of starting one.
        progress: show a progress bar.

    Returns:
        What the run came to, or what it had when it was interrupted.

    Raises:
        OSError: of the disk; the job is interrupted, not failed: the same command goes on with it.
        whatever else the run raises; the state file says so too.
    """
    state = sweep.find(identity(config))
    if state is None:
        raise KeyError(identity(config))
    folder = sweep.path / state.folder
    resume = (folder / "metrics.jsonl").exists()
    attempts = state.attempts + 1
    state = replace(state, status="running", message="", started=now(), ended=None, attempts=attempts)
    sweep.write(state)
    command, sys.argv = sys.argv, ["fedsim", *state.overrides]  # provenance.json shall hold the command of this job
    try:
        parts = build_run(config)
        if address is not None:
            parts["engine"] = replace(parts["engine"], address=address)
        result = simulate(**parts, run_dir=folder, resume=resume, progress=progress, config=config)
    except Interrupted as stop:
        result = stop.result
    except (KeyboardInterrupt, SystemExit):
        sweep.write(replace(state, status="interrupted", message="stopped before its first round", ended=now()))
        raise
    except Exception as error:
        broken = disk_error(error, folder)
        if broken is None:
            sweep.write(replace(state, status="failed", message=first_line(error), ended=now()))
            raise
        with suppress(OSError):  # the first error is the one to see; a job that stands as running goes on too
            sweep.write(replace(state, status="interrupted", message=reason(broken, sweep.path), ended=now()))
        raise broken from None
    finally:
        sys.argv = command
    ended = {"rounds": result.summary["rounds"], "summary": summary_of(folder), "code": _code(folder), "ended": now()}
    sweep.write(replace(state, status=result.status, message=result.message, **ended))
    return result


def _code(folder: Path) -> dict[str, Any]:
    facts = json.loads((folder / "provenance.json").read_text())
    versions, git = (facts.get(name) for name in ("versions", "git"))
    return {"version": (versions or {}).get("fedsim"), "commit": (git or {}).get("commit")}
