"""The configuration: a few frozen dataclasses. Each field is one flag, one variable, one file key.

``max_running`` is ``--max-running``, ``LLM_GRPC_MAX_RUNNING`` and ``max_running:`` in the YAML file. A flag
beats the environment, which beats the file, which beats the default written here. A value out of its range
raises ``pydantic.ValidationError`` naming field, value and limit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from cyclopts import Parameter
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from llm_grpc.adapter_names import parse_adapters
from llm_grpc.devices import CPU, parse_devices
from llm_grpc.machine import parse_bytes

EMBEDDED_MODEL = Path(__file__).parent / "embedded"
"""The model directory that ships with the package, for CPUs."""

EMBEDDED_PAGED_MODEL = EMBEDDED_MODEL.with_name("embedded_paged")
"""The same model for GPUs: in fp16, of lowering ``paged``."""

MAX_TEMPERATURE = 2.0
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 256
MAX_SALT_BYTES = 256
MAX_NAME_CHARACTERS = 200
MAX_REQUEST_ID_BYTES = 128
MAX_PRIORITY = 100

MAX_PENALTY = 2.0
"""Of presence and frequency, both ways."""

MAX_REPETITION_PENALTY = 10.0
MAX_LOGIT_BIAS = 100.0
MAX_SEQUENCES = 16
MAX_TOP_LOGPROBS = 20
MAX_TOKEN_LIST = 1024
MAX_CONSTRAINT_BYTES = 65_536
MAX_BATCH_ITEMS = 256


def _bytes(value: object) -> object:
    try:
        return parse_bytes(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("should be a size such as 8GiB or 500MB") from None


Size = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
"""A number of bytes, or a text such as 8GiB."""


Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY, allow_inf_nan=False)]
"""Of what was said before; the penalty is subtracted from logits."""


def _name(text: str) -> str:
    if not text.isprintable() or len(text) > MAX_NAME_CHARACTERS:
        raise ValueError(f"should be at most {MAX_NAME_CHARACTERS} printable characters")
    return text


def _adapters(text: str) -> str:
    parse_adapters(text)
    return text


def _devices(text: str) -> str:
    parse_devices(text)
    return text


@Parameter(name="*")
@dataclass(frozen=True)
class ModelConfig:
    """What is served, and what a request gets where it asks for nothing."""

    model: Path = EMBEDDED_MODEL
    """Model directory, as written by `llm-grpc export`; the embedded one is there for CPUs and for GPUs."""

    model_name: Annotated[str, AfterValidator(_name)] = ""
    """Name that requests use; empty means the name in the model's manifest."""

    verify_digest: bool = False
    """Read every file of the model at start and refuse one whose SHA-256 is not the manifest's."""

    constraints: bool = True
    """Take constraints; a model of 128,000 tokens starts 0.5 s sooner and 86 MiB smaller without them."""

    adapters: Annotated[str, AfterValidator(_adapters)] = ""
    """Adapters to load at start, NAME=DIRECTORY and commas between them; the file may hold a mapping."""

    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Tokens to generate where a request's max_tokens is 0."""

    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False)] = 0.0
    """Temperature where a request sets none; 0 is greedy."""

    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """Nucleus where a request sets none; 1 keeps all tokens."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Most likely tokens kept where a request sets none; 0 keeps all."""

    frequency_penalty: Penalty = 0.0
    """Penalty for each time that a token was said where a request sets none; 0 changes nothing."""

    presence_penalty: Penalty = 0.0
    """Penalty for each token that was said where a request sets none; 0 changes nothing."""

    def on(self, device: str) -> ModelConfig:
        """The same, but for the embedded model where ``device`` names GPUs alone: that has one for them."""
        devices = parse_devices(device)
        if self.model != EMBEDDED_MODEL or devices is None or CPU in devices:
            return self
        return replace(self, model=EMBEDDED_PAGED_MODEL)


