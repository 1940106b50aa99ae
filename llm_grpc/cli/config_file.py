"""The YAML file of `llm-grpc serve`: the fields of the configuration, flat or in blocks."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection, CycloptsError, Token

BLOCKS = ("model_config", "engine_config", "server_config")
"""Keys that only group others, as the blocks of a ConfigMap do."""

MAPPINGS = ("adapters",)
"""Keys whose value may be a mapping of one-line values; as flags they are NAME=VALUE,…"""


def config_file(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the arguments that neither flag nor variable set what the file named by `--config` says.

    Raises:
        CycloptsError: the file cannot be read or is not a mapping; a key is unknown, set twice, or no scalar.
    """
    config = arguments.get("--config", None)
    if config is None or not config.tokens:
        return
    path = config.tokens[0].value
    flags = {a.name: a for a in arguments if a.name.startswith("--") and a is not config}
    fields = {name.removeprefix("--").replace("-", "_"): a for name, a in flags.items()}
    seen: set[str] = set()
    for key, value in _entries(_load(Path(path)), path):
        if key in seen:
            raise CycloptsError(msg=f"{path}: {key} is set twice")
        seen.add(key)
        if key not in fields:
            raise CycloptsError(msg=f"{path}: unknown key {key}{_suggestion(key, fields)}")
        if key in MAPPINGS and isinstance(value, dict):
            value = ",".join(f"{name}={entry}" for name, entry in value.items())  # noqa: PLW2901 - as a flag
        if not isinstance(value, str | int | float):
            raise CycloptsError(msg=f"{path}: {key} must be one value, not {_kind(value)}")
        if not fields[key].tokens:
            fields[key].append(Token(keyword=key, value=str(value), source=path))


def _load(path: Path) -> Any:
    import yaml  # noqa: PLC0415 - most starts read no file

    try:
        return yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise CycloptsError(msg=f"cannot read the configuration file {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise CycloptsError(msg=f"{path} is not valid YAML: {error.problem}{where}") from error
    except yaml.YAMLError as error:
        raise CycloptsError(msg=f"{path} is not valid YAML: {error}") from error


def _entries(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a mapping, those of its blocks in their place. An empty file has none."""
    if not isinstance(data, dict | None):
        raise CycloptsError(msg=f"{path} must hold `key: value` lines, not {_kind(data)}")
    for key, value in (data or {}).items():
        if key in BLOCKS and isinstance(value, dict | None):
            yield from (value or {}).items()
        else:
            yield str(key), value


def _suggestion(key: str, fields: dict[str, Any]) -> str:
    near = difflib.get_close_matches(key, fields, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", type(None): "empty"}
    return names.get(type(value), f"the single value {value!r}")
