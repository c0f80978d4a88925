"""Personalised methods as plain numpy loops on small networks with a body and a head; nothing of fedsim is used here.

A network is tanh(W2 tanh(W1 x + b1) + b2) = features [f], then the head H r + c; clients differ in the width of W1. Its
gradients are written out by hand. Every loop takes a problem, the cohorts of all rounds and the hyper-parameters, and
returns what the clients predict before round 0 and after every round, and the final states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tests.oracles.loops import Cohorts, Vector, mean, sgd

Term = Callable[[Vector, Vector, Vector], tuple[Vector, Vector]]
"""(features [m, f], outputs [m, C], y [m]) -> derivatives by outputs and by features of the term's sum over examples"""


class Net:
    """One architecture."""

    def __init__(self, inputs: int, width: int, features: int, classes: int):
        self.shapes = [(width, inputs), (width,), (features, width), (features,), (classes, features), (classes,)]
        self.head = classes * features + classes
        self.features, self.classes = features, classes

    def split(self, x: Vector) -> tuple[Vector, Vector]:
        return x[: -self.head], x[-self.head :]

    def parts(self, x: Vector) -> list[Vector]:
        ends = np.cumsum([int(np.prod(s)) for s in self.shapes])
        return [piece.reshape(s) for piece, s in zip(np.split(x, ends[:-1]), self.shapes, strict=True)]

    def hidden(self, x: Vector, a: Vector) -> tuple[Vector, Vector, Vector]:
        w1, b1, w2, b2, h, c = self.parts(x)
        first = np.tanh(a @ w1.T + b1)
        r = np.tanh(first @ w2.T + b2)
        return first, r, r @ h.T + c

    def __call__(self, x: Vector, a: Vector) -> tuple[Vector, Vector]:
        """Features [m, f] and outputs [m, C]."""
        return self.hidden(x, a)[1:]

    def back(self, x: Vector, a: Vector, by_outputs: Vector, by_features: Vector) -> Vector:
        """The gradient [d] of a function of features and outputs, from its derivatives."""
        _, _, w2, _, h, _ = self.parts(x)
        first, r, _ = self.hidden(x, a)
        d2 = (by_outputs @ h + by_features) * (1 - r**2)
        d1 = (d2 @ w2) * (1 - first**2)
        grads = [d1.T @ a, d1.sum(0), d2.T @ first, d2.sum(0), by_outputs.T @ r, by_outputs.sum(0)]
        return np.concatenate([g.ravel() for g in grads])


def softmax(z: Vector) -> Vector:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Problem(NamedTuple):
    nets: Sequence[Net]  # of every client
    start: Sequence[Vector]  # of every client
    data: Sequence[tuple[Vector, Vector]]  # training examples of every client
    tests: Sequence[Vector]  # test inputs of every client

    @property
    def n(self) -> int:
        return len(self.nets)

    @property
    def sizes(self) -> list[int]:
        return [len(y) for _, y in self.data]

    def grad(self, i: int, x: Vector, term: Term | None = None, net: Net | None = None, weight: float = 1.0) -> Vector:
        """Gradient of weight * mean cross-entropy + mean term on client i's examples."""
        net, (a, y) = net or self.nets[i], self.data[i]
        r, z = net(x, a)
        by_z, by_r = weight * (softmax(z) - np.eye(net.classes)[y]), np.zeros_like(r)
        if term is not None:
            more_z, more_r = term(r, z, y)
            by_z, by_r = by_z + more_z, by_r + more_r
        return net.back(x, a, by_z / len(y), by_r / len(y))

    def class_means(self, i: int, x: Vector, what: str) -> dict[int, Vector]:
        """The plain mean of client i's features or outputs by class that it owns."""
        a, y = self.data[i]
        values = self.nets[i](x, a)[("features", "outputs").index(what)]
        return {int(c): values[y == c].mean(0) for c in np.unique(y)}

    def predict(self, models: Sequence[Vector]) -> list[Vector]:
        """Outputs of every client's model on its test inputs."""
        return [net(x, a)[1] for net, x, a in zip(self.nets, models, self.tests, strict=True)]


