"""The plan covers the cohort exactly once, respects its limits and does not know about workers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedsim.pool.plan import PADDING, pieces, plan
from fedsim.pool.ray_pool import shares


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=80),
    st.integers(1, 20),
    st.integers(1, 33),
)
def test_every_client_once_in_blocks_within_limits(steps: list[int], block: int, jobs: int) -> None:
    clients = [7 * i + 3 for i in range(len(steps))]
    cut = plan(clients, steps, block, jobs)
    of = dict(zip(clients, steps, strict=True))
    flat = [i for job in cut.jobs for piece in job for i in piece]
    assert sorted(flat) == clients
    assert [of[i] for i in flat] == sorted(steps, reverse=True)
    assert 1 <= len(cut.jobs) <= jobs
    assert cut.costs == tuple(sum(of[i] for piece in job for i in piece) for job in cut.jobs)
    for job in cut.jobs:
        for piece in job:
            assert 1 <= len(piece) <= block
            if len(piece) > 3:
                # only the last two clients, which may not be left alone, can fall below the padding rule
                assert of[piece[-3]] >= PADDING * of[piece[0]]


@given(st.integers(2, 200), st.integers(3, 50), st.integers(1, 16))
def test_equal_clients_are_never_alone_in_a_block(count: int, block: int, jobs: int) -> None:
    cut = plan(range(count), [4] * count, block, jobs)
    assert all(len(piece) >= 2 for job in cut.jobs for piece in job)


@given(st.integers(1, 200), st.integers(1, 16))
def test_in_blocks_of_two_no_client_is_alone_but_one_of_an_odd_cohort(count: int, jobs: int) -> None:
    # who is alone is computed twice (see ``fedsim.pool.block``): a fifth more work for ten clients in four jobs
    cut = plan(range(count), [4] * count, 2, jobs)
    assert [len(piece) for job in cut.jobs for piece in job].count(1) == count % 2


def test_jobs_are_balanced_by_steps() -> None:
    steps = [100, 50, 50, 25, 25, 25, 25, 20, 20, 20, 20, 20]
    cut = plan(range(12), steps, 4, 4)
    assert len(cut.jobs) == 4
    assert max(cut.costs) <= 150  # 100 + 50: the two largest clients may not be alone


def test_jobs_are_a_power_of_two() -> None:
    assert [pieces(c, 10, "auto") for c in (1, 3, 4, 10, 50, 64, 127, 128, 1000)] == [1, 1, 2, 4, 4, 8, 8, 16, 16]
    assert [pieces(c, 1, "auto") for c in (1, 3, 10, 1000)] == [1, 2, 8, 8]
    assert len(plan(range(10), [5] * 10, 8, 8).jobs) == 4
    assert len(plan(range(100), [5] * 100, 8, 8).jobs) == 8


@given(st.lists(st.floats(0.5, 10), min_size=1, max_size=30), st.integers(1, 7))
def test_shares_cover_the_jobs_and_balance_them(costs: list[float], workers: int) -> None:
    out = shares(costs, workers)
    assert sorted(j for share in out for j in share) == list(range(len(costs)))
    assert [j for share in out for j in share] == list(range(len(costs))), "workers get consecutive jobs"
    load = [sum(costs[j] for j in share) for share in out]
    assert max(load) <= sum(costs) / workers + max(costs) + 1e-9, "nobody gets more than a job beyond the fair share"
