# ruff: noqa: INP001 - a script, not a package
"""Writes configuration.md from llm_grpc/config.py: `python docs/generate_configuration.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args, get_origin

from cyclopts import App, Argument

from llm_grpc.cli.serve import serve
from llm_grpc.config import BLOCKS, EMBEDDED_MODEL

TARGET = Path(__file__).with_name("configuration.md")

HEAD = """\
# Configuration of `llm-grpc serve`

<!-- Written by docs/generate_configuration.py from llm_grpc/config.py: change it there. -->

Each setting is one flag, one environment variable and one key of one YAML file. A flag beats the variable,
which beats the file, which beats the default. `--config FILE` or `LLM_GRPC_CONFIG` names the file; its keys
stand flat or in the blocks `model_config`, `engine_config` and `server_config`, as a ConfigMap writes them:

```yaml
max_running: 32
server_config:
  address: 0.0.0.0:50051
```

The table says which block a key may stand in. A list `models` makes it a server of several models; how, and a
whole ConfigMap, are in [serving.md](serving.md).

`host` and `port` are the parts of `address`, for who has them apart. One source says the address or its
parts, not both; of two sources the one that beats the other decides each part.

A value out of its range, a key that is unknown, set twice or in another block, and a file that is no mapping
stop the start with one line and exit code 2. Other variables that begin with `LLM_GRPC_` are left alone:
Kubernetes sets some for a Service named llm-grpc. `LLM_GRPC_PORT` is one of them, tcp://10.0.0.7:50051 for
instance, and is left alone where it looks like that.

The other commands read `LLM_GRPC_<COMMAND>_<FLAG>`, for instance `LLM_GRPC_HEALTH_TIMEOUT_S`, for in a
server's container `LLM_GRPC_MODEL` speaks of the server. Their `--address` falls back to `LLM_GRPC_ADDRESS`,
where 0.0.0.0 and [::] mean loopback.

| Key | Block | Flag | Variable | Default | Range | Meaning |
|---|---|---|---|---|---|---|
"""

SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def document() -> str:
    """Return the page."""
    app = App()
    app.default(serve)
    arguments = app.assemble_argument_collection(parse_docstring=True)
    return HEAD + "".join(_row(a) for a in arguments if not a.children and a.name != "--config")


def _row(argument: Argument) -> str:
    key = argument.name.removeprefix("--").replace("-", "_")
    default = "the embedded model" if argument.field_info.default == EMBEDDED_MODEL else _code(argument)
    cells = (
        f"`{key}`",
        f"`{_block(key)}`",
        f"`{argument.name}`",
        f"`LLM_GRPC_{key.upper()}`",
        default,
        _range(argument),
        argument.parameter.help or "",
    )
    return f"| {' | '.join(cells)} |\n"


def _block(key: str) -> str:
    return next(block for block, group in BLOCKS.items() if key in group.__dataclass_fields__)


def _code(argument: Argument) -> str:
    value = argument.field_info.default
    return "empty" if value in ("", None) else f"`{value}`"


def _range(argument: Argument) -> str:
    annotation = argument.field_info.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    limits = [limit for field in get_args(annotation)[1:] for limit in getattr(field, "metadata", ())]
    return ", ".join(
        f"{sign} {getattr(limit, name)}"
        for limit in limits
        for name, sign in SIGNS.items()
        if hasattr(limit, name)
    )


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
