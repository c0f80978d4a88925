"""Decentralized methods as plain numpy loops on whole matrices; nothing of fedsim is used here.

Every loop takes a problem (``n``, ``d``, ``grad(i, x)``), the mixing matrix of a round ``w(t)`` [n, n], who computes in
each round, and the method's numbers; it returns all models before round 0 and after every round, [rounds + 1, n, d].
All peers mix in every round. Where fedsim writes a method in one of two equivalent forms, the loop uses the other:
matrix powers for repeated exchanges, accumulated messages (CHOCO's "memory" variant) for sums over neighbours' copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.oracles.loops import Problem, Vector, sgd, start

Mixer = Callable[[int], np.ndarray]
Codec = Callable[[Vector, int, int], Vector]  # (v, peer, round) -> C(v)
Cohorts = Sequence[Sequence[int]]


def exact(v: Vector, i: int, t: int) -> Vector:
    return v


def begin(problem: Problem) -> np.ndarray:
    return np.tile(start(problem), (problem.n, 1))


def compressed(codec: Codec, values: np.ndarray, t: int) -> np.ndarray:
    return np.stack([codec(v, i, t) for i, v in enumerate(values)])


def gradients(problem: Problem, x: np.ndarray, cohort: Sequence[int], wd: float = 0.0) -> np.ndarray:
    """Of those who compute; zero for the others."""
    return np.stack([problem.grad(i, v) + wd * v if i in cohort else 0 * v for i, v in enumerate(x)])


def trained(problem: Problem, x: np.ndarray, cohort, k, lr, rho=0.0, **options) -> np.ndarray:
    """Every computing peer after its own k[i] local steps, sharpness-aware with ``rho``."""

    def direction(y: Vector, i: int) -> Vector:
        g = problem.grad(i, y)
        return problem.grad(i, y + rho * g / (np.linalg.norm(g) + 1e-12)) if rho else g

    return np.stack(
        [sgd(v, k[i], lr, lambda y, i=i: direction(y, i), **options) if i in cohort else v for i, v in enumerate(x)]
    )


def dfedavg(problem: Problem, w: Mixer, cohorts: Cohorts, k, *, lr, decay=1.0, codec=exact, gossip_steps=1, **options):
    """DFedAvg, DFedAvgM; DFedSAM with ``rho``; several exchanges as one with a power of W (without a codec)."""
    x = begin(problem)
    out = [x]
    for t, cohort in enumerate(cohorts):
        y = trained(problem, x, cohort, k, lr * decay**t, **options)
        x = np.linalg.matrix_power(w(t), gossip_steps) @ compressed(codec, y, t)
        out.append(x)
    return np.stack(out)


def dpsgd(problem: Problem, w: Mixer, cohorts: Cohorts, k, *, lr, decay=1.0, wd=0.0):
    x = begin(problem)
    out = [x]
    for t, cohort in enumerate(cohorts):
        x = w(t) @ x - lr * decay**t * gradients(problem, x, cohort, wd)
        out.append(x)
    return np.stack(out)


def tracking(problem: Problem, w: Mixer, cohorts: Cohorts, k, *, lr, form, decay=1.0):
    x = begin(problem)
    y = g = gradients(problem, x, range(problem.n))
    out = [x]
    for t in range(len(cohorts)):
        eta = lr * decay**t
        x = w(t) @ x - eta * y if form == "diging" else w(t) @ (x - eta * y)
        new = gradients(problem, x, range(problem.n))
        y, g = w(t) @ y + new - g, new
        out.append(x)
    return np.stack(out)


def sgp(problem: Problem, w: Mixer, cohorts: Cohorts, k, *, lr, decay=1.0, wd=0.0):
    """Returns z = x / weight."""
    x, weight = begin(problem), np.ones(problem.n)
    out = [x]
    for t, cohort in enumerate(cohorts):
        z = x / weight[:, None]
        x = w(t) @ (x - lr * decay**t * gradients(problem, z, cohort, wd))
        weight = w(t) @ weight
        out.append(x / weight[:, None])
    return np.stack(out)


def choco(
    problem: Problem, w: Mixer, cohorts: Cohorts, k, *, lr, gamma, decay=1.0, codec=exact, copies="zero", **options
):
    """``s`` [n, d] is what a peer has summed up of its neighbours' messages (and its own), weighted."""
    x = begin(problem)
    copy = np.zeros_like(x) if copies == "zero" else x
    s = w(0) @ copy
    out = [x]
    for t, cohort in enumerate(cohorts):
        half = trained(problem, x, cohort, k, lr * decay**t, **options)
        q = compressed(codec, half - copy, t)
        copy, s = copy + q, s + w(t) @ q
        x = half + gamma * (s - copy)
        out.append(x)
    return np.stack(out)


def deepsqueeze(problem: Problem, w: Mixer, cohorts: Cohorts, k, *, lr, gamma, decay=1.0, codec=exact, **options):
    x = begin(problem)
    error = np.zeros_like(x)
    out = [x]
    for t, cohort in enumerate(cohorts):
        half = trained(problem, x, cohort, k, lr * decay**t, **options)
        q = compressed(codec, half + error, t)
        error = half + error - q
        x = half + gamma * (w(t) - np.eye(problem.n)) @ q
        out.append(x)
    return np.stack(out)


def dcd(problem: Problem, w: Mixer, cohorts: Cohorts, k, *, lr, decay=1.0, wd=0.0, codec=exact):
    x = begin(problem)
    out = [x]
    for t, cohort in enumerate(cohorts):
        half = w(t) @ x - lr * decay**t * gradients(problem, x, cohort, wd)
        x = x + compressed(codec, half - x, t)
        out.append(x)
    return np.stack(out)


def beer(problem: Problem, w: Mixer, cohorts: Cohorts, k, *, lr, gamma, decay=1.0, codec=exact):
    x = begin(problem)
    pull = gamma * (w(0) - np.eye(problem.n))
    v = g = gradients(problem, x, range(problem.n))
    h, hv = np.zeros_like(x), np.zeros_like(x)
    out = [x]
    for t in range(len(cohorts)):
        x = x + pull @ h - lr * decay**t * v
        h = h + compressed(codec, x - h, t)
        new = gradients(problem, x, range(problem.n))
        v, g = v + pull @ hv + new - g, new
        hv = hv + compressed(codec, v - hv, t)
        out.append(x)
    return np.stack(out)
