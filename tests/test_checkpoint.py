"""A checkpoint holds every bit of a state, other programs can read it, and a damaged one is noticed."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedsim.errors import InputError, NotSaved
from fedsim.ground.tree import leaves
from fedsim.record.checkpoint import Checkpointing, Checkpoints
from fedsim.record.fingerprint import check_fingerprint, fingerprint
from fedsim.record.provenance import provenance
from fedsim.runs.store import Store
from fedsim.types import SavedRows

ALWAYS = Checkpointing(seconds=0)


class Server(NamedTuple):
    x: torch.Tensor
    parts: dict[str, torch.Tensor]
    nothing: tuple[()]


def state(fill: float = 0.0, rows: int = 0) -> dict[str, Any]:
    """Every kind of leaf there is; equal structure for every ``fill``."""
    random = np.random.default_rng(int(fill * 8))
    x = torch.from_numpy(random.normal(size=5).astype(np.float32)) * fill
    parts = {"body.0.weight": torch.full((2, 3), fill, dtype=torch.float64), "n": torch.tensor(int(fill))}
    kept = {"e": torch.full((rows, 4), -float(fill)), "seen": np.full(rows, fill > 1)}
    return {
        "server": Server(x, parts, ()),
        "clients": (SavedRows(np.arange(rows) * 10**12, kept), ()),
        "numbers": {"bytes": int(fill) + 2**70, "now": float(fill) / 3, "empty": torch.zeros(0)},
    }


def saved(folder: Path, *rounds: int, policy: Checkpointing = ALWAYS) -> Checkpoints:
    checkpoints = Checkpoints(folder, policy)
    for done in rounds:
        assert checkpoints.save(done, state(done, rows=done), {"round was": done})
    return checkpoints


def same(a: Any, b: Any) -> bool:
    def bits(leaf: Any) -> Any:
        array = np.asarray(leaf)
        return (array.dtype, array.shape, array.tobytes()) if hasattr(leaf, "dtype") else leaf

    return [bits(leaf) for leaf in leaves(a)] == [bits(leaf) for leaf in leaves(b)]


def test_every_bit_comes_back_in_the_structure_of_a_fresh_state(tmp_path: Path) -> None:
    found = saved(tmp_path, 3).newest()
    assert found is not None
    restored = found.into(state())
    assert (found.done, found.notes) == (3, {"round was": 3})
    assert same(restored, state(3, rows=3))
    assert isinstance(restored["server"], Server)
    assert isinstance(restored["server"].x, torch.Tensor)
    assert isinstance(restored["clients"][0].ids, np.ndarray)
    assert not same(restored, state(2, rows=3)), "the comparison can fail"


def test_the_file_is_safetensors_named_by_its_sha256_and_readable_as_others(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    (path,) = tmp_path.iterdir()
    assert path.name == f"round-00000003-{hashlib.sha256(path.read_bytes()).hexdigest()}.safetensors"
    found = load_file(path)
    np.testing.assert_array_equal(found["server/parts/body.0.weight"], np.full((2, 3), 3.0))
    np.testing.assert_array_equal(found["clients/0/ids"], [0, 10**12, 2 * 10**12])
    tmp_path.chmod(0o750)
    (path,) = saved(tmp_path, 3).files()
    assert path.stat().st_mode & 0o777 == 0o640, "whoever may read the folder may read the file"


@pytest.mark.parametrize("where", [0.0, 0.02, 0.5, 0.999])
def test_a_flipped_bit_anywhere_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, where: float, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    last = checkpoints.files()[0]
    content = bytearray(last.read_bytes())
    content[int(where * len(content))] ^= 4
    last.write_bytes(content)
    found = checkpoints.newest()
    assert found is not None
    assert same(found.into(state()), state(1, rows=1))
    (line,) = capsys.readouterr().err.splitlines()
    assert "damaged" in line
    assert last.name in line


@pytest.mark.parametrize("left", [0, 7, 200])
def test_a_truncated_one_is_noticed(tmp_path: Path, left: int, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    os.truncate(checkpoints.files()[0], left)
    found = checkpoints.newest()
    assert found is not None
    assert found.done == 1
    os.truncate(checkpoints.files()[1], left)
    assert checkpoints.newest() is None
    assert capsys.readouterr().err.count("damaged") == 3


def test_the_last_k_stay_and_a_damaged_later_one_does_not_count(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3, 9, policy=Checkpointing(seconds=0, keep=3))
    assert [path.name[6:14] for path in checkpoints.files()] == ["00000009", "00000003", "00000002"]
    os.truncate(checkpoints.files()[0], 5)
    again = saved(tmp_path, 4, 5)  # from round 3 on
    assert [path.name[6:14] for path in again.files()] == ["00000009", "00000005", "00000004"]


def test_what_a_killed_run_left_is_removed_by_the_next_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".round-00000003.76.tmp").write_bytes(b"half")
    (tmp_path / ".round-00000004.77.tmp").mkdir()
    (tmp_path / ".round-00000004.77.tmp/.tmpAbCdEf").write_bytes(b"half")
    assert saved(tmp_path, 5).files() == list(tmp_path.iterdir())


def test_rounds_between_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Checkpointing(every=3, seconds=0))
    saves = []
    for done in range(1, 11):
        if checkpoints.due(done):
            checkpoints.save(done, {}, {})
            saves.append(done)
    assert saves == [3, 6, 9]
    assert not Checkpoints(tmp_path, Checkpointing(seconds=1000)).due(10**6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"server": Server(torch.zeros(6), state()["server"].parts, ())}, "server/x as float32 [6], got float32 [5]"),
        ({"server": Server(torch.zeros(5).double(), state()["server"].parts, ())}, "server/x as float64"),
        ({"numbers": state()["numbers"] | {"more": torch.zeros(1)}}, "numbers/more as float32 [1], got none"),
        ({"numbers": state()["numbers"] | {"more": 1}}, "none of numbers/more"),
        ({"numbers": {}}, "got also numbers/bytes, numbers/empty, numbers/now"),
        ({"clients": (SavedRows(np.zeros(0, int), {"e": torch.zeros(0, 5)}), ())}, "clients/0/values/e as float32"),
    ],
)
def test_another_state_is_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    found = saved(tmp_path, 1).newest()
    assert found is not None
    with pytest.raises(InputError) as error:
        found.into(state() | change)
    assert words in str(error.value)


def test_two_leaves_of_one_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two leaves of a state are called a/b"):
        Checkpoints(tmp_path, ALWAYS).save(1, {"a": {"b": 1}, "a/b": 2}, {})


def test_the_last_one_that_fails_is_an_error_and_earlier_ones_say_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = saved(tmp_path, 1)

    def attempts(*rounds: int) -> list[str]:
        assert not any(checkpoints.save(done, state(), {}) for done in rounds)
        return capsys.readouterr().err.splitlines()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.record.checkpoint.save_file", broken)
        (line,) = attempts(2, 3)
        assert "no checkpoint after round 2, the one before it stays: [Errno 5] on purpose" in line
        with pytest.raises(NotSaved, match="no checkpoint after round 4"):
            checkpoints.save(4, state(), {}, last=True)
    saved(tmp_path, 5)
    assert checkpoints.save(6, state(), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.record.checkpoint.save_file", broken)
        (line,) = attempts(7, 8)  # said again, for one could be written in between
    assert "after round 7" in line
    assert sorted(path.name[:14] for path in tmp_path.iterdir()) == ["round-00000005", "round-00000006"]


def broken(*arguments: Any) -> None:
    raise OSError(errno.EIO, "on purpose")


def test_a_full_disk_costs_the_checkpoint_and_one_line(tmp_path: Path) -> None:
    """A limit on file sizes stands in for the full disk: both make ``write`` come back short."""
    script = """
        import resource, sys, torch
        import numpy as np
        from pathlib import Path
        from fedsim.record.checkpoint import Checkpointing, Checkpoints

        checkpoints = Checkpoints(Path(sys.argv[1]), Checkpointing(seconds=0))
        assert checkpoints.save(1, {"x": torch.ones(50_000)}, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        assert not checkpoints.save(2, {"x": torch.zeros(50_000)}, {})
        assert np.asarray(checkpoints.newest().arrays["x"]).sum() == 50_000
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert "no checkpoint after round 2, the one before it stays" in line
    assert len(list(tmp_path.iterdir())) == 1, "nothing half written stays"


def test_a_store_keeps_its_rows(tmp_path: Path) -> None:
    store, ids = Store((torch.zeros(3), torch.tensor(7))), [5, 900_000, 2]
    store.write(ids, (np.arange(9, dtype=np.float32).reshape(3, 3), np.array([1, 2, 3])))
    store.commit()
    store.write([5], (np.full((1, 3), 99, np.float32), np.array([99])))  # staged only: no part of the past
    checkpoints = Checkpoints(tmp_path, ALWAYS)
    checkpoints.save(1, store.snapshot(), {})
    found, fresh = checkpoints.newest(), Store((torch.zeros(3), torch.tensor(7)))
    assert found is not None
    fresh.restore(found.into(fresh.snapshot()))
    x, n = fresh.read([2, 5, 8, 900_000])
    np.testing.assert_array_equal(x, [[6, 7, 8], [0, 1, 2], [0, 0, 0], [3, 4, 5]])
    np.testing.assert_array_equal(n, [3, 1, 7, 2])
    assert len(fresh) == 3


CONFIG = {
    "seed": 1,
    "rounds": 5,
    "algorithm": {"_target_": "a.B", "betas": (0.9, 0.99)},
    "engine": {"backend": "ray", "actors": 2, "address": None, "retries": 2, "threads": 1, "dtype": "float32"},
    "checkpoint": {"every": 3},
}


def mark(config: dict[str, Any] | None = None, *, torch_version: str = "", **method: Any) -> dict[str, Any]:
    machine = provenance(engine={"kernel": "stacked", "block": 16, "why": "because"})
    made = fingerprint(config or CONFIG, machine, {"data": "ab", **method})
    if torch_version:
        made["rounding"]["torch"] = torch_version
    return made


def test_what_cannot_change_a_bit_may_change(capsys: pytest.CaptureFixture[str]) -> None:
    engine = CONFIG["engine"] | {"backend": "serial", "actors": 7, "address": "ray://x", "retries": 0}  # type: ignore[operator]
    other = CONFIG | {"rounds": 9, "engine": engine, "checkpoint": {"every": 1, "keep": 5}}
    check_fingerprint(mark(), mark(other), Path("run"))
    assert capsys.readouterr().err == ""


def test_what_changes_rounding_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    other = CONFIG | {"engine": CONFIG["engine"] | {"threads": 4}}  # type: ignore[operator]
    check_fingerprint(mark(torch_version="2.6.0"), mark(other), Path("run"))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"engine.threads was 1, is 4; torch was 2.6.0, is {torch.__version__}" in line


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (mark(CONFIG | {"seed": 2}), "seed was 1, is 2"),
        (mark(CONFIG | {"algorithm": {"_target_": "a.C", "betas": (0.9, 0.99)}}), "algorithm._target_ was a.B, is a.C"),
        (mark(CONFIG | {"algorithm": {"_target_": "a.B", "betas": (0.9, 0.9)}}), "was [0.9, 0.99], is [0.9, 0.9]"),
        (mark(CONFIG | {"engine": CONFIG["engine"] | {"dtype": "float64"}}), "engine.dtype was float32, is float64"),  # type: ignore[operator]
        (mark(CONFIG | {"local": {"steps": 3}}), "local.steps was None, is 3"),
        (mark(data="cd"), "data was ab, is cd"),
    ],
)
def test_another_run_is_refused_by_key(now: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        check_fingerprint(mark(), now, Path("run"))
    assert words in str(error.value)
    assert str(Path("run/config.yaml")) in str(error.value)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"seconds": -1.0}, {"keep": 1}])
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} must be >= "):
        Checkpointing(**wrong)