class Trace(NamedTuple):
    outputs: list[list[Vector]]  # [rounds + 1][n] outputs on the client's own test inputs
    server: list[Vector]  # its state in the end
    clients: list[list[Vector]]  # their states in the end


def standalone(problem: Problem, cohorts: Cohorts, k, *, lr, decay=1.0, **options) -> Trace:
    x = list(problem.start)
    out = [problem.predict(x)]
    for t, cohort in enumerate(cohorts):
        for i in cohort:
            x[i] = sgd(x[i], k, lr * decay**t, lambda y, i=i: problem.grad(i, y), **options)
        out.append(problem.predict(x))
    return Trace(out, [], [[v] for v in x])


def joined(problem: Problem, bodies: Sequence[Vector], head: Vector) -> list[Vector]:
    return [np.concatenate([net.split(x)[0], head]) for net, x in zip(problem.nets, bodies, strict=True)]


def matrix(net: Net, head: Vector) -> Vector:
    """A flat head -> [C, f + 1], the bias last."""
    h, c = head[: -net.classes].reshape(net.classes, net.features), head[-net.classes :]
    return np.concatenate([h, c[:, None]], axis=1)


def lg_fedavg(problem: Problem, cohorts: Cohorts, k, *, lr, predict, decay=1.0, **options) -> Trace:
    x, net = list(problem.start), problem.nets[0]
    head = net.split(x[0])[1]

    def now() -> list[Vector]:
        return problem.predict(x if predict == "local" else joined(problem, x, head))

    out = [now()]
    for t, cohort in enumerate(cohorts):
        for i in cohort:
            begin = np.concatenate([problem.nets[i].split(x[i])[0], head])
            x[i] = sgd(begin, k, lr * decay**t, lambda y, i=i: problem.grad(i, y), **options)
        head = mean([problem.nets[i].split(x[i])[1] for i in cohort], [problem.sizes[i] for i in cohort])
        out.append(now())
    return Trace(out, [matrix(net, head)], [[v] for v in x])


def fedper(problem: Problem, cohorts: Cohorts, k, *, lr, decay=1.0, head_passes=0, **options) -> Trace:
    """FedPer; FedRep with ``head_passes``, whose momentum starts anew with every pass."""
    net = problem.nets[0]
    body, first = net.split(problem.start[0])
    heads = [first] * problem.n
    cut = len(body)

    def now() -> list[Vector]:
        return problem.predict([np.concatenate([body, h]) for h in heads])

    out = [now()]
    for t, cohort in enumerate(cohorts):
        ends, eta = [], lr * decay**t
        for i in cohort:
            if not head_passes:
                x = np.concatenate([body, heads[i]])
                x = sgd(x, k, eta, lambda y, i=i: problem.grad(i, y), **options)
                end, heads[i] = x[:cut], x[cut:]
            else:
                for _ in range(head_passes):
                    heads[i] = sgd(
                        heads[i],
                        k,
                        eta,
                        lambda h, i=i, body=body: problem.grad(i, np.concatenate([body, h]))[cut:],
                        **options,
                    )
                end = sgd(body, k, eta, lambda b, i=i: problem.grad(i, np.concatenate([b, heads[i]]))[:cut], **options)
            ends.append(end)
        body = mean(ends, [problem.sizes[i] for i in cohort])
        out.append(now())
    return Trace(out, [body], [[matrix(net, h)] for h in heads])


def fedavg_ft(problem: Problem, cohorts: Cohorts, k, *, lr, decay=1.0, **options) -> Trace:
    x, step = problem.start[0], np.zeros_like(problem.start[0])

    def tuned(i: int, t: int, x: Vector) -> Vector:
        return sgd(x, k, lr * decay**t, lambda y, i=i: problem.grad(i, y), **options)

    def now(t: int) -> list[Vector]:
        return problem.predict([tuned(i, t, x) for i in range(problem.n)])

    out = [now(0)]
    for t, cohort in enumerate(cohorts):
        step = mean([tuned(i, t, x) for i in cohort], [problem.sizes[i] for i in cohort]) - x
        x = x + step
        out.append(now(t + 1))
    return Trace(out, [x, step], [[] for _ in problem.nets])


