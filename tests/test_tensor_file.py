"""Checkpoints are written and read a part at a time, with the bytes that safetensors itself would write."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.numpy import save_file as all_at_once

from fedsim.ground.streamed import PART_BYTES, Streamed
from fedsim.record.checkpoint import Checkpointing, Checkpoints
from fedsim.record.tensor_file import DTYPES, open_file, save_file
from fedsim.runs.store import CHUNK_BYTES, Store

META = {"fedsim": '{"a": "\\"quoted\\" \\u00e9\\n\\t\x01\x7f", "é": 1}'}


def arrays(rows: int) -> dict[str, Any]:
    """Every kind of number and shape, under names that have to be sorted and escaped."""
    random = np.random.default_rng(rows)
    return {
        f'{code}/{shape}"\\é': np.asarray(random.normal(size=shape) * 3).astype(kind)
        for code, kind in DTYPES.items()
        for shape in ((rows, 3), (rows,), (), (rows, 0))
    }


def streamed(array: np.ndarray) -> Streamed:
    return Streamed(array.dtype, array.shape, lambda start, stop: array[start:stop])


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # negative numbers, as unsigned ones
@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("lazy", [False, True])
def test_the_bytes_are_those_of_safetensors(rows: int, lazy: bool, tmp_path: Path) -> None:
    given = arrays(rows)
    all_at_once(given, tmp_path / "whole", META)
    cut = {name: streamed(array) if lazy and array.shape else array for name, array in given.items()}
    digest = save_file(cut, tmp_path / "parts", META)
    content = (tmp_path / "parts").read_bytes()
    assert load_file(tmp_path / "parts").keys() == given.keys()
    metadata, found = open_file(tmp_path / "parts")
    assert metadata == META
    for name, array in given.items():
        assert np.asarray(found[name]).tobytes() == array.tobytes()
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    assert digest == hashlib.sha256(content).hexdigest()
    assert content == (tmp_path / "whole").read_bytes()


def test_a_checkpoint_of_a_store_takes_a_part_of_it_in_memory(tmp_path: Path) -> None:
    """Twelve chunks: writing takes no chunk more, going on one store, not three."""
    width, store = 4096, Store((torch.zeros(4096), torch.tensor(7)))
    each = CHUNK_BYTES // (4 * width)
    for first in range(0, 12 * each, each):
        ids = range(first, first + each)
        store.write(ids, (np.full((each, width), first, np.float32), np.arange(first, first + each)))
        store.commit()
    checkpoints = Checkpoints(tmp_path, Checkpointing(seconds=0))
    tracemalloc.start()
    try:
        checkpoints.save(1, store.snapshot(), {})
        assert tracemalloc.get_traced_memory()[1] < 3 * PART_BYTES
        tracemalloc.reset_peak()
        found, fresh = checkpoints.newest(), Store((torch.zeros(width), torch.tensor(7)))
        assert found is not None
        fresh.restore(found.into(fresh.snapshot()))
        assert tracemalloc.get_traced_memory()[1] < store.nbytes + 5 * CHUNK_BYTES
    finally:
        tracemalloc.stop()
    some = range(each - 1, 9 * each, each)
    for one, other in zip(store.read(some), fresh.read(some), strict=True):
        np.testing.assert_array_equal(one, other)
    assert fresh.nbytes == store.nbytes
