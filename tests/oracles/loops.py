"""Federated methods as plain numpy loops, written from the papers' update rules; nothing of fedsim is used here.

Every loop takes a problem (``n``, ``d``, ``grad(i, x)``), the cohorts of all rounds, the local steps ``k[i]`` and
weights ``p[i]`` of every client, and the hyper-parameters; it returns the server's model before round 0 and after every
round. Where fedsim writes a method in one of two equivalent forms, the loop uses the other (client sums h_i instead of
linear terms, models instead of updates).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Vector = np.ndarray
Cohorts = Sequence[Sequence[int]]


class Problem(Protocol):
    n: int
    d: int

    def grad(self, i: int, x: Vector) -> Vector: ...


def start(problem: Problem) -> Vector:
    return np.linspace(-1, 1, problem.d)


def sgd(
    y: Vector,
    k: int,
    lr: float,
    direction: Callable[[Vector], Vector],
    wd: float = 0.0,
    clip: float | None = None,
    momentum: float = 0.0,
) -> Vector:
    v = np.zeros_like(y)
    for _ in range(k):
        g = direction(y)
        if clip is not None:
            g = g * min(1.0, clip / (np.linalg.norm(g) + 1e-6))
        v = momentum * v + g + wd * y
        y = y - lr * v
    return y


def sam(problem: Problem, i: int, y: Vector, rho: float) -> Vector:
    g = problem.grad(i, y)
    return problem.grad(i, y + rho * g / (np.linalg.norm(g) + 1e-7))


def mean(values: Sequence[Any], weights: Sequence[float]) -> Any:
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def fedprox(problem: Problem, cohorts: Cohorts, k, p, *, lr, decay=1.0, mu=0.0, rho=0.0, server_lr=1.0, **options):
    """FedAvg (mu = rho = 0), FedProx, FedSAM."""
    x = start(problem)
    out = [x]
    for t, cohort in enumerate(cohorts):
        ends = [
            sgd(x, k[i], lr * decay**t, lambda y, i=i, x=x: sam(problem, i, y, rho) + mu * (y - x), **options)
            for i in cohort
        ]
        x = x + server_lr * (mean(ends, [p[i] for i in cohort]) - x)
        out.append(x)
    return out


def fedinit(problem: Problem, cohorts: Cohorts, k, p, *, lr, beta, decay=1.0):
    x = start(problem)
    last = dict.fromkeys(range(problem.n), x)
    out = [x]
    for t, cohort in enumerate(cohorts):
        for i in cohort:
            last[i] = sgd((1 + beta) * x - beta * last[i], k[i], lr * decay**t, lambda y, i=i: problem.grad(i, y))
        x = mean([last[i] for i in cohort], [p[i] for i in cohort])
        out.append(x)
    return out


def scaffold(problem: Problem, cohorts: Cohorts, k, p, *, lr, decay=1.0, option=2, rho=0.0, server_lr=1.0, **options):
    """SCAFFOLD; FedGAMMA (rho > 0, option 2)."""
    x, c = start(problem), np.zeros(problem.d)
    ci = np.zeros((problem.n, problem.d))
    out = [x]
    for t, cohort in enumerate(cohorts):
        eta, ends, new = lr * decay**t, [], ci.copy()
        for i in cohort:
            v = c - ci[i]
            end = sgd(x, k[i], eta, lambda y, i=i, v=v: sam(problem, i, y, rho) + v, **options)
            new[i] = problem.grad(i, x) if option == 1 else -v + (x - end) / (k[i] * eta)
            ends.append(end)
        x = x + server_lr * np.mean([end - x for end in ends], axis=0)
        c = c + (new - ci).sum(axis=0) / problem.n
        ci = new
        out.append(x)
    return out


def feddyn(problem: Problem, cohorts: Cohorts, k, p, *, lr, alpha, decay=1.0, rho=None, **options):
    """FedDyn; FedSMOO with ``rho``: s, mu_i and the ascent along g - mu_i - s."""
    x = start(problem)
    h, mu, s = np.zeros((problem.n, problem.d)), np.zeros((problem.n, problem.d)), np.zeros(problem.d)
    out = [x]
    for t, cohort in enumerate(cohorts):
        ends = []
        for i in cohort:

            def direction(y: Vector, i=i, x=x, s=s) -> Vector:
                e = np.zeros_like(y)
                if rho is not None:
                    along = problem.grad(i, y) - mu[i] - s
                    e = rho * along / (np.linalg.norm(along) + 1e-7)
                    mu[i] += e - s
                return problem.grad(i, y + e) + alpha * (y - x + h[i])

            ends.append(sgd(x, k[i], lr * decay**t, direction, **options))
        for i, end in zip(cohort, ends, strict=True):
            h[i] += end - x
        x = np.mean(ends, axis=0) + h.mean(axis=0)
        if rho is not None:
            average = mu[list(cohort)].mean(axis=0)
            s = rho * average / np.linalg.norm(average)
        out.append(x)
    return out


def fedspeed(problem: Problem, cohorts: Cohorts, k, p, *, lr, lam, rho, alpha, normalize, server, decay=1.0, **options):
    x = start(problem)
    ghat = np.zeros((problem.n, problem.d))
    out = [x]
    for t, cohort in enumerate(cohorts):
        ends = []
        for i in cohort:

            def direction(y: Vector, i=i, x=x) -> Vector:
                g1 = problem.grad(i, y)
                g2 = problem.grad(i, y + (rho / np.linalg.norm(g1) if normalize else rho) * g1)
                return (1 - alpha) * g1 + alpha * g2 - ghat[i] + (y - x) / lam

            ends.append(sgd(x, k[i], lr * decay**t, direction, **options))
        for i, end in zip(cohort, ends, strict=True):
            ghat[i] = ghat[i] - (end - x) / lam
        if server == "active":
            x = np.mean([end - lam * ghat[i] for i, end in zip(cohort, ends, strict=True)], axis=0)
        else:
            x = np.mean(ends, axis=0) - lam * ghat.mean(axis=0)
        out.append(x)
    return out


def fedcm(problem: Problem, cohorts: Cohorts, k, p, *, lr, alpha, decay=1.0, rho=0.0, server_lr=1.0):
    """FedCM; MoFedSAM (rho > 0)."""
    x, g = start(problem), np.zeros(problem.d)
    out = [x]
    for t, cohort in enumerate(cohorts):
        eta, weights = lr * decay**t, [p[i] for i in cohort]
        ends = [
            sgd(x, k[i], eta, lambda y, i=i, g=g: alpha * sam(problem, i, y, rho) + (1 - alpha) * g) for i in cohort
        ]
        step = mean(ends, weights) - x
        g = -step / (mean([k[i] for i in cohort], weights) * eta)
        x = x + server_lr * step
        out.append(x)
    return out


def relaxed(problem: Problem, cohorts: Cohorts, k, p, *, lr, beta, base, decay=1.0, server_lr=1.0, alpha=0.0):
    """FL-Simulator's relaxed start of FedAvg, SCAFFOLD and FedDyn: whatever the client does with x, it does from there.

    SCAFFOLD's correction is v_i = c - c_i, FedDyn's alpha (y - start + h_i); one of the two is zero.
    """
    x, zero = start(problem), np.zeros((problem.n, problem.d))
    last = np.tile(x, (problem.n, 1))
    c, ci, h = np.zeros(problem.d), zero.copy(), zero.copy()
    out = [x]
    for t, cohort in enumerate(cohorts):
        eta, moved, old = lr * decay**t, [], c
        for i in cohort:
            begin = (1 + beta) * x - beta * last[i]

            def direction(y: Vector, i=i, begin=begin, v=old - ci[i]) -> Vector:
                return problem.grad(i, y) + v + alpha * (y - begin + h[i])

            last[i] = sgd(begin, k[i], eta, direction)
            moved.append(last[i] - begin)
            if base == "scaffold":
                new = ci[i] - old - moved[-1] / (k[i] * eta)
                c, ci[i] = c + (new - ci[i]) / problem.n, new
        for i, way in zip(cohort, moved, strict=True):
            h[i] += way if base == "feddyn" else 0
        x = x + server_lr * mean(moved, [p[i] for i in cohort]) + h.mean(axis=0)
        out.append(x)
    return out


def fednova(problem: Problem, cohorts: Cohorts, k, p, *, lr, decay=1.0, momentum=0.0, mu=0.0):
    """a_i is measured: the decrease of a client whose gradients were all 1 and whose proximal term acts on it."""
    x = start(problem)
    out = [x]
    for t, cohort in enumerate(cohorts):
        eta, weights = lr * decay**t, [p[i] for i in cohort]

        def decrease(gradient: Callable[[Vector], Vector], x: Vector, steps: int, eta: float = eta) -> Vector:
            y, v = x, np.zeros_like(x)
            for _ in range(steps):
                v = momentum * v + gradient(y)
                y = y - eta * (v + mu * (y - x))
            return x - y

        d = [decrease(lambda y, i=i: problem.grad(i, y), x, k[i]) for i in cohort]
        a = [decrease(np.ones_like, np.zeros(1), k[i])[0] / eta for i in cohort]
        tau = mean([k[i] for i in cohort] if mu else a, weights)
        x = x - tau * mean([di / ai for di, ai in zip(d, a, strict=True)], weights)
        out.append(x)
    return out


def fedopt(
    problem: Problem, cohorts: Cohorts, k, p, *, lr, server_lr, beta1, beta2, tau, v0, variant, decay=1.0, **options
):
    x = start(problem)
    m, v = np.zeros(problem.d), np.full(problem.d, v0)
    out = [x]
    for t, cohort in enumerate(cohorts):
        ends = [sgd(x, k[i], lr * decay**t, lambda y, i=i: problem.grad(i, y), **options) for i in cohort]
        delta = mean([end - x for end in ends], [p[i] for i in cohort])
        m = beta1 * m + (1 - beta1) * delta
        if variant == "adam":
            v = beta2 * v + (1 - beta2) * delta**2
        elif variant == "yogi":
            v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
        else:
            v = v + delta**2
        x = x + server_lr * m / (np.sqrt(v) + tau)
        out.append(x)
    return out


def mime_lite(problem: Problem, cohorts: Cohorts, k, p, *, lr, beta, decay=1.0, **options):
    x, m = start(problem), np.zeros(problem.d)
    out = [x]
    for t, cohort in enumerate(cohorts):
        weights = [p[i] for i in cohort]
        ends = [
            sgd(x, k[i], lr * decay**t, lambda y, i=i, m=m: (1 - beta) * problem.grad(i, y) + beta * m, **options)
            for i in cohort
        ]
        m = (1 - beta) * mean([problem.grad(i, x) for i in cohort], weights) + beta * m
        x = mean(ends, weights)
        out.append(x)
    return out