def fedgh(problem: Problem, cohorts: Cohorts, k, *, lr, header_lr, predict, decay=1.0, **options) -> Trace:
    x, net = list(problem.start), problem.nets[0]
    head = net.split(x[0])[1]

    def now() -> list[Vector]:
        return problem.predict(x if predict == "local" else joined(problem, x, head))

    out = [now()]
    for t, cohort in enumerate(cohorts):
        pairs = []
        for i in sorted(cohort):
            begin = np.concatenate([problem.nets[i].split(x[i])[0], head])
            x[i] = sgd(begin, k, lr * decay**t, lambda y, i=i: problem.grad(i, y), **options)
            pairs += sorted(problem.class_means(i, x[i], "features").items())
        w, b = head[: -net.classes].reshape(net.classes, -1).copy(), head[-net.classes :].copy()
        for s, r in pairs:
            error = softmax(w @ r + b) - np.eye(net.classes)[s]
            w, b = w - header_lr * decay**t * np.outer(error, r), b - header_lr * decay**t * error
        head = np.concatenate([w.ravel(), b])
        out.append(now())
    return Trace(out, [matrix(net, head)], [[v] for v in x])


def fedproto(problem: Problem, cohorts: Cohorts, k, *, lr, ld, predict, decay=1.0, weights=None, **options) -> Trace:
    x, net = list(problem.start), problem.nets[0]
    prototypes: dict[int, Vector] = {}
    p = weights or [1] * problem.n

    def now() -> list[Vector]:
        if predict == "head" or not prototypes:
            return problem.predict(x)
        rows = []
        for i, one in enumerate(problem.nets):
            r = one(x[i], problem.tests[i])[0]
            far = np.full((len(r), net.classes), -np.inf)
            for c, proto in prototypes.items():
                far[:, c] = -((r - proto) ** 2).sum(1)
            rows.append(far)
        return rows

    out = [now()]
    for t, cohort in enumerate(cohorts):
        sent = {}
        for i in cohort:

            def term(r: Vector, z: Vector, y: Vector, known=prototypes) -> tuple[Vector, Vector]:
                target = np.stack([known.get(int(c), row) for c, row in zip(y, r, strict=True)])
                return np.zeros_like(z), ld * 2 * (r - target) / r.shape[1]

            x[i] = sgd(x[i], k, lr * decay**t, lambda y, i=i, term=term: problem.grad(i, y, term), **options)
            sent[i] = problem.class_means(i, x[i], "features")
        new = {}
        for c in range(net.classes):
            owners = [i for i in cohort if c in sent[i]]
            if owners:
                new[c] = mean([sent[i][c] for i in owners], [p[i] for i in owners])
        prototypes = prototypes | new
        out.append(now())
    table = np.stack([prototypes.get(c, np.zeros(net.features)) for c in range(net.classes)])
    return Trace(out, [table, np.array([c in prototypes for c in range(net.classes)])], [[v] for v in x])


