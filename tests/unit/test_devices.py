"""How devices are worded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.devices import CPU, Device, parse_devices


@given(st.lists(st.integers(0, 999), min_size=1, max_size=4, unique=True))
def test_what_devices_print_is_read_again(indices: list[int]) -> None:
    """Their text names them."""
    devices = tuple(Device("cuda", index) for index in indices)
    assert parse_devices(",".join(map(str, devices))) == devices


def test_shorthands() -> None:
    """auto is settled later; the first GPU needs no number; stages may be on the processor alone."""
    assert parse_devices("auto") is None
    assert parse_devices("cuda") == (Device("cuda", 0),)
    assert parse_devices("cpu,cpu") == (CPU, CPU)


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:-1", "cuda:1000", "cpu,", "auto,cpu", "cpu:1"])
def test_other_wordings_are_refused(text: str) -> None:
    """The message says what was read and what can be said."""
    with pytest.raises(ValueError, match="is no device: say auto, cpu, cuda or cuda:N"):
        parse_devices(text)


def test_a_gpu_twice_is_refused() -> None:
    """Two stages on one GPU are one stage."""
    with pytest.raises(ValueError, match="cuda,cuda:0 names a GPU twice"):
        parse_devices("cuda,cuda:0")
