"""Who takes part: one line each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OURS = "ours"


@dataclass(frozen=True)
class Format:
    """Bytes to read for a weight of the layers, a weight of the output projection, a value of the cache."""

    body: float
    head: float
    cache: float


@dataclass(frozen=True)
class Contestant:
    """A script, the environment that it runs in, the format that it gets the model in."""

    name: str
    script: str
    environment: str
    """Folder with the requirements; ``ours`` is the interpreter of this process."""
    convert: str
    """Folder of convert.py and the format it is asked for, ``FOLDER:FORMAT``; empty for the checkpoint."""
    format: Format
    note: str

    @property
    def path(self) -> Path:
        """Its script."""
        return HERE / self.script


_CONTINUOUS = "continuous batching"
_STATIC = "static batches of 16 in order of arrival, each until its longest request is done"
_FLOAT_SCALE_4 = 0.5 + 4 / 32
"""Four bits and a float32 scale for 32 weights."""
_FLOAT_SCALE_4_128 = 0.5 + 4.5 / 128
"""For 128 weights, with a zero point."""

_GRPC = f"{_CONTINUOUS}, through gRPC in another process"
_HTTP = f"{_CONTINUOUS}, through HTTP in another process"
_NATIVE = f"{_HTTP}; built for this machine, its weights not repacked, which crashes with AMX"
_OURS_8, _OURS_4 = Format(1, 1, 4), Format(_FLOAT_SCALE_4, _FLOAT_SCALE_4, 4)
_GGUF_8, _GGUF_4 = Format(34 / 32, 34 / 32, 2), Format(18 / 32, 34 / 32, 2)
_BF16 = Format(2, 2, 2)

CONTESTANTS = (
    Contestant("llm-grpc int8", "ours/grpc_server.py", OURS, "ours:int8", _OURS_8, _GRPC),
    Contestant(
        "llm-grpc int8, int8 cache", "ours/grpc_server.py", OURS, "ours:int8-kv8", Format(1, 1, 1), _GRPC
    ),
    Contestant("llm-grpc int4", "ours/grpc_server.py", OURS, "ours:int4", _OURS_4, _GRPC),
    Contestant(
        "llm-grpc int4, blocks of 128",
        "ours/grpc_server.py",
        OURS,
        "ours:int4-b128",
        Format(_FLOAT_SCALE_4_128, _FLOAT_SCALE_4_128, 4),
        _GRPC,
    ),
    Contestant(
        "llm-grpc engine only, int8",
        "ours/engine.py",
        OURS,
        "ours:int8",
        _OURS_8,
        f"{_CONTINUOUS}; scheduler and runner in one process, without gRPC and text",
    ),
    Contestant(
        "onnxruntime-genai int4",
        "genai/contestant.py",
        "genai",
        "genai:int4",
        _OURS_4,
        f"{_STATIC}; its continuous batching is for CUDA",
    ),
    Contestant(
        "openvino-genai int8",
        "openvino/contestant.py",
        "openvino",
        "openvino:int8",
        Format(1, 1, 1),
        _CONTINUOUS,
    ),
    Contestant(
        "openvino-genai int4",
        "openvino/contestant.py",
        "openvino",
        "openvino:int4",
        Format(0.5 + 2.5 / 128, 1, 1),
        _CONTINUOUS,
    ),
    Contestant(
        "llama.cpp wheel q8_0",
        "llamacpp/contestant.py",
        "llamacpp",
        "llamacpp:q8_0",
        _GGUF_8,
        f"{_HTTP}; AVX2",
    ),
    Contestant(
        "llama.cpp wheel q4_0",
        "llamacpp/contestant.py",
        "llamacpp",
        "llamacpp:q4_0",
        _GGUF_4,
        f"{_HTTP}; AVX2",
    ),
    Contestant(
        "llama.cpp native q8_0",
        "llamacpp/contestant.py",
        "llamacpp_native",
        "llamacpp:q8_0",
        _GGUF_8,
        _NATIVE,
    ),
    Contestant(
        "llama.cpp native q4_0",
        "llamacpp/contestant.py",
        "llamacpp_native",
        "llamacpp:q4_0",
        _GGUF_4,
        _NATIVE,
    ),
    Contestant("transformers generate bf16", "transformers/generate.py", "transformers", "", _BF16, _STATIC),
    Contestant(
        "transformers continuous bf16", "transformers/continuous.py", "transformers", "", _BF16, _CONTINUOUS
    ),
    Contestant("optimum int8", "optimum/contestant.py", "optimum", "optimum:int8", Format(1, 1, 4), _STATIC),
    Contestant(
        "MLServer optimum int8",
        "mlserver/contestant.py",
        "mlserver",
        "optimum:int8",
        Format(1, 1, 4),
        f"{_STATIC}; through HTTP; all tokens of a batch come when its call returns",
    ),
)


def chosen(patterns: str) -> list[Contestant]:
    """Those whose names hold one of the patterns, separated by commas; all of them for an empty string.

    Raises:
        ValueError: a pattern is in no name.
    """
    wanted = [pattern.strip().lower() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(pattern in contestant.name.lower() for contestant in CONTESTANTS):
            names = ", ".join(contestant.name for contestant in CONTESTANTS)
            raise ValueError(f"no contestant is called {pattern!r}; there are {names}")
    return [c for c in CONTESTANTS if not wanted or any(pattern in c.name.lower() for pattern in wanted)]
