"""From a client and a round to its minibatches: which samples, in which order, and the tensors themselves.

Draws are addressed by round and client: a fresh permutation per epoch, or for Poisson sampling one number per example
and step; and the augmentation of every sample of every step. Samples lie in client order, so a client is a range of
rows.

Poisson minibatches are padded to the largest one really drawn among the clients of a block: no draw is cut or repeated,
so that their law is exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise

import numpy as np
import torch
from torch import Tensor

from fedsim.data.augment import Augment
from fedsim.data.keys import pass_keys, step_keys
from fedsim.ground import addresses, rng
from fedsim.ground.layout import aligned
from fedsim.ground.opaque import opaque
from fedsim.ground.transfer import sent
from fedsim.local import Local
from fedsim.types import Batch, Stretch


@dataclass(frozen=True)
class Samples:
    """One split in client order, ready to be shared with every worker.

    Attributes:
        x: [n, ...] inputs as the data set stores them.
        y: [n] or [n, t] targets.
        start: [clients + 1] client i holds rows start[i]:start[i+1].
        mean: per-channel mean for uint8 images, () when inputs are used as they are.
        std: per-channel standard deviation, likewise.
        augment: train-time augmentation, or None.
    """

    x: np.ndarray
    y: np.ndarray
    start: np.ndarray
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: Augment | None = None

    def sizes(self) -> np.ndarray:
        """[clients] number of examples of each client."""
        return np.diff(self.start)


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the array's memory; read-only arrays (Ray's object store) are only ever read here."""
    array = np.asarray(array, order="C")  # ascontiguousarray makes scalars vectors
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class Feed:
    """The samples as tensors on one device, and how rows become inputs of a model."""

    def __init__(self, samples: Samples, device: torch.device, dtype: torch.dtype):
        x, y = aligned(as_tensor(samples.x)), aligned(as_tensor(samples.y))
        self.x = (x.to(dtype) if x.is_floating_point() else x).to(device)
        self.y = (y.to(dtype) if y.is_floating_point() else y).to(device)
        self.start = samples.start
        self.augment = samples.augment
        self.dtype, self.device = dtype, device
        self.scale: tuple[Tensor, Tensor] | None = None
        if samples.mean:
            mean = torch.tensor(samples.mean, dtype=dtype, device=device).view(-1, 1, 1)
            std = torch.tensor(samples.std, dtype=dtype, device=device).view(-1, 1, 1)
            self.scale = (1 / (255 * std), -mean / std)

    def inputs(self, x: Tensor, draws: Tensor | None) -> Tensor:
        """[m, ...] stored samples -> what the model sees (augmented, normalised)."""
        if draws is not None and self.augment is not None:
            x = self.augment.apply(x, draws)
        if self.scale is None:
            return x
        return torch.addcmul(self.scale[1], x.to(self.dtype), self.scale[0])

    def take(self, rows: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows [m] -> inputs [m, ...] and targets [m, ...]."""
        return self.inputs(self.x.index_select(0, rows), draws), self.y.index_select(0, rows)

    def take_many(self, rows: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows [b, m] of b clients -> [b, m, ...] both, in one flat gather."""
        x, y = self.take(rows.reshape(-1), None if draws is None else draws.flatten(0, 1))
        return x.view(*rows.shape, *x.shape[1:]), y.view(*rows.shape, *y.shape[1:])


LONE = 100
"""Steps from which on the last client of a block that works is computed by itself."""


@dataclass(frozen=True)
class Work:
    """The minibatches of b clients in one round, padded to one shape; all of it on the CPU.

    ``rows`` is None when every step uses all of a client's examples.
    """

    clients: tuple[int, ...]  # [b]
    steps: np.ndarray  # [b] local steps K_i
    sizes: np.ndarray  # [b] examples n_i
    expected: np.ndarray  # [b] examples of a full minibatch, or expected in one
    counts: np.ndarray  # [b, K] real examples of each minibatch (0 after a client's last step)
    rows: Tensor | None  # [b, K, m] positions in the samples
    draws: Tensor | None  # [b, K, m, 3] augmentation draws

    @cached_property
    def width(self) -> int:
        """m, examples of the widest minibatch."""
        return int(self.counts.max()) if self.rows is None else self.rows.shape[2]

    @cached_property
    def partial(self) -> tuple[bool, ...]:
        """[K] whether some client that works has fewer than m examples in its minibatch."""
        works = np.arange(self.counts.shape[1]) < self.steps[:, None]
        padded: list[bool] = np.any((self.counts < self.width) & works, axis=0).tolist()
        return tuple(padded)

    @cached_property
    def empty(self) -> tuple[bool, ...]:
        """[K] whether some client has ended, or has no examples in its minibatch."""
        return tuple((self.counts == 0).any(0).tolist())

    @cached_property
    def stretches(self) -> tuple[tuple[int, int, int | None], ...]:
        """(first, end, among) of steps at which the same clients work, as in ``fedsim.types.Stretch``."""
        ends = np.unique(self.steps).tolist()
        found: list[tuple[int, int, int | None]] = [(0, ends[0], None)]
        for first, end in pairwise(ends):
            among = int(np.flatnonzero(self.steps > first)[-1]) + 1
            # One client is computed by the module itself, which rounds otherwise: not for a few steps.
            found.append((first, end, among if end - first >= LONE else max(2, among)))
        return tuple(found)

    @cached_property
    def most(self) -> int:
        """Examples of the client that has most."""
        return int(self.sizes.max())


def work_of(clients: tuple[int, ...], index: int, feed: Feed, local: Local, seed: int) -> Work:
    """Draw the minibatches of these clients for round ``index``."""
    ids = np.array(clients)
    starts = feed.start[ids]
    sizes = feed.start[ids + 1] - starts
    held = sizes.tolist()
    work = {n: (local.count(n), local.batch(n)) for n in set(held)}  # whoever holds as much does as much
    steps, expected = (np.array([work[n][at] for n in held], dtype=np.int64) for at in (0, 1))
    total = int(steps.max())
    if local.batch_size == "full" and feed.augment is None:  # all examples in stored order at every step
        counts = np.where(np.arange(total) < steps[:, None], sizes[:, None], 0)
        return Work(clients, steps, sizes, expected, counts, None, None)
    alike: dict[int, list[int]] = {}  # places in the block of clients with as much to draw
    for b, n in enumerate(held):
        alike.setdefault(n, []).append(b)
    drawn: list[_Drawn] = []
    for n, who in alike.items():
        k, size = work[n]
        generators = rng.streams(seed, addresses.BATCHES, index, last=[clients[b] for b in who])
        if local.sampling == "poisson" and size < n:
            drawn += [([b], *_poisson(g, n, k, size / n)) for b, g in zip(who, generators, strict=True)]
        else:
            drawn.append((who, *_shuffled(generators, len(who), n, k, size)))
    m = max(1, *(int(taken.max()) for _, taken, _ in drawn))
    counts = np.zeros((len(clients), total), dtype=np.int64)
    rows = np.repeat(starts, total * m).reshape(len(clients), total, m)  # padding: a row that exists
    for who, taken, chosen in drawn:
        k, size = chosen.shape[1:]
        counts[who, :k] = taken
        rows[who, :k, :size] += chosen
    order = torch.from_numpy(rows)
    draws = None if feed.augment is None else _augmentations(feed.augment, drawn, clients, index, seed, order)
    return Work(clients, steps, sizes, expected, counts, order, draws)


_Drawn = tuple[list[int], np.ndarray, np.ndarray]
"""Of c clients with as much to draw: their places in the block, how many examples their minibatches hold, [c, k] or
[k], and which examples these are, padded to the largest, [c, k, m]."""


def _augmentations(
    augment: Augment, drawn: list[_Drawn], clients: tuple[int, ...], index: int, seed: int, order: Tensor
) -> Tensor:
    """Draws [b, K, m, 3] for rows [b, K, m]: by each client's own shape, whoever shares its block."""
    draws = torch.zeros(*order.shape, 3, dtype=torch.int64)
    for who, _, chosen in drawn:
        k, size = chosen.shape[1:]
        generators = rng.streams(seed, addresses.AUGMENT, index, last=[clients[b] for b in who])
        for b, generator in zip(who, generators, strict=True):
            draws[b, :k, :size] = augment.draw(generator, k * size).view(k, size, -1)
    return draws


def _shuffled(
    generators: Iterable[torch.Generator], clients: int, n: int, steps: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes [k] and examples [c, k, size] of minibatches that go through each client's n examples in random orders."""
    per_epoch = -(-n // size)
    taken = np.full(steps, size)
    taken[per_epoch - 1 :: per_epoch] = n - (per_epoch - 1) * size
    epochs = -(-steps // per_epoch)
    order = torch.empty(clients * epochs, n, dtype=torch.int64)
    rows = iter(order.unbind())  # drawn in place: there may be ten thousand clients
    for generator in generators:
        for row in islice(rows, epochs):
            torch.randperm(n, generator=generator, out=row)
    padded = np.zeros((clients, epochs, per_epoch * size), dtype=np.int64)
    padded[:, :, :n] = order.numpy().reshape(clients, epochs, n)
    return taken, padded.reshape(clients, -1, size)[:, :steps]


def _poisson(generator: torch.Generator, n: int, steps: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Sizes [1, k] and examples [1, k, m] of minibatches that hold each of n examples with this probability."""
    chances = (torch.rand(n, generator=generator, dtype=torch.float64).numpy() for _ in range(steps))
    picked = [np.flatnonzero(u < rate) for u in chances]
    taken = np.array([len(rows) for rows in picked])
    chosen = np.zeros((steps, int(taken.max())), dtype=np.int64)
    for k, rows in enumerate(picked):
        chosen[k, : len(rows)] = rows
    return taken[None], chosen[None]


SWEEP = 256
"""Examples at once in a pass over all of a client's examples; of small ones as many as hold ``SWEEP_NUMBERS``."""

SWEEP_NUMBERS = 2**14
"""Numbers in the inputs that are at once in a pass in any case: work that outweighs the price of a call."""


PART = 256
"""Steps whose rows, masks and keys are cut out of a block's at once."""


class ClientMinibatches:
    """One client's minibatches, k = 0 .. steps-1, as the engine hands them to an ``Objective``.

    Built either for one client alone (exact sizes, no padding) or, inside vmap, for the client that stands for all
    clients of a block: padded to one shape, with masks at the steps at which some client that works has padding.
    """

    def __init__(self, feed: Feed, work: Work, lane: dict[str, Tensor], *, alone: bool):
        self.feed, self.work, self.lane, self.alone = feed, work, lane, alone
        self.expected = lane["expected"]
        self.length = work.counts.shape[1]
        self._part: tuple[int, dict[str, tuple[Tensor, ...]]] = (-1, {})

    def __call__(self, k: int) -> Batch:
        """The k-th minibatch."""
        part, at = self._of(k)
        # Without a mask, losses are plain means. Who has ended needs none: nobody uses what it computes.
        mask = part["masks"][at] if not self.alone and self.work.partial[k] else None
        keys = part["keys"][at] if "keys" in part else None
        if "y" in self.lane:
            return Batch(self.lane["x"], self.lane["y"], mask, keys)
        rows, draws = part["rows"][at], part["draws"][at] if "draws" in part else None
        if self.alone:
            n = int(self.work.counts[0, k])
            if not n:  # an empty Poisson minibatch: one example that does not count
                n, mask = 1, torch.zeros(1, dtype=self.feed.dtype, device=self.feed.device)
            rows, draws, keys = rows[:n], None if draws is None else draws[:n], None if keys is None else keys[:n]
        x, y = opaque(self.feed.take, self.feed.take_many, rows, draws)
        return Batch(x, y, mask, keys)

    def _of(self, k: int) -> tuple[dict[str, tuple[Tensor, ...]], int]:
        """What there is of each of the steps around the k-th, by name, and the place of the k-th among them."""
        first = k - k % PART
        if self._part[0] != first:
            steps = slice(first, first + PART)
            part: dict[str, tuple[Tensor, ...]] = {
                name: self.lane[name][steps].unbind() for name in ("rows", "draws", "keys") if name in self.lane
            }
            if not self.alone and any(self.work.partial[steps]):
                places = torch.arange(self.work.width, device=self.feed.device)
                part["masks"] = (places < self.lane["counts"][steps, None]).to(self.feed.dtype).unbind()
            if any(self.work.empty[steps]):
                part["holds"] = (self.lane["counts"][steps] > 0).unbind()
            self._part = first, part
        return self._part[1], k - first

    def holds(self, k: int) -> Tensor | None:
        """Whether this client works at step k and its minibatch has examples; None: so it is for all of the block."""
        if not self.work.empty[k]:
            return None
        part, at = self._of(k)
        return part["holds"][at]

    @property
    def stretches(self) -> list[Stretch]:
        """The steps, cut where clients end."""
        mine = self.lane["steps"]
        return [Stretch(*found, None if found[2] is None else mine > found[0]) for found in self.work.stretches]


class Everything:
    """One client's examples for a pass over all its data: each once, as stored and not augmented, some at a time.

    Built like ``ClientMinibatches``; every batch of a block carries a mask.
    """

    def __init__(self, feed: Feed, work: Work, lane: dict[str, Tensor], *, alone: bool):
        self.feed, self.lane, self.alone = feed, lane, alone
        self.expected, self.most = lane["sizes"], work.most
        self.width = min(max(SWEEP, SWEEP_NUMBERS // feed.x[0].numel()), work.most)
        self.length = -(-work.most // self.width)

    def __call__(self, k: int) -> Batch:
        """The k-th part of the examples."""
        at = k * self.width + torch.arange(self.width, device=self.feed.device)
        # Alone: no padding, so that nothing is computed for nobody. In a block: one width for all, a client's padding
        # being its last example again, which the mask takes out.
        if self.alone:
            at = at[: self.most - k * self.width]
        rows = self.lane["start"] + torch.minimum(at, self.lane["sizes"] - 1)
        x, y = opaque(self.feed.take, self.feed.take_many, rows, None)
        keys = pass_keys(self.lane["dropout"], at) if "dropout" in self.lane else None
        return Batch(x, y, None if self.alone else (at < self.lane["sizes"]).to(self.feed.dtype), keys)


def lanes(feed: Feed, work: Work, keys: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors of a block with the leading client dimension [b], one lane per client.

    Args:
        feed: the samples.
        work: the clients' minibatches.
        keys: [b] int64, of which the clients' dropout follows; None where nothing is dropped.
    """
    arrays = {"start": feed.start[list(work.clients)], "steps": work.steps, "sizes": work.sizes}
    arrays |= {"client": np.array(work.clients), "expected": work.expected, "counts": work.counts}
    made = {name: torch.from_numpy(array) for name, array in arrays.items()}
    made |= {} if keys is None else {"dropout": keys}
    made |= {} if work.rows is None else {"rows": work.rows}
    made |= {} if work.draws is None else {"draws": work.draws}
    out = dict(zip(made, sent(list(made.values()), feed.device), strict=True))
    out["number"] = made["client"]  # on the CPU, where streams of random numbers are named
    if keys is not None:
        width = work.most if work.rows is None else work.rows.shape[2]
        out["keys"] = step_keys(out["dropout"], work.counts.shape[1], width)
    if work.rows is not None:
        return out
    starts = [int(feed.start[i]) for i in work.clients]
    b, m = len(starts), work.most
    contiguous = all(s == starts[0] + j * m for j, s in enumerate(starts)) and bool((work.sizes == m).all())
    if contiguous:  # a view: equal neighbours need no gather
        x, y = feed.x[starts[0] : starts[0] + b * m], feed.y[starts[0] : starts[0] + b * m]
    else:
        rows = torch.from_numpy(np.array(starts)[:, None] + np.minimum(np.arange(m), work.sizes[:, None] - 1))
        (flat,) = sent([rows.reshape(-1)], feed.device)
        x, y = feed.x.index_select(0, flat), feed.y.index_select(0, flat)
    x = feed.inputs(x, None)
    return out | {"x": x.view(b, m, *x.shape[1:]), "y": y.view(b, m, *y.shape[1:])}