@Parameter(name="*")
@dataclass(frozen=True)
class EngineConfig:
    """Where it computes, and how much runs at once."""

    device: Annotated[str, AfterValidator(_devices)] = "auto"
    """cpu, cuda, cuda:N or one a stage (cuda:0,cuda:1); auto is a GPU for lowering paged, else the CPU."""

    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.9
    """Part of a GPU's memory that is free at the start for weights, keys and values together."""

    max_running: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests that decode together; each owns a slot of the key-value cache."""

    max_waiting: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    """Admitted requests that wait for a slot; one more is refused with RESOURCE_EXHAUSTED."""

    priority_ageing_s: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] = 5.0
    """Seconds of waiting for a slot that count as one level of a request's priority."""

    max_context_tokens: Annotated[int, Field(ge=0)] = 0
    """Longest prompt and text together; 0 means the model's own limit."""

    kv_cache_memory: Size = 0
    """Memory for keys and values, such as 8GiB; 0 means 80 % of what is available beside the loaded model."""

    chunk_tokens: Annotated[int, Field(ge=1, le=8192)] = 256
    """Most prompt tokens that one step prefills."""

    mixed_chunk_tokens: Annotated[int, Field(ge=0, le=8192)] = 0
    """The same beside decoding requests; 0 means what makes a step 3 times as long, measured at start."""

    prompt_lookup: bool = True
    """Let a step check guesses at a lone request's next tokens where it said or was told the like before."""

    prefix_reuse: bool = True
    """Keep what finished requests computed, and compute no prompt's beginning twice."""

    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads of ONNX Runtime; 0 means one for each CPU that affinity and cgroup quota leave this process."""


class ModelSettings(NamedTuple):
    """One model of a server, and how it is run."""

    model: ModelConfig
    engine: EngineConfig


@Parameter(name="*")
@dataclass(frozen=True)
class ServerConfig:
    """Where and how the server listens, which model is the default, and how it stops."""

    address: str = "0.0.0.0:50051"
    """Address of the data plane, HOST:PORT; port 0 picks a free one."""

    host: str = ""
    """The host of that address, said by itself; empty means the one of address."""

    port: Annotated[int | None, Field(ge=0, le=65535)] = None
    """The port of that address, said by itself; empty means the one of address."""

    max_workers: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Calls of the data plane at once, of all models; 0 means what max_running and max_waiting admit."""

    default_model: str = ""
    """Name of the model that requests without a name get; empty means the first."""

    metrics_address: str = "0.0.0.0:9464"
    """Address of the Prometheus endpoint /metrics, HOST:PORT; empty turns it off."""

    admin_address: str = "127.0.0.1:50052"
    """Address of AdminService, HOST:PORT; empty turns it off."""

    max_message_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 4 * 1024 * 1024
    """Largest request message; gRPC's own default."""

    stream_interval_ms: Annotated[int, Field(ge=0, le=60_000)] = 0
    """Least milliseconds between two messages of a stream; the first and the last never wait."""

    dedupe_window_s: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = 60.0
    """Seconds after its end that an answer is given again to who asks again; 0 turns joining off, too."""

    dedupe_memory: Size = 64 * 2**20
    """Most memory for those answers, such as 64MiB; the oldest go first."""

    max_priority: Annotated[int, Field(ge=0, le=MAX_PRIORITY)] = 0
    """Highest priority that a request is queued with; by 0 requests may stand back, but not push forward."""

    drain_window_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 5.0
    """Seconds after SIGTERM during which health says NOT_SERVING and calls are still accepted."""

    drain_limit_s: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = 30.0
    """Seconds after the window that running calls get to finish."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of the lines that are logged."""

    @property
    def data_address(self) -> str:
        """Where the data plane listens: ``address`` with ``host`` and ``port``, where they are said."""
        host, colon, port = self.address.rpartition(":")
        if self.host:
            host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return f"{host}{colon}{port if self.port is None else self.port}"


BLOCKS: dict[str, type[ModelConfig | EngineConfig | ServerConfig]] = {
    "model_config": ModelConfig,
    "engine_config": EngineConfig,
    "server_config": ServerConfig,
}
"""Keys of the file that group others, and whose fields they group."""
