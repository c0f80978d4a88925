"""Search instead of all combinations: optuna proposes, the sweep's own workers run, optuna learns.

Proposals are made in batches whose size is fixed, each after the results of the one before, so that a search does not
depend on how many jobs ran at once; and a search that was killed proposes the same again and finds its results there.
Successive halving (Jamieson and Talwalkar 2016, 1502.07943): of a batch, run for few rounds, one in ``factor`` goes on
to ``factor`` times as many, until all rounds are reached, from the checkpoint of its last rung (private runs, whose
noise depends on the number of rounds, from round 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import fmean
from typing import Any, Literal

from fedsim.errors import require
from fedsim.evaluate import lower_is_better
from fedsim.fields import check_fields
from fedsim.sweep.board import last_score
from fedsim.sweep.expand import Interval, Param, SweepJob, holds, job_of
from fedsim.sweep.state import State

MOST_TRIALS = 10**5
"""At most: each has a folder and a state file, and the sampler keeps all of them in memory."""
Run = Callable[[Sequence[SweepJob]], list[State]]


@dataclass(frozen=True)
class Search:
    """How values are chosen.

    Attributes:
        sampler: ``grid`` (every combination), ``random`` or ``tpe`` (Bergstra et al. 2011).
        trials: combinations to try, in 1..100000, each with every seed.
        batch: tried at once, in 1..100000.
        seed: of the sampler.
        metric: tag of the last evaluation to optimise; None: the first score, accuracy where there is one.
        first: rounds of the first rung of successive halving, >= 1; None: every trial runs all rounds.
        factor: one in so many goes on to the next rung, >= 2.
    """

    sampler: Literal["grid", "random", "tpe"] = "grid"
    trials: int = 20
    batch: int = 4
    seed: int = 0
    metric: str | None = None
    first: int | None = None
    factor: int = 3

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("trials", "batch"):
            value = getattr(self, name)
            require(value >= 1, name, "be >= 1", value)
            require(value <= MOST_TRIALS, name, f"be <= {MOST_TRIALS}", value)
        require(self.first is None or self.first >= 1, "first", "be >= 1", self.first)
        require(self.factor >= 2, "factor", "be >= 2", self.factor)
        missing = self.sampler != "grid" and find_spec("optuna") is None
        require(not missing, "sampler", "be grid without optuna", self.sampler, "pip install 'fedsim-ray[sweep]'")

    def rungs(self, rounds: int) -> list[int]:
        """Rounds of each rung; the last one is ``rounds``."""
        found = [] if self.first is None else [self.first]
        while found and found[-1] * self.factor < rounds:
            found.append(found[-1] * self.factor)
        return [*(rung for rung in found if rung < rounds), rounds]


def search(settings: Search, params: Sequence[Param], choices: Mapping[str, Any], rounds: int, run: Run) -> list[State]:
    """Try ``settings.trials`` combinations.

    Args:
        settings: how.
        params: what varies; every value of ``seed`` is run for every trial.
        choices: by group, what is chosen where no key says so.
        rounds: of a whole run.
        run: runs jobs and returns how each stands.

    Returns:
        The jobs that ran all rounds, in the order in which they were proposed; where a job was stopped, also those of
        its batch, which is then the last.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    start = max(settings.batch, settings.trials // 4)
    sampler = (
        optuna.samplers.RandomSampler(settings.seed)
        if settings.sampler == "random"
        else optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=start, constant_liar=settings.batch > 1)
    )
    study = optuna.create_study(sampler=sampler)
    rungs = settings.rungs(rounds)
    complete: list[State] = []
    for begin in range(0, settings.trials, settings.batch):
        # A batch is proposed before any of it is run, and told in the order of its numbers: the search is the same for
        # any number of jobs side by side.
        trials = [study.ask() for _ in range(begin, min(begin + settings.batch, settings.trials))]
        asked = {trial.number: _asked(trial, params, choices) for trial in trials}
        alive = list(trials)
        found: dict[int, list[State]] = {}
        for rung in rungs:
            jobs = {t.number: _jobs(asked[t.number], params, rung if rung < rounds else None) for t in alive}
            for number, before in found.items():
                jobs |= {number: _after(jobs[number], before)} if number in jobs else {}
            states = iter(run([job for t in alive for job in jobs[t.number]]))
            found = {t.number: [next(states) for _ in jobs[t.number]] for t in alive}
            if any(state.unfinished for of in found.values() for state in of):
                # What comes next depends on what is missing. The same command goes on with it, and then from here.
                return complete + [state for of in found.values() for state in of]
            costs = {number: _cost(of, settings.metric) for number, of in found.items()}
            if rung == rounds:
                complete += [state for of in found.values() for state in of]
                keep = 0
            else:
                keep = math.ceil(len(alive) / settings.factor)
            order = sorted(alive, key=lambda t: (math.inf if costs[t.number] is None else costs[t.number], t.number))
            for t in sorted(order[keep:], key=lambda t: t.number):
                _tell(study, t, costs[t.number], rung, whole=rung == rounds)
            alive = sorted(order[:keep], key=lambda t: t.number)
            for t in alive:
                cost = costs[t.number]
                t.report(math.inf if cost is None else cost, rung)
    return complete


