"""What the driver says, and which of its GPUs a process may use."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc.errors import StartupError
from llm_grpc.runtime.gpus import Gpu, Version, find_driver, visible
from tests.unit.fake_nvml import H200, L4, T4, FakeNvml


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def test_the_driver_and_its_gpus() -> None:
    nvml = FakeNvml([H200, T4], version="575.57.08", cuda=12090)
    found = find_driver(nvml)
    assert (found.version, found.cuda, found.gpus) == ("575.57.08", Version(12, 9), (H200, T4))
    assert not nvml.is_open


def test_only_what_the_environment_leaves_is_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert find_driver(FakeNvml([H200, T4])).gpus == (T4,)


@pytest.mark.parametrize("fault", ["NVML Shared Library Not Found", "Driver Not Loaded"])
def test_without_a_driver(fault: str) -> None:
    with pytest.raises(StartupError, match=rf"no NVIDIA driver answers \({fault}\): install driver 580"):
        find_driver(FakeNvml(fault=fault))


def test_without_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(
        StartupError, match=r"nvidia-ml-py.* is not installed: pip install 'llm-grpc\[cuda\]'"
    ):
        find_driver()


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (None, (H200, T4, L4)),
        ("", ()),
        ("-1", ()),
        ("2,0", (L4, H200)),
        (" 1 , 2 ", (T4, L4)),
        ("GPU-3333,GPU-1", (L4, H200)),
        ("GPU-", ()),  # three begin so
        ("0,7,1", (H200,)),
        ("0,0", (H200,)),
        ("NoDevFiles", ()),
    ],
)
def test_the_choice_of_the_environment(chosen: str | None, left: tuple[Gpu, ...]) -> None:
    assert visible((H200, T4, L4), chosen) == left


@given(st.permutations(range(3)), st.integers(0, 3))
def test_numbers_choose_in_their_order(order: list[int], count: int) -> None:
    gpus = (H200, T4, L4)
    assert visible(gpus, ",".join(map(str, order[:count]))) == tuple(gpus[index] for index in order[:count])
