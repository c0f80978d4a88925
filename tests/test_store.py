"""The client store: rows on demand, commit makes them visible, memory follows the clients that took part."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.runs.store import CHUNK_BYTES, Store


class Memory(NamedTuple):
    e: torch.Tensor  # [3]
    pair: tuple[torch.Tensor, torch.Tensor]  # scalar, [2]


def initial() -> Memory:
    return Memory(torch.zeros(3), (torch.tensor(7, dtype=torch.int64), torch.ones(2)))


def rows(values: list[int]) -> Memory:
    v = np.array(values, dtype=np.float32)
    return Memory(
        np.repeat(v[:, None], 3, 1),
        (v.astype(np.int64), np.repeat(-v[:, None], 2, 1)),  # type: ignore[arg-type]
    )


@given(st.lists(st.tuples(st.sets(st.integers(0, 30), min_size=1), st.booleans()), max_size=12))
def test_reads_what_was_last_committed(rounds: list[tuple[set[int], bool]]) -> None:
    store, truth = Store(initial()), {}
    for number, (clients, commit) in enumerate(rounds, start=1):
        ids = sorted(clients)
        store.write(ids[::2], rows([100 * number + i for i in ids[::2]]))
        store.write(ids[1::2], rows([100 * number + i for i in ids[1::2]]))
        if commit:
            store.commit()
            truth |= {i: 100 * number + i for i in ids}
        else:
            store.drop()
    everyone = list(range(31))
    got = store.read(everyone)
    assert isinstance(got, Memory)
    np.testing.assert_array_equal(got.e[:, 1], [truth.get(i, 0) for i in everyone])
    np.testing.assert_array_equal(got.pair[0], [truth.get(i, 7) for i in everyone])
    np.testing.assert_array_equal(got.pair[1][:, 0], [-truth.get(i, -1) for i in everyone])
    assert len(store) == len(truth)


def test_staged_rows_are_invisible_before_the_commit() -> None:
    store = Store(initial())
    store.write([4], rows([9]))
    assert store.read([4]).e.sum() == 0
    store.commit()
    assert store.read([4]).e[0, 0] == 9


def test_reading_gives_copies() -> None:
    store = Store(initial())
    store.write([1], rows([5]))
    store.commit()
    store.read([1]).e[:] = -1
    assert store.read([1]).e[0, 0] == 5


def test_memory_follows_participants_not_population() -> None:
    store = Store(torch.zeros(10_000))
    for first in range(0, 500_000, 50_000):  # ids up to half a million, 1,000 clients in all
        ids = list(range(first, first + 100))
        store.write(ids, np.full((100, 10_000), first, np.float32))
        store.commit()
    assert len(store) == 1000
    assert store.nbytes <= 1000 * 40_000 + CHUNK_BYTES
    ids = [400_099, 3, 7, 50_050, 0]  # several chunks, any order, one stranger
    assert store.read(ids)[:, -1].tolist() == [400_000, 0, 0, 50_000, 0]


def test_a_stateless_algorithm_stores_nothing() -> None:
    store = Store(())
    store.write([1, 2], ())
    store.commit()
    assert store.read([1, 2]) == ()
    assert len(store) == 0