def _asked(trial: Any, params: Sequence[Param], choices: Mapping[str, Any]) -> dict[Param, str | None]:
    """The values that a trial proposes for the keys that vary, but for the seed."""
    chosen: dict[Param, str | None] = {}
    for p in sorted(params, key=lambda p: p.only is not None):  # conditional keys last: they ask what was chosen before
        if p.key == "seed" or (p.only is not None and not holds(p, chosen, choices)):
            continue
        name = p.key if p.only is None else f"{p.key}@{p.only}"
        if (s := p.interval) is not None:
            suggest = trial.suggest_int if s.whole else trial.suggest_float
            chosen[p] = _short(suggest(name, s.low, s.high, log=s.log), s)
        else:
            chosen[p] = trial.suggest_categorical(name, p.values) if len(p.values) > 1 else p.values[0]
    return chosen


def _short(value: float, within: Interval) -> str:
    """Four significant digits are enough to find an optimum, and to read it."""
    text = f"{value:.4g}"
    return str(value) if within.whole or not within.low <= float(text) <= within.high else text


def _after(jobs: Sequence[SweepJob], before: Sequence[State]) -> list[SweepJob]:
    """The jobs of a rung in the folders of the rung before, one for each seed."""
    return [replace(job, folder=state.folder) for job, state in zip(jobs, before, strict=True)]


def _jobs(chosen: Mapping[Param, str | None], params: Sequence[Param], rounds: int | None) -> list[SweepJob]:
    """A trial's jobs: one for every seed, of fewer rounds than all on all rungs but the last."""
    kept = {p: value for p, value in chosen.items() if rounds is None or p.key != "rounds"}
    if rounds is not None:
        kept[Param("rounds", None, (str(rounds),))] = str(rounds)
    seeds = [{p: value} for p in params if p.key == "seed" for value in p.values]
    return [job_of(kept | seed) for seed in seeds or [{}]]


def _cost(states: Sequence[State], metric: str | None) -> float | None:
    """What to make small: the mean over seeds; infinite where a run diverged, None where one failed."""
    if any(state.status == "diverged" for state in states):
        return math.inf
    if any(state.summary is None for state in states):
        return None
    scores = [last_score(state.summary or {}, metric) for state in states]
    tag = scores[0][0]
    sign = 1 if lower_is_better(tag) else -1
    cost = sign * fmean(value for _, value in scores)
    return math.inf if math.isnan(cost) else cost


def _tell(study: Any, trial: Any, cost: float | None, rung: int, *, whole: bool) -> None:
    from optuna.trial import TrialState

    if cost is None:
        study.tell(trial, state=TrialState.FAIL)
    elif whole:
        study.tell(trial, cost)
    else:
        trial.report(cost, rung)
        study.tell(trial, state=TrialState.PRUNED)
