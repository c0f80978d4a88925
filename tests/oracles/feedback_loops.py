"""Compressed methods as plain numpy loops, from the update rules of the methods; nothing of fedsim is used here.

Where fedsim keeps one mean memory on the server, these loops keep the estimate of every client and average all of them
anew in every round: absent clients' estimates count as they last were. Every loop returns the server's model before
round 0 and after every round, [rounds + 1, d].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

Vector = np.ndarray
Codec = Callable[[Vector, int, int], Vector]  # (v, client, round) -> C(v)


class Problem(Protocol):
    n: int
    d: int

    def grad(self, i: int, x: Vector) -> Vector: ...


class Host:
    """The algorithm around the channel: what client i would send at x in round t, and the server's step with a mean.

    Args:
        problem: the clients.
        gamma: step of gradient descent.
        decay: factor on it per round.
        step: ``server`` or ``client`` multiplies by it; ``local``: FedAvg with so many local steps as ``k[i]``.
        k: local steps of each client.
    """

    def __init__(self, problem: Problem, gamma: float, decay: float = 1.0, step: str = "server", k: Sequence[int] = ()):
        self.problem, self.gamma, self.decay, self.step, self.k = problem, gamma, decay, step, k

    def payload(self, i: int, x: Vector, t: int) -> Vector:
        rate = self.gamma * self.decay**t
        if self.step == "local":
            y = x
            for _ in range(self.k[i]):
                y = y - rate * self.problem.grad(i, y)
            return x - y  # descent direction, as a gradient is
        g = self.problem.grad(i, x)
        return rate * g if self.step == "client" else g

    def move(self, x: Vector, mean: Vector, t: int) -> Vector:
        return x - mean * (self.gamma * self.decay**t if self.step == "server" else 1.0)


def top(k: int) -> Codec:
    def codec(v: Vector, i: int, t: int) -> Vector:
        out = np.zeros_like(v)
        for at in sorted(range(len(v)), key=lambda j: (-abs(v[j]), j))[:k]:
            out[at] = v[at]
        return out

    return codec


def over(values: Sequence[Vector], weights: Sequence[float]) -> Vector:
    return np.average(np.stack(values), axis=0, weights=weights)


def run(host: Host, cohorts: Sequence[Sequence[int]], x0: Vector, one_round) -> Vector:
    x, out = x0, [x0]
    for t, cohort in enumerate(cohorts):
        x = host.move(x, one_round({i: host.payload(i, x, t) for i in cohort}, t), t)
        out.append(x)
    return np.stack(out)


def plain(host: Host, cohorts, x0: Vector, p, codec: Codec) -> Vector:
    def one_round(v, t):
        return over([codec(v[i], i, t) for i in v], [p[i] for i in v])

    return run(host, cohorts, x0, one_round)


def ec(host: Host, cohorts, x0: Vector, p, codec: Codec) -> Vector:
    """EC / EF14: D = C(e + v); e <- e + v - D; the step is the cohort's mean D."""
    e = np.zeros((len(p), len(x0)))

    def one_round(v, t):
        sent = {i: codec(e[i] + v[i], i, t) for i in v}
        for i in v:
            e[i] = e[i] + v[i] - sent[i]
        return over(list(sent.values()), [p[i] for i in v])

    return run(host, cohorts, x0, one_round)


def ef21(host: Host, cohorts, x0: Vector, p, codec: Codec, *, init: str = "full", a: float = 1.0) -> Vector:
    """EF21 (a = 1) and EF21-SGDM: m <- (1 - a) m + a v, first m = v; G <- G + C(m - G); step with the mean of all G."""
    big, m = np.zeros((len(p), len(x0))), np.zeros((len(p), len(x0)))
    seen: set[int] = set()

    def one_round(v, t):
        for i in v:
            m[i] = (1 - a) * m[i] + a * v[i] if i in seen else v[i]
            big[i] = m[i] if init == "full" and i not in seen else big[i] + codec(m[i] - big[i], i, t)
            seen.add(i)
        return over(list(big), p)

    return run(host, cohorts, x0, one_round)


def ef21_plus(host: Host, cohorts, x0: Vector, p, codec: Codec, *, init: str = "full") -> Vector:
    """EF21+: the better one of C(v) and G + C(v - G)."""
    big = np.zeros((len(p), len(x0)))
    seen: set[int] = set()

    def one_round(v, t):
        for i in v:
            two = [big[i] + codec(v[i] - big[i], i, t), codec(v[i], i, t)]
            big[i] = v[i] if init == "full" and i not in seen else min(two, key=lambda c: np.sum((c - v[i]) ** 2))
            seen.add(i)
        return over(list(big), p)

    return run(host, cohorts, x0, one_round)


def econtrol(host: Host, cohorts, x0: Vector, p, codec: Codec, *, eta: float, init: str = "zero") -> Vector:
    """EControl: D = C(eta e + v - h); e <- e + v - h - D; h <- h + D; step with the mean of all NEW h."""
    e, h = np.zeros((len(p), len(x0))), np.zeros((len(p), len(x0)))
    seen: set[int] = set()

    def one_round(v, t):
        for i in v:
            if i not in seen:
                h[i] = {"zero": 0 * v[i], "full": v[i], "compressed": codec(v[i], i, t)}[init]
                seen.add(i)
            sent = codec(eta * e[i] + v[i] - h[i], i, t)
            e[i] = e[i] + v[i] - h[i] - sent
            h[i] = h[i] + sent
        return over(list(h), p)

    return run(host, cohorts, x0, one_round)


def diana(host: Host, cohorts, x0: Vector, p, codec: Codec, *, alpha: float) -> Vector:
    """DIANA: D = C(v - h); step with the mean of all OLD h plus the cohort's mean D; h <- h + alpha D."""
    h = np.zeros((len(p), len(x0)))

    def one_round(v, t):
        before = over(list(h), p)
        sent = {i: codec(v[i] - h[i], i, t) for i in v}
        for i in v:
            h[i] = h[i] + alpha * sent[i]
        return before + over(list(sent.values()), [p[i] for i in v])

    return run(host, cohorts, x0, one_round)
