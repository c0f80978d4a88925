"""What varies in a sweep -> its jobs, each a list of overrides; knows the shape of Hydra's overrides, not Hydra.

``algorithm.mu@fedprox=0.01,0.1`` varies ``algorithm.mu`` only where ``fedprox`` is among the job's choices of the group
``algorithm``; elsewhere there is no such key, and one job instead of two.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.errors import InputError, require


@dataclass(frozen=True)
class Interval:
    """A range to search in: ``interval(low, high)``, ``int(interval(...))``, ``tag(log, interval(...))``."""

    low: float
    high: float
    log: bool
    whole: bool


@dataclass(frozen=True)
class Param:
    """A key of the command line or of a sweep's file.

    Attributes:
        key: as written, without the condition.
        only: the option of the key's group that the key is for, or None: for all.
        values: what follows ``KEY=``, for each of the values; ``None``: the key alone (``~algorithm``).
        interval: where to search, instead of values.
    """

    key: str
    only: str | None
    values: tuple[str | None, ...]
    interval: Interval | None = None

    @property
    def group(self) -> str:
        """The config group that the key belongs to."""
        return self.key.lstrip("+~").split(".")[0].split("@")[0]

    @property
    def varies(self) -> bool:
        """Whether jobs differ in this key."""
        return self.only is not None or self.interval is not None or len(self.values) != 1

    def text(self, value: str | None) -> str:
        """The override that gives the key this value."""
        return self.key if value is None else f"{self.key}={value}"


@dataclass(frozen=True)
class SweepJob:
    """One run of a sweep.

    Attributes:
        overrides: its command line.
        varied: those of its overrides in which the jobs of the sweep differ.
        folder: of a job of fewer rounds that it goes on from, or None.
    """

    overrides: tuple[str, ...]
    varied: tuple[str, ...]
    folder: str | None = None


def params_of(parsed: Iterable[Any]) -> list[Param]:
    """The keys of parsed overrides, a later one replacing an earlier one of the same key and condition."""
    found: dict[tuple[str, str | None], Param] = {}
    for o in parsed:
        conditional = o.package is not None and "." in o.key_or_group
        only = o.package if conditional else None
        key = o.get_key_element().partition("@")[0] if conditional else o.get_key_element()
        if not o.is_sweep_override():
            given = "=" in (o.input_line or "")
            param = Param(key, only, (o.input_line.partition("=")[2] if given else None,))
        elif o.is_discrete_sweep():
            param = Param(key, only, tuple(o.sweep_string_iterator()))
        else:
            s = o.value()
            whole = isinstance(s.start, int) and isinstance(s.end, int)
            param = Param(key, only, (), Interval(s.start, s.end, "log" in s.tags, whole))
        found.pop((key.lstrip("+"), only), None)
        found[key.lstrip("+"), only] = param
    return list(found.values())


def overrides_of(params: Mapping[str, Any]) -> list[str]:
    """The ``params`` of a sweep's file as a command line would have them; lists are the values to take."""
    return [f"{key}={','.join(map(_text, v)) if isinstance(v, list) else _text(v)}" for key, v in params.items()]


def expand(params: Sequence[Param], choices: Mapping[str, Any]) -> list[SweepJob]:
    """Every combination of the values, in the order of the keys, the last varying fastest, conditional ones last.

    Args:
        params: keys and values, no intervals.
        choices: by group, what is chosen where no key says so.

    Raises:
        InputError: an interval, which only a search can take values from; a condition that no job meets.
    """
    for p in params:
        must = "be values to run all of"
        require(p.interval is None, p.key, must, "an interval", "or search in it: add sweep.search.sampler=tpe")
    always = [p for p in params if p.only is None]
    conditional = [p for p in params if p.only is not None]
    jobs: dict[tuple[str, ...], SweepJob] = {}
    met: set[Param] = set()
    for values in itertools.product(*(p.values for p in always)):
        chosen = dict(zip(always, values, strict=True))
        extra = [p for p in conditional if holds(p, chosen, choices)]
        met.update(extra)
        for more in itertools.product(*(p.values for p in extra)):
            values_of = chosen | dict(zip(extra, more, strict=True))
            job = job_of({p: values_of[p] for p in params if p in values_of})
            jobs.setdefault(job.overrides, job)
    _require_met(conditional, met)
    return list(jobs.values())


def covering(params: Sequence[Param], choices: Mapping[str, Any]) -> Iterator[SweepJob]:
    """Few jobs in which every value of every key occurs, and both ends of intervals: enough to check a sweep."""
    ends = [
        p if p.interval is None else Param(p.key, p.only, (_text(p.interval.low), _text(p.interval.high)))
        for p in params
    ]
    seen: set[str] = set()
    for job in expand(ends, choices):
        if not seen or not seen.issuperset(job.varied):
            seen.update(job.varied, job.overrides)
            yield job


def holds(param: Param, chosen: Mapping[Param, str | None], choices: Mapping[str, Any]) -> bool:
    """Whether a job with these values meets a key's condition."""
    given = [value for p, value in chosen.items() if p.key.lstrip("+") == param.group]
    return param.only in re.findall(r"[\w.+-]+", str(given[-1] if given else choices.get(param.group)))


def job_of(chosen: Mapping[Param, str | None]) -> SweepJob:
    """The job that gives these keys these values."""
    texts = {p: p.text(value) for p, value in chosen.items()}
    return SweepJob(tuple(texts.values()), tuple(text for p, text in texts.items() if p.varies))


def folder_name(varied: Sequence[str]) -> str:
    """A readable name for a job's folder that needs quotes nowhere: ``fedprox-mu0.01-seed2``."""
    words = []
    for text in varied:
        key, _, value = text.lstrip("+~").partition("=")
        last = key.split(".")[-1].split("@")[-1]
        value = re.sub(r"[^\w.+]+", "+", value).strip("+")
        chosen = "." not in key and value[:1].isalpha()  # an option of a group says it all
        joint = "" if value[:1].isdigit() else "_"
        words.append(value if chosen else f"{last}{joint}{value or 'none'}")
    return "-".join(words)[:100] or "job"


def _require_met(conditional: Sequence[Param], met: set[Param]) -> None:
    for p in conditional:
        if p not in met:
            raise InputError(f"{p.key}@{p.only} is for {p.group}={p.only}, which no job of the sweep chooses")


def _text(value: Any) -> str:
    """A yaml value in the grammar of the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    return str(value)
