"""The devices that a model runs on, as configuration words them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_WORDING = re.compile(r"cpu|cuda(?::(\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class Device:
    """The processor, or the NVIDIA GPU of an ``index`` from 0 on."""

    kind: Literal["cpu", "cuda"] = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


CPU = Device()


def parse_devices(text: str) -> tuple[Device, ...] | None:
    """``cpu``, ``cuda``, ``cuda:1`` or several of them, comma separated, in order; None for ``auto``.

    Raises:
        ValueError: another wording, or a GPU twice.
    """
    if text == "auto":
        return None
    devices = tuple(map(_parse, text.split(",")))
    gpus = [device for device in devices if device.kind == "cuda"]
    if len(gpus) != len(set(gpus)):
        raise ValueError(f"{text} names a GPU twice")
    return devices


def _parse(text: str) -> Device:
    found = _WORDING.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no device: say auto, cpu, cuda or cuda:N")
    return CPU if text.strip() == "cpu" else Device("cuda", int(found[1] or 0))