def fd(problem: Problem, cohorts: Cohorts, k, *, lr, gamma, decay=1.0, **options) -> Trace:
    """The teacher of client i's class is the mean over the OTHER clients of the last cohort that own it."""
    x, net = list(problem.start), problem.nets[0]
    sent: dict[int, dict[int, Vector]] = {}
    out = [problem.predict(x)]
    last = [0] * problem.n
    for t, cohort in enumerate(cohorts):
        new = {}
        for i in cohort:
            others = [means for j, means in sent.items() if j != i]
            teachers = {c: [m[c] for m in others if c in m] for c in range(net.classes)}
            teacher = {c: np.mean(rows, axis=0) for c, rows in teachers.items() if rows}

            def term(r: Vector, z: Vector, y: Vector, teacher=teacher) -> tuple[Vector, Vector]:
                q = softmax(z)
                target = np.stack([softmax(teacher[int(c)]) if int(c) in teacher else q[j] for j, c in enumerate(y)])
                return gamma * (q - target), np.zeros_like(r)

            x[i] = sgd(x[i], k, lr * decay**t, lambda y, i=i, term=term: problem.grad(i, y, term), **options)
            new[i] = problem.class_means(i, x[i], "outputs")
            last[i] = t + 1
        sent = new
        out.append(problem.predict(x))
    sums, owners = np.zeros((net.classes, net.classes)), np.zeros(net.classes)
    for means in sent.values():
        for c, z in means.items():
            sums[c], owners[c] = sums[c] + z, owners[c] + 1
    return Trace(out, [sums, owners], [[v, np.array(float(t))] for v, t in zip(x, last, strict=True)])


def fml(problem: Problem, cohorts: Cohorts, k, *, lr, alpha, beta, common, decay=1.0, wd=0.0, clip=None) -> Trace:
    """Own loss alpha CE + (1 - alpha) KL(shared || own), shared loss beta CE + (1 - beta) KL(own || shared)."""
    x, net, shared = list(problem.start), problem.nets[common], problem.start[common]
    out = [problem.predict(x)]
    for t, cohort in enumerate(cohorts):
        ends = []
        for i in cohort:
            mine, theirs, a = x[i], shared, problem.data[i][0]
            for _ in range(k):
                p, q = softmax(problem.nets[i](mine, a)[1]), softmax(net(theirs, a)[1])

                def pull(target: Vector, weight: float) -> Term:
                    return lambda r, z, y: ((1 - weight) * (softmax(z) - target), np.zeros_like(r))

                g = problem.grad(i, mine, pull(q, alpha), weight=alpha)
                h = problem.grad(i, theirs, pull(p, beta), net, weight=beta)
                mine = sgd(mine, 1, lr * decay**t, lambda y, g=g: g, wd, clip)
                theirs = sgd(theirs, 1, lr * decay**t, lambda y, h=h: h, wd, clip)
            x[i] = mine
            ends.append(theirs)
        shared = mean(ends, [problem.sizes[i] for i in cohort])
        out.append(problem.predict(x))
    return Trace(out, [shared], [[v] for v in x])


def mesa(problem: Problem, cohorts: Cohorts, k, *, lr, lam, tau, average, begin, base, decay=1.0, **options) -> Trace:
    """cross-entropy + lam tau^2 KL(softmax(teacher / tau) || softmax(outputs / tau)) around FedAvg or SCAFFOLD."""
    x, net = problem.start[0], problem.nets[0]
    teacher, step, c, ci = x, x, np.zeros_like(x), np.zeros((problem.n, len(x)))
    out = [problem.predict([x] * problem.n)]
    for t, cohort in enumerate(cohorts):
        ends, eta, new = [], lr * decay**t, ci.copy()
        for i in cohort:
            target = softmax(net(teacher, problem.data[i][0])[1] / tau)

            def term(r: Vector, z: Vector, y: Vector, target=target, on=float(t >= begin)) -> tuple[Vector, Vector]:
                return on * lam * tau * (softmax(z / tau) - target), np.zeros_like(r)

            v = c - ci[i] if base == "scaffold" else np.zeros_like(x)
            end = sgd(x, k, eta, lambda y, i=i, v=v, term=term: problem.grad(i, y, term) + v, **options)
            new[i] = -v + (x - end) / (k * eta)
            ends.append(end)
        if base == "scaffold":
            c, ci = c + (new - ci).sum(axis=0) / problem.n, new
        step = mean(ends, [1 if base == "scaffold" else problem.sizes[i] for i in cohort]) - x
        x = x + step
        teacher = average * teacher + (1 - average) * x
        out.append(problem.predict([x] * problem.n))
    state = [x, c, teacher] if base == "scaffold" else [x, step, teacher]
    return Trace(out, state, [[v] if base == "scaffold" else [] for v in ci])
