"""The pool costs what is touched, and gives back what is released and nothing else."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llm_grpc.errors import StartupError
from llm_grpc.manifest import KvCache
from llm_grpc.runtime.slot_pool import SlotPool

MIB = 2**20
SLOTS = 3

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident_bytes() -> int:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def contents(pool: SlotPool) -> list[NDArray[np.generic]]:
    return [view for _, _, view in pool.views(0, SLOTS + 1)]


def fill(pool: SlotPool) -> None:
    for index, view in enumerate(contents(pool)):
        view[...] = (np.arange(view.size) % 120 + 1 + index).reshape(view.shape)


@linux
def test_memory_is_what_is_touched_and_comes_back() -> None:
    """Half a gibibyte is reserved; 64 MiB of it are touched, released in two parts, and touched again."""
    gc.collect()
    shape = KvCache(num_layers=2, num_heads=4, head_dim=64, dtype="float32")
    pool, before = SlotPool(shape, 1, capacity=2**16), resident_bytes()
    touched = 64 * MIB // shape.token_bytes
    values = np.ones((1, 4, touched, 64), np.float32)

    def touch() -> None:
        for _, _, view in pool.views(0, 1):
            view[:, :, :touched] = values

    before = resident_bytes()
    touch()
    full = resident_bytes() - before
    assert 63 * MIB < full < 96 * MIB
    pool.release(0, touched // 4)
    quarter = resident_bytes() - before
    assert quarter < full / 2
    assert all((view[:, :, : touched // 4] == 1).all() for _, _, view in pool.views(0, 1))
    pool.release(0, 0)
    assert resident_bytes() - before < 8 * MIB
    touch()
    assert resident_bytes() - before > 63 * MIB


@linux
def test_one_token_of_a_long_slot_costs_no_more_than_its_pages() -> None:
    """Not 2 MiB for each head and layer, which is what a huge page would take."""
    shape = KvCache(num_layers=4, num_heads=8, head_dim=64, dtype="float32")
    pool = SlotPool(shape, 1, capacity=2**14)
    before = resident_bytes()
    for _, _, view in pool.views(0, 1):
        view[:, :, 0] = 1
    assert resident_bytes() - before < 8 * MIB


@settings(max_examples=60, deadline=None)
@given(
    num_heads=st.integers(1, 3),
    head_dim=st.integers(1, 70),
    capacity=st.integers(1, 150),
    dtype=st.sampled_from(["float32", "int8"]),
    slot=st.integers(0, SLOTS),
    data=st.data(),
)
def test_neighbours_keep_theirs(
    num_heads: int, head_dim: int, capacity: int, dtype: str, slot: int, data: st.DataObject
) -> None:
    """Whatever the sizes: pages hold the end of one head and the beginning of the next one."""
    cache = {"num_layers": 2, "num_heads": num_heads, "head_dim": head_dim, "dtype": dtype}
    pool = SlotPool(KvCache.model_validate(cache), SLOTS, capacity)
    fill(pool)
    num_kept = data.draw(st.integers(0, capacity))
    before = [view.copy() for view in contents(pool)]
    pool.release(slot, num_kept)
    for old, new in zip(before, contents(pool), strict=True):
        released = new[slot, :, num_kept:]
        assert ((released == 0) | (released == old[slot, :, num_kept:])).all()
        new[slot, :, num_kept:] = old[slot, :, num_kept:]
        assert np.array_equal(old, new)


@linux
@pytest.mark.parametrize("num_kept", [0, 10])
def test_whole_pages_are_zero_again(num_kept: int) -> None:
    pool = SlotPool(KvCache(num_layers=1, num_heads=2, head_dim=7, dtype="float32"), SLOTS, 4099)
    fill(pool)
    pool.release(1, num_kept)
    for view in contents(pool):
        zeros = (view[1, :, num_kept:] == 0).mean()
        assert 0.9 < zeros <= 1


def test_more_than_an_address_space() -> None:
    shape = KvCache(num_layers=1, num_heads=2**20, head_dim=2**20, dtype="float32")
    for num_slots in (1, 2**10, 2**31):
        with pytest.raises(StartupError, match="cannot reserve the cache of"):
            SlotPool(shape, num_slots, 2**20)
