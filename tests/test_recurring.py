"""Recordings: the operations of a function and nothing else, and never in its place where they are not the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.ground.opaque import at_once
from fedsim.ground.recorded import Unrecordable, recorded
from fedsim.kernels.replaying import FIRST, Replays
from fedsim.pool.recurring import RoundReplay
from fedsim.types import Round


def gradient(row: dict[str, Tensor], scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Under vmap, with autograd inside: the gradient of a sum of squares by hand and by torch."""
    x = row["x"]
    g, value = torch.func.grad_and_value(lambda x: (x * scale).square().sum())(x)
    return value, {"g": g, "x": x}


def rows(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(5, 3, generator=draw)}, torch.randn(5, 3, generator=draw)


def test_at_once_is_vmap_for_trees() -> None:
    one, other = at_once(gradient, *rows(0)), torch.func.vmap(gradient)(*rows(0))
    assert torch.equal(one[0], other[0])
    assert list(one[1]) == ["g", "x"]
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    with pytest.raises(TypeError, match="must be tensors, got float"):
        at_once(lambda x: 1.0, torch.zeros(2))
    assert torch.equal(at_once(lambda x: torch.ones(3), torch.zeros(2)), torch.ones(2, 3)), "the same for all of them"


def test_a_recording_does_the_same_with_other_tensors() -> None:
    out, again = recorded(lambda *trees: at_once(gradient, *trees), *rows(0))
    for seed in (0, 1):
        want, got = at_once(gradient, *rows(seed)), again(*rows(seed))
        assert torch.equal(want[0], got[0])
        assert torch.equal(want[1]["g"], got[1]["g"])
    assert torch.equal(out[0], at_once(gradient, *rows(0))[0])


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "looks at a number": lambda x: x * float(x.sum()),
    "draws": lambda x: x + torch.rand(3),
    "gives back a constant": lambda x: (x, torch.tensor(1.0)),
    "is long": lambda x: sum((x + k for k in range(600)), x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_only_operations_is_refused(name: str) -> None:
    with pytest.raises(Unrecordable):
        recorded(REFUSED[name], torch.ones(3))


CHANGING: dict[str, Callable[[Round, Tensor], Tensor]] = {
    "asks for the round": lambda rnd, x: x * rnd.index,
    "looks past torch": lambda rnd, x: x * float(x.numpy().sum()),
    "writes into a constant": lambda rnd, x: x + HELD.add_(1),
}
HELD = torch.zeros(3)


@pytest.mark.parametrize("name", CHANGING)
def test_what_changes_from_round_to_round_is_computed_each_time(name: str) -> None:
    replay = RoundReplay()
    HELD.zero_()
    computed = 0
    for index in range(FIRST + 4):
        rnd, x = Round(index, (0,), 1), torch.full((3,), float(index))

        def function(rnd: Round, x: Tensor) -> Tensor:
            nonlocal computed
            computed += 1
            return CHANGING[name](rnd, x)

        before = HELD.clone()
        got = replay(function, rnd, x)
        if name != "writes into a constant":
            assert torch.equal(got, CHANGING[name](rnd, x))
        HELD.copy_(before + 1)
    assert computed == FIRST + 4


def test_what_does_not_change_is_computed_a_few_times() -> None:
    replay = RoundReplay()
    computed = 0

    def function(rnd: Round, x: Tensor) -> Tensor:
        nonlocal computed
        computed += 1
        return 2 * x + 1

    for index in range(FIRST + 4):
        x = torch.full((3,), float(index))
        assert torch.equal(replay(function, Round(index, (0,), 1), x), 2 * x + 1)
    assert computed == FIRST + 1, "the recording, and the one that it is compared with"


def test_a_module_s_own_parameters_are_refused() -> None:
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(Unrecordable, match="trained"):
        recorded(lambda x: layer(x).detach(), torch.ones(1, 3))


def test_recordings_that_were_not_used_for_longest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.kernels.replaying.KEPT", 2)
    replays = Replays()
    first = replays.of("a", RoundReplay)
    replays.of("b", RoundReplay)
    assert replays.of("a", RoundReplay) is first
    replays.of("c", RoundReplay)
    assert list(replays) == ["a", "c"]
